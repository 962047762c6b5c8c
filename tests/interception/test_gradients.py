"""Gradients of weights as products of two thin factors, against autograd's own for weights in the graph."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import mmattn
from mmattn.errors import ModelError, NoAttentionError
from mmattn.interception.gradients import differentiate


class Attends(nn.Module):
    """One attention in whichever way is asked for, then a score."""

    def __init__(self, way):
        super().__init__()
        self.way, self.qkv = way, nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.way(q, k, v).transpose(1, 2).flatten(2).square().sum((1, 2))


def eager(q, k, v):
    return (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v


def spelled(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.transpose(-2, -1) / 2).softmax(-1), v)


def causal(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def grouped(q, k, v):
    return functional.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)


def masked(q, k, v):
    bias = torch.linspace(-1, 1, q.shape[-2] ** 2).view(1, 1, q.shape[-2], -1)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def written_into(q, k, v):
    out = functional.scaled_dot_product_attention(q, k, v)
    out *= 3.0
    return out


WAYS = (functional.scaled_dot_product_attention, eager, spelled, causal, grouped, masked, written_into)


def autograd(model, x):
    """The gradient of weights that an edit puts into the graph."""
    kept = []

    def keep(weights, call):
        kept.append(weights.clone().requires_grad_())
        return kept[-1]

    with mmattn.intervene(model, keep):
        score = model(x).sum()
    return torch.autograd.grad(score, kept)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_equal_those_of_weights_in_the_graph(way, frozen):
    torch.manual_seed(0)
    model, x = Attends(way), torch.randn(3, 5, 8)
    (expected,) = autograd(model, x)
    model.requires_grad_(not frozen)
    before = model(x)
    with torch.no_grad(), differentiate(model) as run:
        output = model(x)
    (found,) = run.gradients(output.sum())
    if found.weights is None:
        shared = found.k.repeat_interleave(found.q.shape[-3] // found.k.shape[-3], dim=-3)
        gradient = found.q @ shared.transpose(-2, -1)
    else:
        gradient = found.weights
    assert torch.allclose(gradient, expected, atol=1e-5)
    assert torch.allclose(output, before, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("way", [functional.scaled_dot_product_attention, eager])
def test_of_plain_attention_only_factors_are_kept(way):
    with differentiate(model := Attends(way)) as run:
        output = model(torch.randn(1, 50, 8))
    (found,) = run.gradients(output.sum())
    assert found.weights is None
    assert found.q.shape == found.k.shape == (1, 2, 50, 4)


def test_dropout_that_is_on_is_in_the_gradient():
    torch.manual_seed(0)

    def dropped(q, k, v):
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    model, x = Attends(dropped), torch.randn(1, 6, 8)
    with differentiate(model) as run:
        output = model(x)
    (found,) = run.gradients(output.sum())
    assert float((found.weights == 0).double().mean()) > 0.2  # what was dropped has none


def test_an_edit_around_is_differentiated_as_it_is_used():
    torch.manual_seed(0)
    model, x = Attends(eager), torch.randn(1, 5, 8)
    with mmattn.intervene(model, lambda weights, call: torch.full_like(weights, 0.2)), differentiate(model) as run:
        output = model(x)
    (found,) = run.gradients(output.sum())
    v = model.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)[2]
    even = torch.full((1, 2, 5, 5), 0.2, requires_grad=True)
    (expected,) = torch.autograd.grad((even @ v).square().sum(), even)
    assert torch.allclose(found.weights, expected, atol=1e-5)


def test_parallel_attention_of_a_frozen_model_has_each_its_gradient():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Attends(causal), Attends(masked)

        def forward(self, x):
            return self.one(x) * self.two(x)

    torch.manual_seed(0)
    model, x = Both(), torch.randn(2, 5, 8)
    expected = autograd(model, x)
    model.requires_grad_(False)
    with differentiate(model) as run:
        output = model(x)
    for found, other in zip(run.gradients(output.sum()), expected, strict=True):
        assert torch.allclose(found.q @ found.k.transpose(-2, -1), other, rtol=1e-4, atol=1e-4)


def test_what_has_no_gradient_is_refused():
    model = Attends(eager)
    with differentiate(model) as run:
        output = model(torch.randn(1, 5, 8))
    with pytest.raises(ModelError, match="The score has no gradient"):
        run.gradients(output.sum().detach())
    with torch.inference_mode():
        made_inside = copy.deepcopy(model)
    with pytest.raises(ModelError, match=r"qkv.weight of the model was made in torch.inference_mode"):
        differentiate(made_inside)
    with pytest.raises(NoAttentionError), differentiate(nn.Linear(2, 2)) as run:
        pass
