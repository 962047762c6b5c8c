"""`mmattn match`: which word of a text goes with which part of a picture, drawn as lines between the two.

One picture and its texts, or a table of pairs with `--pairs`; the model is opened once. Each text gives one drawing.
Several drawings of a picture are named PICTURE-1, PICTURE-2, ... in a folder. When a picture cannot be read the others
are done, the bad one is named at the end, and the exit code is 2.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmattn.cli.image import checkpoint_of
from mmattn.cli.options import Debug, Device, DeviceOption, Format, Json, number_or_name
from mmattn.cli.outputs import SUFFIXES, check_json, place_of, plan
from mmattn.cli.pairs import Asked, read_pairs
from mmattn.cli.several import OF_ONE, Failed, report, say
from mmattn.errors import InputError

# Of our own; it knows the words of composed scenes.
DEFAULT_MODEL = "mmattn:clip"

METHOD_HELP = (
    "Two towers: interaction (the default: word and patch together, for and against), chefer, gradeclip, naclip, "
    "legrad, gradcam (towers of convolutions) or similarity. Words that ask patches (BLIP; CoCa with --stream "
    "decoder): chefer (the default), cross_rollout or cross. One sequence (ViLT, Llava): chefer (the default), "
    "relative, heads or raw."
)
LAYER_HELP = "For one layer (cross, raw, relative): a number (negative: from the end) or a module path."


def command(
    *,
    image: Annotated[str | None, typer.Argument(metavar="IMAGE", help="A picture.")] = None,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="What to hold it against.")] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="NAME", help="mmattn:clip, open_clip:NAME/TAG, open_clip:NAME@FILE, hf:REPO."
        ),
    ] = DEFAULT_MODEL,
    pairs: Annotated[
        str | None,
        typer.Option("--pairs", metavar="FILE.csv", help="A table with the columns image and text."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="OUT", help="A file (.png .jpg .webp .svg .pdf .html), or a folder."),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help=METHOD_HELP)] = None,
    stream: Annotated[
        str | None, typer.Option("--stream", help="Whose words ask: decoder for CoCa's captions.")
    ] = None,
    layer: Annotated[str | None, typer.Option("--layer", metavar="LAYER", help=LAYER_HELP)] = None,
    head: Annotated[int | None, typer.Option("--head", metavar="HEAD", help="One head; their mean by default.")] = None,
    focus: Annotated[
        str | None,
        typer.Option("--focus", metavar="WORD", help="One word (or its number), and where it goes most."),
    ] = None,
    file_format: Annotated[Format, typer.Option("--format", help="For files in a folder.")] = Format.png,
    device: DeviceOption = Device.auto,
    json_out: Json = None,
    debug: Debug = False,
) -> None:
    """Draw which word of a text goes with which part of a picture."""
    asked = _asked(image, texts or [], pairs)
    if out is None and json_out is None:
        raise InputError(
            f"There is nowhere to write to. Drawings go to -o (a file or a folder), numbers to --json. "
            f"Pass -o out.png; known suffixes are {', '.join(SUFFIXES)}."
        )
    outputs, renamed = plan(_names(asked), out=out, suffix=file_format.value) if out is not None else ([], [])
    if json_out is not None and json_out != "-":
        check_json(json_out, inputs=[*(one.image for one in asked), *checkpoint_of(model)], outputs=outputs)
    for sentence in renamed:
        say(sentence)
    options = {"method": method, "stream": stream, "layer": number_or_name(layer), "head": head}
    _draw_all(
        asked, outputs, model=model, device=device, json_out=json_out, options=options, focus=number_or_name(focus)
    )


def _asked(image: str | None, texts: Sequence[str], pairs: str | None) -> list[Asked]:
    if pairs is not None:
        if image is not None:
            raise InputError(
                f"--pairs {pairs} and the picture {image} do not go together: the table names the pictures. "
                "Leave one of the two out."
            )
        return read_pairs(place_of(pairs, option="--pairs"))
    if image is None or not texts:
        what = "no picture" if image is None else f"no text for {image}"
        raise InputError(
            f'There is {what}. A match is a picture and one text or several: mmattn match photo.jpg "a red car". '
            "Pass both, or a table with --pairs."
        )
    return [Asked(image=Path(image).expanduser(), texts=tuple(texts))]


def _names(asked: Sequence[Asked]) -> list[Path]:
    """Return a name for each drawing: the picture's own, numbered where it has several texts."""
    return [
        one.image if len(one.texts) == 1 else one.image.with_name(f"{one.image.stem}-{number}{one.image.suffix}")
        for one in asked
        for number in range(1, len(one.texts) + 1)
    ]


def _draw_all(
    asked: Sequence[Asked],
    outputs: Sequence[Path],
    *,
    model: str,
    device: Device,
    json_out: str | None,
    options: Mapping[str, Any],
    focus: int | str | None,
) -> None:
    from mmattn.cli import session
    from mmattn.cli.progress import progress
    from mmattn.cli.records import PRINTED, match_record, write_json

    session.fetch(model)
    records: list[dict[str, Any]] = []
    failed: list[Failed] = []
    first = 0
    with progress(len(asked), first=f"Opening {model}") as step:
        opened = session.open_model(model, device=device)
        for one in asked:
            step(one.image.name)
            places = outputs[first : first + len(one.texts)]
            first += len(one.texts)
            try:
                found = session.match_with(one.image, one.texts, model=opened, options=options)
                _draw(found, places, focus=focus)
            except OF_ONE as error:
                failed.append(error)
                continue
            if json_out is not None:
                source = str(one.image)
                records += [match_record(found, n, model=model, source=source) for n in range(len(one.texts))]
            if json_out != PRINTED:
                for place in places:
                    print(place, flush=True)
    if json_out is not None and records:
        write_json(records, to=json_out)
    report(failed, count=len(asked))


def _draw(found: Any, places: Sequence[Path], *, focus: int | str | None) -> None:
    from mmattn import api

    drawings = [api.links(relevance, focus=focus) for relevance in found.relevances] if places else []
    for drawing, place in zip(drawings, places, strict=True):
        drawing.save(place)
