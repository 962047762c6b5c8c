"""Whether a layer's axes name the right places: by changing one cell of the picture.

All attention is silenced (every weight zero), so that only what is local goes on: what a token was
made of, what runs beside the attention, convolutions. Then one cell of the picture is changed, and
the query and the key that move most must be the token that the axis names for that cell. How the
axes were found plays no part: queries and keys are the model's own.

Some attention has nothing beside it (LeViT's downsampling): silenced, nothing moves behind it. There,
in another run, the query that moved most takes some value, and no other query takes any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmattn.interception.calls import Call
from mmattn.schema.axes import Axis, PatchGrid
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks, Factored

from .coverage_landing import Changed, Landing, Watch

PROBES = 6
# A cell is changed this often, in another way each time; before it is called wrong, that often.
REPEATS = 2
PATIENCE = 16
_STILL = 1e-9

Name = Literal["query", "key"]
SIDES: tuple[Name, ...] = ("query", "key")
# The layers of a batch of pictures, as they are while all weights are edited.
Side = tuple[int, Name]


@dataclass(kw_only=True)
class Tally:
    """Probes of one side of one layer.

    Parameters
    ----------
    wanted
        How many there are to be.
    right
        Whether the token that moved most was the right one, for each token probed so far.
    first_wrong
        What the first wrong probe found.
    landed
        Whether another experiment decided: see `coverage_landing`.

    """

    wanted: int = 0
    right: dict[int, bool] = field(default_factory=dict)
    first_wrong: str = ""
    landed: bool = False

    @property
    def wrong(self) -> int:
        """Probes at which another token moved most."""
        return len(self.right) - sum(self.right.values())

    @property
    def still(self) -> int:
        """Probes at which nothing moved."""
        return self.wanted - len(self.right)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the probes of one model found.

    Parameters
    ----------
    tallies
        By layer number and side.
    untested
        Layers without a probe, with the reason.

    """

    tallies: dict[Side, Tally]
    untested: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=())

    @property
    def share(self) -> float:
        """Share of probes that were right."""
        right = [one for tally in self.tallies.values() for one in tally.right.values()]
        return sum(right) / len(right) if right else 0.0

    @property
    def exact(self) -> bool:
        """Whether every probe was right, and every layer was probed."""
        return self.share == 1.0 and not self.untested

    @property
    def problems(self) -> list[str]:
        """One phrase for each side with a wrong probe."""
        return [
            f"{self.names[layer]} {side}: {tally.wrong} of {len(tally.right)} wrong ({tally.first_wrong})"
            for (layer, side), tally in self.tallies.items()
            if tally.wrong
        ]


def probed(
    *,
    layers: Sequence[AttentionLayer],
    watch: Watch,
    base: Tensor,
    changed: Changed,
    probes: int = PROBES,
) -> Found:
    """Change cells of every grid that a layer stands on, and see what moves.

    Parameters
    ----------
    layers
        Of one picture: which grids there are.
    watch
        Runs a batch of pictures with all weights edited, and returns the layers as they were before.
    base
        One picture, as `changed` takes it.
    changed
        The picture with new content in a box (x0, y0, x1, y1); the number makes it another one.
    probes
        Cells of each grid.

    """
    tallies = {key: Tally() for key, _ in _sides(layers)}
    grids: dict[Any, PatchGrid] = {}
    for _, axis in _sides(layers):
        grids.setdefault(_same(axis), axis)
    for key, axis in grids.items():
        tokens = chosen(axis, probes)
        mine = [side for side, other in _sides(layers) if _same(other) == key]
        for side in mine:
            tallies[side].wanted = len(tokens)
        passing: tuple[str, ...] = ()
        while mine:
            trial = Trial(watch=watch, base=base, changed=changed, axis=axis, passing=passing)
            trial.probe(tokens, mine, tallies, repeats=REPEATS)
            for token in tokens:
                doubtful = [side for side in mine if not tallies[side].right.get(token, not passing)]
                if doubtful:
                    trial.probe([token], doubtful, tallies, repeats=PATIENCE)
            mine = [side for side in mine if tallies[side].still]
            dead_end = trial.dead_end(tokens[-1]) if mine else ""
            mine = mine if dead_end else []
            passing += (dead_end,)
    _second_opinion(tallies, layers=layers, watch=watch, base=base, changed=changed)
    return Found(tallies=tallies, untested=tuple(_untested(layers, tallies)), names=tuple(x.name for x in layers))


def _second_opinion(
    tallies: dict[Side, Tally], *, layers: Sequence[AttentionLayer], watch: Watch, base: Tensor, changed: Changed
) -> None:
    """Try layers of several blocks that failed by where their output lands."""
    wrong = {number for (number, _), tally in tallies.items() if tally.wrong}
    for number in sorted(wrong):
        behind = [n for n in range(number + 1, len(layers)) if n not in wrong and (n, "key") in tallies]
        alike = [layer.name for layer in layers].count(layers[number].name)
        blocks = layers[number].storages[0]
        if not behind or alike > 1 or not isinstance(blocks, Blocks) or blocks.source.shape[0] == 1:
            continue
        landing = Landing(
            number=number,
            behind=behind[0],
            watch=watch,
            changed=changed,
            base=base,
            moved=lambda layer: _moved(layer)["key"],
        )
        found = landing.tried(layers[number], PROBES)
        if found and all(found):
            for side in SIDES:
                tallies[number, side].right = dict(enumerate(found))
                tallies[number, side].landed = True


def chosen(axis: PatchGrid, count: int) -> list[int]:
    """Return the four corners of a grid and some cells between, as tokens."""
    content = axis.content
    cells = axis.cells[content]
    corners = {0, axis.cols - 1, (axis.rows - 1) * axis.cols, axis.rows * axis.cols - 1}
    first = [int(token) for token, cell in zip(content, cells, strict=True) if int(cell) in corners]
    rest = np.random.default_rng(3).permutation([int(token) for token in content if int(token) not in first])
    return (first + [int(token) for token in rest])[: max(count, len(first))]


def _sides(layers: Sequence[AttentionLayer]) -> Iterator[tuple[Side, PatchGrid]]:
    for number, layer in enumerate(layers):
        for side in SIDES:
            axes = layer.query if side == "query" else layer.key
            if isinstance(axes[0], PatchGrid) and len(axes[0].content):
                yield (number, side), axes[0]


def _same(axis: PatchGrid) -> Any:
    return axis.rows, axis.cols, axis.patch_px, axis.size_px, axis.to_input.tobytes(), axis.cells.tobytes()


def _untested(layers: Sequence[AttentionLayer], tallies: dict[Side, Tally]) -> Iterator[str]:
    for number, layer in enumerate(layers):
        mine = {side: tally for (at, side), tally in tallies.items() if at == number}
        if not mine:
            yield f"{layer.name}: {layer.note or 'no side has places'}"
        for side, tally in mine.items():
            if tally.still:
                yield f"{layer.name} {side}: {tally.still} of {tally.wanted} cells moved nothing"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One grid of one model under some edits of its attention.

    Parameters
    ----------
    watch, base, changed
        As for `probed`.
    axis
        The grid whose cells are changed.
    passing
        Modules that nothing runs beside: the query that moved most passes something on, all others are silent.

    """

    watch: Watch
    base: Tensor
    changed: Changed
    axis: PatchGrid
    passing: tuple[str, ...] = ()

    def probe(self, tokens: Sequence[int], sides: Sequence[Side], tallies: dict[Side, Tally], *, repeats: int) -> None:
        """Change the cells of some tokens, each `repeats` times, and count for each side what moved."""
        views = [
            self.changed(self.base, self.axis.place(token), 1000 * repeats + n)
            for token in tokens
            for n in range(repeats)
        ]
        batch = torch.stack([self.base, *views])
        layers = self._layers(batch)
        for number in sorted({number for number, _ in sides}):
            moved = _moved(layers[number])
            for side in [side for at, side in sides if at == number]:
                mean = moved[side][1:].unflatten(0, (len(tokens), repeats)).mean(1)
                for token, one in zip(tokens, mean, strict=True):
                    _count(tallies[number, side], layers[number], side, one, token)

    def dead_end(self, token: int) -> str:
        """Return the module behind which nothing moves any more; empty if there is none that could pass."""
        batch = torch.stack([self.base, self.changed(self.base, self.axis.place(token), 1)])
        last = ""
        for layer in self._layers(batch):
            if any(float(moved[1].max()) > _STILL for moved in _moved(layer).values()):
                last = layer.name
        return "" if last in self.passing else last

    def _layers(self, batch: Tensor) -> Sequence[AttentionLayer]:
        """Return the layers of a batch as they are while attention is silent."""

        def edit(weights: Tensor, call: Call) -> Tensor:
            return _passed(weights, call, len(batch)) if call.module in self.passing else torch.zeros_like(weights)

        return self.watch(batch, edit)


def _count(tally: Tally, layer: AttentionLayer, side: Name, moved: Tensor, token: int) -> None:
    """Note whether the position that moved most holds the token."""
    if float(moved.max()) <= _STILL:
        return
    one = layer.sample(0).storages[0]
    assert isinstance(one, Blocks)
    index = one.query_index if side == "query" else one.key_index
    block, position = divmod(int(moved.argmax()), moved.shape[1])
    found = position if index is None else int(index[block, position])
    tally.right[token] = found == token
    if found != token:
        axis = (layer.query if side == "query" else layer.key)[0]
        tally.first_wrong = tally.first_wrong or f"token {token} at {_cell(axis, token)}, moved {_cell(axis, found)}"


def _cell(axis: Axis, token: int) -> str:
    assert isinstance(axis, PatchGrid)
    cell = int(axis.cells[token]) if token >= 0 else -1
    return f"row {cell // axis.cols} col {cell % axis.cols}" if cell >= 0 else f"token {token}"


def _moved(layer: AttentionLayer) -> dict[Name, Tensor]:
    """Return how far each position of each side moved, `[sample, block, position]`, against the first sample."""
    blocks = [layer.sample(sample).storages[0] for sample in range(layer.sample_count)]
    sources = [one.source for one in blocks if isinstance(one, Blocks)]
    if isinstance(sources[0], Factored):
        return {
            "query": _apart([source.q for source in sources if isinstance(source, Factored)]),
            "key": _apart([source.k for source in sources if isinstance(source, Factored)]),
        }
    return _redistributed([source.weights for source in sources if not isinstance(source, Factored)])


def _apart(values: Sequence[Tensor]) -> Tensor:
    size = values[0].square().mean().clamp(min=1e-20)
    return torch.stack([(one - values[0]).square().sum(1).mean(-1) / size for one in values])


def _redistributed(weights: Sequence[Tensor]) -> dict[Name, Tensor]:
    """Return how the logits behind weights changed, where only those were seen.

    A query that moved changes its whole row, a key its whole column: so it is what most of a row or
    column did that counts. Mixed heads may be negative and have no logits: there the weights stand.
    """
    signed = any(bool((one < 0).any()) for one in weights)
    values = torch.stack([one if signed else _logits(one) for one in weights])
    change = values - values[:1]
    return {
        "query": _rows_moved(change).sum(2),
        "key": change.square().nanmedian(-2).values.nan_to_num().sum(2),
    }


def _rows_moved(change: Tensor) -> Tensor:
    """Return what most of each row did, less what it has in common with the other rows."""
    own = change - change.nanmean(-2, keepdim=True) if change.shape[-2] > 1 else change
    return own.square().nanmedian(-1).values.nan_to_num()


def _logits(weights: Tensor) -> Tensor:
    """Return logits less the mean of each row; not a number where a key was forbidden."""
    logits = torch.where(weights > 1e-37, weights, torch.nan).log()
    return logits - logits.nanmean(-1, keepdim=True)


def _passed(weights: Tensor, call: Call, samples: int) -> Tensor:
    """Return weights by which the query that moved most in each sample takes a value, and no other takes any."""
    source = call.q
    if source is None or source.shape[:-1] != weights.shape[:-1]:
        source = weights if bool((weights < 0).any()) else _logits(weights)
    split = source.unflatten(0, (samples, -1))
    moved = _rows_moved(split - split[:1])
    moved = moved.reshape(samples, -1, moved.shape[-1]).sum(1)
    out = torch.zeros_like(weights).unflatten(0, (samples, -1))
    for sample, query in enumerate(moved.argmax(-1).tolist()):
        if float(moved[sample, query]) > _STILL:
            out[sample, ..., query, :] = 1 / weights.shape[-1]
    return out.flatten(0, 1)


def box_changed(picture: Tensor, box: tuple[float, float, float, float], number: int, *, by: float = 1.0) -> Tensor:
    """Return a picture `[3, row, col]` with noise added in a box, most in its middle."""
    x0, y0, x1, y1 = box
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(number))
    return picture + by * noise * (_bump(y0, y1, picture.shape[1])[:, None] * _bump(x0, x1, picture.shape[2]))


def _bump(start: float, stop: float, length: int) -> Tensor:
    """Return a hill between two edges, zero outside, at the middle of each pixel."""
    along = ((torch.arange(length) + 0.5 - start) / (stop - start)).clamp(0, 1)
    return torch.sin(along * torch.pi).square()
