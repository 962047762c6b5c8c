"""Families of the coverage sweep, one of each kind of layout: weights and places are exact, and errors are seen."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.coverage import members, page, row, tried  # noqa: E402
from benchmarks.coverage_models import Member, Seat  # noqa: E402
from benchmarks.coverage_places import box_changed, probed  # noqa: E402
from benchmarks.coverage_weights import compared, own_weights  # noqa: E402
from mmattn.interception import capture  # noqa: E402
from mmattn.schema.axes import PatchGrid  # noqa: E402
from mmattn.schema.layers import AttentionLayer  # noqa: E402

FAMILIES = [
    ("timm", "test_vit3"),  # an attention pool
    ("timm", "test_maxvit"),  # blocks and grids
    ("timm", "cait_xxs24_224"),  # talking heads, class attention
    ("timm", "efficientformerv2_s0"),  # queries pooled, with nothing beside them
    ("torchvision", "SwinTransformer"),  # shifted windows on a wide picture
    ("transformers", "SegformerModel"),  # keys on a coarser grid
    ("transformers", "HieraModel"),  # mask units
    ("open_clip", "coca_ViT-B-32"),  # two towers, a pool of queries and a decoder
    ("open_clip", "mt5-base-ViT-B-32"),  # a text tower without a longest row
]


def _member(library: str, name: str) -> Member:
    return next(member for member in members(library) if member.name == name)


def _layers(member: Member) -> tuple[Seat, list[AttentionLayer]]:
    seat = Seat(member.made())
    prepared = seat.prepare(member.pixels(1))
    with torch.no_grad(), capture(seat.model) as recording:
        prepared.run()
    return seat, list(seat.adapter.layers(recording.calls, prepared))


@pytest.mark.parametrize(("library", "name"), FAMILIES)
def test_weights_and_places_of_a_family_are_exact(library: str, name: str) -> None:
    member = _member(library, name)
    line = tried(replace(member, size_px=(112, 84)) if name == "SwinTransformer" else member, probes=4)
    assert line.exact == (True, True), line.reasons
    assert line.weights is not None
    assert not line.weights.flat


@pytest.mark.parametrize(("library", "name"), [("timm", "test_maxvit"), ("transformers", "ViTModel")])
def test_places_lie_on_the_photograph_that_was_resized_and_cropped(library: str, name: str) -> None:
    seat = Seat(_member(library, name).made(), photos=True)
    photo = 0.5 + 0.1 * torch.randn(3, 200, 312, generator=torch.Generator().manual_seed(0))
    prepared = seat.prepare(photo[None])
    with torch.no_grad(), capture(seat.model) as recording:
        prepared.run()
    layers = seat.adapter.layers(recording.calls, prepared)
    assert layers[0].query[0].size_px == (312, 200)  # type: ignore[union-attr]
    found = probed(
        layers=layers,
        watch=seat.watch,
        base=photo.clamp(0, 1),
        changed=lambda picture, box, number: box_changed(picture, box, number, by=0.3).clamp(0, 1),
        probes=5,
    )
    assert found.exact, [*found.problems, *found.untested]


def test_a_family_without_attention_is_told_apart_from_a_failure() -> None:
    line = tried(_member("transformers", "PoolFormerModel"))
    assert line.none
    said = page([row(line)])
    assert "1 without token attention" in said
    assert page([], before=said) == said


def test_a_grid_that_is_shifted_by_one_cell_is_found_out() -> None:
    member = _member("timm", "test_vit")
    seat, layers = _layers(member)

    def shifted(layer: AttentionLayer) -> AttentionLayer:
        axis = layer.query[0]
        assert isinstance(axis, PatchGrid)
        cells = axis.cells.copy()
        cells[axis.content] = (cells[axis.content] + 1) % len(axis.content)
        wrong = replace(axis, cells=cells)
        return replace(layer, query=(wrong,), key=(wrong,))

    found = probed(
        layers=[shifted(layer) for layer in layers],
        watch=lambda batch, edit: [shifted(layer) for layer in seat.watch(batch, edit)],
        base=member.pixels(1)[0],
        changed=box_changed,
        probes=4,
    )
    assert found.share == 0.0
    assert len(found.problems) == 2 * len(layers)


def test_weights_of_another_layer_or_with_heads_exchanged_are_found_out() -> None:
    member = _member("timm", "test_vit")
    seat, layers = _layers(member)
    own = own_weights(seat.model, seat.prepare(member.pixels(1)).run)
    assert compared(layers, own).exact
    missing = compared(layers, own[:-1])
    assert not missing.exact
    assert len(missing.problems) == 1
    assert not compared(layers, [weights * 1.001 for weights in own]).exact
    exchanged = [weights.roll(1, dims=-1) for weights in own]
    assert compared(layers, exchanged).matched == 0
