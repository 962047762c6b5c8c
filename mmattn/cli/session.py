"""A model by name, opened once on the device that was asked for, and what it sees in one photo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmattn import api, catalog, comparing, opening
from mmattn.cli.options import UNTARGETED, Asked, Device, Method
from mmattn.errors import InputError, ModelError
from mmattn.interception.protocol import Adapter, MediaGiven, Opened, TakesSizes
from mmattn.readers import read_photo
from mmattn.render import Drawing
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.matches import Match
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is open: its name as given, the adapter that reads it, and the module."""

    name: str
    adapter_name: str
    adapter: Adapter
    opened: Opened


def fetch(name: str) -> None:
    """Fetch the weights of a catalog's model, with their own progress bar; nothing for other names."""
    if name.startswith(catalog.PREFIX):
        catalog.fetch(catalog.find(name))


def open_model(name: str, *, device: Device = Device.auto) -> Model:
    """Return a model by name, on a device.

    Raises
    ------
    NotFoundError, ModelError, DownloadError, FormatError
        As `mmattn.opening.open_model`.
    InputError
        A device that this machine does not have.

    """
    where = _device(device)
    adapter_name, adapter, opened = opening.open_model(name)
    opened.model.to(where)
    return Model(name=name, adapter_name=adapter_name, adapter=adapter, opened=opened)


def attend_to(photo: Photo, *, model: Model, asked: Asked) -> AttentionMaps:
    """Return the maps of one photo."""
    opened = model.opened
    maps = api.attend(opened.model, image=photo, processor=opened.processor, options=_options(photo, model, asked))
    return maps.named(weights=opened.weights or model.name, labels=opened.labels)


def match_with(image: Path, texts: Sequence[str], *, model: Model, options: Mapping[str, Any]) -> Match:
    """Return what a model makes of a picture and some texts, with its name for captions; options of `mmattn.match`."""
    opened = model.opened
    found: Match = comparing.match(
        opened.model, read_photo(image), texts=list(texts), processor=opened.processor, **options
    )
    return found.named(weights=opened.weights or model.name)


def read(maps: AttentionMaps, *, asked: Asked) -> tuple[Relevance, str]:
    """Return the maps read as was asked, and a sentence where the model's default method could not do it."""
    settled = asked.settled(classifies=maps.classifies)
    try:
        return relevance_of(maps, asked=settled), ""
    except ModelError as problem:
        if asked.implied is not None or settled.method == UNTARGETED:
            raise
        plain = replace(asked, method=UNTARGETED)
        return relevance_of(maps, asked=plain), f"{problem} Drawn with --method {UNTARGETED} instead."


def relevance_of(maps: AttentionMaps, *, asked: Asked) -> Relevance:
    """Return the maps read by a method."""
    method = asked.method
    if method == Method.rollout:
        fusion = "mean" if asked.head is None else str(asked.head)
        rolled: Relevance = api.rollout(maps, stream=asked.stream, query=asked.query, head_fusion=fusion)
        return rolled
    if method is not None and method.has_target:
        aimed: Relevance = api.relevance(
            maps,
            method=method.value,
            target=asked.target,
            stream=asked.stream,
            query=asked.query,
            layer=asked.layer,
        )
        return aimed
    layer = -1 if asked.layer is None else asked.layer
    head = None if asked.head == "mean" else asked.head
    found: Relevance = api.look(maps, stream=asked.stream, layer=layer, head=head, query=asked.query)
    return found


def drawing_of(maps: AttentionMaps, *, asked: Asked, read: Relevance | None = None) -> Drawing:
    """Return the overlay (of what was read already, if it was), or the sheet of heads, that was asked for."""
    if not asked.head_grid:
        return api.overlay(relevance_of(maps, asked=asked) if read is None else read, smooth=asked.smooth)
    layers = None if asked.layer is None else [_index(maps, asked)]
    return api.head_grid(maps, stream=asked.stream, query=asked.query, layers=layers)


def _index(maps: AttentionMaps, asked: Asked) -> int:
    """Return the layer of a sheet as an index, by number or by module path."""
    if isinstance(asked.layer, int):
        return asked.layer
    names = [layer.name for layer in maps.select(stream=asked.stream)]
    return names.index(maps[str(asked.layer)].name)


def _options(photo: Photo, model: Model, asked: Asked) -> Any:
    if asked.size_px is None and not asked.keep_aspect:
        return None
    if not isinstance(model.adapter, TakesSizes):
        # A model that reads no pictures says so itself, which is the better reason.
        model.adapter.prepare(model.opened.model, MediaGiven(image=photo), model.opened.processor, None)
        raise InputError(
            f"--size and --keep-aspect do not go with {model.name}: its adapter {model.adapter_name} takes no sizes. "
            "Leave them out."
        )
    return model.adapter.image_options(size_px=asked.size_px, keep_aspect=asked.keep_aspect)


def _device(device: Device) -> str:
    import torch

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == Device.auto:
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[device.value]:
        usable = ", ".join(name for name, usable in there.items() if usable)
        raise InputError(f"There is no {device.value} device here. This machine has: {usable}. Pass one of those.")
    return device.value
