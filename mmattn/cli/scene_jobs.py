"""What the demo draws of composed scenes, whose truth is known: everyone can see whether the light is on the thing.

These jobs are always of `mmattn:vit`, the small model of our own that knows the things in the scenes; its weights are
part of the library. Their lines are run by the tests, as those of `jobs.py` are.
"""

from dataclasses import replace
from pathlib import Path

from mmattn import api
from mmattn.catalog import scene_path, scene_truth
from mmattn.cli import session
from mmattn.cli.options import Asked, Device, Method
from mmattn.cli.studio import SCENES, Job, Step, Studio
from mmattn.readers import read_photo
from mmattn.render import outlined

MODEL = "mmattn:vit"

# With several things, and with one (or one kind), in the order of the page.
SEVERAL = ("zebra-crocodile-axe", "key-butterfly-penguin")
SINGLE = ("car", "turtle", "watermelon", "strawberry", "camels", "cheese-turtle")

CHEFER = Asked(method=Method.chefer)
ROLLOUT = Asked(method=Method.rollout)

IMPORTS = "import mmattn\nfrom mmattn.catalog import scene_truth\nfrom mmattn.render import outlined\n\n"


def step_count() -> int:
    """Return how many pictures the jobs write."""
    return len(SEVERAL) + len(SINGLE)


def run_all(*, folder: Path, step: Step, device: Device) -> tuple[Job, ...]:
    """Open the model and do both jobs."""
    model = session.open_model(MODEL, device=device)
    studio = Studio(model=model, folder=folder, step=step, again=frozenset(), path_of=scene_path, pictures=SCENES)
    return _knows(studio), _targets(studio)


def _knows(studio: Studio) -> Job:
    shots = []
    for name in SINGLE:
        truth = scene_truth(name)
        noun = truth.nouns[0]
        maps = studio.attend(name, CHEFER)
        drawing = session.drawing_of(maps, asked=replace(CHEFER, target=noun))
        shots.append(studio.save(outlined(drawing, truth.boxes(noun)), file=f"knows/{name}.png", maps=maps))
    first = SINGLE[0]
    noun = scene_truth(first).nouns[0]
    return Job(
        key="knows",
        title="A model that knows where to look",
        sentence="A small vision transformer that was taught 96 things and never where they are, on backgrounds that "
        "it never saw. What raised its answer is lit; the box is true, not found.",
        shots=tuple(shots),
        commands=(
            studio.command(studio.file(first), out=f"knows-{first}.png", options=f"--method chefer --target {noun}"),
        ),
        python=f'{IMPORTS}maps = mmattn.attend("{MODEL}", image="{studio.file(first)}")\n'
        f'seen = mmattn.relevance(maps, method="chefer", target="{noun}")\n'
        f'truth = scene_truth("{first}")\n'
        f'outlined(mmattn.overlay(seen), truth.boxes("{noun}")).save("knows/{first}.png")',
    )


def _targets(studio: Studio) -> Job:
    shots = []
    for name in SEVERAL:
        truth = scene_truth(name)
        maps = studio.attend(name, CHEFER)
        toward = [session.drawing_of(maps, asked=replace(CHEFER, target=noun)) for noun in truth.nouns]
        boxed = [outlined(one, truth.boxes(noun)) for one, noun in zip(toward, truth.nouns, strict=True)]
        drawing = api.side_by_side(
            [read_photo(scene_path(name)), session.drawing_of(maps, asked=ROLLOUT), *boxed],
            titles=["scene", "rollout, no target", *(f"toward {noun}" for noun in truth.nouns)],
        )
        shots.append(studio.save(drawing, file=f"toward/{name}.png", maps=maps))
    first = SEVERAL[0]
    return Job(
        key="toward",
        title="One attention, read toward each thing",
        sentence="Rollout cannot say which thing an answer came from: attention alone has no target. Chefer's "
        "relevance (Chefer et al. 2021) weighs the same attention by the gradient of one class. The boxes are true, "
        "not found: the scenes were composed.",
        shots=tuple(shots),
        commands=tuple(
            studio.command(studio.file(first), out=f"toward-{noun}.png", options=f"--method chefer --target {noun}")
            for noun in scene_truth(first).nouns
        ),
        python=f'{IMPORTS}truth = scene_truth("{first}")\n'
        f'maps = mmattn.attend("{MODEL}", image="{studio.file(first)}")\n'
        "drawings = [maps.media[0], mmattn.overlay(mmattn.rollout(maps))]\n"
        'titles = ["scene", "rollout, no target"]\n'
        "for noun in truth.nouns:\n"
        '    seen = mmattn.relevance(maps, method="chefer", target=noun)\n'
        "    drawings.append(outlined(mmattn.overlay(seen), truth.boxes(noun)))\n"
        '    titles.append(f"toward {noun}")\n'
        f'mmattn.side_by_side(drawings, titles=titles).save("toward/{first}.png")',
        layout="wide",
    )
