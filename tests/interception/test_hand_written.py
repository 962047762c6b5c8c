"""Attention written by hand, in the forms that people write it in."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written_out import formula

from mmattn.interception import capture, weights_of


class HandWritten(nn.Module):
    """Four heads; `form` says how the weights meet the value."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.num_heads = form, 4
        self.qkv = nn.Linear(32, 96)
        self.mix = nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout(0.3)
        self.norm = nn.Softmax(dim=-1)
        self.sink = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.truth = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, 4, 8).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(8)
        return getattr(self, self.form)(scores, v)

    def keep(self, weights: Tensor) -> Tensor:
        self.truth = weights.detach().clone()
        return weights

    def operator(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(scores.softmax(-1)) @ v

    def module(self, scores: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(self.drop(self.keep(self.norm(scores))), v)

    def float32(self, scores: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(self.keep(F.softmax(scores, dim=-1, dtype=torch.float64).to(v.dtype)), v)

    def bmm(self, scores: Tensor, v: Tensor) -> Tensor:
        weights = self.keep(torch.softmax(scores, dim=-1).view(-1, *scores.shape[2:]))
        return torch.bmm(weights, v.reshape(-1, *v.shape[2:]))

    def baddbmm(self, scores: Tensor, v: Tensor) -> Tensor:
        weights = self.keep(torch.softmax(scores, dim=-1).flatten(0, 1))
        return torch.baddbmm(torch.ones(1, 1, 8), weights, v.flatten(0, 1))

    def einsum(self, scores: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhqk,bhkd->bqhd", self.keep(scores.softmax(-1)), v).flatten(2)

    def einsum_ellipsis(self, scores: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("... q k, ... k d -> ... q d", self.keep(scores.softmax(-1)), v)

    def einsum_value_first(self, scores: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhkd,bhqk->bhqd", v, self.keep(scores.softmax(-1)))

    def value_left(self, scores: Tensor, v: Tensor) -> Tensor:
        weights = self.keep(scores.softmax(-1))
        return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)

    def keys_first(self, scores: Tensor, v: Tensor) -> Tensor:
        turned = scores.transpose(-2, -1).softmax(-2)
        self.keep(turned.transpose(-2, -1))
        return v.mT @ turned

    def linear_mixing(self, scores: Tensor, v: Tensor) -> Tensor:
        mixed = self.mix(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.keep(mixed) @ v

    def conv_mixing(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(self.conv(scores.softmax(-1))) @ v

    def einsum_mixing(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(torch.einsum("hg,bhqk->bgqk", self.mix.weight, scores.softmax(-1))) @ v

    def matmul_mixing(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep((scores.softmax(-1).permute(0, 2, 3, 1) @ self.mix.weight).permute(0, 3, 1, 2)) @ v

    def sink_column(self, scores: Tensor, v: Tensor) -> Tensor:
        sink = self.sink.expand(scores.shape[0], -1, scores.shape[2], -1)
        return self.keep(torch.cat([scores, sink], -1).softmax(-1)[..., :-1]) @ v

    def masked_after(self, scores: Tensor, v: Tensor) -> Tensor:
        allowed = torch.ones(scores.shape[-2:]).tril()
        weights = scores.softmax(-1) * allowed
        weights = weights / weights.sum(-1, keepdim=True)
        return self.keep(weights.masked_fill(allowed == 0, 0.0)) @ v

    def filled_in_place(self, scores: Tensor, v: Tensor) -> Tensor:
        weights = scores.softmax(-1)
        weights.masked_fill_(torch.ones(scores.shape[-2:]).triu(1) > 0, 0.0)
        out = self.keep(weights) @ v
        weights.zero_()
        return out

    def softcap(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep((5 * torch.tanh(scores / 5)).softmax(-1)) @ v

    def differential(self, scores: Tensor, v: Tensor) -> Tensor:
        first, second = scores.softmax(-1).chunk(2, dim=1)
        return self.keep(first - 0.3 * second) @ v[:, :2]

    def grouped(self, scores: Tensor, v: Tensor) -> Tensor:
        weights = scores.softmax(-1).unflatten(1, (2, 2))
        return self.keep(weights) @ v[:, :2, None]

    def by_exp(self, scores: Tensor, v: Tensor) -> Tensor:
        exps = torch.exp(scores - scores.amax(-1, keepdim=True))
        return self.keep(exps / exps.sum(dim=-1, keepdim=True)) @ v

    def by_log_softmax(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(F.log_softmax(scores, dim=-1).exp()) @ v

    def heads_joined(self, scores: Tensor, v: Tensor) -> Tensor:
        heads = [part.softmax(-1) for part in scores.split(1, 1)]
        return self.keep(torch.cat(heads, 1)) @ v

    def heads_stacked(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(torch.stack([part.softmax(-1) for part in scores.unbind(1)], dim=1)) @ v

    def tokens_joined_after_dropout(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(torch.cat([self.drop(part.softmax(-1)) for part in scores.split(3, 2)], dim=-2)) @ v

    def key_sets_joined(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(torch.cat([scores.softmax(-1), scores.flip(-1).softmax(-1)], -1)) @ torch.cat([v, -v], -2)

    def keys_selected(self, scores: Tensor, v: Tensor) -> Tensor:
        order = torch.tensor([4, 0, 2])
        return self.keep(scores.softmax(-1).index_select(-1, order)) @ v[:, :, order]

    def keys_indexed(self, scores: Tensor, v: Tensor) -> Tensor:
        order = torch.tensor([4, 0, 2, 2])
        return self.keep(scores.softmax(-1)[:, 1, None, ..., order]) @ v[:, 1, None, order]

    def keys_masked_out(self, scores: Tensor, v: Tensor) -> Tensor:
        visible = torch.arange(scores.shape[-1]) > 2
        return self.keep(scores.softmax(-1)[..., visible]) @ v[:, :, visible]

    def repeated(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(scores.softmax(-1).repeat(2, 1, 1, 1, 1)) @ v

    def interleaved(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(scores[:, :2].softmax(-1).repeat_interleave(2, dim=1)) @ v

    def padded(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(F.pad(scores.softmax(-1), (1, 0))) @ F.pad(v, (0, 0, 1, 0))

    def rolled(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(scores.softmax(-1).roll(1, -1).flip(-1)) @ v

    def gathered(self, scores: Tensor, v: Tensor) -> Tensor:
        order = scores.argsort(-1)
        return self.keep(scores.softmax(-1).gather(-1, order)) @ v

    def copied(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(torch.empty_like(scores).copy_(scores.softmax(-1))) @ v

    def largest_scattered(self, scores: Tensor, v: Tensor) -> Tensor:
        largest, where = scores.topk(3, -1)
        return self.keep(torch.zeros_like(scores).scatter(-1, where, largest.softmax(-1))) @ v

    def largest_kept(self, scores: Tensor, v: Tensor) -> Tensor:
        largest, where = scores.softmax(-1).topk(3, dim=-1)
        return self.keep(torch.zeros_like(scores).scatter_(-1, where, largest / largest.sum(-1, keepdim=True))) @ v

    def overwritten(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(scores.softmax(-1).scatter(-1, scores.argmin(-1, keepdim=True), 0.0)) @ v

    def between_two(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(torch.lerp(scores.softmax(-1), scores.flip(-1).softmax(-1), 0.3)) @ v

    def normalized_again(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(F.normalize(scores.softmax(-1), p=1, dim=-1)) @ v

    def sharpened(self, scores: Tensor, v: Tensor) -> Tensor:
        squares = scores.softmax(-1) ** 2
        return self.keep(squares / squares.sum(-1, keepdim=True)) @ v

    def softmin(self, scores: Tensor, v: Tensor) -> Tensor:
        return self.keep(F.softmin(-scores, dim=-1)) @ v

    def gumbel(self, scores: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(1)
        return self.keep(F.gumbel_softmax(scores, tau=0.7, hard=True)) @ v

    def gumbel_over_queries(self, scores: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(1)
        turned = F.gumbel_softmax(scores.mT, dim=-2)
        self.keep(turned.mT)
        return v.mT @ turned

    def tensordot(self, scores: Tensor, v: Tensor) -> Tensor:
        return torch.tensordot(v[0, 0], self.keep(scores[0, 0].softmax(-1)), dims=([0], [1]))

    def multi_dot(self, scores: Tensor, v: Tensor) -> Tensor:
        return torch.linalg.multi_dot([self.keep(scores[0, 0].softmax(-1)), v[0, 0]])

    def product_and_sum(self, scores: Tensor, v: Tensor) -> Tensor:
        return (self.keep(scores.softmax(-1))[..., None] * v[:, :, None]).sum(-2)

    def product_and_sum_of_one_value_head(self, scores: Tensor, v: Tensor) -> Tensor:
        return (v[:, :1, None] * self.keep(scores.softmax(-1)).unsqueeze(-1)).sum(dim=3, keepdim=True)


FORMS = [name for name in vars(HandWritten) if name not in ("forward", "keep") and not name.startswith("_")]


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_that_met_the_value(form: str) -> None:
    model = HandWritten(form).eval()
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        plain = model(x)
        with capture(model) as recording:
            seen = model(x)
    assert torch.equal(plain, seen)
    assert [(call.module, call.origin) for call in recording.calls] == [("", "softmax")]
    weights = weights_of(recording.calls[0])
    torch.testing.assert_close(weights, model.truth, atol=0, rtol=0)
    assert recording.calls[0].error is None or recording.calls[0].error < 1e-5
    assert (recording.calls[0].error is None) == (form == "baddbmm")


def test_no_tokens_are_no_reason_to_miss_the_call() -> None:
    with capture(HandWritten("operator").eval()) as recording:
        recording.model(torch.randn(2, 0, 32))
    assert recording.calls[0].weights.shape == (2, 4, 0, 0)


@pytest.mark.parametrize("form", ["operator", "einsum", "value_left", "float32"])
def test_half_precision_is_checked_too(form: str) -> None:
    model = HandWritten(form).eval().bfloat16()
    with torch.no_grad(), capture(model) as recording:
        model(torch.randn(2, 7, 32).bfloat16())
    assert recording.calls[0].weights.dtype == torch.bfloat16
    assert recording.calls[0].error < 2e-2


def test_autocast_in_a_hand_written_form() -> None:
    model = HandWritten("operator").eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), capture(model) as recording:
        model(torch.randn(2, 7, 32))
    torch.testing.assert_close(weights_of(recording.calls[0]), model.truth, atol=0, rtol=0)
    assert recording.calls[0].error < 2e-2


def test_plain_form_equals_the_formula() -> None:
    model = HandWritten("operator").eval()
    x = torch.randn(2, 7, 32)
    with torch.no_grad(), capture(model) as recording:
        model(x)
    q, k, _ = model.qkv(x).reshape(2, 7, 3, 4, 8).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(weights_of(recording.calls[0]).double(), formula(q, k), atol=1e-5, rtol=0)


def test_folded_heads_are_counted_by_the_owner() -> None:
    model = HandWritten("bmm").eval()
    with capture(model) as recording:
        model(torch.randn(2, 7, 32))
    assert recording.calls[0].head_count == 4


def test_dropout_is_transparent() -> None:
    model = HandWritten("module").train()
    with capture(model) as recording:
        model(torch.randn(2, 7, 32))
    call = recording.calls[0]
    torch.testing.assert_close(call.weights, model.truth, atol=0, rtol=0)
    assert call.dropout == pytest.approx(0.3)
    assert call.error is None


@pytest.mark.parametrize("join", [torch.cat, torch.stack])
def test_joining_after_dropout_keeps_the_clean_weights(join) -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heads = [(x @ x.mT * scale).softmax(-1) for scale in (1.0, 2.0)]
            self.truth = join(heads, 0)
            return join([F.dropout(head, 0.5) for head in heads], 0) @ join([x, x], 0)

    model = Joined()
    with capture(model) as recording:
        model(torch.randn(2, 5, 5))
    torch.testing.assert_close(recording.calls[0].weights, model.truth, atol=0, rtol=0)
    assert recording.calls[0].dropout == pytest.approx(0.5)


def test_layout_after_dropout_is_followed_on_the_clean_weights() -> None:
    class Folded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weights = (x @ x.mT).softmax(-1)
            self.truth = weights.reshape(-1, *x.shape[2:3], x.shape[2])
            return torch.bmm(F.dropout(weights, 0.5).flatten(0, 1), x.flatten(0, 1))

    model = Folded()
    with capture(model) as recording:
        model(torch.randn(2, 3, 5, 5))
    torch.testing.assert_close(recording.calls[0].weights, model.truth, atol=0, rtol=0)


def test_owner_is_the_parent_of_a_softmax_module() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = HandWritten("module")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with capture(Holder().eval()) as recording:
        recording.model(torch.randn(1, 5, 32))
    assert recording.calls[0].module == "inner"


def test_attention_over_positions_in_a_non_local_block() -> None:
    class NonLocal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Conv2d(8, width, 1) for width in (4, 4, 8))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
            self.truth = torch.softmax(torch.bmm(q.transpose(1, 2), k), dim=-1)
            return torch.bmm(v, self.truth.permute(0, 2, 1)).view_as(x)

    model = NonLocal()
    with torch.no_grad(), capture(model) as recording:
        model(torch.randn(2, 8, 3, 4))
    torch.testing.assert_close(weights_of(recording.calls[0]), model.truth, atol=0, rtol=0)
    assert recording.calls[0].kind == "token"


def test_channel_attention_without_layers_of_its_own_is_told_by_its_input() -> None:
    class ChannelAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(2)
            return (torch.bmm(flat, flat.transpose(1, 2)).softmax(-1) @ flat).view_as(x)

    with capture(ChannelAttention()) as recording:
        recording.model(torch.randn(2, 8, 3, 4))
    assert recording.calls[0].kind == "channel"
