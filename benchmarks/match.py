"""A picture and ten prompts, a map for each: `python -m benchmarks.match`.

The peer is Chefer, Gur & Wolf's procedure for CLIP as their notebook does it (`benchmarks/peer_clip.py`): the picture
is repeated for each prompt, both towers keep their attention probabilities, and the last layer of each is read. Ours is
`mmattn.match`, which looks at the picture once. That both give the same maps is checked before anything is timed.

Prompts of one word are the same job for both, ten maps. Of "a dog" ours gives the maps of its words too (each as a
prompt of its own), which is a case beside it. Random weights of the real architectures.
"""

import copy
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

import mmattn
from benchmarks.harness import Case, Run, Target, Way, main
from benchmarks.peer_clip import ChefersClip
from mmattn import plugins
from mmattn.interception.protocol import MediaGiven
from mmattn.readers import read_photo

PEER, TOWERS = "picture repeated, last layers by hooks (Chefer et al.)", "both towers alone, picture once"
CHEFER, INTERACTION = 'mmattn.match, method="chefer"', 'mmattn.match, method="interaction"'
B16, B32 = "ViT-B/16, 1 picture x 10 words", "ViT-B/32, 1 picture x 10 words"
PHRASES = "ViT-B/16, 1 picture x 10 prompts of 2 words"
WORDS = ("dog", "cat", "zebra", "boat", "tree", "house", "horse", "chair", "bottle", "lake")
_CLOSE = 1e-5

TARGETS = (
    Target(case=B16, way=CHEFER, against=PEER, limit=1 / 3),
    Target(case=B16, way=CHEFER, against=PEER, limit=1 / 3, of="memory"),
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An architecture of open_clip, by its own name or in numbers, and what it is asked."""

    case: str
    name: str = ""
    prompts: tuple[str, ...] = WORDS


SUBJECTS = (
    Subject(case=B16, name="ViT-B-16"),
    Subject(case=B32, name="ViT-B-32"),
    Subject(case=PHRASES, name="ViT-B-16", prompts=tuple(f"a {word}" for word in WORDS)),
)
TINY = (Subject(case="a CLIP of 2 layers, 1 picture x 3 words", prompts=WORDS[:3]),)


def cases(options: Namespace) -> list[Case]:
    """Return a case for each architecture; the maps of both ways are the same, or nothing is measured."""
    found = []
    for subject in TINY if options.tiny else SUBJECTS:
        if options.only and options.only not in subject.case:
            continue
        if not options.memory_of:
            apart = check(subject, options.device)
            print(f"{subject.case}: the maps of both ways are {apart:.1g} of the largest value apart", file=sys.stderr)
        found.append(_case(subject, options.device))
    return found


def _case(subject: Subject, device: str) -> Case:
    ways: dict[str, Callable[[Subject, str], Run]] = {
        PEER: _peer,
        TOWERS: _towers,
        CHEFER: partial(_ours, "chefer"),
        INTERACTION: partial(_ours, "interaction"),
    }
    made = [Way(name=name, prepare=partial(prepare, subject, device), against=PEER) for name, prepare in ways.items()]
    return Case(name=subject.case, ways=tuple(made))


def model_of(subject: Subject, device: str) -> nn.Module:
    """Return the architecture with random weights, always the same ones."""
    return _model(subject.name, device)


@cache
def _model(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    if name:
        model: nn.Module = open_clip.create_model(name, pretrained=None)
    else:
        vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
        model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg={"width": 64, "heads": 2, "layers": 2})
    return model.eval().to(device)


def picture(subject: Subject, device: str) -> Tensor:
    """Return a picture of noise, [3, row, col] from 0 to 1, as large as the model takes it."""
    side = int(model_of(subject, device).visual.image_size[0])  # type: ignore[union-attr, index]
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(1))


def rows(subject: Subject) -> Tensor:
    """Return the prompts as rows of tokens, as open_clip's tokenizer makes them."""
    ids: Tensor = open_clip.get_tokenizer("ViT-B-32")(list(subject.prompts))
    return ids


def pixels(subject: Subject, device: str) -> Tensor:
    """Return the picture as the image tower gets it, by the model's own transform."""
    _, adapter = plugins.claiming(model_of(subject, device))
    photo = read_photo(picture(subject, device))
    made: Tensor = adapter.prepare(model_of(subject, device), MediaGiven(image=photo), None, None).inputs[0]
    return made


def _towers(subject: Subject, device: str) -> Run:
    model: Any = model_of(subject, device)
    seen, said = pixels(subject, device), rows(subject).to(device)

    def run() -> object:
        with torch.no_grad():
            return model.encode_image(seen), model.encode_text(said)

    return run


def _peer(subject: Subject, device: str) -> Run:
    watched = ChefersClip(copy.deepcopy(model_of(subject, device)))
    seen, said = pixels(subject, device), rows(subject).to(device)
    return lambda: watched.interpret(seen, said)


def _ours(method: str, subject: Subject, device: str) -> Run:
    model, seen = model_of(subject, device), picture(subject, device)
    return lambda: mmattn.match(model, seen, texts=list(subject.prompts), method=method)


def check(subject: Subject, device: str) -> float:
    """Return the largest difference of both ways' maps, in parts of the largest value."""
    ours: Any = _ours("chefer", subject, device)()
    both: Any = _peer(subject, device)()
    theirs = both[1]
    grid = ours.overall[0].axis
    maps = torch.stack([one.values[0, grid.content] for one in ours.overall])
    apart = float((maps - theirs.cpu()).abs().max() / theirs.abs().max())
    if not apart <= _CLOSE:
        raise SystemExit(f"{subject.case}: the maps of both ways are {apart:.1g} of the largest value apart.")
    return apart


if __name__ == "__main__":
    main(title="A picture and ten prompts", module="benchmarks.match", cases=cases, targets=TARGETS)
