"""Which classes of transformers that read pictures with words are exact: every attention layer of each is counted.

`python -m benchmarks.coverage --pairs [--only NAME ...] [--write]`

A layer is a module of the model that multiplied a softmax with a value. The model runs once more with torch's plain
kernel under a dispatch mode (`coverage_weights`), which knows nothing of mmattn, and each softmax belongs to the
module that was running. A layer is **exact** where mmattn gives it, and each of its rectangles of weights is one of
that module's own, to 1e-5. What is not exact has a reason: what mmattn itself says of it, or what differs. Rows that
mmattn leaves empty, since the model drops what they found (Idefics: words that have no picture), are not compared.

Members are those of the tests (`tests/support`): small random configurations of the real classes with real
processors. That tokens stand where their axes say is held there, class by class; here weights are counted.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mmattn
from mmattn.adapters.clip.transformers_known import KNOWN
from mmattn.adapters.vlm.known import CLASSES
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Blocks

from .coverage_weights import EXACT, OwnWeights, _apart

TITLE = "## Pictures with words, of transformers"
HEAD = "| class | member | attention layers | exact | reasons of the rest |"
RULE = "|---|---|---|---|---|"
TEXT = "the cat on a red mat"
_SURPRISES = ("no layer", "off by", "other rectangles")
_EMPTIED = "exact, less rows that the model drops"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One member: a small model of a class, its processor, and what it is given beside a picture and a text."""

    cls: str
    name: str
    model: Callable[[], nn.Module]
    processor: Callable[[], Any]
    inputs: dict[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """What was found for one member: its layers, how many are exact (some with empty rows), why the others are not."""

    pair: Pair
    layers: int = 0
    exact: int = 0
    emptied: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def is_accounted(self) -> bool:
        """Whether every layer is exact, or mmattn itself says why it is none."""
        return self.layers > 0 and not any(surprise in said for said in self.reasons for surprise in _SURPRISES)


def members() -> list[Pair]:
    """Return the members of all classes that the adapters know."""
    support = str(Path(__file__).parents[1] / "tests" / "support")
    if support not in sys.path:
        sys.path.append(support)
    import small_sides
    import small_streams
    import small_towers

    kinds: list[tuple[dict[str, Any], Any, Any]] = [
        (small_towers.MEMBERS, small_towers.towers, small_towers.processor),
        (small_sides.SIDED, small_sides.sided, small_sides.sided_processor),
        (small_streams.STREAMS, small_streams.stream, small_streams.stream_processor),
    ]
    found = [
        Pair(cls=one.cls, name=name, model=partial(model, name), processor=partial(processor, name))
        for known, model, processor in kinds
        for name, one in known.items()
    ]
    return sorted([*found, *_of_regions(small_towers.word_pieces)], key=lambda pair: (pair.cls, pair.name))


def _of_regions(tokenizer: Callable[[], Any]) -> Iterator[Pair]:
    """Yield the members that are given a detector's regions."""
    draws = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.4, 0.3], [0.5, 0.5, 1.0, 0.75]]])
    inputs = {"visual_feats": torch.randn(1, 3, 10, generator=draws), "visual_pos": boxes}
    for cls in ("LxmertForPreTraining", "LxmertForQuestionAnswering", "LxmertModel"):
        name = cls.replace("Lxmert", "LXMERT, ")
        yield Pair(cls=cls, name=name, model=partial(_lxmert, cls, tokenizer), processor=tokenizer, inputs=inputs)


def _lxmert(cls: str, tokenizer: Callable[[], Any]) -> nn.Module:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.3}
    layers = {"l_layers": 2, "x_layers": 2, "r_layers": 1}
    heads = {"num_qa_labels": 5, "num_object_labels": 4, "num_attr_labels": 3}
    config = transformers.LxmertConfig(
        vocab_size=len(tokenizer()), visual_feat_dim=10, pad_token_id=0, **small, **layers, **heads
    )
    model: nn.Module = getattr(transformers, cls)(config)
    return model.eval()


def untried(pairs: Sequence[Pair]) -> list[str]:
    """Return the classes that an adapter knows and no member stands for."""
    known = {name.partition(":")[0] for name in (*KNOWN, *CLASSES)}
    return sorted(known - {pair.cls for pair in pairs})


def tried(pair: Pair) -> Line:
    """Count a member's attention layers, and those that mmattn gives exactly."""
    model = pair.model()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    try:
        maps = mmattn.attend(
            model, image=Image.fromarray(noise), text=TEXT, inputs=pair.inputs, processor=pair.processor()
        )
    except Exception as problem:  # one class that fails is a line of the table, not its end
        return Line(pair=pair, reasons=(f"{type(problem).__name__}: {str(problem).partition('. ')[0]}",))
    assert maps.rerun is not None
    own = located_weights(model, maps.rerun)
    said = {path: _differs([layer for layer in maps if layer.name == path], own[path], path, maps) for path in own}
    wrong = [why for why in said.values() if why not in ("", _EMPTIED)]
    emptied = sum(why == _EMPTIED for why in said.values())
    exact = len(own) - len(wrong)
    return Line(pair=pair, layers=len(own), exact=exact, emptied=emptied, reasons=tuple(_counted(wrong)))


def located_weights(model: nn.Module, run: Callable[[], Any]) -> dict[str, list[Tensor]]:
    """Return what each module of a model multiplied its values with, `[*, query, key]`, in the order of its run."""
    with torch.no_grad(), _running(model) as stack, sdpa_kernel(SDPBackend.MATH), _Located(model, stack) as seen:
        run()
    return seen.located


class _Located(OwnWeights):
    """Own weights, by the module that was running."""

    def __init__(self, model: nn.Module, stack: list[str]) -> None:
        super().__init__(model)
        self.located: dict[str, list[Tensor]] = {}
        self._stack = stack

    def _contracts(self, name: str, args: Any) -> bool:
        found = super()._contracts(name, args)
        if found:
            self.located.setdefault(self._stack[-1], []).append(self.found[-1])
        return found


@contextmanager
def _running(model: nn.Module) -> Iterator[list[str]]:
    """Keep the paths of the modules that are running, the innermost last."""
    stack: list[str] = []
    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, __, path=path: stack.append(path)))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


def _differs(layers: Sequence[AttentionLayer], own: Sequence[Tensor], path: str, maps: AttentionMaps) -> str:
    """Return why a module's weights are not exactly those of its layers; empty where they are."""
    if not layers:
        return next((said.partition(": ")[2] for said in maps.left_out if said.startswith(f"{path}: ")), "no layer")
    stored = [storage.weights() for layer in layers for storage in layer.storages if isinstance(storage, Blocks)]
    if len(stored) != len(own):
        stored, own = [_joined(stored)], [_joined(own)]
    worst = max(_apart(ours, theirs) for ours, theirs in zip(stored, own, strict=True))
    if worst <= EXACT:
        return ""
    if len(stored) == 1 and _apart_where_asked(stored[0], own[0]) <= EXACT:
        return _EMPTIED
    return "other rectangles than the model's" if worst == float("inf") else f"off by {worst:.0e}"


def _apart_where_asked(ours: Tensor, own: Tensor) -> float:
    """Return the largest difference in rows that are not empty."""
    if ours.numel() != own.numel() or ours.shape[-2:] != own.shape[-2:]:
        return float("inf")
    asked = ours.sum(dim=-1, keepdim=True) > 0
    return float(torch.where(asked, ours - own.reshape(ours.shape), 0.0).abs().max())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return several rectangles as one where they are alike, else the first alone, which then matches nothing."""
    alike = len({part.shape[1:] for part in parts}) == 1
    return torch.cat(list(parts)) if alike else parts[0]


def _counted(reasons: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return [f"{count} x {reason}" for reason, count in counts.items()]


def row(line: Line) -> str:
    """Return the line as a row of the table."""
    exact = f"{line.exact} ({line.emptied} less rows that the model drops)" if line.emptied else line.exact
    cells = [line.pair.cls, line.pair.name, line.layers, exact, "; ".join(line.reasons)]
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def summary(lines: Sequence[Line]) -> str:
    """Return how many classes and layers are exact."""
    classes = {line.pair.cls for line in lines}
    whole = classes - {line.pair.cls for line in lines if line.exact < line.layers or not line.layers}
    layers, exact = sum(line.layers for line in lines), sum(line.exact for line in lines)
    share = exact / layers if layers else 0.0
    return (
        f"{len(classes)} classes, {len(lines)} members; {exact} of {layers} attention layers exact ({share:.1%}); "
        f"all of them in {len(whole)} classes."
    )


def section(lines: Sequence[Line], *, without: Sequence[str]) -> str:
    """Return the table as it stands on the page."""
    lacking = f"\n\nKnown and not tried: {', '.join(without)}." if without else ""
    return (
        f"{TITLE}\n\nMade by `python -m benchmarks.coverage --pairs --write`. *exact*: each of a layer's rectangles of "
        f"weights is one that its module multiplied its values with, unfused, to {EXACT:.0e} (`coverage_pairs.py`).\n\n"
        f"{summary(lines)}{lacking}\n\n{HEAD}\n{RULE}\n" + "\n".join(map(row, lines)) + "\n"
    )


def section_of(page: str) -> str:
    """Return the table that stands on a page already; empty where there is none."""
    start = page.find(TITLE)
    return page[start:] if start >= 0 else ""


def sweep(*, only: Sequence[str] = ()) -> tuple[list[Line], list[str]]:
    """Try the members asked for, print a line each; return them and the classes that nothing stands for."""
    warnings.simplefilter("ignore")
    print(f"{HEAD}\n{RULE}", flush=True)
    pairs, lines = members(), []
    for pair in pairs:
        if not only or pair.cls in only or pair.name in only:
            lines.append(tried(pair))
            print(row(lines[-1]), flush=True)
    print("\n" + summary(lines))
    return lines, untried(pairs)
