"""Rules for what merges tokens or lays them on another map: means, linear layers, convolutions, pooling."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .functions import REDUCE
from .ids import Ids, make, plain
from .merge import merged
from .pointwise import combined
from .rules_products import matmul
from .state import Rule, State, given
from .strided import Kernel, refined, resized, several, several_numbers, strided, widened


def _reduced(state: State, *args: Any, **kwargs: Any) -> Ids:
    asked = given("x dim keepdim", args, kwargs)
    x = asked["x"]
    dim = asked.get("dim", asked.get("axis"))
    if isinstance(dim, bool):  # var(x, unbiased)
        dim = None
    dims = list(range(x.dim())) if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)
    out = merged(x, dims, grids=state.grids)
    if asked.get("keepdim", asked.get("keepdims", False)) is True:
        return out
    return make(plain(out).squeeze(dims), out.story)


def _norm(state: State, *args: Any, **kwargs: Any) -> Ids:
    """Follow x.norm(p, dim, keepdim), whose first option is no dimension."""
    asked = given("x p dim keepdim", args, kwargs)
    return _reduced(state, asked["x"], dim=asked.get("dim"), keepdim=asked.get("keepdim", False))


def _spread(state: State, *args: Any, **kwargs: Any) -> Ids:
    """Follow x.var(dim, unbiased, keepdim)."""
    if len(args) > 2:
        kwargs = {"keepdim": args[3] if len(args) > 3 else False} | kwargs
    return _reduced(
        state, *args[:2], **{key: value for key, value in kwargs.items() if key in ("dim", "keepdim", "axis")}
    )


def _largest(state: State, *args: Any, **kwargs: Any) -> Any:
    """Follow max and min, which compare two tensors, or reduce one and also give indices."""
    if len(args) > 1 and isinstance(args[1], Tensor):
        return combined(args[0], args[1], grids=state.grids)
    out = _reduced(state, *args, **kwargs)
    if len(args) < 2 and "dim" not in kwargs:
        return out
    return torch.return_types.max((out, torch.zeros(out.shape, dtype=torch.int64)))


def _two(state: State, *args: Any, **kwargs: Any) -> tuple[Ids, Ids]:
    out = _reduced(state, *args, **{key: value for key, value in kwargs.items() if key in ("dim", "keepdim")})
    return out, out


def _linear(state: State, *args: Any, **kwargs: Any) -> Ids:
    asked = given("x weight bias", args, kwargs)
    x, weight = asked["x"], asked["weight"]
    if not isinstance(x, Ids) or isinstance(weight, Ids):
        return matmul(state, x, weight.transpose(-1, -2))
    return widened(merged(x, [-1], grids=state.grids), -1, weight.shape[0])


def _conv(state: State, dims: int, args: Any, kwargs: Any) -> Ids:
    asked = given("x weight bias stride padding dilation groups", args, kwargs)
    size = tuple(asked["weight"].shape[2:])
    dilation = several(asked.get("dilation", 1), dims)
    padding, same = asked.get("padding", 0), asked.get("padding", 0) == "same"
    if isinstance(padding, str):  # of an odd number torch pads the smaller half first
        padding = [d * (k - 1) // 2 if same else 0 for k, d in zip(size, dilation, strict=True)]
    kernel = Kernel(
        size=size, stride=several(asked.get("stride", 1), dims), padding=several(padding, dims), dilation=dilation
    )
    one = merged(asked["x"], [-dims - 1], grids=state.grids)
    sides = list(one.shape[-dims:])
    out = strided(one, kernel, lengths=sides if same else kernel.lengths(sides), grids=state.grids)
    return widened(out, -dims - 1, asked["weight"].shape[0])


def _transposed(state: State, *args: Any, **kwargs: Any) -> Ids:
    asked = given("x weight bias stride padding output_padding groups dilation", args, kwargs)
    one = merged(asked["x"], [-3], grids=state.grids)
    kernel = Kernel(
        size=tuple(asked["weight"].shape[2:]),
        stride=several(asked.get("stride", 1), 2),
        padding=several(asked.get("padding", 0), 2),
        dilation=several(asked.get("dilation", 1), 2),
    )
    extra = several(asked.get("output_padding", 0), 2)
    fine = refined(one, kernel, lengths=kernel.widths(one.shape[-2:], extra), grids=state.grids)
    return widened(fine, -3, asked["weight"].shape[1] * asked.get("groups", 1))


def _pool(state: State, dims: int, names: str, args: Any, kwargs: Any) -> Ids:
    asked = given(names, args, kwargs)
    size = several(asked["kernel_size"], dims)
    stride = asked.get("stride")
    kernel = Kernel(
        size=size,
        stride=size if stride is None or stride == [] else several(stride, dims),
        padding=several(asked.get("padding", 0), dims),
        dilation=several(asked.get("dilation", 1), dims),
    )
    lengths = kernel.lengths(asked["x"].shape[-dims:], ceil=bool(asked.get("ceil_mode", False)))
    return strided(asked["x"], kernel, lengths=lengths, grids=state.grids)


def _adaptive(state: State, dims: int, args: Any, kwargs: Any) -> Ids:
    asked = given("x output_size", args, kwargs)
    size = asked["output_size"]
    sides = (size,) * dims if isinstance(size, int) or size is None else tuple(size)
    lengths = [old if new is None else int(new) for old, new in zip(asked["x"].shape[-dims:], sides, strict=True)]
    return resized(asked["x"], lengths, grids=state.grids)


def _interpolate(state: State, *args: Any, **kwargs: Any) -> Ids:
    asked = given("x size scale_factor mode align_corners recompute_scale_factor", args, kwargs)
    x, size, scale = asked["x"], asked.get("size"), asked.get("scale_factor")
    dims, old = x.dim() - 2, x.shape[2:]
    scales = several_numbers(scale, dims) if size is None else ()
    lengths = list(several(size, dims)) if size is not None else [int(a * s) for a, s in zip(old, scales, strict=True)]
    if asked.get("align_corners"):  # the middles of the outermost cells stay where they are
        factor = [(a - 1) / (n - 1) if n > 1 and a > 1 else 1.0 for a, n in zip(old, lengths, strict=True)]
        starts = [0.5 - f / 2 for f in factor]
        return resized(x, lengths, grids=state.grids, factor=factor, shift=starts)
    exact = all(n == a * s for n, a, s in zip(lengths, old, scales, strict=False))
    if not exact and not asked.get("recompute_scale_factor"):
        return resized(x, lengths, grids=state.grids, factor=[1 / s for s in scales], shift=[0.0] * dims)
    return resized(x, lengths, grids=state.grids)


def _fold(state: State, *args: Any, **kwargs: Any) -> Ids:
    """Sum overlapping neighbourhoods back to the map that they were cut from."""
    asked = given("x output_size kernel_size dilation padding stride", args, kwargs)
    x = asked.pop("x")
    state.folded(x.story.events)
    values = plain(x).contiguous()
    total = functional.fold(values, **asked)
    count = functional.fold((values > 0).to(torch.float64), **asked)
    return make(total / count.clamp(min=1), x.story)


def _by_dims(rule: Rule, dims: int, *names: str) -> Rule:
    return lambda state, *args, **kwargs: rule(state, dims, *names, args, kwargs)


_AVERAGE = "x kernel_size stride padding ceil_mode"
_MAXIMUM = "x kernel_size stride padding dilation ceil_mode return_indices"

RULES: dict[str, Rule] = {
    "max": _largest,
    "min": _largest,
    "var_mean": _two,
    "std_mean": _two,
    "linear": _linear,
    "conv1d": _by_dims(_conv, 1),
    "conv2d": _by_dims(_conv, 2),
    "conv3d": _by_dims(_conv, 3),
    "conv_transpose2d": _transposed,
    "avg_pool1d": _by_dims(_pool, 1, _AVERAGE),
    "avg_pool2d": _by_dims(_pool, 2, _AVERAGE),
    "avg_pool3d": _by_dims(_pool, 3, _AVERAGE),
    "max_pool1d": _by_dims(_pool, 1, _MAXIMUM),
    "max_pool2d": _by_dims(_pool, 2, _MAXIMUM),
    "max_pool3d": _by_dims(_pool, 3, _MAXIMUM),
    "adaptive_avg_pool1d": _by_dims(_adaptive, 1),
    "adaptive_avg_pool2d": _by_dims(_adaptive, 2),
    "adaptive_max_pool2d": _by_dims(_adaptive, 2),
    "interpolate": _interpolate,
    "upsample": _interpolate,
    "fold": _fold,
}
RULES |= dict.fromkeys(REDUCE, _reduced)
RULES |= dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm"), _norm)
RULES |= dict.fromkeys(("var", "std"), _spread)
