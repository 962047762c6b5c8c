"""What does it cost to see a model's attention? `python -m benchmarks.capture`.

The plain forward against mmattn.capture, all maps kept by hooks (the vit-explain way), timm's
AttentionExtract, and transformers' `output_attentions=True`. Random weights: time does not depend on them.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

import mmattn
from benchmarks.harness import Case, Run, Target, Way, main
from benchmarks.peers import AllMaps, picture, transformers_vit, vision_transformer, without_fused

PLAIN, OURS = "plain forward", "mmattn.capture"
HOOKS, EXTRACT = "all maps by hooks (vit-explain)", "timm AttentionExtract"
HF_PLAIN, HF_OURS, HF_MAPS = "transformers, plain", "transformers, mmattn.capture", "transformers, output_attentions"
WINDOWS = "Swin-T, 224 px, windows of 49 tokens"
SHORT, LONG = "ViT-S/16, 224 px, 197 tokens", "DINOv2 ViT-S/14, 518 px, 1370 tokens"

TARGETS = (
    Target(case=SHORT, way=OURS, against=PLAIN, limit=1.05),
    Target(case=LONG, way=OURS, against=PLAIN, limit=1.03),
    Target(case=WINDOWS, way=OURS, against=PLAIN, limit=1.06),
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model at one size."""

    case: str
    model: str
    size_px: int
    patch_px: int


SUBJECTS = (
    Subject(case=SHORT, model="vit_small_patch16_224", size_px=224, patch_px=16),
    Subject(case=LONG, model="vit_small_patch14_dinov2", size_px=518, patch_px=14),
    Subject(case=WINDOWS, model="swin_tiny_patch4_window7_224", size_px=224, patch_px=4),
)
TINY = (Subject(case="ViT-Ti/16, 64 px", model="vit_tiny_patch16_224", size_px=64, patch_px=16),)


def subjects(options: Namespace) -> Sequence[Subject]:
    return TINY if options.tiny else SUBJECTS


def cases(options: Namespace) -> list[Case]:
    return [_case(subject, options.device) for subject in subjects(options)]


def _case(subject: Subject, device: str) -> Case:
    def way(name: str, prepare: Callable[[Subject, str], Run], against: str) -> Way:
        return Way(name=name, prepare=partial(prepare, subject, device), against=against)

    if subject.case == WINDOWS:  # its softmax is plain already, and transformers' Swin is another model
        return Case(
            name=subject.case,
            ways=(way(PLAIN, _plain, PLAIN), way(OURS, _ours, PLAIN), way(HOOKS, _hooks, PLAIN)),
        )
    return Case(
        name=subject.case,
        ways=(
            way(PLAIN, _plain, PLAIN),
            way(OURS, _ours, PLAIN),
            way(HOOKS, _hooks, PLAIN),
            way(EXTRACT, _extract, PLAIN),
            way(HF_PLAIN, _hf_plain, HF_PLAIN),
            way(HF_OURS, _hf_ours, HF_PLAIN),
            way(HF_MAPS, _hf_maps, HF_PLAIN),
        ),
    )


def _plain(subject: Subject, device: str) -> Run:
    return _forward(vision_transformer(subject.model, size_px=subject.size_px, device=device), subject, device)


def _ours(subject: Subject, device: str) -> Run:
    return _captured(vision_transformer(subject.model, size_px=subject.size_px, device=device), subject, device)


def _hooks(subject: Subject, device: str) -> Run:
    watched = AllMaps(vision_transformer(subject.model, size_px=subject.size_px, device=device))
    return partial(watched, picture(subject.size_px, device=device))


def _extract(subject: Subject, device: str) -> Run:
    from timm.utils.attention_extract import AttentionExtract

    model = without_fused(vision_transformer(subject.model, size_px=subject.size_px, device=device))
    return _forward(AttentionExtract(model, method="hook"), subject, device)


def _hf_plain(subject: Subject, device: str) -> Run:
    return _forward(_hf(subject, device, eager=False), subject, device)


def _hf_ours(subject: Subject, device: str) -> Run:
    return _captured(_hf(subject, device, eager=False), subject, device)


def _hf_maps(subject: Subject, device: str) -> Run:
    model, image = _hf(subject, device, eager=True), picture(subject.size_px, device=device)

    def run() -> object:
        with torch.no_grad():
            return model(image, output_attentions=True).attentions

    return run


def _hf(subject: Subject, device: str, *, eager: bool) -> nn.Module:
    return transformers_vit(size_px=subject.size_px, patch_px=subject.patch_px, eager=eager, device=device)


def _forward(model: nn.Module, subject: Subject, device: str) -> Run:
    image = picture(subject.size_px, device=device)

    def run() -> object:
        with torch.no_grad():
            return model(image)

    return run


def _captured(model: nn.Module, subject: Subject, device: str) -> Run:
    image = picture(subject.size_px, device=device)

    def run() -> object:
        with torch.no_grad(), mmattn.capture(model) as recording:
            model(image)
        return recording

    return run


if __name__ == "__main__":
    main(title="Capturing attention", module="benchmarks.capture", cases=cases, targets=TARGETS)
