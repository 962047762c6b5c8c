"""How models are run: nested, threaded, failing, under autocast, checkpointed, compiled, in batches."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint
from written_out import formula

from mmattn import errors
from mmattn.interception import capture, intervene, weights_of


class Attention(nn.Module):
    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)

    def heads(self, x: Tensor) -> Tensor:
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Attention() for _ in range(2))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant))
        return x


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def truth(model: Model, x: Tensor) -> list[Tensor]:
    """The weights of both layers, written out."""
    found = []
    for block in model.blocks:
        q, k, v = block.heads(x)
        found.append(formula(q, k))
        x = x + (found[-1].to(v.dtype) @ v).transpose(1, 2).flatten(2)
    return found


def assert_true(recording, model: Model, x: Tensor, *, atol: float = 1e-5) -> None:
    expected = truth(model, x)
    assert [call.module for call in recording.calls] == ["blocks.0", "blocks.1"]
    for call, weights in zip(recording.calls, expected, strict=True):
        torch.testing.assert_close(weights_of(call).double(), weights, atol=atol, rtol=0)


def test_nested_captures_see_the_same() -> None:
    model, x = Model(), draw(2, 5, 16)
    with capture(model) as outer:
        with capture(model) as inner:
            model(x)
        with capture(model.blocks[0]) as part:
            model(x)
    assert_true(inner, model, x)
    assert [call.module for call in part.calls] == [""]
    assert [call.pass_index for call in outer.calls] == [0, 0, 1, 1]
    assert outer.passes == 2
    assert not _get_current_function_mode_stack()


def test_a_capture_outlives_the_one_that_was_opened_before_it() -> None:
    model, x = Model(), draw(2, 5, 16)
    first, second, other = capture(model), capture(model), BaseTorchFunctionMode()
    one, _, two = first.__enter__(), other.__enter__(), second.__enter__()
    model(x)
    first.__exit__(None, None, None)
    model(x)
    second.__exit__(None, None, None)
    assert (len(one.calls), len(two.calls)) == (2, 4)
    assert _get_current_function_mode_stack() == [other]
    other.__exit__(None, None, None)


def test_nested_captures_of_two_models_stay_apart() -> None:
    first, second, x = Model(), Model(), draw(2, 5, 16)
    with capture(first) as one, capture(second) as two:
        second(first(x))
    assert_true(one, first, x)
    assert_true(two, second, first(x))


@pytest.mark.parametrize("shared", [True, False])
def test_threads_capture_at_once(shared: bool) -> None:
    model = Model()
    start = threading.Barrier(4)

    def work(number: int) -> None:
        mine = model if shared else Model()
        x = torch.randn(2, 5 + number, 16, generator=torch.Generator().manual_seed(number))
        start.wait()
        for _ in range(20):
            with torch.no_grad(), capture(mine) as recording:
                mine(x)
            assert_true(recording, mine, x)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_plain_run_in_another_thread_disturbs_nothing() -> None:
    model, x = Model(), draw(2, 5, 16)
    with capture(model) as recording:
        other = threading.Thread(target=model, args=(draw(1, 3, 16),))
        other.start()
        other.join()
        model(x)
    assert_true(recording, model, x)
    assert recording.passes == 1
    assert recording.unseen == ()


def test_exception_passes_unchanged_and_all_is_put_back() -> None:
    class Failing(Model):
        def forward(self, x: Tensor) -> Tensor:
            self.blocks[0](x)
            raise KeyError("the model's own")

    model = Failing()
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(KeyError, match="the model's own"), capture(model) as recording:
        model(draw(1, 3, 16))
    with pytest.raises(KeyError, match="the model's own"), intervene(model, lambda weights, call: weights):
        model(draw(1, 3, 16))
    assert len(recording.calls) == 1
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before
    assert not _get_current_function_mode_stack()


def test_nothing_stays_patched() -> None:
    names = ("scaled_dot_product_attention", "softmax", "multi_head_attention_forward", "dropout", "linear")
    before = [getattr(F, name) for name in names] + [Tensor.softmax, Tensor.matmul, torch.einsum]
    forward, model = Attention.forward, Model()
    state = {name: dict(vars(module)) for name, module in model.named_modules()}
    with capture(model):
        assert [getattr(F, name) for name in names] + [Tensor.softmax, Tensor.matmul, torch.einsum] == before
        model(draw(1, 3, 16))
    assert [getattr(F, name) for name in names] + [Tensor.softmax, Tensor.matmul, torch.einsum] == before
    assert Attention.forward is forward
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == state
    assert torch.compiler.set_stance("default").prev.stance == "default"


def test_inference_mode() -> None:
    model, x = Model(), draw(2, 5, 16)
    with torch.inference_mode():
        plain = model(x)
        with capture(model) as recording:
            assert torch.equal(model(x), plain)
        assert_true(recording, model, x)
        assert recording.calls[0].error < 1e-5


def test_autocast_keeps_what_the_kernel_got() -> None:
    model, x = Model(), draw(2, 5, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
        with capture(model) as recording:
            seen = model(x)
        q, k, _ = model.blocks[0].heads(x)
    assert torch.equal(plain, seen)
    call = recording.calls[0]
    assert call.q.dtype == torch.bfloat16
    assert torch.equal(call.q, q)
    expected = formula(q, k)
    torch.testing.assert_close(weights_of(call).double(), expected, atol=4e-3, rtol=0)
    assert call.error < 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_kept_as_they_are(dtype: torch.dtype) -> None:
    model, x = Model().to(dtype), draw(2, 5, 16).to(dtype)
    with torch.no_grad(), capture(model) as recording:
        model(x)
    assert recording.calls[0].q.dtype == dtype
    assert recording.calls[0].error < {torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_read_without_duplicates(reentrant: bool) -> None:
    model, plain = Model(reentrant=reentrant), Model()
    x = draw(2, 5, 16).requires_grad_()
    with capture(model) as recording:
        model(x).sum().backward()
    assert_true(recording, plain, x.detach())
    gradient = x.grad.clone()
    x.grad = None
    plain(x).sum().backward()
    torch.testing.assert_close(gradient, x.grad)
    with capture(model) as recording:
        loss = model(x).sum()
        torch.autograd.grad(loss, x) if not reentrant else torch.autograd.backward(loss)
    assert len(recording.calls) == 2
    assert recording.passes == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_are_seen_and_stay_compiled(backend: str) -> None:
    torch._dynamo.reset()
    model, x = Model(), draw(2, 5, 16)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        compiled(x)
        with capture(compiled) as recording:
            compiled(x)
        assert_true(recording, model, x)
        with capture(model) as recording:
            compiled(x)
        assert_true(recording, model, x)
    assert recording.passes == 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert torch.compiler.set_stance("default").prev.stance == "default"


def test_module_compiled_in_place_is_seen() -> None:
    torch._dynamo.reset()
    model, x = Model(), draw(2, 5, 16)
    model.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        model(x)
        with capture(model) as recording:
            model(x)
        assert_true(recording, model, x)


def test_a_compiled_part_is_seen_under_its_plain_path() -> None:
    torch._dynamo.reset()
    model, x = Model(), draw(2, 5, 16)
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    with torch.no_grad(), capture(model) as recording:
        model(x)
    assert [call.module for call in recording.calls] == ["blocks.0", "blocks.1"]


def test_stance_of_overlapping_captures_is_put_back() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Model(), backend="eager")
    x = draw(1, 3, 16)

    def work(_: int) -> None:
        for _ in range(5):
            with torch.no_grad(), capture(compiled):
                compiled(x)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert torch.compiler.set_stance("default").prev.stance == "default"


def test_functional_call_and_wrappers_keep_the_paths() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Tensor) -> Tensor:
            return self.module(*args)

    model, x = Model(), draw(2, 5, 16)
    with capture(model) as recording:
        torch.func.functional_call(model, dict(model.named_parameters()), (x,))
    assert_true(recording, model, x)
    wrapper = Wrapper(model)
    with capture(wrapper) as recording:
        wrapper(x)
    assert [call.module for call in recording.calls] == ["module.blocks.0", "module.blocks.1"]
    with capture(model) as recording:
        wrapper(x)
    assert_true(recording, model, x)


def test_gradients_of_torch_func_are_read() -> None:
    model, x = Model(), draw(2, 5, 16)
    with capture(model) as recording:
        gradient = torch.func.grad(lambda given: model(given).sum())(x)
    assert_true(recording, model, x)
    assert gradient.shape == x.shape


def test_each_sample_of_a_batch_is_as_alone() -> None:
    model, x = Model(), draw(3, 5, 16)
    with capture(model) as together:
        model(x)
    for number in range(3):
        with capture(model) as alone:
            model(x[number : number + 1])
        for one, many in zip(alone.calls, together.calls, strict=True):
            torch.testing.assert_close(weights_of(one)[0], weights_of(many)[number], atol=1e-6, rtol=0)


def test_a_decorated_forward_is_owned_by_its_module() -> None:
    model, x = Model(), draw(1, 4, 16)
    attention = model.blocks[1]
    plain = attention.forward

    def traced(*args: Tensor) -> Tensor:
        return plain(*args) + 0

    attention.forward = traced
    with capture(model) as recording:
        model(x)
    assert_true(recording, model, x)


def test_gradients_reach_the_parameters_as_without_capture() -> None:
    model, x = Model(), draw(2, 5, 16)
    twin = copy.deepcopy(model)
    with capture(model) as recording:
        model(x).square().sum().backward()
    twin(x).square().sum().backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
    assert not recording.calls[0].q.requires_grad


def test_meta_device_has_no_numbers_to_check() -> None:
    model = Model().to("meta")
    with capture(model) as recording:
        model(torch.empty(2, 5, 16, device="meta"))
    assert recording.calls[0].error is None
    assert recording.calls[0].q.shape == (2, 2, 5, 8)


def in_a_thread(work, *given: Tensor) -> None:
    other = threading.Thread(target=work, args=given, name="worker")
    other.start()
    other.join()


def test_capture_of_a_thread_started_inside_is_refused() -> None:
    model = Model()
    with (
        pytest.raises(errors.NoAttentionError, match=r"another thread \(worker\).*Open the capture inside"),
        capture(model),
    ):
        in_a_thread(model, draw(1, 3, 16))


def test_attention_that_only_ran_in_another_thread_is_listed() -> None:
    class Forking(Model):
        def forward(self, x: Tensor) -> Tensor:
            in_a_thread(self.blocks[1], x)
            return self.blocks[0](x)

    model = Forking()
    with capture(model) as recording:
        model(draw(1, 3, 16))
    assert [call.module for call in recording.calls] == ["blocks.0"]
    assert recording.unseen == ("blocks.1",)


def test_a_stranger_beside_the_model_is_no_call_of_it() -> None:
    model, other = Model(), Model()
    with pytest.raises(errors.NoAttentionError, match="was not called inside"), capture(model):
        other(draw(1, 3, 16))
