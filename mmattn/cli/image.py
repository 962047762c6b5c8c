"""`mmattn image`: what a vision model looked at, drawn on each photo.

The default method is what pointed best in benchmarks/pointing.py: Chefer's relevance toward the top class where
the model has class logits, else `look`, the last layer as it is. Who names a layer, a head or a place that asks gets
`look`, and who names a class gets Chefer's relevance toward it. A model with logits whose layers cannot be read toward
a class is drawn without, and that is said.

When one of several pictures cannot be read, the others are done, the bad one is named at the end,
and the exit code is 2. What would be wrong for every picture (a layer, a head) stops at the first.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmattn.cli.options import (
    DEFAULT_MODEL,
    Asked,
    Debug,
    Device,
    DeviceOption,
    Format,
    Json,
    Method,
    Model,
    number_or_name,
    read_head,
    read_query,
)
from mmattn.cli.outputs import SUFFIXES, check_json, plan
from mmattn.cli.several import report, say
from mmattn.errors import InputError, PlaceError

if TYPE_CHECKING:
    from mmattn.cli.session import Model as OpenModel

METHOD_HELP = (
    "look: one layer as it is; rollout: all layers; chefer, grad_rollout, attention_x_gradient: toward a class. "
    "By default chefer where the model has classes, else look; look with --layer, --head or --query."
)
TARGET_HELP = "A class by index or name; the model's top class by default."
LAYER_HELP = "A number (negative: from the end) or a module path; the last layer by default."
HEAD_HELP = "A number, mean, max or min; the mean by default."
QUERY_HELP = "Who asks: cls, mean, a token, a point x,y or a box x0,y0,x1,y1 in pixels of the picture."


def command(
    *,
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="Photos, folders, or patterns like 'a/*.jpg'.")
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="OUT", help="A file (.png .jpg .webp .svg .pdf .html), or a folder."),
    ] = None,
    model: Model = DEFAULT_MODEL,
    method: Annotated[Method | None, typer.Option("--method", help=METHOD_HELP)] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", metavar="CLASS", help=TARGET_HELP)] = None,
    layer: Annotated[str | None, typer.Option("--layer", metavar="LAYER", help=LAYER_HELP)] = None,
    head: Annotated[str | None, typer.Option("--head", metavar="HEAD", help=HEAD_HELP)] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", metavar="QUERY", help=QUERY_HELP)] = None,
    stream: Annotated[str | None, typer.Option("--stream", metavar="NAME", help="For models with several.")] = None,
    size: Annotated[int | None, typer.Option("--size", metavar="PX", help="Side of the model's input.")] = None,
    keep_aspect: Annotated[
        bool, typer.Option("--keep-aspect", help="Show the model the whole picture at its own aspect, uncropped.")
    ] = False,
    head_grid: Annotated[bool, typer.Option("--head-grid", help="Every layer and head in one sheet.")] = False,
    smooth: Annotated[bool, typer.Option("--smooth/--block", help="Interpolate, or one flat box a patch.")] = True,
    file_format: Annotated[Format, typer.Option("--format", help="For files in a folder.")] = Format.png,
    device: DeviceOption = Device.auto,
    json_out: Json = None,
    debug: Debug = False,
) -> None:
    """Draw what a vision model looked at on each photo."""
    asked = Asked(
        method=method,
        target=number_or_name(target),
        stream=stream,
        layer=number_or_name(layer),
        head=read_head(head),
        query=read_query(query),
        size_px=size,
        keep_aspect=keep_aspect,
        head_grid=head_grid,
        smooth=smooth,
    )
    run(photos, out=out, model=model, asked=asked, suffix=file_format.value, json_out=json_out, device=device)


def run(
    photos: Sequence[str],
    *,
    out: str | None,
    model: str,
    asked: Asked,
    suffix: str,
    json_out: str | None,
    device: Device,
) -> None:
    """Do the command: plan first, open the model once, then picture by picture.

    Raises
    ------
    InputError
        Nothing to write, or pictures that could not be read (the others are done by then).

    """
    if out is None and json_out is None:
        raise InputError(
            f"There is nowhere to write to. Pictures go to -o (a file or a folder), numbers to --json. "
            f"Pass -o out.png; known suffixes are {', '.join(SUFFIXES)}."
        )
    from mmattn.readers import list_photos

    paths = list_photos(photos)
    outputs, renamed = plan(paths, out=out, suffix=suffix) if out is not None else ([], [])
    if json_out is not None and json_out != "-":
        check_json(json_out, inputs=[*paths, *checkpoint_of(model)], outputs=outputs)
    for sentence in renamed:
        say(sentence)
    _draw_all(paths, outputs, model=model, asked=asked, json_out=json_out, device=device)


def checkpoint_of(model: str) -> list[Path]:
    """Return the file that a model is opened from, if its name says one."""
    file = model.partition("@")[2]
    return [Path(os.path.expanduser(file))] if file else []


def _draw_all(
    paths: Sequence[Path], outputs: Sequence[Path], *, model: str, asked: Asked, json_out: str | None, device: Device
) -> None:
    from mmattn.cli import session
    from mmattn.cli.progress import progress
    from mmattn.cli.records import PRINTED, write_json

    session.fetch(model)
    records: list[dict[str, Any]] = []
    failed: list[InputError | PlaceError] = []
    with progress(len(paths), first=f"Opening {model}") as step:
        opened = session.open_model(model, device=device)
        for index, path in enumerate(paths):
            step(path.name)
            output = outputs[index] if outputs else None
            try:
                record = _draw_one(path, output, model=opened, asked=asked, wants_record=json_out is not None)
            except (InputError, PlaceError) as error:
                failed.append(error)
                continue
            records += [record] if record is not None else []
            if output is not None and json_out != PRINTED:
                print(output, flush=True)
    if json_out is not None and records:
        write_json(records, to=json_out)
    report(failed, count=len(paths))


def _draw_one(
    path: Path, output: Path | None, *, model: "OpenModel", asked: Asked, wants_record: bool
) -> dict[str, Any] | None:
    from mmattn.cli import session
    from mmattn.cli.records import image_record
    from mmattn.readers import read_photo

    maps = session.attend_to(read_photo(path), model=model, asked=asked)
    read, note = session.read(maps, asked=asked) if wants_record or not asked.head_grid else (None, "")
    if note:
        say(note)
    if output is not None:
        session.drawing_of(maps, asked=asked, read=read).save(output)
    return image_record(read, model=model.name, source=str(path)) if wants_record and read is not None else None
