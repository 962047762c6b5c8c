"""NACLIP: patches that look at keys like their own, and at their neighbors, in the last block.

    A = softmax( k k^T / sqrt(d) + omega ),     omega[i, j] = exp( -|place_i - place_j|^2 / (2 sigma^2) )
    z = A v W_o,                                map[i] = cos( prompt, feature of z_i ),      sigma 5 cells

in place of the last block's own attention, head by head; what the block adds beside it (the residual stream and the
feed-forward layer) is left out. The class token has no neighbors. What a patch's feature is stands in `similarity`.
Hajimiri, Ben Ayed & Dolz (2025), "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic
Segmentation", WACV. No gradient is taken.

Where we depart: theirs is for CLIP's class token and has a softmax over classes behind it; here are the
cosines. A bias that the model itself adds to its logits (of relative positions, of padding) stays, and keys turned by
their position (RoPE) are taken as the attention gets them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.analysis.matching.cut import Cut, find_cut
from mmattn.analysis.matching.similarity import cosines
from mmattn.analysis.matching.tail import features_alone
from mmattn.analysis.matching.towers import Tower
from mmattn.errors import ModelError
from mmattn.interception import Call, intervene
from mmattn.interception.protocol import Adapter
from mmattn.schema.axes import PatchGrid

SIGMA = 5.0  # cells, in the paper and in the released code

# How near a block comes to x + attention(x), relative to its largest number.
_ALIKE = 1e-4


def naclip(
    adapter: Adapter, model: nn.Module, *, image: Tower, prompts: Float[Tensor, "prompt feature"]
) -> Float[Tensor, "prompt patch"]:
    """Return the cosine of each prompt with each patch, as the last block gives it with neighborly attention.

    Raises
    ------
    ModelError
        The last block cannot be told, is in windows, or is no x + attention(x) with layers behind; its keys were not
        seen.
    """
    cut = find_cut(model, image)
    axis = image.axes[0]
    assert isinstance(axis, PatchGrid)
    near = neighbors(axis).to(cut.tokens.device)
    path = image.last.name

    def edit(weights: Tensor, call: Call) -> Tensor:
        return _neighborly(weights, call, near)

    with (
        torch.no_grad(),
        intervene(model, edit, layers=lambda one: one == path, taps=(adapter.taps,)),
        _updates(cut, path) as found,
    ):
        image.run()
    patches = torch.as_tensor(axis.content, device=cut.tokens.device)
    update = _only(found, cut, path)
    with torch.no_grad():
        features = features_alone(
            cut, image.run, update.reshape(-1, update.shape[-1])[patches], special=len(axis) - len(patches)
        )
    return cosines(prompts, features, patches=patches, length=len(axis))


def neighbors(grid: PatchGrid) -> Float[Tensor, "token token"]:
    """Return the Gaussian of the distance between the cells of each two tokens; nothing where one has none."""
    cells = torch.as_tensor(grid.cells)
    places = torch.stack([cells // grid.cols, cells % grid.cols], dim=1).float()
    apart = (places[:, None] - places[None]).square().sum(dim=2)
    both = (cells[:, None] >= 0) & (cells[None] >= 0)
    return torch.where(both, torch.exp(-apart / (2 * SIGMA**2)), 0.0)


def _neighborly(weights: Tensor, call: Call, near: Float[Tensor, "token token"]) -> Tensor:
    if tuple(weights.shape[-2:]) != tuple(near.shape):
        raise ModelError(
            f"The last attention {call.module} is in parts of {weights.shape[-2]} x {weights.shape[-1]} tokens, of "
            f'{len(near)}. "naclip" needs one over all tokens. Use method="interaction" or "similarity".'
        )
    if call.k is None or call.q is None or call.k.shape != call.q.shape or call.scale is None:
        raise ModelError(
            f"The keys of {call.module} were not seen as they are (its softmax is written out, or heads share keys). "
            '"naclip" needs them. Use method="interaction" or "similarity".'
        )
    keys = call.k.float()
    logits = keys @ keys.mT * call.scale + near
    if call.mask is not None and call.mask.dtype == torch.bool:
        logits = logits.masked_fill(~call.mask, -torch.inf)
    elif call.mask is not None:
        logits = logits + call.mask
    return logits.softmax(dim=-1).to(weights.dtype).reshape(weights.shape)


@contextmanager
def _updates(cut: Cut, attention: str) -> Iterator[list[tuple[str, Any, Any]]]:
    """Note what the block's own parts are given and give, in order, from the one that attends on; first its input."""
    block = cut.spot.module
    seen: list[tuple[str, Any, Any]] = []
    part = attention.removeprefix(f"{cut.spot.path}.").split(".")[0]

    def note(name: str) -> Any:
        def noted(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if name == part or seen:
                given = args[0] if args else next(iter(kwargs.values()), None)
                seen.append((name, given, output[0] if isinstance(output, tuple) else output))

        return noted

    with ExitStack() as stack:
        for name, module in block.named_children():
            handle = module.register_forward_hook(note(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield seen


def _only(seen: list[tuple[str, Any, Any]], cut: Cut, attention: str) -> Float[Tensor, "sample *token width"]:
    """Return what the attention adds to the block's tokens: behind its scale, if it has one.

    The parts that take exactly what it gave are its own; what the next one is given must be the sum.
    """
    if seen:
        update: Tensor = seen[0][2]
        for _, given, output in seen[1:]:
            if given is update:
                update = output
                continue
            if _is_sum(given, cut.tokens, update):
                return update
            break
    raise ModelError(
        f"What {attention} adds to its tokens cannot be told: {cut.spot.path} is no x + attention(x) with layers "
        'behind. "naclip" takes that part alone. Use method="interaction" or "similarity".'
    )


def _is_sum(given: Any, tokens: Tensor, update: Any) -> bool:
    if (
        not (isinstance(given, Tensor) and isinstance(update, Tensor))
        or not given.shape == tokens.shape == update.shape
    ):
        return False
    apart: Tensor = (given - tokens - update).abs().max()
    return bool(apart <= _ALIKE * given.abs().max())
