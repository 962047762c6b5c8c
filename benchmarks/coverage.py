"""Which model families mmattn reads exactly: one line a family, two columns.

`python -m benchmarks.coverage [--library timm|transformers|torchvision|open_clip] [--only NAME ...] [--write]`
`python -m benchmarks.coverage --pairs [--only NAME ...] [--write]`: pictures with words, `coverage_pairs`

**weights**: every layer's weights are among those that the model itself multiplies its values with, when
it runs without fused kernels, to 1e-5 (`coverage_weights`). **places**: a changed cell of the picture moves
the queries and keys that the axes name for it, more than any other (`coverage_places`). Models are small
members of their families with random weights, stirred so that nothing is zero or flat (`coverage_models`).
A family whose column is not `exact` says why.
"""

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmattn.errors import MmattnError, ModelError, NoAttentionError
from mmattn.interception import capture
from mmattn.interception.protocol import LeavesOut
from mmattn.schema.layers import AttentionLayer

from .coverage_models import Member, Seat
from .coverage_places import PROBES, Found, box_changed, probed
from .coverage_weights import EXACT, Verdict, compared, own_weights

LIBRARIES = ("timm", "torchvision", "transformers", "open_clip")
DISTRIBUTIONS = ("timm", "torchvision", "transformers", "open_clip_torch")
PAGE = Path(__file__).with_name("COVERAGE.md")
HEAD = "| family | member | input px | layers | left out | weights exact | places exact | remarks |"
NONE = "no token attention"
RULE = "|---|---|---|---|---|---|---|---|"


@dataclass(frozen=True, kw_only=True)
class Line:
    """What was found for one family.

    Parameters
    ----------
    member
        Which model.
    weights, places
        None where nothing could be compared.
    left_out
        What mmattn says that it left out, a phrase for each.
    problem
        What went wrong before anything could be compared.
    none
        The model has no attention over tokens, as mmattn itself says.
    seconds
        How long it took.

    """

    member: Member
    weights: Verdict | None = None
    places: Found | None = None
    left_out: tuple[str, ...] = ()
    problem: str = ""
    none: bool = False
    seconds: float = 0.0

    @property
    def exact(self) -> tuple[bool, bool]:
        """Whether weights and places are."""
        return (
            self.weights is not None and self.weights.exact and not self.unaccounted,
            self.places is not None and self.places.exact,
        )

    @property
    def unaccounted(self) -> int:
        """Softmaxes of the model that are neither a layer nor said to be left out."""
        return 0 if self.weights is None else self.weights.contracted - self.weights.layers - len(self.left_out)

    @property
    def reasons(self) -> list[str]:
        """Why a column is not exact, or how it was decided."""
        if self.none or self.problem:
            return [self.problem]
        found = [*self.weights.problems] if self.weights else []
        if self.unaccounted:
            found.append(f"{self.unaccounted} softmaxes more than layers and reasons")
        if self.weights and self.weights.flat:
            found.append(f"{self.weights.flat} layers are too flat to tell")
        if self.places is None:
            return found
        landed = {number for (number, _), tally in self.places.tallies.items() if tally.landed}
        if landed:
            found.append(f"{len(landed)} layers by where single weights take a value (coverage_landing)")
        return [*found, *self.places.problems, *self.places.untested]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the families asked for, print a line each, and put them on the page if asked."""
    options = _options().parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.pairs:
        return _pairs(options)
    rows: list[str] = []
    failed = False
    print(HEAD + "\n" + RULE, flush=True)
    for library in LIBRARIES if options.library is None else (options.library,):
        for member in members(library):
            if options.only and not any(name in (member.name, member.family) for name in options.only):
                continue
            line = tried(member, probes=options.probes)
            gc.collect()
            failed |= not (all(line.exact) or line.none)
            rows.append(row(line))
            print(rows[-1], flush=True)
            if options.write:
                PAGE.write_text(page(rows, before=PAGE.read_text("utf-8") if PAGE.exists() else ""), encoding="utf-8")
    print("\n" + summary(rows))
    return int(failed)


def _pairs(options: argparse.Namespace) -> int:
    """Try models of pictures with words, and put their table on the page if asked: all of it, or nothing."""
    from .coverage_pairs import section, section_of, sweep

    lines, without = sweep(only=options.only)
    if options.write and not options.only:
        before = PAGE.read_text("utf-8")
        rest = before.removesuffix(section_of(before)).rstrip()
        PAGE.write_text(f"{rest}\n\n{section(lines, without=without)}", encoding="utf-8")
    return int(not all(line.is_accounted for line in lines))


def members(library: str) -> list[Member]:
    """Return the members of a library's families."""
    if library == "timm":
        from .coverage_timm import members as found
    elif library == "open_clip":
        from .coverage_open_clip import members as found
    elif library == "torchvision":
        from .coverage_torchvision import members as found
    else:
        from .coverage_transformers import members as found
    return found()


def tried(member: Member, *, probes: int = PROBES) -> Line:
    """Compare one model's weights with its own, and its places with what moves."""
    started = time.perf_counter()
    try:
        found = _tried(member, probes)
    except NoAttentionError as error:
        found = Line(member=member, none=True, problem=_sentence(error))
    except ModelError as error:
        none = any(
            phrase in str(error) for phrase in ("no attention of one token to another", "attends between channels")
        )
        found = Line(member=member, none=none, problem=_sentence(error))
    except Exception as error:  # one family that fails is a line of the table, not its end
        found = Line(member=member, problem=f"{type(error).__name__}: {_sentence(error)}")
    return Line(**{**vars(found), "seconds": time.perf_counter() - started})


def _tried(member: Member, probes: int) -> Line:
    model = member.made()
    seat = Seat(model)
    base = member.pixels(1)
    given = member.given(base)
    layers, left_out = _read(seat, given)
    if not layers:
        return Line(member=member, none=True, left_out=left_out, problem=left_out[0] if left_out else "no layer")
    plain = member.unfused(model)
    weights = compared(layers, own_weights(plain, Seat(plain).prepare(given).run))
    if given is not base:  # places are those of the picture's tower
        layers, _ = _read(seat, base)
    places = probed(layers=layers, watch=seat.watch, base=base[0], changed=box_changed, probes=probes)
    return Line(member=member, weights=weights, places=places, left_out=left_out)


def _read(seat: Seat, given: Any) -> tuple[Sequence[AttentionLayer], tuple[str, ...]]:
    """Return the layers of a run, and what mmattn says that it left out."""
    prepared = seat.prepare(given)
    with torch.no_grad(), capture(seat.model) as recording:
        prepared.run()
    left_out = seat.adapter.left_out(recording.calls, prepared) if isinstance(seat.adapter, LeavesOut) else ()
    return seat.adapter.layers(recording.calls, prepared), left_out


def row(line: Line) -> str:
    """Return the line as a row of the table."""
    member, (weights, places) = line.member, line.exact
    name = member.name + (f" ({member.options})" if member.options else "")
    size = "{} x {}".format(*member.size_px)
    cells: list[Any] = [f"{member.library} {member.family}", name, size]
    if line.none or line.weights is None or line.places is None:
        state = NONE if line.none else "**failed**"
        cells += ["0", len(line.left_out), state, state]
    else:
        probes = sum(len(tally.right) for tally in line.places.tallies.values())
        cells += [line.weights.layers, len(line.left_out)]
        cells.append(f"{'exact' if weights else '**no**'} ({line.weights.worst:.0e})")
        cells.append(f"{'exact' if places else '**no**'} ({line.places.share:.1%} of {probes})")
    reasons = line.reasons
    more = f"; {len(reasons) - 2} more" if len(reasons) > 2 else ""
    cells.append("; ".join(reasons[:2]) + more)
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def summary(rows: Iterable[str]) -> str:
    """Return how many families are exact, by library."""
    said = []
    cells = [[cell.strip() for cell in one.strip("| ").split(" | ")] for one in rows]
    for library in LIBRARIES:
        mine = [one for one in cells if one[0].startswith(library + " ")]
        counted = [one for one in mine if one[5] != NONE]
        if mine:
            weights, places = (sum(one[column].startswith("exact") for one in counted) for column in (5, 6))
            said.append(
                f"- {library}: {len(counted)} families with token attention; weights exact in {weights}, places exact "
                f"in {places}; {len(mine) - len(counted)} without token attention"
            )
    return "\n".join(said)


_EXCEPTIONS = """Exceptions, and why:

- *cpubone*: its kernels of 2 x 2 move a map by half a cell in every block, while the stream beside them stays; what a
  token of the last layer is made of lies between the two, and we name the stream's cell.
- *lambda + halo + bottleneck*: one key of 48, at the edge of the deepest map, moves less than its neighbor: the 3 x 3
  convolutions before it reach over the edge of a cell. Its other probes are right."""


def page(rows: Sequence[str], *, before: str = "") -> str:
    """Return the page that is committed; rows of families that were not tried now stay as they were `before`."""
    from .coverage_pairs import section_of

    now = {_family(one): one for one in rows}
    families = before.removesuffix(section_of(before))
    kept = [one for one in families.splitlines() if one.startswith("| ") and one != HEAD]
    merged = [now.pop(_family(one), one) for one in kept] + list(now.values())
    order = {f"{member.library} {member.family}": n for n, member in enumerate(_all())}
    merged = sorted((one for one in merged if _family(one) in order), key=lambda one: order[_family(one)])
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", *DISTRIBUTIONS))
    return (
        f"# Coverage\n\nMade by `python -m benchmarks.coverage --write`; {packages}.\n\n"
        f"*weights exact*: every layer equals one of the model's own softmaxes, unfused, to {EXACT:.0e} (in brackets "
        "the largest difference). *places exact*: a changed cell of the picture moves the query and the key that the "
        "axes name, more than any other (in brackets the share of probes). How both are measured stands at the top of "
        f"`coverage_weights.py` and `coverage_places.py`.\n\n{summary(merged)}\n\n{HEAD}\n{RULE}\n"
        + "\n".join(merged)
        + f"\n\n{_EXCEPTIONS}\n"
        + (f"\n{kept_section}" if (kept_section := section_of(before)) else "")
    )


def _all() -> list[Member]:
    return [member for library in LIBRARIES for member in members(library)]


def _family(one: str) -> str:
    return one.strip("| ").partition(" | ")[0]


def _sentence(error: BaseException) -> str:
    said = str(error) if isinstance(error, MmattnError) else str(error)[:200]
    return said.partition(". ")[0].partition("\n")[0]


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Which model families are read exactly.")
    parser.add_argument("--library", choices=LIBRARIES, default=None, help="only this one")
    parser.add_argument("--open-clip", dest="library", action="store_const", const="open_clip", help="the same for it")
    parser.add_argument("--pairs", action="store_true", help="models of pictures with words instead (transformers)")
    parser.add_argument("--only", nargs="+", default=(), help="only these members or families")
    parser.add_argument("--probes", type=int, default=PROBES, help=f"cells of each grid ({PROBES})")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--write", action="store_true", help="write COVERAGE.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
