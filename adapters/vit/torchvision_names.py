"""torchvision's names: which classifiers there are, which have token attention, what families they are."""

from collections.abc import Iterable

import torchvision  # type: ignore[import-untyped] # torchvision has no types
from torchvision import models

from mmattn.errors import InputError, NotFoundError, nearest
from mmattn.interception.protocol import ModelFamily

#: Classifiers of pictures with token attention in the installed torchvision.
ATTENTIVE = tuple(name for name in models.list_models(module=models) if name.startswith(("vit_", "swin_", "maxvit_")))

_FAMILIES = {
    "vit_": "vision transformers, of ImageNet and SWAG",
    "swin_": "shifted windows: Swin and Swin v2",
    "maxvit_": "blocks and grids: MaxViT",
}


def read_name(name: str) -> tuple[str, models.WeightsEnum]:
    """Return the architecture and the weights that `NAME` or `NAME.WEIGHTS` says; without the latter the default.

    Raises
    ------
    NotFoundError
        torchvision has no such classifier, or no such weights for it; the message lists those that are.

    """
    architecture, dot, tag = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        near = nearest(architecture, [*ATTENTIVE, *known])
        raise NotFoundError(
            f'torchvision has no classifier "{architecture}". The nearest are: {near}. Pass one of those.'
        )
    weights = models.get_model_weights(architecture)
    if dot and tag not in weights.__members__:
        raise NotFoundError(
            f'torchvision has no weights "{tag}" for {architecture}. It has: {nearest(tag, weights.__members__)}. '
            f"Pass torchvision:{architecture}.WEIGHTS with one of those, or torchvision:{architecture} for the default."
        )
    return architecture, weights[tag] if dot else weights.DEFAULT


def split_file(name: str) -> tuple[str, str]:
    """Return what stands before and after the @ of `NAME@FILE`.

    Raises
    ------
    InputError
        Nothing stands after it.

    """
    base, at, file = name.partition("@")
    if at and not file:
        raise InputError(
            f'"torchvision:{name}" names no file after the @. It is torchvision:NAME@FILE. '
            "Pass one, or leave the @ out."
        )
    return base, file


def families() -> Iterable[ModelFamily]:
    """Return one line for each family with token attention in the installed torchvision."""
    return [
        ModelFamily(
            name=f"torchvision:{prefix}*",
            what=f"{what} ({', '.join(own)})",
            how_exact="weights and places exact",
            source=f"torchvision {torchvision.__version__}, weights from pytorch.org or a file (torchvision:NAME@FILE)",
        )
        for prefix, what in _FAMILIES.items()
        if (own := [name for name in ATTENTIVE if name.startswith(prefix)])
    ]
