"""Models by name: `mmattn:NAME` of the catalog, `hf:REPO` or a folder, `library:NAME`.

Names of the catalog say which adapter opens them. What Hugging Face's libraries saved (a repository,
or a folder with a config.json) goes to the adapter that knows the config's architecture.
Everything else is `library:NAME`, and the adapters of that library are asked in turn.
"""

import json
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
        raise NotFoundError(f"The model's name is empty. Names are: {nearest('mmattn:', _suggestions('NAME'))}.")
    if Path(name).is_dir():  # a timm folder has a config.json too
        return _open_hugging_face(name)
    if not rest:
        raise NotFoundError(
            f'"{name}" is no folder and does not say which library opens it. Names look like mmattn:dinov2-small or '
            f"timm:vit_small_patch14_dinov2. Did you mean: {nearest(name, _suggestions(name))}?"
        )
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
    path = Path(name) / "config.json" if Path(name).is_dir() else _fetched_config(name)
    if not path.is_file():
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


def _suggestions(name: str) -> list[str]:
    return [*(entry.full_name for entry in catalog.entries()), *(f"{library}:{name}" for library in _libraries())]


def _libraries() -> list[str]:
    return list(dict.fromkeys(entry.split(".")[0] for entry in installed()))
