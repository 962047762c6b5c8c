"""Options that commands share, and how their text is read: one word means the same everywhere."""

import os
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmattn.errors import InputError

DEFAULT_MODEL = "mmattn:dinov2-small"

_QUERY_FORMS = (
    "A query is cls, mean, a token number, a point x,y or a box x0,y0,x1,y1 in pixels of the picture. "
    "Try --query 120,80."
)


class Device(StrEnum):
    """Where a model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Method(StrEnum):
    """How maps are read."""

    look = "look"
    rollout = "rollout"
    chefer = "chefer"
    grad_rollout = "grad_rollout"
    attention_x_gradient = "attention_x_gradient"

    @property
    def has_target(self) -> bool:
        """Whether it reads toward a class."""
        return self not in (Method.look, Method.rollout)

    @property
    def reads_one_layer(self) -> bool:
        """Whether `--layer` means something to it."""
        return self in (Method.look, Method.attention_x_gradient)


# What `mmattn image` draws by default: what pointed best in benchmarks/pointing.py, where a model has class logits and
# where it has none.
TARGETED, UNTARGETED = Method.chefer, Method.look


class Format(StrEnum):
    """What is written into a folder."""

    png = "png"
    jpg = "jpg"
    webp = "webp"
    svg = "svg"
    pdf = "pdf"
    html = "html"


Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="mmattn:NAME, timm:NAME, timm:NAME@FILE; see `mmattn models`."),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Also write the numbers as JSON; - prints them and nothing else."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where the model runs; auto takes an accelerator.")]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of each picture.

    Parameters
    ----------
    method
        `look`: one layer as it is; `rollout`: through all layers; the others toward a target. None: what the other
        options mean, and where they say nothing, what suits the model; see `settled`.
    target
        A class by index or name, for the methods that read toward one; None: the top class.
    stream, layer, head, query
        As for `mmattn.look`, `mmattn.rollout` and `mmattn.relevance`; None for their defaults. With rollout, `head`
        says how heads are fused.
    size_px, keep_aspect
        How the picture reaches the model; None and False: as the model was trained.
    head_grid
        Every layer and head in one sheet instead of one overlay.
    smooth
        Interpolated, or one flat box a patch.

    """

    method: Method | None = None
    target: int | str | None = None
    stream: str | None = None
    layer: int | str | None = None
    head: int | str | None = None
    query: str | int | tuple[float, ...] | None = None
    size_px: int | None = None
    keep_aspect: bool = False
    head_grid: bool = False
    smooth: bool = True

    def __post_init__(self) -> None:
        method = self.implied
        if method is None:
            return
        if not method.reads_one_layer and self.layer is not None:
            raise InputError(
                f"--layer {self.layer} and --method {method} do not go together: it passes all layers. "
                "One layer is what --method look shows. Leave one of the two out."
            )
        if self.target is not None and not method.has_target:
            raise InputError(
                f"--target {self.target} and --method {method} do not go together: attention alone knows no "
                "target. Pass --method chefer (or grad_rollout, attention_x_gradient), or leave --target out."
            )
        if self.head is not None and method.has_target:
            raise InputError(
                f"--head {self.head} and --method {method} do not go together: each head counts by its own "
                "gradient. Leave --head out, or pass --method look."
            )
        if method == Method.rollout and isinstance(self.head, int):
            raise InputError(
                f"--head {self.head} and --method rollout do not go together: a rollout fuses heads by mean, max or "
                "min. Pass --head max, or --method look for a single head."
            )
        if self.head_grid and (method != Method.look or self.head is not None):
            given = f"--method {method}" if method != Method.look else f"--head {self.head}"
            raise InputError(
                f"--head-grid and {given} do not go together: the grid shows every head as it is. "
                "Leave one of the two out."
            )

    @property
    def implied(self) -> Method | None:
        """The method that was asked for, or that the other options mean: a class, a target; a place, raw attention."""
        if self.method is not None:
            return self.method
        if self.target is not None:
            return TARGETED
        return Method.look if self.head_grid or not (self.layer is self.head is self.query is None) else None

    def settled(self, *, classifies: bool) -> "Asked":
        """Return the same with a method, for a model that gives class logits or one that does not.

        Examples
        --------
        >>> Asked().settled(classifies=True).method, Asked(query="cls").settled(classifies=True).method
        (<Method.chefer: 'chefer'>, <Method.look: 'look'>)

        """
        return replace(self, method=self.implied or (TARGETED if classifies else UNTARGETED))


def number_or_name(text: str | None) -> int | str | None:
    """Return an integer where the text is one, else the text.

    Examples
    --------
    >>> number_or_name("-1"), number_or_name("blocks.3.attn")
    (-1, 'blocks.3.attn')

    """
    return int(text) if text is not None and re.fullmatch(r"[+-]?\d{1,9}", text.strip()) else text


def read_query(text: str | None) -> str | int | tuple[float, ...] | None:
    """Return who asks: a role, a token, a point or a box.

    Raises
    ------
    InputError
        For numbers that are neither a point nor a box.

    Examples
    --------
    >>> read_query("120, 80"), read_query("7"), read_query("cls")
    ((120.0, 80.0), 7, 'cls')

    """
    if text is None or "," not in text:
        if text is not None and not text.strip():
            raise InputError(f'--query "{text}" is empty. {_QUERY_FORMS}')
        return number_or_name(text.strip() if text else text)
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f'--query "{text}" holds something that is no number. {_QUERY_FORMS}') from None
    if len(numbers) not in (2, 4):
        raise InputError(f'--query "{text}" has {len(numbers)} numbers. {_QUERY_FORMS}')
    return numbers


def read_head(text: str | None) -> int | str | None:
    """Return a head's number, or how heads are fused.

    Raises
    ------
    InputError
        For another word.

    Examples
    --------
    >>> read_head("3"), read_head("max")
    (3, 'max')

    """
    head = number_or_name(text)
    if isinstance(head, str) and head not in ("mean", "max", "min"):
        raise InputError(f'--head "{head}" is no head. A head is a number, mean, max or min. Try --head 0.')
    return head


def is_folder(path: Path, *, text: str) -> bool:
    """Whether an output names a folder: one that is there, or a name without a suffix or with a slash at its end.

    Examples
    --------
    >>> is_folder(Path("out"), text="out"), is_folder(Path("out.png"), text="out.png")
    (True, False)

    """
    return os.path.isdir(path) or text.endswith(("/", "\\")) or not path.suffix
