"""Cross-attention as it is: one layer's rows, mean over heads or one head, led on from slots to patches."""

from collections.abc import Sequence

import torch

from mmattn.analysis.matching.asking import Asking, Read
from mmattn.errors import NotFoundError, nearest
from mmattn.schema import stream as rows
from mmattn.schema.axes import Joined
from mmattn.schema.composing import composed
from mmattn.schema.layers import AttentionLayer


def cross(asking: Asking, *, layer: int | str = -1, head: int | None = None) -> Read:
    """Return what each word gave to each patch in one layer.

    Parameters
    ----------
    layer
        A number among the layers in which words ask patches, or a module path.
    head
        One head; None: their mean.

    Raises
    ------
    NotFoundError
        A layer or head that is not there.
    """
    number = _number(asking.layers, layer)
    chosen = composed(asking.layers[number], asking.maps.layers)
    if head is not None and not (type(head) is int and -chosen.storage_heads <= head < chosen.storage_heads):
        raise NotFoundError(
            f"There is no head {head!r}: {chosen.name} has {chosen.storage_heads}, 0 to {chosen.storage_heads - 1}. "
            "Pass one of those, or leave head= out for their mean."
        )
    asked = rows.rows_of(chosen, range(len(chosen.query_axis)), heads="mean" if head is None else head)
    axis = chosen.key_axis
    if isinstance(axis, Joined) and axis != asking.picture:  # a sequence of words and a picture
        asked = asked[:, torch.as_tensor(axis.tokens[axis.parts.index(asking.picture)], device=asked.device)]
    said = {
        "layer": f"{number} (0 to {len(asking.layers) - 1}), {chosen.name}",
        "head": "mean" if head is None else head,
    }
    return asking.read(asked, said=said, unit="share")


def _number(layers: Sequence[AttentionLayer], layer: int | str) -> int:
    names = [one.name for one in layers]
    if isinstance(layer, str):
        if layer not in names:
            raise NotFoundError(
                f'In no layer "{layer}" do words ask patches. Those in which they do are: {nearest(layer, names)}. '
                "Pass one of those, or its number."
            )
        return names.index(layer)
    if type(layer) is not int or not -len(layers) <= layer < len(layers):
        raise NotFoundError(
            f"There is no layer {layer!r}: words ask patches in {len(layers)} layers, 0 to {len(layers) - 1}. "
            f"Pass one of those, or a module path such as {names[-1]!r}."
        )
    return layer % len(layers)
