"""differentiate(): the gradient of a score with respect to the attention weights of a running model.

With `out = A v` the gradient of the weights is a product of two thin factors:

    dS/dA = dS/d_out  v^T

so a fused kernel runs as it is, forward and backward, and no weights exist for any layer: one forward and
one backward pass give the gradient of every output, and what is kept is linear in tokens. A call that is
no plain fused kernel (a softmax that was seen, flex attention, dropout that is on) runs again with weights
in the graph, as under `intervene`; their gradient is dense, as such a model's own graph is.

Nothing is written to a parameter: gradients come from `torch.autograd.grad`, and where all parameters are
frozen the graph begins at the first attention.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mmattn.errors import ModelError
from mmattn.interception.calls import Call, Tap
from mmattn.interception.keep import unwrapped
from mmattn.interception.mode import Sight, detached
from mmattn.interception.refuse import refuse_empty, refuse_unreadable
from mmattn.interception.watch import ModelWatcher


@dataclass(frozen=True, kw_only=True, eq=False)
class _Noted:
    """A call without its weights, where its gradient arrives, and its value where that is the output's gradient.

    `nothing` is a gradient of zeros, a single number in memory.
    """

    call: Call
    edge: GradientEdge
    value: Tensor | None
    nothing: Tensor


class Differentiation:
    """What was seen in one `with differentiate(model)` block: where the gradient of each call arrives.

    Parameters
    ----------
    model
        The root that paths are relative to.
    """

    def __init__(self, model: nn.Module) -> None:
        self._watcher = _Follower(model)

    def gradients(
        self, score: Tensor, *, needed: Callable[[str], bool] = lambda module: True, keep: bool = False
    ) -> list[Call]:
        """Return a call for each token attention seen, in the order of the run, that holds its gradient.

        Of a fused kernel `q` is the gradient of the output and `k` the value: the gradient of the weights is
        `q k^T`, without scale, mask or softmax (mask and causality are still those of the call). Of any other
        call `weights` is the gradient itself.

        Parameters
        ----------
        score
            A number that came out of the block; its graph is used up, unless it is kept.
        needed
            Of which modules a gradient has to arrive. Of others it is zero where none does: a score that compares
            two towers asks nothing of a decoder that ran beside them.
        keep
            Whether gradients of another score of the same run will be asked for.

        Raises
        ------
        ModelError
            No gradient reaches an attention that is needed: something on the way has none.
        """
        noted = self._watcher.noted
        if not isinstance(score, Tensor) or not score.requires_grad:
            raise ModelError(f"The score has no gradient. {_NO_GRADIENT}")
        try:
            found = torch.autograd.grad(score, [one.edge for one in noted], allow_unused=True, retain_graph=keep)
        except RuntimeError as problem:
            raise _explained(problem) from problem
        return [
            _call(one, one.nothing if gradient is None and not needed(one.call.module) else gradient)
            for one, gradient in zip(noted, found, strict=True)
        ]


class _Follower(ModelWatcher):
    """Notes where gradients arrive."""

    differentiates = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.noted: list[_Noted] = []

    def differentiable(self, sight: Sight, draft: Call, path: str) -> Sight:
        """Return the sight whose ways of running note where the gradient arrives."""
        if draft.kind != "token":
            self.counted(path)
            return sight
        call = self.number(detached(draft), path)

        def rerun(edited: Tensor) -> object:
            return sight.rerun(self.note(edited, call))

        def run() -> object:
            if not sight.direct:
                return rerun(sight.weights())
            out = sight.run()
            return self.note(out, call, value=sight.value)

        return replace(sight, run=run, rerun=rerun)

    def note(self, tensor: Tensor, call: Call, *, value: Tensor | None = None) -> Tensor:
        """Note where the gradient of a tensor arrives; return what the model goes on with."""
        if tensor.is_inference():
            raise _explained(RuntimeError("Inference tensors"))
        used = tensor
        if not tensor.requires_grad:  # frozen up to here: the graph begins now
            tensor = tensor.detach().requires_grad_()
            used = tensor.clone()  # the model may write into what it gets, but not into a leaf
        self.noted.append(
            _Noted(
                call=call.but(q=None, k=None, weights=None),
                edge=get_gradient_edge(tensor),
                value=None if value is None else unwrapped(value).detach(),
                nothing=tensor.detach().new_zeros(()).expand(tensor.shape),
            )
        )
        self.counted(call.module)
        return used

    def emit(self, call: Call) -> Tensor | None:
        """Note a call that a tap saw; the tap goes on with the weights that come back."""
        return None if call.weights is None else self.note(call.weights, self.number(detached(call), call.module))


def differentiate(model: nn.Module, *, taps: Sequence[Tap] = ()) -> AbstractContextManager[Differentiation]:
    """Return a context in which the model runs with a graph, whatever mode is on around it.

    Parameters
    ----------
    model
        Any module; it runs as it is, fused kernels and all, and its output is the same.
    taps
        Extra points of interception.

    Raises
    ------
    ModelError
        The model is quantized, holds tensors of inference mode, or checkpoints its activations.
    NoAttentionError
        As for `capture`.

    Examples
    --------
    >>> layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    >>> x = torch.rand(1, 5, 8)
    >>> with differentiate(layer) as run:
    ...     output, _ = layer(x, x, x, need_weights=False)
    >>> gradient = run.gradients(output.sum())[0]
    >>> (gradient.q @ gradient.k.transpose(-2, -1)).shape
    torch.Size([1, 2, 5, 5])
    """
    refuse_unreadable(model)
    refuse_without_gradients(model)
    return _differentiating(model, taps)


@contextmanager
def _differentiating(model: nn.Module, taps: Sequence[Tap]) -> Iterator[Differentiation]:
    found = Differentiation(model)
    watcher = found._watcher
    try:
        with torch.inference_mode(False), torch.enable_grad(), watcher.installed(), ExitStack() as stack:
            for tap in taps:
                stack.enter_context(tap(model, watcher.emit))
            yield found
    except RuntimeError as problem:
        explained = _explained(problem)
        if explained is problem:
            raise
        raise explained from problem
    finally:
        watcher.root = None
    if not watcher.noted:
        refuse_empty(model, passes=watcher.passes, ran=watcher.unseen(), elsewhere=watcher.elsewhere)


_NO_GRADIENT = (
    "A gradient needs a model whose every step between attention and answer can be differentiated (nothing "
    "quantized, detached or under torch.no_grad). Use a method without gradients: look or rollout."
)


def refuse_without_gradients(model: nn.Module) -> None:
    """Raise for a model whose weights have no gradients.

    Raises
    ------
    ModelError
        A quantized module, or parameters that were made in inference mode.
    """
    for path, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise ModelError(f"{path or 'The model'} ({type(module).__name__}) is quantized. {_NO_GRADIENT}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_inference():
            raise _inference(f"{name} of the model was")
        if tensor.is_quantized:
            raise ModelError(f"{name} of the model is quantized. {_NO_GRADIENT}")


def _inference(what: str) -> ModelError:
    return ModelError(
        f"{what} made in torch.inference_mode, whose tensors can have no gradient. Tensors made outside of it, or "
        "under torch.no_grad, can. Make the model and its input outside of inference_mode and attend again."
    )


def _explained(problem: RuntimeError) -> RuntimeError | ModelError:
    """Return torch's own error in our words, where it is one of those that are known."""
    text = str(problem)
    if "nference tensor" in text:
        return _inference("The input, or something that the model keeps, was")
    if "heckpoint" in text:
        return ModelError(
            "The model checkpoints its activations, which torch does not combine with gradients of single tensors. "
            "Without checkpointing it can be read. Turn it off (timm: model.set_grad_checkpointing(False))."
        )
    return problem


def _call(noted: _Noted, gradient: Tensor | None) -> Call:
    if gradient is None:
        raise ModelError(
            f"No gradient reaches {noted.call.module or 'the root module'}: the score does not depend on it, or "
            f"something between the two has none. {_NO_GRADIENT}"
        )
    if noted.value is None:
        return noted.call.but(weights=gradient, mask=None, causal=False, softcap=None)
    return noted.call.but(q=gradient, k=noted.value, scale=1.0, softcap=None)
