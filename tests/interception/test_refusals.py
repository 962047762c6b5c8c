"""What cannot be read, refused by name with what to do."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmattn import errors
from mmattn.interception import Call, capture, intervene


def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()


class Small(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("door", [capture, lambda model: intervene(model, lambda weights, call: None)])
def test_scripted_and_traced_models_are_refused_at_once(door) -> None:
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(errors.NoAttentionError, match=r"Small.* is a scripted TorchScript module.*torch\.jit\.script"):
        door(torch.jit.script(Small()))
    with pytest.raises(errors.NoAttentionError, match=r"Small.* is a traced TorchScript module.*torch\.jit\.trace"):
        door(torch.jit.trace(Small(), x))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_attention_inside_is_refused_by_its_path() -> None:
    class SmallAttention(Small):
        pass

    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(SmallAttention()))
    with pytest.raises(errors.NoAttentionError, match=r"^1 \(SmallAttention\) is a scripted"):
        capture(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_part_without_attention_does_not_hinder() -> None:
    model = nn.Sequential(torch.jit.script(nn.ReLU()), Small())
    with capture(model) as recording:
        model(torch.randn(1, 2, 3, 4))
    assert len(recording.calls) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_part_is_named_when_nothing_was_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(Small()))
    with pytest.raises(errors.NoAttentionError, match="1 is TorchScript"), capture(model):
        model(torch.randn(1, 2, 3, 4))


def test_vmap_is_refused() -> None:
    small = Small()
    with pytest.raises(errors.NoAttentionError, match=r"torch\.vmap.*without vmap"), capture(small):
        torch.vmap(small)(torch.randn(3, 1, 2, 3, 4))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_into_multi_head_attention_are_refused(layout: torch.layout) -> None:
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(5, 16)], layout=layout)
    with (
        pytest.raises(errors.ModelError, match="nested tensors.*to_padded_tensor"),
        torch.no_grad(),
        capture(attention),
    ):
        attention(nested, nested, nested)


def test_a_model_that_never_ran_is_told() -> None:
    with pytest.raises(errors.NoAttentionError, match="was not called inside the with block"), capture(layer()):
        pass


def test_a_custom_kernel_is_named_as_the_likely_cause() -> None:
    @torch.library.custom_op("mmattn_tests::kernel", mutates_args=())
    def kernel(x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x

    class FlashAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return kernel(x)

    model = nn.Sequential(FlashAttention())
    with pytest.raises(errors.NoAttentionError, match=r"though 0 ran.*custom kernel.*sdpa"), capture(model):
        model(torch.randn(1, 3, 4))


class Operator(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


def test_refusals_pass_through_the_matmul_operator() -> None:
    model, x = Operator(), torch.randn(2, 3, 4)
    with pytest.raises(errors.NoAttentionError, match=r"torch\.vmap"), capture(model):
        torch.vmap(model)(x[:, None])

    def broken(weights: Tensor, call: Call) -> Tensor:
        raise TypeError("my own bug")

    with pytest.raises(errors.InputError, match="edit of the root module raised TypeError: my own bug") as caught:  # noqa: SIM117
        with intervene(model, broken):
            model(x)
    assert isinstance(caught.value.__cause__, TypeError)
    with (
        pytest.raises(errors.InputError, match="reducer of the root module.*my own bug"),
        capture(model, reduce=lambda call: broken(call.weights, call)),
    ):
        model(x)


def test_a_root_without_a_path_is_named_in_words() -> None:
    class FooAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(errors.NoAttentionError, match="though the model itself ran"), capture(model := FooAttention()):
        model(torch.randn(2, 3))


def test_layers_are_refused_at_once_where_they_name_nothing() -> None:
    with pytest.raises(errors.InputError, match=r"layers=\[\] names no layer"):
        intervene(Operator(), lambda weights, call: None, layers=[])
    model = nn.Sequential(nn.Linear(4, 4), Operator())
    with pytest.raises(errors.NotFoundError, match=r"No class in it is named \*Attention; its modules are: 0, 1"):
        intervene(model, lambda weights, call: None, layers="nope")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_says_what_helps() -> None:
    class Recomputed(Operator):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=True)

    model, x = Recomputed(), torch.randn(2, 3, 4)
    with torch.no_grad(), intervene(model, lambda weights, call: weights):
        with pytest.raises(errors.ModelError, match=r"requires no grad \(input\.detach"):
            model(x.requires_grad_())
        model(x.detach())


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(Exception, match="Module"):  # the run-time type check is first in tests
        capture(lambda x: x)


def test_model_that_is_gone_is_said() -> None:
    model = layer()
    with capture(model) as recording:
        model(torch.randn(1, 3, 16))
    assert recording.model is model
    del model
    with pytest.raises(errors.GoneError, match="Keep the model alive"):
        _ = recording.model
