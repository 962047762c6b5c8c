"""Opening timm models by name: pretrained from the hub, from a local file, or with the catalog's weights."""

import os
import socket
import textwrap
import weakref
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from mmattn.errors import DownloadError, FormatError, InputError, MmattnError, ModelError, NotFoundError, nearest
from mmattn.interception.protocol import Opened

from .checkpoints import read_state, reason
from .timm_names import check_attention, check_known, is_plain, labels_of

_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")

# The models that were opened here: nobody else holds them, so their size may be set to what is asked for.
_ours: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def open_model(name: str, *, weights: Path | None = None, plain: bool) -> Opened:
    """Return a timm model ready to run, in eval mode.

    Parameters
    ----------
    name
        timm's name, with a pretrained tag or not; `NAME@FILE` for a local checkpoint (safetensors,
        .pth, .pt, .bin); a repository of the hub (`timm/NAME`); or a folder with a config.json.
    weights
        What the catalog found: a folder with a config.json, or a file (an ONNX export of DINOv2 is converted beside
        itself).
    plain
        Whether the caller reads the plain vision transformers, or all others.

    Raises
    ------
    NotFoundError
        No such name (the nearest ones are listed), or one without pretrained weights.
    DownloadError
        The hub cannot be reached.
    FormatError
        A file that is no checkpoint, or one of another model.
    NoAttentionError
        A timm model without attention.
    ModelError
        One whose attention is between channels, or that the caller does not read.

    """
    if weights is not None and weights.is_dir():
        return open_model(str(weights), plain=plain)
    base, at, file = name.partition("@")
    if at and not file:
        raise InputError(
            f'"timm:{name}" names no file after the @. It is timm:NAME@FILE. Pass one, or leave the @ out.'
        )
    if file or weights is not None:
        path = _converted(weights) if weights is not None else Path(os.path.expanduser(file))
        check_known(base)
        check_attention(base)
        _check_reads(base, plain=plain)
        model = _with_state(base, state=read_state(path, library="timm"), path=path)
        return Opened(model=_ready(model), weights=path.name)
    if os.path.isdir(base) or "/" in base or base.startswith("hf-hub:"):
        address = f"local-dir:{base}" if os.path.isdir(base) else "hf-hub:" + base.removeprefix("hf-hub:")
        model = _create(address)
        return Opened(model=_ready(model), labels=_labels(model), weights=base.rstrip("/").rsplit("/", 1)[-1])
    check_known(base)
    check_attention(base)
    if not timm.is_model_pretrained(base):
        raise NotFoundError(
            f'timm has no pretrained weights for "{base}". Pretrained are: {nearest(base, timm.list_pretrained())}. '
            f"Pass one of those, or your own as timm:{base}@FILE."
        )
    _check_reads(base, plain=plain)
    _check_reachable(base)
    model = _create(base)
    return Opened(model=_ready(model), labels=_labels(model), weights=_full_name(timm.get_pretrained_cfg(base)))


def is_ours(model: nn.Module) -> bool:
    """Whether a model was opened by name, so that no one else holds it."""
    return model in _ours


def _check_reads(name: str, *, plain: bool) -> None:
    """Check that a name is for the adapter that asks; of the two, one reads it."""
    if is_plain(name) != plain:
        raise ModelError(
            f"{name} is {'not ' if plain else ''}a plain vision transformer. timm.vit reads those and timm.models all "
            f'others. Open it by name: mmattn.attend("timm:{name}", ...).'
        )


def _converted(weights: Path) -> Path:
    if weights.suffix != ".onnx":
        return weights
    from .dinov2_onnx import as_safetensors

    return as_safetensors(weights)


def _with_state(name: str, *, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Create the architecture and load a state dict through timm's own conversion of foreign checkpoints."""
    try:
        return _create(name, state_dict=state, num_classes=_classes(name, state))
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        detail = textwrap.shorten(str(error), width=300, placeholder=" ...").rstrip(". ")
        raise FormatError(
            f"'{path.name}' does not fit {name}: {detail}. Its tensors must be those of that architecture. "
            "Check the name before the @."
        ) from None


def _classes(name: str, state: dict[str, Tensor]) -> int:
    """Return how many classes a checkpoint has: 0 where it has no classifier."""
    config: Any = timm.get_pretrained_cfg(name.partition(".")[0])
    named = getattr(config, "classifier", None) or "head"
    first = named if isinstance(named, str) else named[0]
    found = (state.get(f"{path}.weight") for path in dict.fromkeys((first, "head", "head.fc")))
    return next((int(weight.shape[0]) for weight in found if weight is not None and weight.ndim > 1), 0)


def _create(name: str, *, state_dict: dict[str, Tensor] | None = None, num_classes: int | None = None) -> nn.Module:
    """Call `timm.create_model`, with any input size allowed where the class can; hub failures become one error."""
    given: dict[str, Any] = {}
    if state_dict is not None:
        overlay = {"state_dict": state_dict, "num_classes": num_classes, "custom_load": False, "source": ""}
        given = {"num_classes": num_classes, "pretrained_cfg_overlay": overlay}
    try:
        try:
            model: nn.Module = timm.create_model(name, pretrained=True, dynamic_img_size=True, **given)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            model = timm.create_model(name, pretrained=True, **given)
    except Exception as error:
        if state_dict is not None or isinstance(error, MmattnError):
            raise
        raise _unreachable(name, f"{type(error).__name__}: {reason(error, most=160)}") from None
    return model


def _check_reachable(name: str) -> None:
    """Fail at once where the hub's name does not resolve and nothing is cached: its client retries for a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    config: Any = timm.get_pretrained_cfg(name)
    host = urlsplit(constants.ENDPOINT).hostname
    if config is None or not config.hf_hub_id or not host or getproxies():
        return
    repository = config.hf_hub_id if not config.hf_hub_id.endswith("/") else config.hf_hub_id + _full_name(config)
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in _HUB_FILES):
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise _unreachable(name, f"{host}: {error.strerror or error}") from None


def _unreachable(name: str, reason: str) -> DownloadError:
    return DownloadError(
        f"The weights of {name} could not be fetched ({reason}). They come from the Hugging Face hub. "
        f"Check the network, pass a local file (timm:{name}@FILE), or use a model of ours, such as mmattn:dinov2-small."
    )


def _ready(model: nn.Module) -> nn.Module:
    config: Any = getattr(model, "pretrained_cfg", {})
    config.pop("state_dict", None)  # timm keeps the tensors in the config: a second copy of the model
    _ours.add(model)
    return model.eval()


def _full_name(config: Any) -> str:
    """Return `ARCHITECTURE.TAG` of a pretrained config."""
    return f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)


def _labels(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names that came with the weights, or ImageNet's where the classes are ImageNet's."""
    own = labels_of(model)
    if own is not None or not getattr(model, "num_classes", 0):
        return own
    subset = infer_imagenet_subset(model)
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None
