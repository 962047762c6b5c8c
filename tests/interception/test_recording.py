"""What a recording keeps."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmattn import errors
from mmattn.interception import Call, Recording, capture, intervene, weights_of


class Cached(nn.Module):
    """Decodes one token at a time into a cache that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, 2, 4, 8))

    def forward(self, x: Tensor, *, step: int, also: Tensor | None = None) -> Tensor:
        self.keys[:, :, step : step + 1] = x
        mask = torch.arange(4) <= step
        return F.scaled_dot_product_attention(x, self.keys, self.keys, attn_mask=mask[None])


class FromOneBuffer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.unbind(0)
        return F.scaled_dot_product_attention(q, k, v)


def test_a_cache_that_is_written_later_does_not_change_what_was_kept() -> None:
    model, steps, expected = Cached(), torch.randn(3, 1, 2, 1, 8), []
    with torch.inference_mode(), capture(model) as recording:
        for step in range(3):
            model(steps[step], step=step)
            expected.append(model.keys.clone())
    for call, keys in zip(recording.calls, expected, strict=True):
        assert torch.equal(call.k, keys)
    assert [call.pass_index for call in recording.calls] == [0, 1, 2]
    assert [call.order for call in recording.calls] == [0, 1, 2]
    assert recording.passes == 3


def test_views_are_copied_out_of_the_buffer_that_they_share() -> None:
    model, x = FromOneBuffer(), torch.randn(3, 1, 2, 5, 8)
    with capture(model) as recording:
        model(x)
    call = recording.calls[0]
    assert call.q.untyped_storage().nbytes() == call.q.numel() * 4
    assert torch.equal(call.q, x[0])
    assert torch.equal(call.k, x[1])


def test_an_expanded_mask_stays_small() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(1, 1, 1, 5).expand(4, 2, 5, 5))

    with capture(Masked()) as recording:
        recording.model(torch.randn(4, 2, 5, 8))
    mask = recording.calls[0].mask
    assert mask.shape == (4, 2, 5, 5)
    assert mask.untyped_storage().nbytes() == 5 * 4


def test_inputs_are_the_tensors_of_each_outermost_forward() -> None:
    model = Cached()
    first, second, also = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8), torch.randn(2)
    with capture(model) as recording:
        model(first, step=0)
        model(second, step=1, also=also)
    assert len(recording.inputs) == 2
    assert torch.equal(recording.inputs[0][0], first)
    assert [tensor.shape for tensor in recording.inputs[1]] == [second.shape, also.shape]


def test_a_root_that_calls_itself_is_one_pass() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, *, again: bool = True) -> Tensor:
            x = F.scaled_dot_product_attention(x, x, x)
            return self(x, again=False) if again else x

    with capture(Twice()) as recording:
        recording.model(torch.randn(1, 2, 3, 4))
    assert recording.passes == 1
    assert len(recording.calls) == 2


def test_reducer_keeps_what_it_returns() -> None:
    model, x = FromOneBuffer(), torch.randn(3, 2, 2, 5, 8)
    with capture(model, reduce=lambda call: weights_of(call).mean(1)) as recording:
        model(x)
    with capture(model) as full:
        model(x)
    call = recording.calls[0]
    assert call.q is None
    torch.testing.assert_close(call.weights, weights_of(full.calls[0]).mean(1))
    assert call.error < 1e-5


def test_reducer_may_return_a_smaller_call() -> None:
    from dataclasses import replace

    model, x = FromOneBuffer(), torch.randn(3, 2, 2, 5, 8)
    with capture(model, reduce=lambda call: replace(call, q=call.q[..., :1, :])) as recording:
        model(x)
    call = recording.calls[0]
    assert call.q.shape == (2, 2, 1, 8)
    assert call.q.untyped_storage().nbytes() == call.q.numel() * 4
    assert torch.equal(call.k, x[1])


class Tapped(TorchFunctionMode):
    """A tap on tanh, as FAConv's signed weights would need."""

    def __init__(self, emit) -> None:
        super().__init__()
        self.emit = emit

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is not torch.tanh:
            return result
        edited = self.emit(Call(module="gate", order=0, pass_index=0, origin="tap", weights=result))
        return result if edited is None else edited


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * 3


@contextlib.contextmanager
def tap(model, emit):
    with Tapped(emit):
        yield


def test_taps_are_read_and_written() -> None:
    model, x = Gated(), torch.randn(2, 3)
    with capture(model, taps=(tap,)) as recording:
        model(x)
    assert torch.equal(recording.calls[0].weights, torch.tanh(x))
    assert (recording.calls[0].origin, recording.calls[0].module) == ("tap", "gate")
    with intervene(model, lambda weights, call: weights * 2, taps=(tap,)):
        edited = model(x)
    torch.testing.assert_close(edited, torch.tanh(x) * 6)


def test_recording_shows_itself_in_a_line() -> None:
    model = FromOneBuffer()
    with capture(model) as recording:
        model(torch.randn(3, 1, 2, 5, 8))
    assert isinstance(recording, Recording)
    assert repr(recording) == "<Recording of FromOneBuffer: 1 calls in 1 passes>"
    assert len(repr(recording.calls[0])) < 300


def test_error_of_a_kept_call_notices_a_wrong_mask() -> None:
    from dataclasses import replace

    from mmattn.interception.selfcheck import fused_error

    q = torch.randn(1, 2, 6, 8)
    out = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    kept = Call(module="", order=0, pass_index=0, q=q, k=q, causal=True, scale=8**-0.5)
    assert float(fused_error(kept, q, out)) < 1e-5
    assert float(fused_error(replace(kept, causal=False), q, out)) > 1e-2


def test_maps_of_the_meta_device_are_refused_by_name() -> None:
    model = nn.MultiheadAttention(8, 2).to("meta").eval()
    with capture(model) as recording:
        model(*[torch.empty(5, 3, 8, device="meta")] * 3)
    with pytest.raises(errors.ModelError, match="The call of the root ran on the meta device"):
        _ = recording.maps


def test_cross_attention_of_equal_length_is_cross() -> None:
    layer = nn.TransformerDecoderLayer(16, 4, batch_first=True).eval()
    with capture(layer) as recording:
        layer(torch.randn(1, 5, 16), torch.randn(1, 5, 16))
    assert [(found.name, found.kind, found.note) for found in recording.maps.layers] == [
        ("self_attn", "self", ""),
        ("multihead_attn", "cross", ""),
    ]


def test_a_bare_kernel_of_equal_length_says_that_its_tokens_are_not_known() -> None:
    class OneAttention(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return F.scaled_dot_product_attention(x, x if y is None else y, x)

    model, x = OneAttention(), torch.randn(1, 2, 5, 8)
    with capture(model) as alone:
        model(x)
    with capture(model) as two:
        model(x, x + 1)
    assert (alone.maps[0].kind, alone.maps[0].note) == ("self", "")
    assert two.maps[0].kind == "self"
    assert "whether they are the same tokens is not known" in two.maps[0].note


def test_blocks_are_samples_only_where_the_batch_says_so() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # one window a quarter of the picture
            tokens = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 1, 16, 4)
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    def samples(model: nn.Module, *given: Tensor) -> int:
        with capture(model) as recording:
            model(*given)
        return recording.maps.sample_count

    assert samples(Windows(), torch.rand(1, 4, 8, 8)) == 1
    assert samples(nn.MultiheadAttention(8, 2).eval(), *[torch.rand(5, 3, 8)] * 3) == 3
    assert samples(nn.MultiheadAttention(8, 2, batch_first=True).eval(), *[torch.rand(5, 3, 8)] * 3) == 5
