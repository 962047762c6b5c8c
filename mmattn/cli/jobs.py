"""What the demo draws: one job a section, each with the command and the Python lines that make its pictures.

The lines are no decoration: the tests run them in the gallery and get the same pictures.
"""

from collections.abc import Iterator
from dataclasses import replace

from mmattn import api
from mmattn.catalog import photo_path, photos
from mmattn.cli import session
from mmattn.cli.options import Asked, Method
from mmattn.cli.records import image_record, write_json
from mmattn.cli.studio import PHOTOS, Job, Studio
from mmattn.readers import read_photo

LOOK = Asked(method=Method.look)
WHOLE = replace(LOOK, keep_aspect=True)

# The photos that several jobs draw; only their maps are kept, some 70 MB each.
AGAIN = frozenset(("astronaut", "coffee", "dogs", "fig", "rocket"))

# Places that ask, in pixels of the photo: a dog's face, the astronaut's face, the rocket's body.
QUERIES = {"dogs": (265, 330), "astronaut": (224, 120), "rocket": (320, 260)}


def step_count() -> int:
    """Return how many pictures and files the jobs write."""
    return len(photos()) + len(QUERIES) + 14


def run_all(studio: Studio) -> Iterator[Job]:
    """Do every job that there is, one after another."""
    for job in (_class_token, _patch, _rollout, _heads, _last_heads, _contour, _cropped, _exports, _saved):
        yield job(studio)


def _class_token(studio: Studio) -> Job:
    return Job(
        key="class-token",
        title="What the model looked at",
        sentence="The class token's attention in the last layer, mean over heads: where the answer was gathered.",
        shots=tuple(studio.overlay(name, WHOLE, file=f"class-token/{name}.png") for name in photos()),
        commands=(studio.command(PHOTOS, out="class-token", options="--method look --keep-aspect"),),
        python=studio.attend_line("chelsea", WHOLE)
        + 'mmattn.overlay(mmattn.look(maps)).save("class-token/chelsea.png")',
    )


def _patch(studio: Studio) -> Job:
    return Job(
        key="patch",
        title="What one patch looked at",
        sentence="Point at a place: the outlined patch asks, and its own attention in the last layer is drawn.",
        shots=tuple(
            studio.overlay(name, replace(WHOLE, query=point), file=f"patch/{name}.png")
            for name, point in QUERIES.items()
        ),
        commands=tuple(
            studio.command(studio.file(name), out=f"patch/{name}.png", options=f"--query {x},{y} --keep-aspect")
            for name, (x, y) in QUERIES.items()
        ),
        python=studio.attend_line("dogs", WHOLE)
        + f'mmattn.overlay(mmattn.look(maps, query={QUERIES["dogs"]})).save("patch/dogs.png")',
    )


def _rollout(studio: Studio) -> Job:
    rolled = replace(WHOLE, method=Method.rollout)
    shots = []
    for name in ("coffee", "dogs"):
        maps = studio.attend(name, WHOLE)
        overlays = [session.drawing_of(maps, asked=one) for one in (WHOLE, rolled)]
        photo = read_photo(photo_path(name))
        drawing = api.side_by_side([photo, *overlays], titles=["photo", "last layer", "rollout"])
        shots.append(studio.save(drawing, file=f"rollout/{name}.png", maps=maps))
    note = (
        " With these weights it is dotted with a few strong patches in empty places, the artefacts that Darcet et al. "
        "(2024) describe; so the last layer is the default."
    )
    return Job(
        key="rollout",
        title="One layer, and all layers",
        sentence="Rollout (Abnar & Zuidema 2020) follows attention down through every layer."
        + (note if studio.by_default else ""),
        shots=tuple(shots),
        commands=(
            studio.command(studio.file("coffee"), out="coffee-rollout.png", options="--method rollout --keep-aspect"),
        ),
        python=studio.attend_line("coffee", WHOLE) + "layer, layers = mmattn.look(maps), mmattn.rollout(maps)\n"
        "drawings = [maps.media[0], mmattn.overlay(layer), mmattn.overlay(layers)]\n"
        'drawing = mmattn.side_by_side(drawings, titles=["photo", "last layer", "rollout"])\n'
        'drawing.save("rollout/coffee.png")',
        layout="wide",
    )


def _heads(studio: Studio) -> Job:
    return Job(
        key="heads",
        title="Every layer, every head",
        sentence="The class token's attention in each head of each layer, all on one scale, so that tiles compare.",
        shots=(studio.overlay("rocket", replace(WHOLE, head_grid=True), file="heads/rocket.png"),),
        commands=(studio.command(studio.file("rocket"), out="heads/rocket.png", options="--head-grid --keep-aspect"),),
        python=studio.attend_line("rocket", WHOLE) + 'mmattn.head_grid(maps).save("heads/rocket.png")',
        layout="beside",
    )


def _last_heads(studio: Studio) -> Job:
    maps = studio.attend("astronaut", WHOLE)
    heads = maps.select()[-1].heads or 1
    overlays = [api.overlay(api.look(maps, head=head)) for head in range(heads)]
    drawing = api.side_by_side(overlays, titles=[f"head {head}" for head in range(heads)], cols=3)
    return Job(
        key="last-heads",
        title="The heads of the last layer",
        sentence="Heads divide the work. Each is drawn on its own scale, which stands below it.",
        shots=(studio.save(drawing, file="last-heads/astronaut.png", maps=maps),),
        commands=(
            studio.command(studio.file("astronaut"), out="astronaut-head-0.png", options="--head 0 --keep-aspect"),
        ),
        python=studio.attend_line("astronaut", WHOLE)
        + f"drawings = [mmattn.overlay(mmattn.look(maps, head=head)) for head in range({heads})]\n"
        f'drawing = mmattn.side_by_side(drawings, titles=[f"head {{head}}" for head in range({heads})], cols=3)\n'
        'drawing.save("last-heads/astronaut.png")',
        layout="wide",
    )


def _contour(studio: Studio) -> Job:
    shots = []
    for name in ("dogs", "rocket"):
        maps = studio.attend(name, WHOLE)
        drawing = api.overlay(api.look(maps), smooth=False, contour=0.6)
        shots.append(studio.save(drawing, file=f"contour/{name}.png", maps=maps))
    return Job(
        key="contour",
        title="Patches as they are",
        sentence="No interpolation: one box a patch. The line holds the fewest patches with 60 % of the attention.",
        shots=tuple(shots),
        commands=(
            studio.command(studio.file("dogs"), out="dogs-block.png", options="--method look --block --keep-aspect"),
        ),
        python=studio.attend_line("dogs", WHOLE)
        + "drawing = mmattn.overlay(mmattn.look(maps), smooth=False, contour=0.6)\n"
        'drawing.save("contour/dogs.png")',
    )


def _cropped(studio: Studio) -> Job:
    names = ("coffee", "dogs")
    return Job(
        key="cropped",
        title="What the model never saw",
        sentence="By default a model gets the picture as in its own evaluation, here a center crop. "
        "What that cuts off is hatched: not seen is not zero.",
        shots=tuple(studio.overlay(name, LOOK, file=f"cropped/{name}.png") for name in names),
        commands=(studio.command(*(studio.file(name) for name in names), out="cropped", options="--method look"),),
        python=studio.attend_line("dogs", LOOK) + 'mmattn.overlay(mmattn.look(maps)).save("cropped/dogs.png")',
    )


def _exports(studio: Studio) -> Job:
    maps = studio.attend("fig", WHOLE)
    shots = [studio.overlay("fig", WHOLE, file=f"exports/fig.{suffix}") for suffix in ("svg", "pdf", "html")]
    studio.step("exports/fig.json")
    relevance = session.relevance_of(maps, asked=WHOLE)
    record = image_record(relevance, model=studio.model.name, source=studio.file("fig"))
    write_json([record], to=str(studio.folder / "exports/fig.json"))
    return Job(
        key="exports",
        title="For a paper, a page, a program",
        sentence="One drawing as SVG (shown here), as PDF and as a page of its own; "
        "and the numbers, with the box of every patch, as JSON.",
        shots=(shots[0],),
        commands=(
            studio.command(
                studio.file("fig"), out="exports/fig.svg", options="--method look --keep-aspect --json exports/fig.json"
            ),
            studio.command(studio.file("fig"), out="exports/fig.pdf", options="--method look --keep-aspect"),
        ),
        python=studio.attend_line("fig", WHOLE) + 'mmattn.overlay(mmattn.look(maps)).save("exports/fig.svg")',
        files=(*(shot.file for shot in shots), "exports/fig.json"),
        layout="beside",
    )


def _saved(studio: Studio) -> Job:
    small = replace(LOOK, size_px=224)
    studio.step("saved/horse.safetensors")
    file = studio.folder / "saved/horse.safetensors"
    file.parent.mkdir(exist_ok=True)
    studio.attend("horse", small).save(file)
    maps = api.load(file)
    return Job(
        key="saved",
        title="Saved and opened again",
        sentence="Maps are one safetensors file with queries and keys as the model had them. "
        "This picture was drawn from the file, without the model.",
        shots=(studio.save(session.drawing_of(maps, asked=small), file="saved/horse.png", maps=maps),),
        commands=(),
        python=studio.attend_line("horse", small) + 'maps.save("saved/horse.safetensors")\n\n'
        'again = mmattn.load("saved/horse.safetensors")\n'
        'mmattn.overlay(mmattn.look(again)).save("saved/horse.png")',
        files=("saved/horse.safetensors",),
        layout="beside",
    )
