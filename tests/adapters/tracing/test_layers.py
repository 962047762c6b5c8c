"""Which call an event belongs to, and what is said where that or a token's place is not known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.adapters.vit.layouts import left_out, picture_layers
from mmattn.interception import capture
from mmattn.schema.axes import PatchGrid, Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks

from .test_trace import facts_of


class Net(nn.Module):
    """Patches of 8 pixels, `[sample, token, 8]`, through `body(parts, tokens)`."""

    def __init__(self, body: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.body = body
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.parts, self.embed(x).flatten(2).mT)


def seen(
    body: Callable[..., Tensor], *, shape: tuple[int, ...] = (2, 3, 32, 32), **parts: nn.Module
) -> tuple[tuple[AttentionLayer, ...], tuple[str, ...]]:
    torch.manual_seed(0)
    model = Net(body, **parts).eval()
    x = torch.rand(shape)
    with torch.no_grad(), capture(model) as recording:
        model(x)
    facts = facts_of(model, x)
    return picture_layers(recording.calls, facts), left_out(recording.calls, facts)


def only(body: Callable[..., Tensor], **options: Any) -> AttentionLayer:
    (layer,), phrases = seen(body, **options)
    assert not phrases
    return layer


def attend(t: Tensor, k: Tensor | None = None) -> Tensor:
    k = t if k is None else k
    return (t @ k.mT).softmax(-1) @ k


def test_a_module_of_whose_attention_only_a_part_was_traced_has_no_places() -> None:
    """The first attention is a form that the trace does not follow; the second must not be taken for it."""

    def body(_: Any, t: Tensor) -> Tensor:
        first = ((t @ t.mT).softmax(-1).unsqueeze(-1) * t.unsqueeze(1)).sum(2)
        return attend(t.flip(1)) + first

    layers, phrases = seen(body)
    assert not layers
    assert len(phrases) == 1
    assert "attended 2 times, of which 1" in phrases[0]


def test_sequences_over_several_pictures_have_no_place() -> None:
    """Torch's own attention takes tokens first: fed with samples first, it mixes the pictures."""
    layers, phrases = seen(lambda m, t: m["a"](t, t, t)[0], a=nn.MultiheadAttention(8, 2))
    assert not layers
    assert "join tokens of several pictures" in phrases[0]


@pytest.mark.parametrize("batch_first", [True, False])
def test_samples_of_torchs_own_attention_are_told_apart(batch_first: bool) -> None:
    def body(m: Any, t: Tensor) -> Tensor:
        t = t if batch_first else t.transpose(0, 1)
        out: Tensor = m["a"](t, t, t)[0]
        return out

    layer = only(body, a=nn.MultiheadAttention(8, 2, batch_first=batch_first))
    assert (layer.sample_count, layer.heads, len(layer.query_axis)) == (2, 2, 16)


def test_torchs_own_attention_without_a_batch_has_its_tokens() -> None:
    """Eight tokens of eight channels: neither is taken for the other."""
    layer = only(
        lambda m, t: m["a"](t[0].flip(0), t[0], t[0])[0][None], a=nn.MultiheadAttention(8, 2), shape=(1, 3, 32, 16)
    )
    storage = layer.storages[0]
    assert isinstance(storage, Blocks)
    assert storage.query_index is not None
    assert storage.query_index.tolist() == [list(range(7, -1, -1))]
    assert storage.key_index is None


def allowed_of(layer: AttentionLayer) -> Tensor:
    storage = layer.storages[0]
    assert isinstance(storage, Blocks)
    allowed = storage.source.allowed(slice(None), slice(None))
    assert allowed is not None
    return allowed


@pytest.mark.parametrize("need_weights", [True, False])
def test_masks_of_torchs_own_attention_forbid(need_weights: bool) -> None:
    over = torch.triu(torch.ones(16, 16, dtype=torch.bool), 1)
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[1, 10:] = True
    layer = only(
        lambda m, t: m["a"](t, t, t, key_padding_mask=padding, attn_mask=over, need_weights=need_weights)[0],
        a=nn.MultiheadAttention(8, 2, batch_first=True),
    )
    expected = ~(over[None] | padding[:, None, :])
    assert torch.equal(allowed_of(layer)[:, 0], expected)


def test_a_key_that_one_head_may_look_at_is_allowed() -> None:
    """An additive mask that differs from head to head must not silence the others."""
    mask = torch.zeros(1, 2, 16, 16)
    mask[:, 0, :, 8:] = -100.0

    def body(_: Any, t: Tensor) -> Tensor:
        q = t.unflatten(2, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask).transpose(1, 2).flatten(2)

    weights = only(body, shape=(1, 3, 32, 32)).weights()
    assert float(weights[0, :, 8:].max()) < 1e-20
    assert torch.allclose(weights.sum(-1), torch.ones(2, 16))
    assert float(weights[1, :, 8:].min()) > 1e-3


def test_tokens_that_all_stand_for_the_picture_are_told_apart() -> None:
    """A layer over the tokens makes 5 new ones of all of them: none is the mean of the picture."""
    layer = only(lambda m, t: attend(t, m["mix"](t.mT).mT), mix=nn.Linear(16, 5))
    assert isinstance(layer.query_axis, PatchGrid)
    assert isinstance(layer.key_axis, Slots)
    assert len(layer.key_axis) == 5
    assert "several tokens stand for one place" in layer.note


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 32, 32)])
def test_windows_and_pictures_of_mixtures_are_left_out(shape: tuple[int, ...]) -> None:
    """Their tokens do not say which blocks are heads of one window, windows, or pictures."""
    layers, phrases = seen(lambda _, t: attend(torch.fft.fft(t, dim=1).real.unflatten(1, (4, 4))), shape=shape)
    assert not layers
    assert "mixtures, of which block" in phrases[0]


def test_a_sequence_of_mixtures_is_counted() -> None:
    layer = only(lambda _, t: attend(torch.fft.fft(t, dim=1).real), shape=(1, 3, 32, 32))
    assert isinstance(layer.key_axis, Slots)
    assert (len(layer.key_axis), layer.heads) == (16, 1)


def test_keys_that_are_a_part_of_the_map_stand_where_they_are() -> None:
    layer = only(lambda _, t: attend(t, t.unflatten(1, (4, 4))[:, 1:3, 2:4].flatten(1, 2)), shape=(1, 3, 32, 32))
    axis = layer.key_axis
    assert isinstance(axis, PatchGrid)
    assert [axis.place(token) for token in (0, 3)] == [(16.0, 8.0, 24.0, 16.0), (24.0, 16.0, 32.0, 24.0)]


def test_every_second_key_is_a_cell_twice_as_wide() -> None:
    layer = only(lambda _, t: attend(t, t.unflatten(1, (8, 8))[:, 1::2, 1::2].flatten(1, 2)), shape=(1, 3, 64, 64))
    axis = layer.key_axis
    assert isinstance(axis, PatchGrid)
    assert axis.place(5) == (20.0, 20.0, 36.0, 36.0)


def test_heads_that_stand_before_windows_of_one_dimension_are_never_misplaced() -> None:
    """[sample x head x window]: where heads cannot be told from windows, queries have no places."""

    def body(_: Any, t: Tensor) -> Tensor:
        q = t.unflatten(1, (4, 4)).unflatten(3, (2, 4)).permute(0, 3, 1, 2, 4).flatten(0, 2)
        return (q @ q.mT).softmax(-1) @ q

    layer = only(body)
    assert isinstance(layer.query_axis, Slots)
    assert layer.sample_count == 2


@pytest.mark.parametrize(
    "body",
    [
        lambda q: q.permute(2, 0, 1, 3, 4),
        lambda q: q.permute(1, 0, 2, 3, 4),
        lambda q: q.permute(0, 2, 1, 3, 4),
        lambda q: q.flatten(1, 2),
        lambda q: q.flatten(0, 1),
        lambda q: q.flatten(0, 2),
    ],
)
def test_two_samples_two_windows_and_two_heads_are_told_apart(body: Callable[[Tensor], Tensor]) -> None:
    """Queries and keys `[sample, window, head, token, dim]` in any order of the first three."""
    kept: list[Tensor] = []

    def net(_: Any, t: Tensor) -> Tensor:
        q = t.unflatten(1, (2, 4)).unflatten(3, (2, 4)).transpose(2, 3)
        kept.append(q)
        q = body(q)
        return (q @ q.mT).softmax(-1) @ q

    layer = only(net, shape=(2, 3, 32, 16))
    q = kept[0].detach()
    expected = (q @ q.mT).softmax(-1)
    for sample in range(2):
        weights = layer.sample(sample).weights()
        for window in range(2):
            part = slice(4 * window, 4 * window + 4)
            assert torch.allclose(weights[:, part, part], expected[sample, window], atol=1e-6)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 8))


@pytest.mark.parametrize("turned", [True, False])
def test_of_a_lone_key_the_query_is_still_the_query(turned: bool) -> None:
    def body(_: Any, t: Tensor) -> Tensor:
        key = t[:, 5:6]
        logits = (key @ t.mT).mT if turned else t @ key.mT
        return logits.softmax(-1) @ key

    layer = only(body, shape=(1, 3, 32, 32))
    axis = layer.key_axis
    assert isinstance(axis, PatchGrid)
    assert len(layer.query_axis) == 16
    assert axis.place(0) == (8.0, 8.0, 16.0, 16.0)
