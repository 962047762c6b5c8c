"""Opening models of torchvision by name: with weights from pytorch.org, or from a local file."""

import math
import os
import socket
import sys
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

from mmattn.errors import DownloadError, FormatError
from mmattn.interception.protocol import Opened

from .checkpoints import read_state, reason
from .rehearsal import Rehearsal, check_attends, rehearse
from .torchvision_input import remember_preset
from .torchvision_names import read_name, split_file


def open_model(name: str, *, weights: Path | None = None) -> Opened:
    """Return a classifier of torchvision ready to run, in eval mode.

    Parameters
    ----------
    name
        `vit_b_16` with its default weights, `vit_b_16.IMAGENET1K_SWAG_E2E_V1` with others, or
        `NAME@FILE` for a local checkpoint (safetensors, .pth, .pt).
    weights
        A file that the catalog found.

    Raises
    ------
    NotFoundError
        No such name or weights (the nearest ones are listed).
    DownloadError
        pytorch.org cannot be reached.
    FormatError
        A file that is no checkpoint, or one of another model.
    NoAttentionError
        A convolutional network.

    """
    base, file = split_file(name)
    architecture, entry = read_name(base)
    found = rehearsal_of(architecture)
    if found is not None:
        check_attends(found, named=architecture)
    if file or weights is not None:
        path = weights or Path(os.path.expanduser(file))
        model = _with_state(architecture, state=read_state(path, library="torchvision"), path=path)
        return Opened(model=model.eval(), weights=path.name)
    model = _fetched(architecture, entry)
    remember_preset(model, entry.transforms())
    labels = tuple(str(label) for label in entry.meta.get("categories", ()))
    return Opened(model=model.eval(), labels=labels or None, weights=f"{architecture}.{entry.name}")


@lru_cache(maxsize=32)
def rehearsal_of(architecture: str) -> Rehearsal | None:
    """Return what an architecture does on the meta device; None where it cannot be run there."""
    side = models.get_model_weights(architecture).DEFAULT.transforms().crop_size[0]
    with torch.device("meta"):
        model = models.get_model(architecture)
    side = getattr(model, "image_size", side)
    found = rehearse(model.eval(), shape=(1, 3, side, side), call=lambda alive, pixels: alive(pixels))
    return None if found.problem else found


def _fetched(architecture: str, entry: models.WeightsEnum) -> nn.Module:
    try:
        _check_reachable(entry.url)
        model: nn.Module = models.get_model(architecture, weights=entry, progress=sys.stderr.isatty())
    except Exception as error:  # no network, a full disk, a hash that differs: many kinds
        raise DownloadError(
            f"The weights {entry.name} of torchvision's {architecture} could not be fetched "
            f"({reason(error, most=160)}). They come from {urlsplit(entry.url).hostname}. Check the network, or pass a "
            f"local file (torchvision:{architecture}@FILE)."
        ) from None
    return model


def _check_reachable(url: str) -> None:
    """Fail before torch announces a download where the host's name does not resolve and nothing is cached."""
    parts = urlsplit(url)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(parts.path).name)
    if parts.hostname and not cached.is_file() and not getproxies():
        socket.getaddrinfo(parts.hostname, 443)


def _with_state(architecture: str, *, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Build the architecture that a state dict is of (its classes, its image size), and load it."""
    with torch.device("meta"):
        empty: Any = models.get_model(architecture)
    last = [name for name, part in empty.named_modules() if isinstance(part, nn.Linear)][-1]
    given: dict[str, Any] = {}
    head = state.get(f"{last}.weight")
    if head is not None and head.ndim == 2:
        given["num_classes"] = int(head.shape[0])
    positions = state.get("encoder.pos_embedding")
    if positions is not None and positions.ndim == 3 and hasattr(empty, "image_size"):
        given["image_size"] = math.isqrt(positions.shape[1] - 1) * int(empty.patch_size)
    try:
        model: nn.Module = models.get_model(architecture, **given)
        if head is None:  # features alone
            model.set_submodule(last, nn.Identity())
        model.load_state_dict(state)
    except (RuntimeError, ValueError, AssertionError) as error:
        detail = textwrap.shorten(str(error), width=300, placeholder=" ...").rstrip(". ")
        raise FormatError(
            f"'{path.name}' does not fit {architecture}: {detail}. Its tensors must be those of that architecture. "
            "Check the name before the @."
        ) from None
    return model
