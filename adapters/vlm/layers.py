"""The layers of a decoder with a tower: calls of the tower between patches, and of the decoder in one sequence.

A tower runs each view by itself, all in one packed sequence under a mask, or window by window. What its calls
have in common: read in their order, their tokens are the patches of all views in the tower's own order.

    calls    [view 1, ...][view 2, ...]      one block a view
             [view 1, view 2, ...]           one block, masked
             [window][window][window]        one call a window
    axis     view 1 | view 2                 of one prompt: its grid, or a part a view where there are several
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.calls import Call
from mmattn.schema.axes import Axis
from mmattn.schema.joined import Joined
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Attributed, Blocks, Dense, Factored

from .seen import Seen


@dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """The tokens of a tower, of all prompts.

    Parameters
    ----------
    axes
        One a prompt.
    sample, token
        Of each token in the tower's order: its prompt, and which token of that prompt's axis it is.
    """

    axes: tuple[Axis, ...]
    sample: Int[Tensor, " token"]
    token: Int[Tensor, " token"]


def tower_of(pictures: Sequence[Sequence[Seen]], *, special: int) -> Tower:
    """Return the tokens of a tower that gets the views of all prompts one after the other.

    Parameters
    ----------
    pictures
        Of each prompt, in its order.
    special
        How many tokens of its own the tower puts before each view's patches.
    """
    axes: list[Axis] = []
    samples: list[Tensor] = []
    tokens: list[Tensor] = []
    for number, own in enumerate(pictures):
        named = [(_numbered(view.name, which, len(own)), view) for which, seen in enumerate(own) for view in seen.views]
        grids = {name: view.patches(special=special) for name, view in named}
        starts = [sum(len(grid) for grid in list(grids.values())[:n]) for n in range(len(grids) + 1)]
        where = [range(start, stop) for start, stop in pairwise(starts)]
        first = next(iter(grids.values()))
        axes.append(first if len(grids) == 1 else Joined.of(dict(grids), tokens=where))
        samples.append(torch.full((starts[-1],), number))
        tokens.append(torch.arange(starts[-1]))
    return Tower(axes=tuple(axes), sample=torch.cat(samples), token=torch.cat(tokens))


def _numbered(name: str, which: int, count: int) -> str:
    return name if count == 1 else f"image {which + 1}" if name == "image" else f"image {which + 1} {name}"


def tower_layers(calls: Sequence[Call], tower: Tower) -> tuple[list[AttentionLayer], list[str]]:
    """Return a layer for each module of the tower, and what is none, with the reason."""
    by_module: dict[str, list[Call]] = {}
    for call in calls:
        by_module.setdefault(call.module, []).append(call)
    found, alone = [], []
    for module, own in by_module.items():
        if any(call.kind != "token" for call in own):
            alone.append(f"{module}: attention between channels, which have no place in the picture")
            continue
        stored = [to_blocks(call) for call in own]
        count = sum(one.row_count for one in stored)
        if count == len(tower.token):
            found.append(_layer(module, own, stored, tower))
        else:
            alone.append(f"{module}: {count} tokens ask, where the views have {len(tower.token)}")
    return found, alone


def _layer(module: str, calls: Sequence[Call], stored: Sequence[Blocks], tower: Tower) -> AttentionLayer:
    storage: list[Blocks] = []
    at = 0
    for one in stored:
        shape, stop = (one.source.shape[0], one.source.shape[2]), at + one.row_count
        sample, token = tower.sample[at:stop].reshape(shape), tower.token[at:stop].reshape(shape)
        storage += _blocks(one.source, sample, token, lengths=[len(axis) for axis in tower.axes])
        at = stop
    errors = [call.error for call in calls if call.error is not None]
    return AttentionLayer(
        name=module,
        query=tower.axes,
        key=tower.axes,
        heads=head_count(calls[0]),
        storage=tuple(storage),
        stream="vision",
        error=max(errors) if errors else None,
    )


def _blocks(
    source: Factored | Dense | Attributed,
    sample: Int[Tensor, "block query"],
    token: Int[Tensor, "block query"],
    *,
    lengths: list[int],
) -> list[Blocks]:
    """Return the blocks of one call; a block of several prompts, which its mask keeps apart, is cut into theirs."""
    assert not isinstance(source, Attributed)  # a call is seen before any gradient
    sample, token = sample.to(source.device), token.to(source.device)
    if bool((sample == sample[:, :1]).all()):
        own = None if len(sample) == 1 and not int(sample[0, 0]) else sample[:, 0]
        plain = len(sample) == len(lengths) and set(lengths) == {token.shape[1]}
        index = None if plain else token
        return [Blocks(source=source, sample=own, query_index=index, key_index=index)]
    found = []
    for block in range(len(sample)):
        for one in torch.unique(sample[block]).tolist():
            chosen = torch.nonzero(sample[block] == one).flatten()
            index = token[block, chosen][None]
            which = torch.tensor([one], device=token.device)
            found.append(Blocks(source=_cut(source, block, chosen), sample=which, query_index=index, key_index=index))
    return found


def _cut(source: Factored | Dense, block: int, tokens: Int[Tensor, " token"]) -> Factored | Dense:
    """Return what some tokens of one block have to do with each other."""

    def square(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        own = tensor[block : block + 1] if len(tensor) > 1 else tensor
        own = own[:, :, tokens] if own.shape[2] > 1 else own
        return own[:, :, :, tokens] if own.shape[3] > 1 else own

    if isinstance(source, Dense):
        weights = source.weights[block : block + 1][:, :, tokens][:, :, :, tokens]
        return Dense(weights=weights, mask=square(source.mask))
    return Factored(
        q=source.q[block : block + 1, :, tokens],
        k=source.k[block : block + 1, :, tokens],
        scale=source.scale,
        mask=square(source.mask),
        bias=square(source.bias),
        causal=source.causal,
        softcap=source.softcap,
    )
