"""Opening open_clip models by name: pretrained by a tag, from a local file, from a folder or the hub.

open_clip:ViT-B-32/laion2b_s34b_b79k      an architecture and the tag of its weights
open_clip:ViT-B-32@weights.safetensors    an architecture and a checkpoint
open_clip:local-dir:FOLDER                a folder with open_clip_config.json and weights
open_clip:hf-hub:OWNER/NAME               a repository of the Hugging Face hub
"""

import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX
from torch import nn

from mmattn.errors import DownloadError, FormatError, InputError, NotFoundError, nearest
from mmattn.interception.protocol import ModelFamily, Opened

from ..hub import check_reachable, said
from ..vit.checkpoints import read_state
from .open_clip_input import own_transform

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def open_model(name: str, *, weights: Path | None = None) -> Opened:
    """Return a model of open_clip ready to run, in eval mode, with its transform and tokenizer.

    Parameters
    ----------
    name
        See the head of this file.
    weights
        What the catalog found: a folder with open_clip_config.json, or a checkpoint of architecture `name`.

    Raises
    ------
    NotFoundError
        No such architecture, tag or folder; the nearest ones are listed.
    DownloadError
        The hub cannot be reached.
    FormatError
        A file that is no checkpoint, or one of another model.

    """
    if weights is not None:
        return _folder(weights) if weights.is_dir() else _checkpoint(name, weights)
    if name.startswith(LOCAL_DIR_PREFIX) or os.path.isdir(os.path.expanduser(name)):
        return _folder(Path(os.path.expanduser(name.removeprefix(LOCAL_DIR_PREFIX))))
    if name.startswith(HF_HUB_PREFIX):
        return _repository(name)
    base, at, file = name.partition("@")
    if at:
        if not file:
            raise InputError(
                f'"open_clip:{name}" names no file after the @. It is open_clip:ARCHITECTURE@FILE. '
                "Pass one, or leave the @ out."
            )
        return _checkpoint(base, Path(os.path.expanduser(file)))
    architecture, _, tag = name.partition("/")
    return _pretrained(architecture, tag)


def families() -> Iterable[ModelFamily]:
    """Return what can be attended, by family."""
    exact = "exact: every attention of both towers"
    source = "open_clip's tags (Hugging Face hub), a local checkpoint or folder"
    for name, what, how in (
        ("ViT-*", "CLIP, SigLIP 1 and 2, CLIPA; vision transformers of OpenAI, LAION, DataComp, DFN, ...", exact),
        ("EVA0*", "EVA-01 and EVA-02 CLIP", exact),
        ("PE-Core-*", "Perception Encoder: rotary positions, attention pool", exact),
        ("ViTamin-*", "ViTamin: stages of convolutions, then a transformer", exact),
        ("MobileCLIP*", "MobileCLIP 1 and 2: late stages with attention, or a transformer", exact),
        ("swin_*", "CLIP with a Swin tower", exact),
        ("RN*", "OpenAI's ResNets: the attention pool", exact),
        ("coca_*", "CoCa: two towers and a caption decoder with cross-attention", f"{exact} and of the decoder"),
        ("vit_*", "CLIP with a tower of timm: patches averaged, relative positions", exact),
        ("*roberta-*", "CLIP with a text tower of Hugging Face: RoBERTa, XLM-R", exact),
        ("mt5-*", "CLIP with mT5's encoder as its text tower", exact),
        ("nllb-clip-*", "CLIP with NLLB's encoder as its text tower", exact),
        ("convnext_*", "CLIP with a ConvNeXt tower", "exact: the text tower; the image tower has no attention"),
    ):
        yield ModelFamily(name=f"open_clip:{name}", what=what, how_exact=how, source=source)


def _pretrained(architecture: str, tag: str) -> Opened:
    _check_known(architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag or not open_clip.get_pretrained_cfg(architecture, tag):
        what = f'has no weights called "{tag}"' if tag else "was given without the tag of its weights"
        raise NotFoundError(
            f"{architecture} {what}. Its tags are: {nearest(tag, tags)}. Pass open_clip:{architecture}/TAG, or your "
            f"own weights as open_clip:{architecture}@FILE."
        )
    name = f"{architecture}/{tag}"
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not _cached(config):
        _check_reachable(name)
    try:
        model = open_clip.create_model(architecture, pretrained=tag)
    except Exception as problem:  # the hub raises many kinds for no network, no repository, no permission
        raise _unreachable(name, problem) from problem
    return _opened(model, named=architecture, weights=name)


def _checkpoint(architecture: str, path: Path) -> Opened:
    _check_known(architecture)
    read_state(path, library="open_clip")  # says what is wrong with a file; never runs code from it
    try:
        model = open_clip.create_model(
            architecture, load_weights=False, pretrained_text=False, force_preprocess_cfg=_agreed(architecture)
        )
    except OSError as problem:  # the config of a text tower comes from the hub
        raise _unreachable(architecture, problem) from problem
    try:
        open_clip.load_checkpoint(model, str(path))
    except Exception as problem:  # conversions of foreign checkpoints raise nearly anything
        detail = textwrap.shorten(str(problem), width=300, placeholder=" ...").rstrip(". ")
        raise FormatError(
            f"'{path.name}' does not fit {architecture}: {detail}. Its tensors must be those of that architecture. "
            "Check the name before the @."
        ) from None
    return _opened(model, named=architecture, weights=path.name)


def _folder(folder: Path) -> Opened:
    config = folder / HF_CONFIG_NAME
    if not config.is_file():
        raise NotFoundError(
            f"The folder {folder} holds no {HF_CONFIG_NAME}. A model that open_clip saved for the hub has one. "
            "Pass such a folder, or a checkpoint as open_clip:ARCHITECTURE@FILE."
        )
    if not any(path for end in ("safetensors", "bin", "pth") for path in folder.glob(f"*.{end}")):
        raise NotFoundError(
            f"The folder {folder} has {HF_CONFIG_NAME} and no weights. Without them the maps would be those of random "
            f"numbers. Put {HF_SAFE_WEIGHTS_NAME} into it."
        )
    try:
        model = open_clip.create_model(f"{LOCAL_DIR_PREFIX}{folder}")
    except Exception as problem:  # files from outside: readers raise nearly anything
        detail = textwrap.shorten(str(problem), width=300, placeholder=" ...").rstrip(". ")
        raise FormatError(
            f"The folder {folder} cannot be opened: {detail}. It holds {HF_CONFIG_NAME} and weights of that "
            "configuration. Save the model again."
        ) from problem
    return _opened(model, named=f"{LOCAL_DIR_PREFIX}{folder}", weights=folder.name)


def _repository(name: str) -> Opened:
    repository = name.removeprefix(HF_HUB_PREFIX)
    if not _in_cache(repository, (HF_CONFIG_NAME,)):
        _check_reachable(repository)
    try:
        model = open_clip.create_model(name, require_pretrained=True)
    except Exception as problem:  # the hub raises many kinds for no network, no repository, no permission
        raise _unreachable(repository, problem) from problem
    return _opened(model, named=name, weights=repository)


def _opened(model: nn.Module, *, named: str, weights: str) -> Opened:
    model = model.eval()
    return Opened(model=model, processor=(own_transform(model), _tokenizer(named)), weights=weights)


def _tokenizer(named: str) -> Any:
    """Return the tokenizer of a model, or None where it cannot be had: pictures need none."""
    config = open_clip.get_model_config(named) or {}
    foreign = config.get("text_cfg", {}).get("hf_tokenizer_name") and not named.startswith(LOCAL_DIR_PREFIX)
    for given in ({"local_files_only": True}, {}) if foreign else ({},):
        try:
            if foreign and not given:
                check_reachable()
            return open_clip.get_tokenizer(named, **given)
        except Exception:  # tokenizers raise many kinds where a file is missing
            continue
    return None


def _check_known(architecture: str) -> None:
    known = open_clip.list_models()
    if architecture not in known:
        raise NotFoundError(
            f'open_clip has no architecture "{architecture}". Near it are: {nearest(architecture, known)}. '
            "Pass open_clip:ARCHITECTURE/TAG or open_clip:ARCHITECTURE@FILE with one of those."
        )


def _agreed(architecture: str) -> dict[str, Any]:
    """Return how pictures are prepared, where all pretrained weights of an architecture agree on it."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    agreed = {}
    for key in _PREPROCESSING:
        values = {repr(config.get(key)) for config in configs}
        if len(values) == 1 and configs[0].get(key) is not None:
            agreed[key] = configs[0][key]
    return agreed


def _cached(config: dict[str, Any]) -> bool:
    repository, file = os.path.split(config.get("hf_hub") or "")
    if repository:
        return _in_cache(repository, (file,) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))
    url = config.get("url") or ""
    return Path("~/.cache/clip", os.path.basename(url)).expanduser().is_file()


def _in_cache(repository: str, files: Iterable[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def _check_reachable(name: str) -> None:
    try:
        check_reachable()
    except OSError as problem:
        raise _unreachable(name, problem) from None


def _unreachable(name: str, problem: Exception) -> DownloadError:
    return DownloadError(
        f"open_clip's {name} could not be fetched ({said(problem)[:160]}). Weights and tokenizers come from the "
        "Hugging Face hub. Check the network, or pass a local file (open_clip:ARCHITECTURE@FILE) or folder "
        "(open_clip:local-dir:FOLDER)."
    )
