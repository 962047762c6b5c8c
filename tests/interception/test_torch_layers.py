"""torch's own attention: the fused kernel, its layers, grouped queries, FlexAttention and jagged samples."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from written_out import formula

from mmattn.interception import capture, intervene, weights_of
from mmattn.interception.blocks import to_blocks


class Bare(nn.Module):
    """Calls the kernel with what it was given."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 1.0},
        {"attn_mask": torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.4},
        {"attn_mask": draw(2, 1, 5, 7)},
        {"attn_mask": draw(4, 5, 7), "scale": 0.3},
        {"attn_mask": draw(2, 1, 1, 7) > 0},
    ],
    ids=["plain", "causal", "scale", "boolean", "additive", "per head", "key padding"],
)
def test_bare_kernel_equals_the_formula(options: dict) -> None:
    q, k, v = draw(2, 4, 5, 8), draw(2, 4, 7, 8), draw(2, 4, 7, 6)
    model = Bare()
    plain = model(q, k, v, **options)
    with capture(model) as recording:
        seen = model(q, k, v, **options)
    assert torch.equal(plain, seen)
    call = recording.calls[0]
    expected = formula(
        q, k, mask=options.get("attn_mask"), causal=options.get("is_causal", False), scale=options.get("scale")
    )
    torch.testing.assert_close(weights_of(call).double(), expected, atol=1e-5, rtol=0)
    assert call.value_dim == 6
    assert call.scale == pytest.approx(options.get("scale", 8**-0.5))
    assert call.error is not None
    assert call.error < 1e-5


def test_row_without_an_allowed_key_is_zero_as_in_the_kernel() -> None:
    q, k, v = draw(1, 1, 3, 4), draw(1, 1, 5, 4), draw(1, 1, 5, 4)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    model = Bare()
    with capture(model) as recording:
        out = model(q, k, v, attn_mask=mask)
    assert out[0, 0, 1].abs().max() == 0
    assert weights_of(recording.calls[0])[0, 0, 1].abs().max() == 0


@pytest.mark.parametrize(
    ("q", "k", "v", "mask"),
    [
        ((1, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), None),
        ((2, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8), (2, 1, 1, 7)),
        ((2, 1, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), (5, 7)),
        ((2, 4, 5, 8), (1, 1, 7, 8), (1, 1, 7, 8), None),
        ((1, 4, 5, 8), (1, 4, 7, 8), (2, 4, 7, 8), None),
        ((6, 5, 8), (1, 7, 8), (6, 7, 8), (6, 1, 7)),
        ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8), (2, 3, 1, 1, 7)),
        ((2, 3, 4, 5, 8), (1, 3, 1, 7, 8), (2, 3, 1, 7, 8), (4, 5, 7)),
    ],
)
def test_broadcast_operands_give_every_sample_its_weights(q, k, v, mask) -> None:
    query, key, value = draw(*q), draw(*k), draw(*v)
    allowed = None if mask is None else draw(*mask) > -1
    model = Bare()
    with capture(model) as recording:
        out = model(query, key, value, attn_mask=allowed)
    scores = query.double() @ key.double().mT / 8**0.5
    expected = (scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)).softmax(-1)
    expected = expected.expand(*out.shape[:-2], -1, -1)
    blocks = to_blocks(recording.calls[0])
    torch.testing.assert_close(blocks.weights().double().view_as(expected), expected, atol=1e-5, rtol=0)
    parts = [part.weights() for sample in range(len(blocks.sample)) if (part := blocks.of_sample(sample))]
    assert torch.equal(torch.cat(parts), blocks.weights())
    heads = recording.maps[0].heads
    assert heads == (4 if query.dim() == 4 else None)
    with intervene(model, lambda weights, call: weights * 2):
        torch.testing.assert_close(model(query, key, value, attn_mask=allowed), 2 * out, atol=1e-5, rtol=0)


def test_grouped_heads_without_a_batch_stay_heads() -> None:
    q, k = draw(4, 5, 8), draw(2, 7, 8)
    with capture(Bare()) as recording:
        recording.model(q, k, k, enable_gqa=True)
    weights = to_blocks(recording.calls[0]).weights()
    torch.testing.assert_close(weights.double(), formula(q[None], k[None]), atol=1e-5, rtol=0)


def test_grouped_queries_keep_their_few_key_heads() -> None:
    q, k, v = draw(2, 6, 5, 8), draw(2, 2, 5, 8), draw(2, 2, 5, 8)
    model = Bare()
    with capture(model) as recording:
        out = model(q, k, v, enable_gqa=True, is_causal=True)
    call = recording.calls[0]
    assert call.k.shape == k.shape
    torch.testing.assert_close(weights_of(call).double(), formula(q, k, causal=True), atol=1e-5, rtol=0)
    assert call.error < 1e-5
    torch.testing.assert_close(weights_of(call) @ v.repeat_interleave(3, 1), out, atol=1e-5, rtol=0)


def test_kernel_called_outside_any_module_is_the_roots() -> None:
    q = draw(1, 2, 3, 4)
    with capture(Bare()) as recording:
        F.scaled_dot_product_attention(q, q, q)
    assert [call.module for call in recording.calls] == [""]


def test_another_models_calls_are_not_recorded() -> None:
    q = draw(1, 2, 3, 4)
    mine, other = Bare(), Bare()
    with capture(mine) as recording:
        other(q, q, q)
        mine(q, q, q)
    assert len(recording.calls) == 1


CASES = list(itertools.product([True, False], [True, False], ["plain", "padding", "causal", "bias_kv", "zero_attn"]))


@pytest.mark.parametrize(("need_weights", "batch_first", "case"), CASES)
def test_multi_head_attention_equals_its_own_weights(need_weights: bool, batch_first: bool, case: str) -> None:
    torch.manual_seed(0)
    options = {"add_bias_kv": case == "bias_kv", "add_zero_attn": case == "zero_attn"}
    layer = nn.MultiheadAttention(16, 4, batch_first=batch_first, **options).eval()
    x = draw(3, 7, 16)
    x = x if batch_first else x.transpose(0, 1)
    call_with: dict = {"need_weights": need_weights}
    if case == "padding":
        call_with["key_padding_mask"] = torch.arange(7) >= torch.tensor([7, 5, 3])[:, None]
    if case == "causal":
        call_with |= {"attn_mask": nn.Transformer.generate_square_subsequent_mask(7), "is_causal": True}
    with torch.no_grad():
        _, expected = layer(x, x, x, **{**call_with, "need_weights": True}, average_attn_weights=False)
        plain, _ = layer(x, x, x, **call_with)
        with capture(layer) as recording:
            seen, _ = layer(x, x, x, **call_with)
    torch.testing.assert_close(seen, plain, atol=1e-5, rtol=0)
    assert len(recording.calls) == 1
    call = recording.calls[0]
    weights = weights_of(call)
    if weights.dim() == 3:
        assert call.head_count == 4
        weights = weights.unflatten(0, (3, 4))
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)
    assert weights.shape[-1] == 7 + (case in ("bias_kv", "zero_attn"))
    assert call.error < 1e-5


def test_encoder_and_decoder_layers_are_all_seen() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 2, 2, 32, batch_first=True).eval()
    source, target = draw(2, 6, 16), draw(2, 4, 16)
    padding = torch.arange(6) >= torch.tensor([6, 4])[:, None]
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding, "tgt_mask": causal}
        with torch.no_grad():
            plain = model(source, target, **options)
            with capture(model) as recording:
                seen = model(source, target, **options)
    torch.testing.assert_close(seen, plain, atol=1e-5, rtol=0)
    assert [call.module for call in recording.calls] == [
        "encoder.layers.0.self_attn",
        "encoder.layers.1.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
        "decoder.layers.1.self_attn",
        "decoder.layers.1.multihead_attn",
    ]
    for call in recording.calls:
        weights = weights_of(call)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5, rtol=0)
        if "self_attn" not in call.module or "encoder" in call.module:
            assert weights[1, ..., 4:].abs().max() == 0
        else:
            assert weights.triu(1).abs().max() == 0


def test_native_fast_path_steps_aside_within_tolerance() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, batch_first=True), 2).eval()
    x = draw(2, 6, 16)
    with torch.no_grad():
        plain = layer(x)
        with capture(layer) as recording:
            seen = layer(x)
    torch.testing.assert_close(seen, plain, atol=1e-5, rtol=0)
    attention = layer.layers[0].self_attn
    with torch.no_grad():
        _, expected = attention(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(weights_of(recording.calls[0]), expected, atol=1e-5, rtol=0)


def relative(score, batch, head, query, key):
    return score + 0.3 * (query - key) * (head + 1)


def causal(batch, head, query, key):
    return query >= key


class Flex(nn.Module):
    def __init__(self, kernel=flex_attention) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
        return self.kernel(q, k, v, **options)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", ["plain", "score", "block", "both", "grouped"])
def test_flex_attention_equals_the_formula(case: str) -> None:
    q = draw(2, 4, 16, 8)
    shared = draw(2, 2 if case == "grouped" else 4, 16, 8)
    options: dict = {"enable_gqa": case == "grouped"}
    bias = torch.zeros(1, 4, 16, 16)
    if case in ("score", "both"):
        options["score_mod"] = relative
        place = torch.arange(16)
        bias = bias + 0.3 * (place[:, None] - place) * (torch.arange(4)[:, None, None] + 1)
    if case in ("block", "both"):
        options["block_mask"] = create_block_mask(causal, None, None, 16, 16, device="cpu")
        bias = bias.masked_fill(torch.ones(16, 16).triu(1) > 0, float("-inf"))
    model = Flex()
    with capture(model) as recording:
        seen = model(q, shared, shared, **options)
    expected = formula(q, shared, mask=bias)
    call = recording.calls[0]
    assert call.origin == "flex"
    torch.testing.assert_close(weights_of(call).double(), expected, atol=1e-5, rtol=0)
    value = shared.repeat_interleave(4 // shared.shape[1], 1).double()
    torch.testing.assert_close(seen.double(), expected @ value, atol=1e-5, rtol=0)
    assert call.error < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_compiled_flex_attention_is_seen() -> None:
    q = draw(1, 2, 16, 8)
    model = Flex(torch.compile(flex_attention, backend="eager"))
    with capture(model) as recording:
        model(q, q, q, score_mod=relative)
    place = torch.arange(16)
    bias = 0.3 * (place[:, None] - place) * (torch.arange(2)[:, None, None] + 1)
    torch.testing.assert_close(weights_of(recording.calls[0]).double(), formula(q, q, mask=bias), atol=1e-5, rtol=0)


def test_jagged_samples_equal_the_formula_of_each() -> None:
    torch.manual_seed(0)
    lengths = [3, 6, 1]
    samples = [torch.randn(count, 16) for count in lengths]
    jagged = torch.nested.nested_tensor(samples, layout=torch.jagged)
    heads = jagged.unflatten(-1, (2, 8)).transpose(1, 2)
    model = Bare()
    plain = model(heads, heads, heads)
    with capture(model) as recording:
        seen = model(heads, heads, heads)
    for before, after in zip(plain.unbind(), seen.unbind(), strict=True):
        assert torch.equal(before, after)
    call = recording.calls[0]
    weights = weights_of(call)
    assert weights.shape == (3, 2, 6, 6)
    for number, (count, sample) in enumerate(zip(lengths, samples, strict=True)):
        each = sample.view(count, 2, 8).transpose(0, 1)
        torch.testing.assert_close(weights[number, :, :count, :count].double(), formula(each, each), atol=1e-5, rtol=0)
        assert weights[number, :, :, count:].abs().sum() == 0
        assert weights[number, :, count:].abs().sum() == 0
    assert call.error < 1e-5


def test_exported_program_is_seen_through_the_aten_kernel() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = draw(2, 6, 16)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x, x, need_weights=False)[0]

    exported = torch.export.export(Wrapped(), (x,)).module()
    with torch.no_grad(), capture(exported) as recording:
        exported(x)
        _, expected = layer(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(weights_of(recording.calls[0]), expected, atol=1e-5, rtol=0)


def test_one_headed_calls_of_a_batch_are_not_taken_for_heads() -> None:
    class Single(nn.Module):
        num_heads, embed_dim = 4, 16

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    with capture(Single()) as recording:
        recording.model(draw(4, 5, 16))
        recording.model(draw(8, 5, 4))
    assert [call.head_count for call in recording.calls] == [None, 4]
