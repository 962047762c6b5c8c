"""Walking through the rows of a layer, and fusing heads: what all products and statistics do alike.

mean over heads is linear and can wait until after a product;   max, min and a floor cannot
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.rows import Rows, check_range

# Fuse heads by mean, max or min; keep each; one head; the mean of some.
Heads: TypeAlias = str | int | Sequence[int]


def all_rows(layer: AttentionLayer, *, with_allowed: bool = False) -> Iterator[Rows]:
    """Yield all rows of a layer of one sample, some at a time."""
    _check_one_sample(layer)
    for storage in layer.storages:
        yield from storage.chunks(with_allowed=with_allowed)


def some_rows(layer: AttentionLayer, tokens: Int[Tensor, " n"], *, with_allowed: bool = False) -> Iterator[Rows]:
    """Yield the rows of some tokens of the query axis."""
    _check_one_sample(layer)
    for storage in layer.storages if len(tokens) else ():
        yield from storage.rows_of(tokens, with_allowed=with_allowed)


def one_hot(layer: AttentionLayer, queries: Sequence[int]) -> Float[Tensor, "query n"]:
    """Return a column for each query with a 1 where it stands."""
    length = len(layer.query_axis)
    check_range(queries, length, "query")
    x = torch.zeros(length, len(queries), device=layer.device)
    x[[int(q) % length for q in queries], list(range(len(queries)))] = 1.0
    return x


def _check_one_sample(layer: AttentionLayer) -> None:
    if layer.sample_count > 1:
        raise InputError(
            f"Layer {layer.name} holds {layer.sample_count} samples. Products are of one sample. "
            "Take maps.samples[i], or layer.sample(i)."
        )


def fused_before(
    weights: Float[Tensor, "head row slot"], heads: Heads, floor: float | None = None
) -> Float[Tensor, "some row slot"]:
    """Choose heads; max, min and a floor are not linear and come before any product."""
    if floor is not None:
        fused = fused_before(weights, heads)
        fused = fused.mean(dim=0, keepdim=True) if heads != "each" else fused
        return torch.where(fused > floor, fused, 0.0)
    if heads == "max":
        return weights.amax(dim=0, keepdim=True)
    if heads == "min":
        return weights.amin(dim=0, keepdim=True)
    if isinstance(heads, str):
        if heads not in ("mean", "each"):
            raise InputError(
                f'Heads cannot be fused by "{heads}". They are fused by mean, max or min, kept with "each", or chosen '
                'by number. Pass heads="mean" or a head.'
            )
        return weights
    # Users reach this by head=: what they pass is not checked by a type checker.
    if isinstance(heads, bool) or not isinstance(heads, int | list | tuple | range):
        raise InputError(f'{heads!r} is no head. Pass a number, several, or "mean", "max", "min" or "each".')
    chosen = [heads] if isinstance(heads, int) else list(heads)
    if not chosen:
        raise InputError('No head was chosen: heads=[] is empty. Pass at least one head, or heads="mean".')
    check_range(chosen, weights.shape[0], "head")
    return weights[chosen]


def fused_early(weights: Float[Tensor, "some row slot"], rows: Rows, heads: Heads) -> Float[Tensor, "fewer row slot"]:
    """Take the mean over heads before many small products, where it costs less than the products of each head."""
    return weights if heads == "each" or rows.blocks == 1 else weights.mean(dim=0, keepdim=True)


def fused_after(product: Float[Tensor, "some ..."], heads: Heads) -> Float[Tensor, "fewer ..."]:
    """Take the mean over heads after the product, where it costs less."""
    return product if heads == "each" else product.mean(dim=0, keepdim=True)
