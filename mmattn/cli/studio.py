"""What a job of the demo is, and the studio that it works in: one open model, one folder, maps made once."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmattn.catalog import photo_path
from mmattn.cli import session
from mmattn.cli.options import DEFAULT_MODEL, Asked
from mmattn.readers import read_photo
from mmattn.render import Drawing
from mmattn.schema.maps import AttentionMaps

PHOTOS, SCENES = "photos", "scenes"

Step = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture of the gallery, and what is said of it."""

    file: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One section of the gallery.

    Parameters
    ----------
    key
        Names its folder and its anchor.
    title, sentence
        What the pictures show.
    shots
        In order.
    commands, python
        What makes them, run beside `index.html`.
    files
        Others than pictures, to open.
    layout
        `grid`: pictures in columns; `wide`: one a row; `beside`: one, with its lines beside it.

    """

    key: str
    title: str
    sentence: str
    shots: tuple[Shot, ...]
    commands: tuple[str, ...]
    python: str
    files: tuple[str, ...] = ()
    layout: Literal["grid", "wide", "beside"] = "grid"


@dataclass(kw_only=True)
class Studio:
    """The open model and the folder that is filled; maps of pictures that come again are kept.

    Pictures are named, `path_of` says where one is, and `pictures` the folder of the gallery that has a copy.
    """

    model: session.Model
    folder: Path
    step: Step
    again: frozenset[str]
    path_of: Callable[[str], Path] = photo_path
    pictures: str = PHOTOS
    maps: dict[tuple[str, int | None, bool], AttentionMaps] = field(default_factory=dict)

    def attend(self, name: str, asked: Asked) -> AttentionMaps:
        """Return the maps of a bundled picture at the size that was asked for."""
        key = (name, asked.size_px, asked.keep_aspect)
        if key in self.maps:
            return self.maps[key]
        maps = session.attend_to(read_photo(self.path_of(name)), model=self.model, asked=asked)
        if name in self.again:
            self.maps[key] = maps
        return maps

    def save(self, drawing: Drawing, *, file: str, maps: AttentionMaps) -> Shot:
        """Write one picture; its caption says of which picture it is, and which model and weights drew it."""
        self.step(file)
        drawing.save(self.folder / file)
        source = maps.source
        name = getattr(maps.media[0], "name", "image")
        return Shot(file=file, caption=f"{name}, {source.weights} ({source.model}), {source.preprocessing}")

    def overlay(self, name: str, asked: Asked, *, file: str) -> Shot:
        """Draw one picture as `mmattn image` does."""
        maps = self.attend(name, asked)
        return self.save(session.drawing_of(maps, asked=asked), file=file, maps=maps)

    def file(self, name: str) -> str:
        """Return where a picture lies in the gallery."""
        return f"{self.pictures}/{self.path_of(name).name}"

    @property
    def by_default(self) -> bool:
        """Whether the model is the one that notes about it are written for."""
        return self.model.name == DEFAULT_MODEL

    def command(self, *inputs: str, out: str, options: str = "") -> str:
        """Return the command line that draws these inputs."""
        named = [] if self.by_default else ["--model", self.model.name]
        return shlex.join(["mmattn", "image", *inputs, "-o", out, *options.split(), *named])

    def attend_line(self, name: str, asked: Asked) -> str:
        """Return the Python lines that make the maps of a picture."""
        sizes = {"size_px": asked.size_px, "keep_aspect": asked.keep_aspect or None}
        given = ", ".join(f"{key}={value}" for key, value in sizes.items() if value is not None)
        options = f", options=TimmOptions({given})" if given else ""
        imports = "import mmattn\n" + ("from mmattn.adapters.vit.timm import TimmOptions\n" if given else "")
        return f'{imports}\nmaps = mmattn.attend("{self.model.name}", image="{self.file(name)}"{options})\n'
