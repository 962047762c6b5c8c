"""Each rule of a trace: what a torch function makes of tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.adapters.tracing.grids import Grids
from mmattn.adapters.tracing.ids import first
from mmattn.adapters.tracing.trace import Event, Trace, trace


class Probe(nn.Module):
    """Runs `body` on `[sample, 4, 8, 8]`, and lets what comes out, `[sample, token, channel]`, attend to itself."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body(x)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def places(body: Callable[[Tensor], Tensor], *, shape: tuple[int, ...] = (1, 4, 8, 8)) -> list[tuple[float, ...]]:
    """Where the tokens of `body` lie: (row, col) of each cell's middle in pixels; its role or kind for others."""
    found = trace(Probe(body), shape=shape, call=lambda model, x: model(x))
    return [middle(found.grids, int(token)) for token in found.events[-1].key[0]]


def middle(grids: Grids, token: int) -> Any:
    numbers, _, index = grids.decode(torch.tensor([token]))
    if int(numbers) < 0:
        return {-1: "nothing", -2: "mixed"}[int(numbers)]
    grid = grids.known[int(numbers)]
    if grid.kind != "cells":
        return grid.role or grid.kind
    place, out = int(index), []
    for side, cell, origin in reversed(list(zip(grid.shape, grid.cell, grid.origin, strict=True))):
        out.append(origin + (place % side + 0.5) * cell)
        place //= side
    return tuple(out[::-1])


def sequence(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


GRID_4 = [(row + 1.0, col + 1.0) for row in range(0, 8, 2) for col in range(0, 8, 2)]


@pytest.mark.parametrize(
    "body",
    [
        lambda x: sequence(F.conv2d(x, torch.ones(5, 4, 2, 2), stride=2)),
        lambda x: sequence(F.avg_pool2d(x, 2)),
        lambda x: sequence(F.max_pool2d(x, 2)),
        lambda x: sequence(F.adaptive_avg_pool2d(x, 4)),
        lambda x: sequence(F.interpolate(x, size=(4, 4))),
        lambda x: sequence(F.interpolate(x, scale_factor=0.5, mode="bilinear")),
        lambda x: F.linear(sequence(F.pixel_unshuffle(x, 2)), torch.ones(5, 16)),
        lambda x: F.unfold(x, 2, stride=2).transpose(1, 2) @ torch.ones(16, 5),
        lambda x: torch.einsum("bcihjw,cd->bijd", x.reshape(-1, 4, 4, 2, 4, 2), torch.ones(4, 5)).flatten(1, 2),
        lambda x: x.reshape(-1, 4, 4, 2, 4, 2).mean(dim=(3, 5)).flatten(2).mT,
        lambda x: x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).amax(dim=(3, 5)).flatten(2).transpose(1, 2),
    ],
)
def test_blocks_of_two_by_two_become_cells_of_two_pixels(body: Callable[[Tensor], Tensor]) -> None:
    assert places(body) == GRID_4


@pytest.mark.parametrize(
    ("body", "shift"),
    [
        (lambda x: sequence(F.conv2d(x, torch.ones(5, 4, 3, 3), stride=2, padding=1)), -0.5),
        (lambda x: sequence(F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.ones(5, 4, 3, 3), stride=2)), 0.5),
        (lambda x: sequence(F.conv2d(x, torch.ones(5, 4, 1, 1), stride=2)), -0.5),
        (lambda x: sequence(F.max_pool2d(x, 3, stride=2, padding=1)), -0.5),
        (lambda x: sequence(F.conv2d(x, torch.ones(4, 1, 5, 5), stride=2, padding=2, groups=4)), -0.5),
    ],
)
def test_a_cell_lies_around_the_middle_of_its_window(body: Callable[[Tensor], Tensor], shift: float) -> None:
    assert places(body) == [(row + shift, col + shift) for row, col in GRID_4]


@pytest.mark.parametrize(
    "body",
    [
        lambda x: F.conv2d(x, torch.ones(5, 4, 3, 3), padding=1),
        lambda x: F.conv2d(x, torch.ones(4, 1, 7, 7), padding="same", groups=4),
        lambda x: F.layer_norm(F.gelu(x), [8]),
        lambda x: x * torch.sigmoid(x.mean(dim=(2, 3), keepdim=True)),
        lambda x: F.dropout(x, 0.5).masked_fill(torch.zeros(8, 8, dtype=torch.bool), 0.0),
        lambda x: torch.roll(torch.roll(x, (3, 2), dims=(2, 3)), (-3, -2), dims=(2, 3)),
        lambda x: F.pad(x, (1, 2, 3, 0))[:, :, 3:, 1:9],
        lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(-1, 4, 8, 8),
        lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2) * 0 + x,
        lambda x: torch.where(torch.ones(8, 8, dtype=torch.bool), x, x.new_zeros(())),
        lambda x: torch.cat([x, x], dim=1).chunk(2, dim=1)[1],
        lambda x: F.glu(torch.cat([x, x], dim=1), dim=1),
        lambda x: x.clone().mul_(2.0).add_(1.0),
    ],
)
def test_what_works_pixel_by_pixel_keeps_places(body: Callable[[Tensor], Tensor]) -> None:
    assert places(lambda x: sequence(body(x))) == [(row + 0.5, col + 0.5) for row in range(8) for col in range(8)]


def test_a_written_part_takes_the_places_of_what_is_written() -> None:
    def body(x: Tensor) -> Tensor:
        tokens = sequence(x)
        tokens[:, :2] = tokens[:, 2:4]
        return tokens

    assert places(body)[:4] == [(0.5, 2.5), (0.5, 3.5), (0.5, 2.5), (0.5, 3.5)]


def test_odd_sides_end_in_a_smaller_cell() -> None:
    found = places(lambda x: F.linear(_merged(F.pad(x, (0, 1, 0, 1))), torch.ones(5, 16)), shape=(1, 4, 7, 7))
    assert found == GRID_4


def _merged(x: Tensor) -> Tensor:
    """Swin's patch merging of a map that was padded to even sides."""
    x = x.permute(0, 2, 3, 1)
    return x.reshape(-1, 4, 2, 4, 2, 4).permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)


def test_padding_is_nothing_and_a_mean_is_a_token_of_its_own() -> None:
    assert places(lambda x: F.pad(sequence(x), (0, 0, 0, 1), value=-9.0))[-1] == "nothing"
    assert places(lambda x: torch.cat([sequence(x).mean(dim=1, keepdim=True), sequence(x)], dim=1))[0] == "mean"


def test_runs_that_form_no_box_are_loose() -> None:
    assert set(places(lambda x: F.avg_pool1d(x.flatten(2), 5).transpose(1, 2))) == {"loose"}


def test_learned_tokens_keep_the_role_of_their_parameter() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.reg_token = nn.Parameter(torch.zeros(1, 2, 4))
            self.pos_embed = nn.Parameter(torch.zeros(1, 65, 4))

        def forward(self, x: Tensor) -> Tensor:
            cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            tokens = torch.cat([cls, self.reg_token.expand(len(x), -1, -1), sequence(x)], dim=1)
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    found = trace(Tokens(), shape=(2, 4, 8, 8), call=lambda model, x: model(x))
    assert [middle(found.grids, int(token)) for token in found.events[0].key[1, :3]] == ["cls", "register", "register"]
    _, sample, _ = found.grids.decode(found.events[0].key)
    assert torch.equal(sample, torch.arange(2)[:, None].expand(2, 67))


def attention(form: Callable[[Tensor, Tensor, Tensor], Tensor], *, shape: tuple[int, ...] = (2, 4, 4, 4)) -> Event:
    """The event of `form(q, k, v)` on `[sample, 2 heads, token, 2]`; keys are the tokens in reverse order."""

    def body(x: Tensor) -> Tensor:
        q = sequence(x).unflatten(2, (2, 2)).transpose(1, 2)
        return form(q, q.flip(2), q.flip(2)).transpose(1, 2).flatten(2)

    found: Trace = trace(_Body(body), shape=shape, call=lambda model, x: model(x))
    assert len(found.events) == 1
    return found.events[0]


class _Body(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(
    "form",
    [
        F.scaled_dot_product_attention,
        lambda q, k, v: torch.softmax(q @ k.transpose(-2, -1) * 0.5, dim=-1) @ v,
        lambda q, k, v: torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v),
        lambda q, k, v: torch.matmul(F.dropout(F.softmax(torch.matmul(q, k.mT), -1), 0.1), v),
        lambda q, k, v: (v.mT @ (q @ k.mT).softmax(-1).mT).mT,
        lambda q, k, v: torch.bmm(
            torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1), v.flatten(0, 1)
        ).unflatten(0, (-1, 2)),
        lambda q, k, v: (
            F.conv2d((q @ k.mT).softmax(-1), torch.ones(2, 2, 1, 1)) @ v  # talking heads
        ),
        lambda q, k, v: F.linear((q @ k.mT).permute(0, 2, 3, 1), torch.ones(2, 2)).permute(0, 3, 1, 2).softmax(-1) @ v,
    ],
)
def test_attention_is_seen_with_its_queries_and_keys(form: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    event = attention(form)
    query, key = event.query.reshape(2, 2, 16), event.key.reshape(2, 2, 16)
    assert torch.equal(query, key.flip(-1))
    assert torch.equal(query[:, 0], query[:, 1])
    assert len(torch.unique(query)) == 32


@pytest.mark.parametrize(
    "masked",
    [
        lambda logits, mask: logits.masked_fill(mask, float("-inf")),
        lambda logits, mask: logits + torch.where(mask, -100.0, 0.0),
        lambda logits, mask: logits + mask * -1e9 + torch.rand(16, 16),
    ],
)
def test_masks_forbid_pairs(masked: Callable[[Tensor, Tensor], Tensor]) -> None:
    mask = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    event = attention(lambda q, k, v: masked(q @ k.mT, mask).softmax(-1) @ v)
    assert event.forbidden is not None
    assert torch.equal(event.forbidden, mask.expand(2, 2, 16, 16))
    fused = attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.where(mask, -100.0, 0.0)))
    assert fused.forbidden is not None
    assert torch.equal(fused.forbidden, mask.expand(2, 2, 16, 16))


def test_linear_and_channel_attention_are_no_events() -> None:
    for form in (
        lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v),
        lambda q, k, v: ((q.mT @ k).softmax(-1) @ v.mT).mT,
    ):
        found = trace(
            _Body(lambda x, form=form: form(*[sequence(x).unflatten(2, (2, 2)).transpose(1, 2)] * 3)),
            shape=(1, 4, 4, 4),
            call=lambda model, x: model(x),
        )
        assert not found.events


def test_first_and_second_ids_survive_packing() -> None:
    from mmattn.adapters.tracing.ids import FORBIDDEN, forbidden, packed, second

    one, two = torch.tensor([3, (1 << 25) - 1]), torch.tensor([5, (1 << 25) - 1])
    values = packed(one, two) + FORBIDDEN
    assert torch.equal(first(values), one)
    assert torch.equal(second(values), two)
    assert bool(forbidden(values).all())
    assert not bool(forbidden(packed(one, two)).any())


def strided_block(x: Tensor, *, stride: int) -> Tensor:
    """A block of two ways, whose kernels have their middles half a new cell apart under "same" padding."""
    main = F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.ones(4, 4, 3, 3), stride=stride)
    return main + F.conv2d(x, torch.ones(4, 4, 1, 1), stride=stride)


def test_the_sum_of_two_ways_with_stride_lies_between_them() -> None:
    assert places(lambda x: sequence(strided_block(x, stride=2))) == GRID_4


def test_the_stream_beside_a_block_says_where_the_sum_lies() -> None:
    """An even kernel moves its map by half a cell; what runs beside it stays where it was."""
    for sum_of in (lambda main, x: main + x, lambda main, x: x + main):
        found = places(
            lambda x, sum_of=sum_of: sequence(sum_of(F.conv2d(F.pad(x, (1, 0, 1, 0)), torch.ones(4, 4, 2, 2)), x))
        )
        assert found == [(row + 0.5, col + 0.5) for row in range(8) for col in range(8)]


def test_attention_on_a_coarser_map_does_not_move_the_stream_beside_it() -> None:
    """EfficientFormerV2 attends at half the size and scales up again: the stream stays where it was."""

    def body(x: Tensor) -> Tensor:
        coarse = F.conv2d(x, torch.ones(4, 4, 3, 3), stride=2, padding=1)
        return sequence(F.interpolate(coarse, scale_factor=2, mode="bilinear") + x)

    assert places(body) == [(row + 0.5, col + 0.5) for row in range(8) for col in range(8)]
