"""Softmaxes that are no attention, and models that have none."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn import errors
from mmattn.interception import capture


class Other(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.codebook = nn.Parameter(torch.randn(4, 16))
        self.sdpa = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        seen, _ = self.sdpa(x, x, x, need_weights=False)
        return seen + getattr(self, self.form)(x)

    def top_k_router(self, x: Tensor) -> Tensor:
        share, which = self.gate(x).softmax(-1).topk(2, -1)
        return sum(share[..., :1] * expert(x) for expert in self.experts) + which.sum()

    def dense_router(self, x: Tensor) -> Tensor:
        outs = torch.stack([expert(x) for expert in self.experts], -2)
        return torch.einsum("bte,bted->btd", self.gate(x).softmax(-1), outs)

    def flat_router(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        outs = torch.stack([expert(flat) for expert in self.experts], 1)
        return torch.bmm(F.softmax(self.gate(flat), -1).unsqueeze(1), outs).view_as(x)

    def router_by_matmul(self, x: Tensor) -> Tensor:
        outs = torch.stack([expert(x) for expert in self.experts], -2)
        return (self.gate(x).softmax(-1).unsqueeze(-2) @ outs).squeeze(-2)

    def stacked_gates(self, x: Tensor) -> Tensor:
        gates = torch.stack([self.gate(x).softmax(-1), self.gate(-x).softmax(-1)], -2)
        return (gates @ torch.stack([expert(x) for expert in self.experts], -2)).sum(-2)

    def joined_gates(self, x: Tensor) -> Tensor:
        gates = torch.cat([self.gate(part).softmax(-1).unsqueeze(-2) for part in (x, -x)], -2)
        return (gates @ torch.stack([expert(x) for expert in self.experts], -2)).sum(-2)

    def stacked_gates_by_einsum(self, x: Tensor) -> Tensor:
        gates = torch.stack([self.gate(x).softmax(-1), self.gate(-x).softmax(-1)])
        return torch.einsum("gbte,bted->btd", gates, torch.stack([expert(x) for expert in self.experts], -2))

    def scattered_router(self, x: Tensor) -> Tensor:
        largest, which = self.gate(x).topk(2, -1)
        gates = torch.zeros(*x.shape[:2], 4).scatter(-1, which, largest.softmax(-1))
        return torch.einsum("bte,bted->btd", gates, torch.stack([expert(x) for expert in self.experts], -2))

    def largest_of_a_router(self, x: Tensor) -> Tensor:
        share, which = self.gate(x).softmax(-1).topk(2, -1)
        return share @ x[:, :2] + which.sum()

    def gathered_probability(self, x: Tensor) -> Tensor:
        chosen = F.softmax(self.gate(x), -1).gather(-1, x[..., :1].gt(0).long())
        return chosen * x

    def overwritten_memory(self, x: Tensor) -> Tensor:
        weights = (x @ x.mT).softmax(-1)
        weights.copy_(x @ x.mT)
        return weights @ x

    def product_that_is_changed(self, x: Tensor) -> Tensor:
        weights = (x @ x.mT).softmax(-1)
        return ((weights[..., None] * x[:, None]) + 1).relu().sum(-2)

    def selected_kernels(self, x: Tensor) -> Tensor:
        branches = torch.stack([x, x.roll(1, 1)], 1)
        return (branches.mean(2, keepdim=True).softmax(1) * branches).sum(1)

    def logits(self, x: Tensor) -> Tensor:
        return F.softmax(self.gate(x), -1).sum() * x

    def soft_codebook(self, x: Tensor) -> Tensor:
        return self.gate(x).softmax(-1) @ self.codebook

    def soft_embedding_layer(self, x: Tensor) -> Tensor:
        return F.linear(self.gate(x).softmax(-1), self.codebook.t())

    def deformable_sampling(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(-1)
        points = torch.stack([x.roll(shift, 1) for shift in range(4)], -2)
        return (share.unsqueeze(-1) * points).sum(-2)

    def deformable_einsum(self, x: Tensor) -> Tensor:
        points = torch.stack([x.roll(shift, 1) for shift in range(4)], -2)
        return torch.einsum("bqp,bqpd->bqd", self.gate(x).softmax(-1), points)

    def pixel_softmax(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, 4)).softmax(1).flatten(2)

    def log_probabilities(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.gate(x), -1).sum() + x

    def plain_exp(self, x: Tensor) -> Tensor:
        return torch.exp(-x.abs()) @ torch.eye(16)


FORMS = [name for name in vars(Other) if name != "forward" and not name.startswith("_")]


@pytest.mark.parametrize("form", FORMS)
def test_only_the_attention_beside_it_is_seen(form: str) -> None:
    model = Other(form).eval()
    with torch.no_grad(), capture(model) as recording:
        model(torch.randn(2, 6, 16))
    assert [(call.module, call.origin) for call in recording.calls] == [("sdpa", "sdpa")]


def test_model_without_attention_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Softmax(-1))
    with pytest.raises(errors.NoAttentionError, match="No attention was seen in Sequential"), capture(model):
        model(torch.randn(1, 3, 8, 8))


def test_attention_named_module_without_a_softmax_is_named() -> None:
    class LinearAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.elu(x) @ (F.elu(x).mT @ x)

    model = nn.Sequential(LinearAttention())
    with pytest.raises(errors.NoAttentionError, match=r"though 0 ran.*tap"), capture(model):
        model(torch.randn(1, 3, 8))


def test_attention_that_was_not_seen_is_listed_beside_what_was() -> None:
    class LinearAttn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.elu(x) @ (F.elu(x).mT @ x)

    model = nn.Sequential(LinearAttn(), nn.TransformerEncoderLayer(8, 2, batch_first=True)).eval()
    with capture(model) as recording:
        model(torch.randn(1, 3, 8))
    assert recording.unseen == ("0",)
    assert "unseen: 0" in repr(recording)


@pytest.mark.parametrize("form", ["einsum", "matmul"])
def test_pooling_with_one_row_a_head_is_attention(form: str) -> None:
    class PoolAttention(nn.Module):
        num_heads = 2

        def forward(self, x: Tensor) -> Tensor:
            keys = x.unflatten(-1, (2, 8)).transpose(1, 2)
            self.truth = keys.sum(-1).softmax(-1)
            if form == "einsum":
                return torch.einsum("bhn,bhnd->bhd", self.truth, keys)
            return (self.truth.unsqueeze(-2) @ keys).squeeze(-2)

    model = PoolAttention()
    with capture(model) as recording:
        model(torch.randn(3, 5, 16))
    torch.testing.assert_close(recording.calls[0].weights, model.truth[:, :, None], atol=0, rtol=0)
    model.num_heads = 3
    with pytest.raises(errors.NoAttentionError), capture(model):
        model(torch.randn(3, 5, 16))


def test_additive_attention_over_a_sentence_is_attention() -> None:
    class BahdanauAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.truth = self.score(torch.tanh(x)).squeeze(-1).softmax(-1)
            return torch.bmm(self.truth.unsqueeze(1), x).squeeze(1)

    model = BahdanauAttention()
    with torch.no_grad(), capture(model) as recording:
        model(torch.randn(3, 5, 8))
    torch.testing.assert_close(recording.calls[0].weights, model.truth[:, None], atol=0, rtol=0)
