"""Models by name: `mmattn:NAME` of the catalog, `hf:REPO` or a folder, `library:NAME`.

Names of the catalog say which adapter opens them. What Hugging Face's libraries saved (a repository,
or a folder with a config.json) goes to the adapter that knows the config's architecture.
Everything else is `library:NAME`, and the adapters of that library are asked in turn.
"""

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmattn import catalog
from mmattn.errors import DownloadError, FormatError, MmattnError, ModelError, NotFoundError, nearest
from mmattn.interception.protocol import Adapter, Opened
from mmattn.plugins import adapters, installed, load

# A config.json is a page of text; nothing larger is read.
_CONFIG_BYTES = 4 << 20

_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx")


def open_model(name: str) -> tuple[str, Adapter, Opened]:
    """Open a model by name; return its adapter's name, the adapter and the model.

    Parameters
    ----------
    name
        `mmattn:dinov2-small`, `timm:vit_small_patch16_224`, `timm:NAME@FILE`, `hf:OWNER/NAME`, or a
        folder that holds a config.json.

    Raises
    ------
    NotFoundError
        For an unknown name or library; the nearest known ones are listed.
    DownloadError
        When weights cannot be fetched.
    FormatError
        When a config.json cannot be read.
    """
    prefix, _, rest = name.partition(":")
    if not name.strip():
        raise NotFoundError(f"The model's name is empty. {_forms()}")
    if os.path.isdir(name):  # a timm folder has a config.json too
        return _open_hugging_face(name)
    if ":" not in name:
        raise NotFoundError(_unnamed(name))
    if not rest.strip() and prefix in ("mmattn", "hf", *_libraries()):
        raise NotFoundError(f'"{name}" says which library opens a model, and no model. {_forms()}')
    if prefix == "mmattn":
        return _open_ours(name, rest)
    if prefix == "hf":
        return _open_hugging_face(rest)
    candidates = adapters(library=prefix)
    if not candidates:
        libraries = ["mmattn", "hf", *_libraries()]
        raise NotFoundError(
            f'There is no library "{prefix}" to open "{name}". Libraries are: {nearest(prefix, libraries)}. '
            "Pass LIBRARY:NAME with one of those; `mmattn models` lists them."
        )
    refused: MmattnError | None = None
    for entry, adapter in candidates.items():
        try:
            return entry, adapter, adapter.open(rest)
        except (NotFoundError, ModelError) as error:  # not this adapter's: perhaps the next one's
            refused = refused or error
    assert refused is not None
    raise refused


def _open_ours(name: str, rest: str) -> tuple[str, Adapter, Opened]:
    entry = catalog.find(rest)
    adapter = load(entry.adapter, needed=True)
    if adapter is None:
        raise ModelError(f"The adapter {entry.adapter} that opens {name} is broken. Reinstall mmattn.")
    opened = adapter.open(entry.opens, weights=catalog.fetch(entry))
    return entry.adapter, adapter, replace(opened, weights=name)  # captions name the catalog's entry, not its file


def _open_hugging_face(name: str) -> tuple[str, Adapter, Opened]:
    config = _config(name)
    for entry, adapter in adapters().items():
        if adapter.opens(config):
            return entry, adapter, adapter.open(name)
    raise ModelError(
        f"No adapter reads {name}, whose config.json names {config.get('architectures') or 'no architecture'}. "
        "Open it with its own library and record it with mmattn.capture(model), or write an adapter (CONTRIBUTING.md)."
    )


def _config(name: str) -> Mapping[str, Any]:
    path = Path(name) / "config.json" if os.path.isdir(name) else _fetched_config(name)
    if not os.path.isfile(path):
        raise NotFoundError(
            f"The folder {name} holds no config.json. A model saved with save_pretrained has one. "
            "Pass such a folder, or a file with its library: timm:NAME@FILE."
        )
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(
            f"The config.json of {name} cannot be read: {error}. It is a JSON object. Save or fetch the model again."
        ) from error
    return config


def _fetched_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # the hub raises many kinds for no network, no repository, no permission
        raise DownloadError(
            f"The config of hf:{name} cannot be had ({type(error).__name__}). It comes from the Hugging Face hub or "
            "its local cache. Check the name and the network, pass a local folder, or a name of `mmattn models`."
        ) from error


def _unnamed(name: str) -> str:
    """Return what is wrong with a name that has no library; none is imported to find out."""
    if os.path.isfile(name) or Path(name).suffix.lower() in _CHECKPOINTS:
        return (
            f'"{name}" is the name of a file, which does not say what model its weights are of. '
            f"Pass it with timm's name of that architecture before it: timm:NAME@{name}."
        )
    known = {entry.name: entry.full_name for entry in catalog.entries()}
    close = [known[near] for near in difflib.get_close_matches(name, known, cutoff=0.6)]
    meant = f"Did you mean: {', '.join(close)}? " if close else ""
    return f'"{name}" is no folder and does not say which library opens it. {meant}{_forms()}'


def _forms() -> str:
    ours = ", ".join(entry.full_name for entry in catalog.entries())
    others = ", ".join(f"{library}:NAME" for library in _libraries())
    return (
        f"Names are {ours}, {others}, timm:NAME@FILE, hf:OWNER/NAME, or a folder with a config.json; "
        "`mmattn models` lists them."
    )


def _libraries() -> list[str]:
    return list(dict.fromkeys(entry.split(".")[0] for entry in installed()))
