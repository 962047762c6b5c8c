"""What the demo draws of words and pixels: which word goes with which part of a composed scene, whose truth is known.

These jobs are always of `mmattn:clip`, the small model of our own that learned the words of the scenes; its weights
are part of the library. Their lines are run by the tests, as those of `jobs.py` are.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmattn import api
from mmattn.catalog import scene_path, scene_truth
from mmattn.cli import session
from mmattn.cli.options import Device
from mmattn.cli.studio import SCENES, Job, Shot, Step
from mmattn.readers import read_photo
from mmattn.render import Drawing, outlined
from mmattn.schema.matches import Match
from mmattn.schema.source import Source

MODEL = "mmattn:clip"

# Scenes whose sentence names all that is there, and how two things lie.
TOLD = ("frog-doughnut", "koalas-apple", "pineapple-dog", "zebra-crocodile-axe")
GRID = "zebra-crocodile-axe"
CONTRASTED = "frog-doughnut"
ASKED_BACK = "pineapple-dog"

METHODS = ("interaction", "chefer", "similarity")

_IMPORTS = "import mmattn\nfrom mmattn.catalog import scene_truth\nfrom mmattn.render import outlined\n\n"


def step_count() -> int:
    """Return how many pictures the jobs write."""
    return len(TOLD) + 5


def run_all(*, folder: Path, step: Step, device: Device) -> tuple[Job, ...]:
    """Open the model and do all jobs."""
    desk = _Desk(model=session.open_model(MODEL, device=device), folder=folder, step=step)
    return _links(desk), _grid(desk), _contrast(desk), _back(desk), _methods(desk), _highlights(desk)


@dataclass(frozen=True, kw_only=True)
class _Desk:
    """The open model and the folder that is filled."""

    model: session.Model
    folder: Path
    step: Step

    def match(self, name: str, texts: Sequence[str], *, method: str | None = None) -> Match:
        """Return a scene held against texts."""
        return session.match_with(scene_path(name), texts, model=self.model, options={"method": method})

    def save(self, drawing: Drawing, *, file: str, name: str, source: Source) -> Shot:
        """Write one picture; its caption says of which scene it is, and which model and weights drew it."""
        self.step(file)
        drawing.save(self.folder / file)
        return Shot(file=file, caption=f"{name}, {source.weights} ({source.model}), {source.preprocessing}")


def _links(desk: _Desk) -> Job:
    shots = []
    for name in TOLD:
        found = desk.match(name, [_said(name)])
        (relevance,) = found.relevances
        shots.append(desk.save(api.links(relevance), file=f"words/{name}.png", name=name, source=relevance.source))
    first = TOLD[0]
    return Job(
        key="words",
        title="Which word goes with which part of the picture",
        sentence="A small CLIP that learned the words of such scenes; no patch was ever told what it shows. Each line "
        "leads from a word to the patch that adds most to the score together with it (second-order interactions, "
        "Moeller et al. 2025); dashed lines speak against it.",
        shots=tuple(shots),
        commands=tuple(_command(name, _said(name), out=f"words/{name}.png") for name in TOLD),
        python=f"import mmattn\n\n{_match_line(first, [_said(first)])}"
        f'mmattn.links(match.relevances[0]).save("words/{first}.png")',
    )


def _grid(desk: _Desk) -> Job:
    found = desk.match(GRID, [_said(GRID)])
    (relevance,) = found.relevances
    drawing = api.word_grid(relevance)
    return Job(
        key="word-grid",
        title="Word by word",
        sentence="The same, one picture for each word, all on one scale around zero: what spoke for the sentence, and "
        "what against it.",
        shots=(desk.save(drawing, file=f"word-grid/{GRID}.png", name=GRID, source=relevance.source),),
        commands=(),
        python=f"import mmattn\n\n{_match_line(GRID, [_said(GRID)])}"
        f'mmattn.word_grid(match.relevances[0]).save("word-grid/{GRID}.png")',
        layout="wide",
    )


def _contrast(desk: _Desk) -> Job:
    name, (one, other) = CONTRASTED, _prompts(CONTRASTED)
    found = desk.match(name, [one, other])
    between = found.contrast(0, 1)
    return Job(
        key="contrast",
        title="One text rather than another",
        sentence="What speaks for the first text rather than the second, patch by patch, around zero.",
        shots=(desk.save(api.overlay(between), file=f"contrast/{name}.png", name=name, source=between.source),),
        commands=(),
        python=f"import mmattn\n\n{_match_line(name, [one, other])}"
        f'mmattn.overlay(match.contrast(0, 1)).save("contrast/{name}.png")',
        layout="beside",
    )


def _back(desk: _Desk) -> Job:
    name = ASKED_BACK
    (relevance,) = desk.match(name, [_said(name)]).relevances
    box = scene_truth(name).boxes(scene_truth(name).nouns[0])[0]
    drawing = api.links(relevance, query=box, heat=True)
    return Job(
        key="back",
        title="And back: which words for this place",
        sentence="A box asks, and the words for which it weighs most are linked.",
        shots=(desk.save(drawing, file=f"back/{name}.png", name=name, source=relevance.source),),
        commands=(),
        python=f"import mmattn\n\n{_match_line(name, [_said(name)])}"
        f'mmattn.links(match.relevances[0], query={box}, heat=True).save("back/{name}.png")',
        layout="beside",
    )


def _methods(desk: _Desk) -> Job:
    name, noun = GRID, scene_truth(GRID).nouns[0]
    (prompt, *_), boxes = _prompts(name), scene_truth(name).boxes(noun)
    maps = [desk.match(name, [prompt], method=method).overall[0] for method in METHODS]
    drawings = [outlined(api.overlay(one), boxes) for one in maps]
    drawing = api.side_by_side([read_photo(scene_path(name)), *drawings], titles=["scene", *METHODS])
    return Job(
        key="methods",
        title="A construction, chosen by name",
        sentence="Two towers share no attention: what links words and patches is a construction, and there are "
        "several. The boxes are true, not found. The raw similarity of patches is what people draw first; in CLIPs at "
        "large it prefers the background, and the pool of this one makes its patches speak.",
        shots=(desk.save(drawing, file=f"methods/{name}.png", name=name, source=maps[0].source),),
        commands=(),
        python=f'{_IMPORTS}boxes = scene_truth("{name}").boxes("{noun}")\n'
        f'given = {{"image": "{_file(name)}", "texts": "{prompt}"}}\n'
        f'found = [mmattn.match("{MODEL}", **given, method=method).overall[0] for method in {_listed(METHODS)}]\n'
        "drawings = [found[0].media, *(outlined(mmattn.overlay(one), boxes) for one in found)]\n"
        f"drawing = mmattn.side_by_side(drawings, titles={_listed(('scene', *METHODS))})\n"
        f'drawing.save("methods/{name}.png")',
        layout="wide",
    )


def _highlights(desk: _Desk) -> Job:
    name, opened = GRID, desk.model.opened
    maps = api.attend(opened.model, image=scene_path(name), text=_said(name), processor=opened.processor)
    seen = api.relevance(maps.named(weights=MODEL), method="chefer", stream="text")
    return Job(
        key="highlights",
        title="Which words the score rests on",
        sentence="Chefer's relevance in the text tower, toward the score of this picture with this sentence.",
        shots=(desk.save(api.overlay(seen), file=f"highlights/{name}.png", name=name, source=seen.source),),
        commands=(),
        python=f"import mmattn\n\n"
        f'maps = mmattn.attend("{MODEL}", image="{_file(name)}", text="{_said(name)}")\n'
        'seen = mmattn.relevance(maps, method="chefer", stream="text")\n'
        f'mmattn.overlay(seen).save("highlights/{name}.png")',
        layout="beside",
    )


def _said(name: str) -> str:
    said = scene_truth(name).caption
    assert said is not None
    return said


def _prompts(name: str) -> tuple[str, ...]:
    """Return a prompt for each thing of a scene."""
    return tuple(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in scene_truth(name).nouns)


def _file(name: str) -> str:
    return f"{SCENES}/{scene_path(name).name}"


def _command(name: str, text: str, *, out: str) -> str:
    return shlex.join(["mmattn", "match", _file(name), text, "-o", out])


def _match_line(name: str, texts: Sequence[str]) -> str:
    given = f'"{texts[0]}"' if len(texts) == 1 else _listed(texts)
    return f'match = mmattn.match("{MODEL}", "{_file(name)}", texts={given})\n'


def _listed(words: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"
