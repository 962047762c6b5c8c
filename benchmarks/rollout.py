"""From a picture to its class token's rollout: `python -m benchmarks.rollout`.

Ours is mmattn.attend (forward, capture, places) and mmattn.rollout, which also gives the uniform baseline.
The peer is the forward with all maps kept by hooks and the product of whole matrices, as vit-explain does it.
"""

from argparse import Namespace
from functools import partial

import torch

import mmattn
from benchmarks.capture import LONG, SHORT, Subject, subjects
from benchmarks.harness import Case, Run, Target, Way, main
from benchmarks.peers import AllMaps, picture, vision_transformer, whole_rollout

PLAIN, OURS, PEER = "plain forward", "mmattn.attend + rollout", "all maps + rollout (vit-explain)"

TARGETS = (
    Target(case=SHORT, way=OURS, against=PEER, limit=1.03),
    Target(case=LONG, way=OURS, against=PEER, limit=1.0),
    Target(case=LONG, way=OURS, against=PEER, limit=0.25, of="memory"),
)


def cases(options: Namespace) -> list[Case]:
    return [_case(subject, options.device) for subject in subjects(options)]


def _case(subject: Subject, device: str) -> Case:
    ways = ((PLAIN, _plain, PEER), (PEER, _peer, PEER), (OURS, _ours, PEER))
    return Case(
        name=subject.case,
        ways=tuple(
            Way(name=name, prepare=partial(prepare, subject, device), against=against)
            for name, prepare, against in ways
        ),
    )


def _plain(subject: Subject, device: str) -> Run:
    model = vision_transformer(subject.model, size_px=subject.size_px, device=device)
    image = picture(subject.size_px, device=device)

    def run() -> object:
        with torch.no_grad():
            return model(image)

    return run


def _peer(subject: Subject, device: str) -> Run:
    watched = AllMaps(vision_transformer(subject.model, size_px=subject.size_px, device=device))
    image = picture(subject.size_px, device=device)
    return lambda: whole_rollout(watched(image))


def _ours(subject: Subject, device: str) -> Run:
    model = vision_transformer(subject.model, size_px=subject.size_px, device=device)
    image = picture(subject.size_px, device=device)
    return lambda: mmattn.rollout(mmattn.attend(model, inputs=image))


if __name__ == "__main__":
    main(title="Forward, capture and rollout", module="benchmarks.rollout", cases=cases, targets=TARGETS)
