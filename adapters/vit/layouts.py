"""Layers of any vision model: what it attended to, and where that stands in the picture.

Nothing about a family is written down here. The model runs once on indices (`..tracing`), for each
shape of input, and each of its attentions says which tokens it joined.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from torch import Tensor, nn

from mmattn.errors import GoneError
from mmattn.interception.calls import Call, Emit
from mmattn.interception.feature_maps import FeatureMap
from mmattn.interception.protocol import Prepared
from mmattn.schema.axes import PatchGrid
from mmattn.schema.layers import AttentionLayer

from ..pixels import Geometry
from ..tracing.axes import side_of
from ..tracing.branches import branches
from ..tracing.layers import joined, layer_of
from ..tracing.trace import Trace, trace


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What the layers of a picture model need.

    Parameters
    ----------
    model
        The model, not kept alive.
    geometries
        How each sample's picture came to the model's pixels.
    shape
        `[sample, channel, row, col]` of the pixels.
    call
        Calls the model with them.
    form
        What else the sequence of tokens depends on: how patches were packed. Empty for most.

    """

    model: weakref.ref[nn.Module]
    geometries: tuple[Geometry, ...]
    shape: tuple[int, ...]
    call: Callable[[nn.Module, Tensor], Any]
    form: Hashable = ()


# One trace a model: weights do not matter to it, the input's shape and the modules' settings do.
_traces: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Trace]]" = weakref.WeakKeyDictionary()


def trace_of(facts: PictureFacts) -> Trace:
    """Return the trace of the model for pixels of that shape, made once.

    Raises
    ------
    GoneError
        The model was deleted.

    """
    model = facts.model()
    if model is None:
        raise GoneError("The model was deleted before its attention was placed. Keep the model alive, or attend again.")
    known = _traces.setdefault(model, {})
    key = (facts.shape, facts.form, _settings(model))
    if key not in known:
        known.clear()  # pictures of one model mostly have one shape: old traces are only memory
        known[key] = trace(model, shape=facts.shape, call=facts.call)
    return known[key]


def _settings(model: nn.Module) -> int:
    """Return a number that changes with any plain setting of any module: a window's size, a shift, training."""
    plain = (int, float, str, bool, tuple, type(None))
    return hash(
        tuple(
            (path, name, repr(value))
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, plain)
        )
    )


def picture_layers(calls: Sequence[Call], facts: PictureFacts) -> tuple[AttentionLayer, ...]:
    """Return a layer for each token attention, between axes that lie on the pictures."""
    known = trace_of(facts)
    found, _ = joined(calls, known)
    geometries = facts.geometries * facts.shape[0] if len(facts.geometries) == 1 else facts.geometries
    streams = [f"vision.{branch}" if branch else "vision" for branch in branches([p.event for p in found], known.grids)]
    return tuple(layer_of(p, known, geometries, stream=own) for p, own in zip(found, streams, strict=True))


def feature_map(facts: PictureFacts) -> FeatureMap | None:
    """Return the last feature map of a model of convolutions, on the pictures; None where it has none that is placed.

    A model whose patches are tokens to the end has none.
    """
    known = trace_of(facts)
    if known.last_map is None:
        return None
    side = side_of(known.last_map.ids, known.grids)
    axes = tuple(side.spec.axis(geometry) for geometry in facts.geometries)
    grids = tuple(axis for axis in axes if isinstance(axis, PatchGrid))
    plain = side.index is None and len(grids) == len(axes)
    return FeatureMap(module=known.last_map.module, channels=known.last_map.channels, axes=grids) if plain else None


_REASONS = {
    "channel": "attention between channels, which have no place in the picture",
    "linear": "linear attention, in which no token has weights over the others",
    "gate": "a gate, one distribution for all tokens",
    "": "its tokens could not be placed",
}


def left_out(calls: Sequence[Call], facts: PictureFacts) -> tuple[str, ...]:
    """Return what is not drawn, module by module, with the reason."""
    known = trace_of(facts)
    _, alone = joined(calls, known)
    stopped = f" (the model does not run on indices: {shorten(known.stopped, 100)})" if known.stopped else ""
    reasons: dict[str, str] = {}
    for one in alone:
        kind = "channel" if one.call.kind == "channel" else known.others.get(one.call.module, "")
        said = _REASONS[kind] if kind else f"{_REASONS['']}{f': {one.why}' if one.why else stopped}"
        reasons[one.call.module] = said
    return tuple(f"{module}: {said}" for module, said in reasons.items())


class Traced:
    """What adapters of pictures answer alike whose facts are PictureFacts; see `interception.protocol.Adapter`."""

    default_stream = "vision"

    def taps(self, model: nn.Module, emit: Emit) -> AbstractContextManager[None]:
        """No extra points: everything goes through the kernels that interception sees."""
        return nullcontext()

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Join each call's queries and keys with the tokens of the model."""
        return picture_layers(calls, prepared.facts)

    def left_out(self, calls: Sequence[Call], prepared: Prepared) -> tuple[str, ...]:
        """Return what is no token attention, with the reason; see `protocol.LeavesOut`."""
        return left_out(calls, prepared.facts)
