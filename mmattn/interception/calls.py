"""A Call: one attention that a running module made, as the kernel got it.

Interception only numbers calls; adapters join, unpack and split them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

CallKind = Literal["token", "channel"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One attention: a distribution that was contracted with a value.

    Either `q` and `k` are there (a fused kernel: weights are computed when asked) or `weights` is
    (a softmax that was seen, after head mixing). Tensors are detached and exact.

    Parameters
    ----------
    module
        Path of the module that made the call, such as `blocks.11.attn`; empty for the root.
    order, pass_index
        Place among all calls of the recording; which outermost forward pass it belongs to.
    kind
        `token`, or `channel` where the tokens are channels (XCiT, EdgeNeXt): never drawn as patches.
    origin
        What was seen: `sdpa`, `softmax`, `flex`, `tap`.
    q, k
        `[..., query, dim]` and `[..., key, dim]` as the kernel got them, grouped key heads kept few.
    weights
        `[..., query, key]` as they were contracted (before dropout).
    mask
        As given: boolean (True: may attend) or additive, broadcastable to `[..., query, key]`.
    causal, scale, softcap, dropout
        The options of the call; `scale` is always the number that was used.
    head_count
        Heads folded into a leading dimension, where the owner says so (3-d calls); else None.
    value_dim
        Width of the value that the weights were contracted with.
    error
        Largest difference, over a few rows, between A V recomputed from what is kept here and the
        call's real output, relative to the largest output.
    """

    module: str
    order: int
    pass_index: int
    kind: CallKind = "token"
    origin: str = "sdpa"
    q: Tensor | None = None
    k: Tensor | None = None
    weights: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    softcap: float | None = None
    dropout: float = 0.0
    head_count: int | None = None
    value_dim: int | None = None
    error: float | None = None

    def but(self, **changes: Any) -> "Call":
        """Return the call with some fields changed: `dataclasses.replace`, in half the time."""
        return Call(**{**vars(self), **changes})

    def __repr__(self) -> str:
        given = {name: getattr(self, name) for name in ("q", "k", "weights", "mask")}
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items() if tensor is not None)
        checked = "" if self.error is None else f", error {self.error:.1e}"
        return f"<Call {self.order} of {self.module or 'the root'}: {self.kind}, {self.origin}, {shapes}{checked}>"


Emit = Callable[[Call], Tensor | None]
"""What a tap tells its calls to; it returns the weights to use in place of the call's, or None."""

Tap = Callable[[nn.Module, Emit], AbstractContextManager[Any]]
"""An extra point of interception, open while the model runs."""
