"""Joining, repeating and choosing: more functions after which the key dimension is still known.

Heads or tokens put together again after a loop, keys in another order, the few largest weights scattered
into zeros. Several gates side by side (Ma et al., Multi-gate Mixture-of-Experts, 2018) look like queries:
a trail remembers how many distributions were put together.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from mmattn.interception.asked import Asked
from mmattn.interception.follow import (
    Step,
    Trail,
    follower,
    on_sum,
    remember,
    same,
    table,
    trail_of,
    without_dropout,
)
from mmattn.interception.mode import AttentionMode, Handler


def on_join(mode: AttentionMode, asked: Asked) -> Any:
    """Follow cat and stack of distributions alone."""
    pieces = asked.option("tensors", 0)
    trails = [trail_of(mode, piece) for piece in pieces]
    first = trails[0] if trails else None
    if first is None or first.stage != "weights":
        return asked.run()
    clean, is_stack = without_dropout(mode, asked), "stack" in str(asked.func)
    result = asked.run()
    dim = asked.option("dim axis", 1, 0) % result.dim()
    if any(trail is None or trail.key != first.key or trail.stage != "weights" for trail in trails):
        return result
    side_by_side = is_stack or (first.grown and dim != first.key and pieces[0].shape[dim] == 1)
    joined = replace(
        first,
        key=first.key + int(is_stack and dim <= first.key),
        grown=first.grown or is_stack,
        stacked=result.shape[dim] if side_by_side else first.stacked,
        dropout=max(trail.dropout for trail in trails if trail is not None),
        clean=clean,
    )
    remember(mode, result, joined)
    return result


def on_scatter(mode: AttentionMode, asked: Asked) -> Any:
    """Follow weights that are scattered along their key dimension, or of which some are overwritten by a number."""
    target, source = asked.option("input self", 0), asked.option("src value", 3)
    trail = trail_of(mode, source)
    if not isinstance(source, Tensor):
        return _elementwise(mode, asked)
    result = asked.run()
    dim = asked.option("dim", 1) % result.dim()
    mode.followed.pop(id(result), None)
    whole = trail is not None and trail.stage in ("weights", "chosen") and trail.key == dim and trail.clean is None
    if trail is not None and whole and trail_of(mode, target) is None:
        remember(mode, result, replace(trail, stage="weights"))
    return result


def on_copy(mode: AttentionMode, asked: Asked) -> Any:
    """Follow a copy into memory that was there before; what was remembered of that memory ends."""
    source = asked.option("src other", 1)
    trail, shape = trail_of(mode, source), getattr(source, "shape", None)
    result = asked.run()
    mode.followed.pop(id(result), None)
    if trail is not None and result.shape == shape:
        remember(mode, result, trail)
    return result


def _aligned(step: Step, result: Tensor) -> Trail | None:
    """Return the trail where dimensions stay in place, counted from the last; sizes may change."""
    more = result.dim() - len(step.shape)
    if step.trail.stage not in ("weights", "log", "chosen") or more < 0:
        return None
    return replace(step.trail, key=step.trail.key + more, grown=step.trail.grown or more > 0)


def _rolled(step: Step, result: Tensor) -> Trail | None:
    return None if step.asked.option("dims", 2) in (None, ()) else _aligned(step, result)


def _padded(step: Step, result: Tensor) -> Trail | None:
    plain = step.asked.option("mode", 2, "constant") == "constant" and not step.asked.option("value", 3)
    return _aligned(step, result) if plain else None


def _along_key(step: Step, result: Tensor) -> Trail | None:
    return _aligned(step, result) if step.asked.option("dim", 1) % len(step.shape) == step.trail.key else None


def _largest(step: Step, result: Tensor) -> Trail | None:
    """Return the trail of some of the weights: no distribution over the keys until they are scattered again."""
    along_key = step.asked.option("dim", 2, -1) % len(step.shape) == step.trail.key
    whole = step.trail.stage == "weights" and result.is_floating_point()
    return replace(step.trail, stage="chosen") if along_key and whole else None


_elementwise = follower(same)

REARRANGED: dict[Any, Handler] = table(
    {
        "cat concat concatenate stack": on_join,
        "scatter scatter_": on_scatter,
        "copy_": on_copy,
        "index_select repeat repeat_interleave tile flip": follower(_aligned),
        "roll": follower(_rolled),
        "pad constant_pad_nd": follower(_padded),
        "gather take_along_dim": follower(_along_key),
        "topk": follower(_largest),
        "pow pow_ __pow__ square sqrt normalize": _elementwise,
        "lerp lerp_": on_sum,
    }
)
