"""Opening timm models by name: pretrained from the hub, from a local file, or with the catalog's weights."""

import os
import socket
import textwrap
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from mmattn.errors import DownloadError, FormatError, InputError, MmattnError, ModelError, NotFoundError, nearest
from mmattn.interception.protocol import ModelFamily, Opened

# The timm modules whose architectures are plain vision transformers.
MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "deit",
    "eva",
    "beit",
    "vitamin",
)

_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")

_FAMILIES = {
    "vit": "vision transformers: ViT, DINOv2, DINOv3, CLIP, SigLIP, AugReg, PE, hybrids",
    "deit": "DeiT, with and without distillation token",
    "deit3": "DeiT III",
    "flexivit": "FlexiViT, any patch size",
    "aimv2": "AIMv2",
    "beit": "BEiT",
    "beitv2": "BEiT v2",
    "beit3": "BEiT-3, its vision tower",
    "eva": "EVA",
    "eva02": "EVA-02, rotary positions",
    "vitamin": "ViTamin, a convolutional stem and a plain transformer",
}


def open_model(name: str, *, weights: Path | None = None) -> Opened:
    """Return a timm model ready to run, in eval mode.

    Parameters
    ----------
    name
        timm's name, with a pretrained tag or not; `NAME@FILE` for a local checkpoint (safetensors,
        .pth, .pt, .bin); a repository of the hub (`timm/NAME`); or a folder with a config.json.
    weights
        A file that the catalog found; an ONNX export of DINOv2 is converted beside itself.

    Raises
    ------
    NotFoundError
        No such name (the nearest ones are listed), or one without pretrained weights.
    DownloadError
        The hub cannot be reached.
    FormatError
        A file that is no checkpoint, or one of another model.
    ModelError
        A timm model that is no plain vision transformer.

    """
    base, at, file = name.partition("@")
    if at and not file:
        raise InputError(
            f'"timm:{name}" names no file after the @. It is timm:NAME@FILE. Pass one, or leave the @ out.'
        )
    if file or weights is not None:
        path = _converted(weights) if weights is not None else Path(os.path.expanduser(file))
        check_name(base)
        model = _with_state(base, state=read_state(path), path=path)
        return Opened(model=_ready(model), weights=path.name)
    if os.path.isdir(base) or "/" in base or base.startswith("hf-hub:"):
        address = f"local-dir:{base}" if os.path.isdir(base) else "hf-hub:" + base.removeprefix("hf-hub:")
        model = _create(address)
        return Opened(model=_ready(model), labels=_labels(model), weights=base.rstrip("/").rsplit("/", 1)[-1])
    check_name(base)
    if not timm.is_model_pretrained(base):
        raise NotFoundError(
            f'timm has no pretrained weights for "{base}". Pretrained are: {nearest(base, timm.list_pretrained())}. '
            f"Pass one of those, or your own as timm:{base}@FILE."
        )
    _check_reachable(base)
    model = _create(base)
    return Opened(model=_ready(model), labels=_labels(model), weights=_full_name(timm.get_pretrained_cfg(base)))


def is_plain(name: str) -> bool:
    """Whether timm's `name` (with or without tag) is a plain vision transformer."""
    return any(timm.models.is_model_in_modules(name.partition(".")[0], [module]) for module in MODULES)


def check_name(name: str) -> None:
    """Check that timm knows the name, and that this adapter reads it."""
    if not timm.is_model(name.partition(".")[0]):
        known = [known for module in MODULES for known in timm.list_models(module=module)]
        raise NotFoundError(f'timm has no model "{name}". The nearest are: {nearest(name, known)}. Pass one of those.')
    if not is_plain(name):
        raise ModelError(
            f"{name} is not a plain vision transformer, and this adapter reads no other. "
            f"It reads: {', '.join(sorted(_FAMILIES))}. mmattn.capture shows the weights of any model."
        )


def families() -> Iterable[ModelFamily]:
    """Return one line for each family of plain vision transformers in the installed timm."""
    names: dict[str, list[str]] = {}
    for module in MODULES:
        for name in timm.list_models(module=module):
            names.setdefault(name.split("_")[0], []).append(name)
    with_weights = {name.partition(".")[0] for name in timm.list_pretrained()}
    return [
        ModelFamily(
            name=f"timm:{family}_*",
            what=f"{_FAMILIES[family]} ({len(own)} architectures, {len(with_weights & set(own))} pretrained)",
            how_exact="weights and places exact",
            source=f"timm {timm.__version__}, weights from the Hugging Face hub or a file (timm:NAME@FILE)",
        )
        for family, own in sorted(names.items())
        if family in _FAMILIES
    ]


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint; never runs code from the file.

    Raises
    ------
    InputError
        The file is not there.
    FormatError
        It is no safetensors file and no plain torch checkpoint.

    """
    _check_there(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(str(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on foreign pickles: the error below says what matters
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from outside: unpicklers raise nearly anything
        raise FormatError(
            f"'{path.name}' cannot be read as a checkpoint ({_reason(error, most=120)}). It would be "
            "safetensors, or a torch file of tensors alone. Save model.state_dict() with safetensors.torch.save_file."
        ) from None
    for key in ("state_dict", "model", "teacher", "module"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise FormatError(f"'{path.name}' holds no tensors by name. It would be a state dict. Save model.state_dict().")
    return tensors


def _check_there(path: Path) -> None:
    """Check that a checkpoint can be looked at, is a file, and has bytes."""
    try:
        there = path.is_file()
        empty = there and path.stat().st_size == 0
    except (OSError, ValueError) as error:  # no permission, a name too long
        raise InputError(
            f"The checkpoint '{path.name[:100]}' cannot be looked at: {getattr(error, 'strerror', None) or error}. "
            "It would be a file that may be read. Check the path and its permissions."
        ) from error
    if not there:
        raise InputError(f"There is no checkpoint '{path}'. Pass timm:NAME@FILE with a .safetensors or .pth file.")
    if empty:
        raise FormatError(f"'{path.name}' is empty (0 bytes). It would be a checkpoint. Copy or save it again.")


def _reason(error: Exception, *, most: int) -> str:
    """Return the first line of another library's error, cut between words, without a full stop at its end."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return textwrap.shorten(line, width=most, placeholder=" ...").rstrip(".: ") or type(error).__name__


def _converted(weights: Path) -> Path:
    if weights.suffix != ".onnx":
        return weights
    from .dinov2_onnx import as_safetensors

    return as_safetensors(weights)


def _with_state(name: str, *, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Create the architecture and load a state dict through timm's own conversion of foreign checkpoints."""
    head = state.get("head.weight")
    classes = 0 if head is None or head.ndim != 2 else int(head.shape[0])
    try:
        return _create(name, state_dict=state, num_classes=classes)
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        detail = textwrap.shorten(str(error), width=300, placeholder=" ...").rstrip(". ")
        raise FormatError(
            f"'{path.name}' does not fit {name}: {detail}. Its tensors must be those of that architecture. "
            "Check the name before the @."
        ) from None


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
        raise _unreachable(name, f"{type(error).__name__}: {_reason(error, most=160)}") from None
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
    return model.eval()


def _full_name(config: Any) -> str:
    """Return `ARCHITECTURE.TAG` of a pretrained config."""
    return f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)


def _labels(model: nn.Module) -> tuple[str, ...] | None:
    """Return ImageNet's class names where the classifier has ImageNet's classes."""
    if not getattr(model, "num_classes", 0):
        return None
    subset = infer_imagenet_subset(model)
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None
