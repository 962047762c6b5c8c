"""capture(): read every attention of a running model."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from mmattn.errors import GoneError
from mmattn.interception.calls import Call, Tap
from mmattn.interception.keep import keep, shares_memory
from mmattn.interception.mode import Check, Copy, copies, detached, kept_from_operators
from mmattn.interception.positions import positions_maps
from mmattn.interception.refuse import refuse_empty, refuse_unreadable
from mmattn.interception.selfcheck import Later
from mmattn.interception.watch import ModelWatcher
from mmattn.schema.maps import AttentionMaps

Reduce = Callable[[Call], Call | Tensor]

# Self-checks put off at most: each holds one head of a value.
MOST_WAITING = 32


class Recording:
    """What was seen in one `with capture(model)` block.

    Parameters
    ----------
    model
        The root; only a weak reference is held after the block.
    reduce
        See `capture`.
    """

    def __init__(self, model: nn.Module, reduce: Reduce | None = None) -> None:
        self._model = weakref.ref(model)
        self._watcher = _Reader(model, reduce)

    @property
    def calls(self) -> list[Call]:
        """Every attention so far, in the order of the run; self-checks still put off are run now."""
        return self._watcher.finished()

    @property
    def model(self) -> nn.Module:
        """The model that ran.

        Raises
        ------
        GoneError
            It was deleted since.
        """
        model = self._model()
        if model is None:
            raise GoneError(
                "The model of this recording is gone. A recording holds only a weak reference to it. "
                "Keep the model alive while you need it."
            )
        return model

    @property
    def inputs(self) -> tuple[tuple[Tensor, ...], ...]:
        """For each outermost forward, the tensors it was called with: positional, then keyword order.

        References, not copies: a tensor that you overwrite in place changes here too.
        """
        return tuple(self._watcher.inputs)

    @property
    def maps(self) -> AttentionMaps:
        """What was seen, as maps over bare Positions: one layer a call.

        `mmattn.attend(recording, image=...)` gives them places where an adapter knows the model.
        """
        return positions_maps(self.calls, model=self.model, inputs=self.inputs, sides=self._watcher.sides)

    @property
    def passes(self) -> int:
        """How many outermost forwards there were."""
        return self._watcher.passes

    @property
    def unseen(self) -> tuple[str, ...]:
        """Paths of modules named *Attention or *Attn that ran without an attention being seen in them."""
        return self._watcher.unseen()

    def __repr__(self) -> str:
        model = self._model()
        name = "a model that is gone" if model is None else type(model).__name__
        unseen = f", unseen: {', '.join(self.unseen)}" if self.unseen else ""
        return f"<Recording of {name}: {len(self._watcher.entries)} calls in {self.passes} passes{unseen}>"


class _Reader(ModelWatcher):
    """Keeps the calls of one recording."""

    def __init__(self, model: nn.Module, reduce: Reduce | None) -> None:
        super().__init__(model)
        self.reduce = reduce
        self.entries: list[tuple[Call, Tensor | Later | None]] = []
        self.settled = 0

    def record(self, draft: Call, path: str, copy: Copy, check: Check) -> None:
        """Keep a call, or what the reducer makes of it."""
        if self.reduce is None:
            kept = self.number(draft, path, **copy())
            error = check(kept)
        else:
            whole = self.number(detached(draft), path)
            error = _now(check(whole))  # of the model's own tensors, which will be gone
            with kept_from_operators(f"The reducer of {path or 'the root module'}"):
                smaller = self.reduce(whole)
            kept = _reduced(whole, smaller)
        self.entries.append((kept, error))
        self.counted(path)
        if len(self.entries) - self.settled >= MOST_WAITING:
            self.settle()

    def settle(self) -> None:
        """Run the self-checks that were put off."""
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for index in range(self.settled, len(self.entries)):
                call, error = self.entries[index]
                self.entries[index] = (call, _now(error))
        self.settled = len(self.entries)

    def emit(self, call: Call) -> Tensor | None:
        """Keep a call that a tap saw."""
        kept = self.number(call, call.module, **copies(call))
        self.entries.append((kept, None))
        self.counted(call.module)
        return None

    def finished(self) -> list[Call]:
        """Return the calls; pending errors become numbers, once."""
        self.settle()
        for index, (call, error) in enumerate(self.entries):
            if isinstance(error, Tensor):
                self.entries[index] = (call.but(error=float(error)), None)
        return [call for call, _ in self.entries]


def capture(
    model: nn.Module, *, taps: Sequence[Tap] = (), reduce: Reduce | None = None
) -> AbstractContextManager[Recording]:
    """Return a context in which every attention of `model` is read, as the model runs for its user.

    The model keeps its fused kernels, dtype, device, autocast and output: nothing in torch is patched.
    Captures may be nested, used in several threads at once, and stand inside or around an
    `intervene`: they see the weights that were really used, edits included. Compiled models run their
    eager code meanwhile, for every thread of the process.

    Parameters
    ----------
    model
        Any module; paths are relative to it.
    taps
        Extra points of interception, `tap(model, emit)`, each a context manager around the block.
    reduce
        For models too large to keep q and k: called in the middle of each call with a Call that holds
        the model's own tensors; it returns a smaller Call, or a tensor that is kept as `weights`.

    Raises
    ------
    NoAttentionError
        At the end of the block when nothing was seen, with the likely cause; at once for scripted and
        traced modules; from inside a `torch.vmap`.
    ModelError
        For what is no module, and nested tensors given to `nn.MultiheadAttention`.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    >>> with capture(layer) as recording:
    ...     output = layer(torch.zeros(1, 5, 8))
    >>> [(call.module, list(call.q.shape)) for call in recording.calls]
    [('self_attn', [1, 2, 5, 4])]
    """
    refuse_unreadable(model)
    return _capturing(model, taps, reduce)


@contextmanager
def _capturing(model: nn.Module, taps: Sequence[Tap], reduce: Reduce | None) -> Iterator[Recording]:
    recording = Recording(model, reduce)
    watcher = recording._watcher
    try:
        with watcher.installed(), ExitStack() as stack:
            for tap in taps:
                stack.enter_context(tap(model, watcher.emit))
            yield recording
    finally:
        watcher.root = None
    if not watcher.entries:
        refuse_empty(model, passes=watcher.passes, ran=watcher.unseen(), elsewhere=watcher.elsewhere)


def _now(error: Tensor | Later | None) -> Tensor | None:
    return error if error is None or isinstance(error, Tensor) else error()


def _reduced(call: Call, result: Call | Tensor) -> Call:
    """Own what the reducer returned, copying only what still lies in the model's tensors."""
    small = (
        result
        if isinstance(result, Call)
        else call.but(q=None, k=None, mask=None, causal=False, softcap=None, weights=result)
    )
    given = [tensor for tensor in (call.q, call.k, call.weights, call.mask) if tensor is not None]

    def own(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return keep(tensor) if any(shares_memory(tensor, other) for other in given) else tensor.detach()

    return detached(small).but(q=own(small.q), k=own(small.k), weights=own(small.weights), mask=own(small.mask))
