"""What must never be placed wrongly: what values or chance select, what is written in place, odd maps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.adapters.tracing.trace import trace

from .test_rules import Probe, middle, places, sequence


def chosen_by_values(x: Tensor) -> Tensor:
    tokens = sequence(x)
    return tokens.gather(1, tokens.mean(-1).topk(4, dim=1).indices[..., None].expand(-1, -1, 4))


def chosen_by_chance(x: Tensor) -> Tensor:
    tokens = sequence(x)
    return tokens.gather(1, torch.rand(len(x), 64).argsort(1)[:, :4, None].expand(-1, -1, 4))


def sorted_by_values(x: Tensor) -> Tensor:
    tokens = sequence(x)
    return tokens[:, tokens.mean(-1)[0].argsort(descending=True)]


def permuted_by_chance(x: Tensor) -> Tensor:
    return sequence(x)[:, torch.randperm(64)]


def written_where_values_say(x: Tensor) -> Tensor:
    tokens = sequence(x).clone()
    tokens[:, tokens.mean(-1)[0].argmax()] = tokens[:, 3]
    return tokens


def scattered(x: Tensor) -> Tensor:
    tokens = sequence(x).clone()
    tokens.scatter_(1, torch.arange(63, -1, -1)[None, :, None].expand(len(x), 64, 4), sequence(x))
    return tokens


@pytest.mark.parametrize(
    "body",
    [
        chosen_by_values,
        chosen_by_chance,
        sorted_by_values,
        permuted_by_chance,
        written_where_values_say,
        scattered,
        lambda x: sequence(x).sort(dim=1).values,
        lambda x: sequence(x).cumsum(1),
        lambda x: torch.stack([sequence(x), torch.rand(1, 64, 4) * 60], 2).flatten(1, 2)[:, 1::2],
        lambda x: F.one_hot(sequence(x).mean(-1).argsort(1), 64).to(x.dtype) @ sequence(x),
        lambda x: F.embedding(sequence(x).mean(-1).argsort(1), torch.rand(64, 4)),
        lambda x: torch.where(sequence(x) > 30, sequence(x), sequence(x).flip(1)),
        lambda x: sequence(F.grid_sample(x, torch.zeros(1, 8, 8, 2), align_corners=False)),
        lambda x: nn.LSTM(4, 4, batch_first=True)(sequence(x))[0],
    ],
)
def test_what_values_or_chance_arrange_has_no_place(body: Callable[[Tensor], Tensor]) -> None:
    assert set(places(body)) == {"mixed"}


def test_a_sum_of_two_cells_has_no_place_and_a_cell_beside_itself_keeps_its_own() -> None:
    found = places(lambda x: sequence(x)[:, :63] + sequence(x)[:, :63].flip(1))
    assert found[31] == (3.5, 7.5)
    assert set(found[:31] + found[32:]) == {"mixed"}


@pytest.mark.parametrize(
    "body",
    [
        lambda x: sequence(x) if bool(x.mean() > 100) else sequence(x).flip(1),
        lambda x: sequence(x)[:, sequence(x).mean(-1)[0] > 30],
        lambda x: sequence(x)[:, : int(x.argmax())],
        lambda x: sequence(x).flip(1) if x.max().item() > 3 else sequence(x),
        lambda x: sequence(x)[:, x.argmax() % 8 : x.argmax() % 8 + 8],
        lambda x: sequence(x)[:, torch.nonzero(sequence(x).mean(-1)[0]).flatten()],
        lambda x: sequence(x)[:, x.flatten().tolist()[0] :],
        lambda x: sequence(x)[:, torch.from_numpy(x.numpy().argsort()).flatten()],
    ],
)
def test_a_trace_ends_where_values_decide_what_runs_next(body: Callable[[Tensor], Tensor]) -> None:
    found = trace(Probe(body), shape=(1, 4, 8, 8), call=lambda model, x: model(x))
    assert not found.events
    assert "values" in found.stopped


def copied(x: Tensor) -> Tensor:
    out = sequence(x).clone()
    out.copy_(sequence(x).flip(1))
    return out


def written_into_a_buffer(x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 64, 4)
    out[:, :32] = sequence(x)[:, 32:].flip(1)
    out[:, 32:] = sequence(x)[:, :32].flip(1)
    return out


def copied_into_a_buffer(x: Tensor) -> Tensor:
    out = torch.empty(len(x), 64, 4)
    out.copy_(sequence(x).flip(1))
    return out


@pytest.mark.parametrize("body", [copied, written_into_a_buffer, copied_into_a_buffer])
def test_what_is_written_stands_where_it_was_written(body: Callable[[Tensor], Tensor]) -> None:
    assert places(body) == places(lambda x: sequence(x).flip(1))


def test_a_write_into_a_view_leaves_its_base_without_places() -> None:
    def body(x: Tensor) -> Tensor:
        tokens = sequence(x).clone()
        tokens[:, :32].copy_(tokens[:, 32:])
        return tokens

    assert set(places(body)) == {"mixed"}


def test_a_write_into_what_came_of_tokens_leaves_the_tokens() -> None:
    def body(x: Tensor) -> Tensor:
        tokens = sequence(x)
        normed = F.layer_norm(tokens, [4])
        normed[:, :2] = normed[:, 2:4]
        return tokens

    assert places(body) == places(sequence)


def test_where_takes_each_token_from_its_own_side() -> None:
    even = (torch.arange(64) % 2 == 0)[:, None]
    found = places(lambda x: torch.where(even, sequence(x), sequence(x).flip(1)))
    assert found[:3] == [(0.5, 0.5), (7.5, 6.5), (0.5, 2.5)]


HAT = torch.tensor([0.25, 0.75, 0.75, 0.25])


def rows_and_cols(body: Callable[[Tensor], Tensor], **options: Any) -> tuple[list[float], list[float]]:
    """Middles of the rows and of the columns of the map that `body` gives."""
    found = places(lambda x: sequence(body(x)), **options)
    return sorted({row for row, _ in found}), sorted({col for _, col in found})


@pytest.mark.parametrize(
    "body",
    [
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), torch.ones(5, 4, 3, 3), stride=2),
        lambda x: F.conv2d(F.pad(x, (1, 0, 1, 0)), torch.ones(5, 4, 3, 3), stride=2),
        lambda x: F.conv2d(F.pad(x, (3, 3, 3, 3)), torch.ones(5, 4, 7, 7), stride=2),
        lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2),
    ],
)
def test_a_map_that_was_padded_first_has_the_cells_of_a_kernel_that_pads(body: Callable[[Tensor], Tensor]) -> None:
    assert places(lambda x: sequence(body(x))) == places(
        lambda x: sequence(F.conv2d(x, torch.ones(5, 4, 3, 3), stride=2, padding=1))
    )


@pytest.mark.parametrize(
    "body",
    [
        lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=True),
        lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        lambda x: F.interpolate(x, size=5, mode="bilinear"),
        lambda x: F.conv_transpose2d(x, torch.ones(1, 1, 3, 3), stride=2, padding=1, output_padding=1),
        lambda x: F.conv_transpose2d(x, torch.outer(HAT, HAT)[None, None], stride=2, padding=1),
        lambda x: F.conv2d(x, torch.ones(1, 1, 2, 2), padding=1),
        lambda x: F.conv2d(x, torch.ones(1, 1, 3, 3), dilation=2),
        lambda x: F.conv2d(x, torch.ones(1, 1, 3, 5), stride=(2, 3), padding=(1, 2)),
        lambda x: F.avg_pool2d(F.pad(x, (2, 1, 0, 1)), (2, 3), (2, 1)),
        lambda x: F.avg_pool2d(x[:, :, 1:], 2, ceil_mode=True),
    ],
)
def test_the_middle_of_a_new_cell_is_where_a_linear_picture_has_its_value(body: Callable[[Tensor], Tensor]) -> None:
    """A linear map of a picture whose pixels hold their own column (or row) gives the new token's column."""
    size = 24
    rows, cols = rows_and_cols(body, shape=(1, 1, size, size))
    ramp = (torch.arange(size) + 0.5).expand(1, 1, size, size)
    for middles, picture in ((rows, ramp.mT), (cols, ramp)):
        value = body(picture.contiguous()) / body(torch.ones(1, 1, size, size))
        line = value[0, 0].mT[value.shape[3] // 2] if picture is not ramp else value[0, 0, value.shape[2] // 2]
        inner = slice(4, -4) if len(line) > 9 else slice(1, -1)  # padding and edges bend the ends
        assert torch.allclose(torch.tensor(middles)[inner], line[inner], atol=1e-3)


def test_an_even_kernel_keeps_its_tokens_with_padding_of_the_same() -> None:
    assert places(lambda x: sequence(F.conv2d(x, torch.ones(5, 4, 2, 2), padding="same"))) == places(sequence)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x / x.norm(2, -1, True),
        lambda x: x - x.var(-1, False, True),
        lambda x: x / torch.linalg.vector_norm(x, 2, -1, True),
        lambda x: torch.einsum("bnd->bnd", x),
        lambda x: torch.einsum("bdn->bnd", x.mT),
        lambda x: torch.einsum("A n d, d e -> A n e", x, torch.ones(4, 4)),
        lambda x: torch.einsum("...nd, de -> ...ne", x, torch.ones(4, 4)),
        lambda x: torch.einsum("A...d, dB -> A...B", x, torch.ones(4, 4)),
        lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(2, (2, 2))) * torch.ones(64, 2)).flatten(2),
    ],
)
def test_forms_of_arguments_that_keep_tokens(body: Callable[[Tensor], Tensor]) -> None:
    assert places(lambda x: body(sequence(x))) == places(sequence)


def test_a_dilated_window_over_runs_has_no_place() -> None:
    found = places(lambda x: F.conv1d(x.flatten(2), torch.ones(5, 4, 2), stride=2, dilation=2).transpose(1, 2))
    assert set(found) == {"mixed"}


def test_what_numpys_random_numbers_select_has_no_place_and_none_is_drawn() -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    found = trace(
        Probe(lambda x: sequence(x)[:, np.random.permutation(64)[:4].tolist()]),
        shape=(1, 4, 8, 8),
        call=lambda model, x: model(x),
    )
    assert not found.events
    assert "random numbers" in found.stopped
    assert state == np.random.get_state()[1].tolist()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_module_loses_places() -> None:
    class Flip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1)

    found = trace(_Inner(torch.jit.trace(Flip(), torch.rand(1, 64, 4))), shape=(1, 4, 8, 8), call=lambda m, x: m(x))
    assert {middle(found.grids, int(token)) for token in found.events[0].query[0]} == {"mixed"}
    assert middle(found.grids, int(found.events[0].key[0, 0])) == (0.5, 0.5)


class _Inner(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        tokens = sequence(x)
        return F.scaled_dot_product_attention(self.inner(tokens), tokens, tokens)


def test_a_token_written_over_padding_is_no_padding() -> None:
    def body(x: Tensor) -> Tensor:
        tokens = F.pad(sequence(x), (0, 0, 1, 1))
        tokens[:, :1] = torch.ones(1, 1, 4)
        return tokens

    found = places(body)
    assert (found[0], found[1], found[-1]) == ("mixed", (0.5, 0.5), "nothing")


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 4, 8, 8)])
def test_queries_without_a_place_do_not_take_those_of_their_keys(shape: tuple[int, ...]) -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = sequence(x)
            return F.scaled_dot_product_attention(tokens.sort(dim=1).values, tokens, tokens)

    found = trace(Sorted(), shape=shape, call=lambda model, x: model(x))
    assert bool((found.events[0].query == 1).all())
