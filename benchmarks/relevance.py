"""From a picture to Chefer's relevance for a class: `python -m benchmarks.relevance`.

Ours is mmattn.attend (forward, capture, places) and mmattn.relevance (forward and backward once more, one row
passed down). The peer is Chefer et al.'s own way: plain softmax, all maps and their gradients kept by hooks,
R as a product of whole matrices. Beside both, what a forward and backward pass alone cost.
"""

from argparse import Namespace
from functools import partial

import torch
from torch import Tensor

import mmattn
from benchmarks.capture import LONG, SHORT, SUBJECTS, TINY, Subject
from benchmarks.harness import Case, Run, Target, Way, main
from benchmarks.peers import AllMapsAndGradients, picture, vision_transformer, whole_chefer

ALONE, OURS, PEER = "forward and backward alone", "mmattn.attend + relevance", "all maps, all gradients (Chefer et al.)"

TARGETS = (
    Target(case=LONG, way=OURS, against=PEER, limit=1.0),
    Target(case=LONG, way=OURS, against=PEER, limit=0.4, of="memory"),
)


def cases(options: Namespace) -> list[Case]:
    subjects = TINY if options.tiny else [subject for subject in SUBJECTS if subject.case in (SHORT, LONG)]
    return [_case(subject, options.device) for subject in subjects]


def _case(subject: Subject, device: str) -> Case:
    ways = ((ALONE, _alone, PEER), (PEER, _peer, PEER), (OURS, _ours, PEER))
    return Case(
        name=subject.case,
        ways=tuple(
            Way(name=name, prepare=partial(prepare, subject, device), against=against)
            for name, prepare, against in ways
        ),
    )


def _alone(subject: Subject, device: str) -> Run:
    model = vision_transformer(subject.model, size_px=subject.size_px, device=device, num_classes=10)
    image = picture(subject.size_px, device=device).requires_grad_()

    def run() -> Tensor:
        (found,) = torch.autograd.grad(model(image)[0, 3], image)
        return found

    return run


def _peer(subject: Subject, device: str) -> Run:
    model = vision_transformer(subject.model, size_px=subject.size_px, device=device, num_classes=10)
    watched = AllMapsAndGradients(model)
    image = picture(subject.size_px, device=device)
    return lambda: whole_chefer(watched.explain(image, target=3))


def _ours(subject: Subject, device: str) -> Run:
    model = vision_transformer(subject.model, size_px=subject.size_px, device=device, num_classes=10)
    image = picture(subject.size_px, device=device)
    return lambda: mmattn.relevance(mmattn.attend(model, inputs=image), method="chefer", target=3)


if __name__ == "__main__":
    main(title="Forward, capture and Chefer's relevance", module="benchmarks.relevance", cases=cases, targets=TARGETS)
