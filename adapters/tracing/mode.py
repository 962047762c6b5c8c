"""The mode under which a model runs on ids: rearrangements as they are, everything else by rule."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .contract import Seen, attended, contracted, matmul_labels
from .grids import MIXED, Grids
from .ids import FAR_BELOW, Ids, Story, forbid, forbids, is_pair, make, plain, told
from .merge import Serial, merged
from .pointwise import as_queries, combined, joined
from .strided import refined, resized, several, strided, widened

REARRANGE = frozenset(
    [
        "view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "expand",
        "expand_as",
        "repeat",
        "repeat_interleave",
        "tile",
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unbind",
        "narrow",
        "select",
        "getitem",
        "index_select",
        "gather",
        "take_along_dim",
        "roll",
        "flip",
        "fliplr",
        "flipud",
        "rot90",
        "contiguous",
        "clone",
        "detach",
        "unfold",
        "view_as",
        "reshape_as",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "stack",
        "hstack",
        "vstack",
        "as_strided",
        "adjoint",
        "ravel",
        "broadcast_to",
        "atleast_3d",
        "requires_grad_",
        "diagonal",
        "tril",
        "triu",
        "_reshape_alias",
    ]
)
SAME = frozenset(
    [
        "relu",
        "relu6",
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "prelu",
        "mish",
        "softplus",
        "softsign",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "hardshrink",
        "threshold",
        "exp",
        "log",
        "log1p",
        "expm1",
        "sqrt",
        "rsqrt",
        "square",
        "abs",
        "neg",
        "reciprocal",
        "pow",
        "clamp",
        "clamp_min",
        "clamp_max",
        "clip",
        "erf",
        "sin",
        "cos",
        "nan_to_num",
        "log_softmax",
        "logsigmoid",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
        "layer_norm",
        "group_norm",
        "batch_norm",
        "instance_norm",
        "rms_norm",
        "normalize",
        "local_response_norm",
        "to",
        "type",
        "type_as",
        "float",
        "half",
        "double",
        "bfloat16",
        "masked_fill",
        "fill_diagonal_",
        "round",
        "floor",
        "ceil",
        "sign",
        "cumsum",
        "bernoulli",
        "cpu",
        "cuda",
        "native_dropout",
        "positive",
        "invert",
        "logit",
        "hardsigmoid",
    ]
)
BINARY = frozenset(
    [
        "add",
        "sub",
        "subtract",
        "mul",
        "multiply",
        "div",
        "divide",
        "true_divide",
        "floor_divide",
        "rsub",
        "maximum",
        "minimum",
        "fmod",
        "remainder",
        "lerp",
        "addcmul",
        "addcdiv",
        "max_",
        "atan2",
        "truediv",
        "floordiv",
        "mod",
    ]
)
REDUCE = frozenset(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "std",
        "var",
        "norm",
        "logsumexp",
        "prod",
        "vector_norm",
        "linalg_vector_norm",
        "median",
        "nanmean",
    ]
)
PLAIN = frozenset(
    [
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
        "new_tensor",
        "size",
        "dim",
        "numel",
        "nelement",
        "is_floating_point",
        "is_complex",
        "stride",
        "item",
        "tolist",
        "len",
        "bool",
        "repr",
        "str",
        "is_contiguous",
        "element_size",
        "storage_offset",
        "ndimension",
        "data_ptr",
        "untyped_storage",
        "get_device",
        "is_pinned",
        "format",
        "hash",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "isnan",
        "isinf",
        "isfinite",
        "any",
        "all",
        "equal",
        "allclose",
        "is_same_size",
        "has_names",
        "result_type",
        "promote_types",
        "is_tensor",
        "is_nonzero",
        "int",
        "index",
        "broadcast_tensors",
    ]
)
_TENSOR_PROPERTIES = frozenset(["T", "mT", "H", "mH", "data", "real"])
_Kept = Mapping[str, str]


class TraceMode(TorchFunctionMode):
    """Runs torch functions on Ids.

    Parameters
    ----------
    grids
        Takes new tokens.
    roles
        Roles of the learned tokens among the parameters, by storage address.
    report
        Is told every attention; returns its number.
    residual
        Is told `(event, left, right)` where an attention's output is added to something.
    folded
        Is told the events whose output is summed over overlapping neighbourhoods.

    """

    def __init__(
        self,
        *,
        grids: Grids,
        roles: Mapping[int, str],
        buffers: frozenset[int],
        report: Callable[[Seen, Story], int],
        residual: Callable[[int, Ids, Ids], None],
        folded: Callable[[frozenset[int]], None],
    ) -> None:
        super().__init__()
        self.grids, self.serial = grids, Serial()
        self.roles, self.buffers = dict(roles), buffers
        self.report, self.residual, self.folded = report, residual, folded
        self.named: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.lost: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function by its rule."""
        kwargs = kwargs or {}
        given = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        name = _name(func)
        if not any(isinstance(value, Ids) for value in given):
            return self._plain(func, name, args, kwargs, given)
        if name == "__get__":
            out = func(*args, **kwargs)
            return make(out, told(given)) if isinstance(out, Tensor) and out.dtype == torch.float64 else out
        if name == "__set__":
            return None
        return self._ruled(func, name, args, kwargs, given)

    def _plain(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """Run a function of nothing of the picture; remember what learned tokens become."""
        if given and _in_place(func) and given[0].data_ptr() in self.buffers:
            return given[0]  # running statistics stay what they are
        if func is functional.multi_head_attention_forward:
            return torch.overrides.redispatch_function(func, types_of(given), args, kwargs)  # type: ignore[attr-defined]
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            role = next((found for value in given if (found := self.role(value))), "")
            if role and out.data_ptr() not in self.roles:
                self.named[id(out)] = (weakref.ref(out), role)
        return out

    def role(self, tensor: Tensor) -> str:
        """Return the role of a learned token, or of what was made of one."""
        found = self.named.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        return self.roles.get(tensor.untyped_storage().data_ptr(), "") if tensor.numel() else ""

    def _ruled(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        if name in PLAIN:
            return _native(func, args, kwargs)
        if name in SAME:
            return _of_picture(args, kwargs)
        if name in ("softmax", "softmin"):
            ids = _of_picture(args, kwargs)
            return make(plain(ids), Story(events=ids.story.events, softmax=True, merged=ids.story.merged))
        rule = getattr(self, f"do_{name}", None)
        if rule is not None:
            return rule(*args, **kwargs)
        if name in BINARY:
            return self._binary(name, given, args)
        if name in REDUCE:
            return self._reduced(*args, **kwargs)
        if name in REARRANGE:
            return _wrapped(_native(func, args, kwargs), told(given))
        return self._unknown(func, name, args, kwargs, given)

    def _unknown(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """Run a function that no rule knows: what comes out has no place."""
        self.lost[name] = self.lost.get(name, 0) + 1
        out = _native(func, args, kwargs)

        def lose(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return make(torch.full((), float(MIXED), dtype=torch.float64).expand(value.shape), told(given))
            return value

        if isinstance(out, tuple | list):
            return type(out)(*map(lose, out)) if hasattr(out, "_fields") else type(out)(map(lose, out))
        return lose(out)

    # Element by element

    def _binary(self, name: str, given: list[Tensor], args: Any) -> Ids:
        tensors = [value for value in given if value.dim() or isinstance(value, Ids)]
        out: Tensor = tensors[0]
        if len(tensors) == 1:
            return _of_picture(tensors, {})
        for other in tensors[1:]:
            both = isinstance(out, Ids) and isinstance(other, Ids)
            if name == "add" and not both:
                out = self._masked(out, other)
                continue
            if not isinstance(out, Ids) and not isinstance(other, Ids):
                continue
            if both and name == "add":
                out = self._added(out, other)  # type: ignore[arg-type]
            else:
                out = combined(out, other, grids=self.grids)
        return out  # type: ignore[return-value]

    def _masked(self, left: Tensor, right: Tensor) -> Ids:
        """Return logits to which something was added: a mask forbids some of them."""
        out = combined(left, right, grids=self.grids)
        mask = forbids(right if isinstance(left, Ids) else left)
        return out if mask is None or not is_pair(out) else make(forbid(plain(out), mask), out.story)

    def do_masked_fill(self, x: Ids, mask: Tensor, value: Any) -> Ids:
        """Return logits of which some were filled: with the least there is, the mask forbids."""
        low = value < -FAR_BELOW if isinstance(value, int | float) else bool((value < -FAR_BELOW).all())
        known = x if isinstance(x, Ids) else _of_picture((mask, value), {})
        return (
            make(forbid(plain(known), mask), known.story)
            if low and is_pair(known) and not isinstance(mask, Ids)
            else known
        )

    def _added(self, left: Ids, right: Ids) -> Ids:
        out = combined(left, right, grids=self.grids)
        resolved = left.story.events ^ right.story.events
        for event in resolved:
            ours, theirs = (left, right) if event in left.story.events else (right, left)
            self.residual(event, ours, theirs)
        story = told([left, right])
        return make(plain(out), Story(events=story.events - resolved, softmax=story.softmax, merged=story.merged))

    def do_where(self, condition: Tensor, one: Any = None, two: Any = None, **_: Any) -> Ids:
        tensors = [value for value in (one, two) if isinstance(value, Tensor)]
        known = next((value for value in tensors if isinstance(value, Ids)), None)
        if known is None:
            known = condition if isinstance(condition, Ids) else None
        assert known is not None
        shape = torch.broadcast_shapes(condition.shape, *(value.shape for value in tensors))
        return make(plain(known).expand(shape), known.story)

    def do_cat(self, tensors: Any, dim: int = 0, **_: Any) -> Ids:
        parts = [part for part in tensors if part.numel() or part.dim() > 1]
        return joined(parts, dim, roles=[self.role(part) for part in parts], grids=self.grids)

    do_concat = do_concatenate = do_cat

    def do_glu(self, x: Ids, dim: int = -1) -> Ids:
        return make(plain(x).chunk(2, dim)[0], x.story)

    def do_pad(self, x: Ids, pad: Any, mode: str = "constant", value: Any = None) -> Ids:
        return make(functional.pad(plain(x), pad, mode=mode), x.story)

    def do_setitem(self, x: Any, where: Any, value: Any) -> None:
        """Write into ids, after giving repeated dimensions memory of their own."""
        if not isinstance(x, Ids):
            self.lost["setitem"] = self.lost.get("setitem", 0) + 1
        elif isinstance(value, Ids):
            whole = plain(x).contiguous().clone()
            whole[where] = plain(value)
            x.set_(whole)  # type: ignore[call-overload]

    def do_copy(self, x: Any, y: Tensor, *_: Any) -> Any:
        return y if isinstance(y, Ids) else x

    def do_bernoulli(self, x: Any, *_: Any, **__: Any) -> Any:
        return x

    # Merging

    def _reduced(self, x: Ids, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Ids:
        if isinstance(dim, float | str):  # norm(p, dim), quantile
            dim = kwargs.get("axis")
        dim = kwargs.get("axis", kwargs.get("dims", dim))
        keepdim = kwargs.get("keepdims", keepdim)
        dims = list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
        if not dims:
            dims = list(range(x.dim()))
        out = merged(x, dims, grids=self.grids, serial=self.serial)
        if keepdim:
            return out
        values = plain(out)
        for axis in sorted((d % x.dim() for d in dims), reverse=True):
            values = values.squeeze(axis)
        return make(values, out.story)

    def do_max(self, x: Ids, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            return combined(x, args[0], grids=self.grids)
        out = self._reduced(x, *args, **kwargs)
        if not args and "dim" not in kwargs:
            return out
        return torch.return_types.max((out, torch.zeros(out.shape, dtype=torch.int64)))

    do_min = do_max

    def do_var_mean(self, x: Ids, *args: Any, **kwargs: Any) -> Any:
        out = self._reduced(x, *args, **{k: v for k, v in kwargs.items() if k in ("dim", "keepdim")})
        return out, out

    do_std_mean = do_var_mean

    def do_linear(self, x: Tensor, weight: Tensor, bias: Any = None) -> Ids:
        if not isinstance(x, Ids):
            assert isinstance(weight, Ids)
            return self.do_matmul(x, weight.transpose(-1, -2))
        if isinstance(weight, Ids):
            return self.do_matmul(x, weight.transpose(-1, -2))
        return widened(merged(x, [-1], grids=self.grids, serial=self.serial), -1, weight.shape[0])

    def do_embedding(self, x: Any, weight: Any, *_: Any, **__: Any) -> Any:
        return make(plain(x)[..., None].expand(*x.shape, weight.shape[-1]), told([x]))

    def _conv(
        self,
        dims: int,
        x: Ids,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Ids:
        kernel = weight.shape[2:]
        stride, dilation = several(stride, dims), several(dilation, dims)
        if isinstance(padding, str):
            padding = [0 if padding == "valid" else d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        shape = functional_shape(dims, x, weight, stride, padding, dilation, groups)
        one = merged(x, [-dims - 1], grids=self.grids, serial=self.serial)
        out = strided(
            one,
            kernel=kernel,
            stride=stride,
            padding=several(padding, dims),
            dilation=dilation,
            lengths=shape[-dims:],
            grids=self.grids,
            serial=self.serial,
        )
        return widened(out, -dims - 1, weight.shape[0])

    def do_conv1d(self, *args: Any, **kwargs: Any) -> Ids:
        return self._conv(1, *args, **_as_x(kwargs))

    def do_conv2d(self, *args: Any, **kwargs: Any) -> Ids:
        return self._conv(2, *args, **_as_x(kwargs))

    def do_conv3d(self, *args: Any, **kwargs: Any) -> Ids:
        return self._conv(3, *args, **_as_x(kwargs))

    def do_conv_transpose2d(self, x: Ids, weight: Tensor, bias: Any = None, stride: Any = 1, *_: Any, **__: Any) -> Ids:
        one = merged(x, [-3], grids=self.grids, serial=self.serial)
        return widened(refined(one, several(stride, 2), grids=self.grids, serial=self.serial), -3, weight.shape[1])

    def _pool(
        self, dims: int, x: Ids, kernel_size: Any, stride: Any = None, padding: Any = 0, *more: Any, **options: Any
    ) -> Ids:
        kernel = several(kernel_size, dims)
        stride = kernel if stride is None or stride == [] else several(stride, dims)
        padding = several(padding, dims)
        ceil = bool(options.get("ceil_mode", more[0] if more and isinstance(more[0], bool) else False))
        dilation = several(options.get("dilation", 1), dims)
        shape = pooled_shape(x.shape[-dims:], kernel, stride, padding, dilation, ceil)
        return strided(
            x,
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            lengths=shape,
            grids=self.grids,
            serial=self.serial,
        )

    def do_avg_pool1d(self, *args: Any, **kwargs: Any) -> Ids:
        return self._pool(1, *args, **_as_x(kwargs))

    def do_avg_pool2d(self, *args: Any, **kwargs: Any) -> Ids:
        return self._pool(2, *args, **_as_x(kwargs))

    def do_max_pool2d(
        self,
        x: Ids,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Ids:
        return self._pool(2, x, kernel_size, stride, padding, dilation=dilation, ceil_mode=ceil_mode)

    do_max_pool1d = do_avg_pool1d

    def _adaptive(self, dims: int, x: Ids, output_size: Any) -> Ids:
        asked = (output_size,) * dims if isinstance(output_size, int) or output_size is None else tuple(output_size)
        lengths = [old if new is None else int(new) for old, new in zip(x.shape[-dims:], asked, strict=True)]
        return resized(x, lengths, grids=self.grids, serial=self.serial)

    def do_adaptive_avg_pool1d(self, x: Ids, output_size: Any) -> Ids:
        return self._adaptive(1, x, output_size)

    def do_adaptive_avg_pool2d(self, x: Ids, output_size: Any) -> Ids:
        return self._adaptive(2, x, output_size)

    def do_adaptive_max_pool2d(self, x: Ids, output_size: Any, *_: Any) -> Ids:
        return self._adaptive(2, x, output_size)

    def do_interpolate(self, x: Ids, size: Any = None, scale_factor: Any = None, *_: Any, **__: Any) -> Ids:
        dims = x.dim() - 2
        if size is None:
            factors = (scale_factor,) * dims if isinstance(scale_factor, int | float) else tuple(scale_factor)
            size = [int(side * f) for side, f in zip(x.shape[2:], factors, strict=True)]
        return self._adaptive(dims, x, size)

    do_upsample = do_interpolate

    def do_fold(
        self, x: Ids, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
    ) -> Ids:
        """Sum overlapping neighbourhoods back to the map that they were cut from."""
        self.folded(x.story.events)
        options = {"dilation": dilation, "padding": padding, "stride": stride}
        values = plain(x).contiguous()
        total = functional.fold(values, output_size, kernel_size, **options)
        count = functional.fold((values > 0).to(torch.float64), output_size, kernel_size, **options)
        return make(total / count.clamp(min=1), x.story)

    # Products

    def do_matmul(self, left: Tensor, right: Tensor, **_: Any) -> Ids:
        one, two, out = matmul_labels(left.dim(), right.dim())
        return self._product(left, one, right, two, out)

    do_bmm = do_mm = do_mv = do_dot = do_matmul

    def do_rmatmul(self, left: Tensor, right: Tensor) -> Ids:
        return self.do_matmul(right, left)

    def do_baddbmm(self, bias: Tensor, left: Tensor, right: Tensor, **_: Any) -> Ids:
        out = self.do_matmul(left, right)
        return combined(out, bias, grids=self.grids) if isinstance(bias, Ids) else out

    def do_addmm(self, bias: Tensor, left: Tensor, right: Tensor, **_: Any) -> Ids:
        return self.do_matmul(left, right)

    def do_einsum(self, equation: str, *operands: Any) -> Ids:
        tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
        inputs, out = _labels(equation, [tensor.dim() for tensor in tensors])
        while len(tensors) > 1:
            rest = set("".join(inputs[2:]) + out)
            mid = out if len(tensors) == 2 else "".join(dict.fromkeys(c for c in inputs[0] + inputs[1] if c in rest))
            made = self._product(tensors[0], inputs[0], tensors[1], inputs[1], mid)
            tensors, inputs = [made, *tensors[2:]], [mid, *inputs[2:]]
        return tensors[0]

    def _product(self, left: Tensor, one: str, right: Tensor, two: str, out: str) -> Ids:
        if not isinstance(left, Ids) or not isinstance(right, Ids):
            return self._weighted(left, one, right, two, out)
        story = told([left, right])
        return contracted(left, one, right, two, out, report=lambda seen: self.report(seen, story))

    def _weighted(self, left: Tensor, one: str, right: Tensor, two: str, out: str) -> Ids:
        """Return the ids of a product with something that is not of the picture: weights, or learned queries."""
        known, labels, other, others = (left, one, right, two) if isinstance(left, Ids) else (right, two, left, one)
        assert isinstance(known, Ids)
        rows = [label for label in others if label not in labels and label in out]
        if len(rows) == 1 and self.role(other) and not known.story.softmax:
            learned = as_queries(other.movedim(others.index(rows[0]), -2), known, grids=self.grids)
            moved = others.replace(rows[0], "")
            moved = moved[:-1] + rows[0] + moved[-1:]
            lead = learned.dim() - len(moved)
            if not lead:
                return contracted(learned, moved, known, labels, out, report=lambda _: -1)
        dims = [i for i, label in enumerate(labels) if label not in out]
        small = merged(known, dims, grids=self.grids, serial=self.serial) if dims else known
        sizes = dict(zip(others, other.shape, strict=True)) | dict(zip(labels, known.shape, strict=True))
        for label, size in zip(others, other.shape, strict=True):
            sizes[label] = max(sizes[label], size)
        values = plain(small)
        for dim in reversed(dims):
            values = values.squeeze(dim)
        left_labels = [label for label in labels if label in out]
        values = values.permute([left_labels.index(label) for label in out if label in left_labels])
        for dim, label in enumerate(out):
            if label not in left_labels:
                values = values.unsqueeze(dim)
        return make(values.expand([sizes[label] for label in out]), known.story)

    def do_scaled_dot_product_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> Ids:
        known = next(tensor for tensor in (key, value, query) if isinstance(tensor, Ids))
        q = query if isinstance(query, Ids) else as_queries(query, known, grids=self.grids)
        k = key if isinstance(key, Ids) else as_queries(key, known, grids=self.grids, role="learned")
        story = told([q, k])
        masked = forbids(attn_mask) if isinstance(attn_mask, Tensor) and not isinstance(attn_mask, Ids) else None
        return attended(q, k, value.shape[-1], report=lambda seen: self.report(seen, story), masked=masked)

    def do_multi_head_attention_forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        known = next(tensor for tensor in (key, value, query) if isinstance(tensor, Ids))
        batch = [
            make(plain(t).transpose(0, 1), t.story) if isinstance(t, Ids) else t.transpose(0, 1) for t in (query, key)
        ]
        q, k = (
            t if isinstance(t, Ids) else as_queries(t, make(plain(known).transpose(0, 1)), grids=self.grids)
            for t in batch
        )
        story = told([q, k])
        out = attended(q, k, query.shape[-1], report=lambda seen: self.report(seen, story))
        return make(plain(out).transpose(0, 1), out.story), None


def functional_shape(
    dims: int, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    """Return the shape of a convolution's result."""
    padding = several(padding, dims)
    return [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(x.shape[-dims:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]


def pooled_shape(sides: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> list[int]:
    """Return the lengths of a pooled map, as torch counts them."""
    out = []
    for side, k, s, p, d in zip(sides, kernel, stride, padding, dilation, strict=True):
        span = side + 2 * p - d * (k - 1) - 1
        length = (span + s - 1 if ceil else span) // s + 1
        if ceil and (length - 1) * s >= side + p:
            length -= 1
        out.append(length)
    return out


def types_of(values: list[Tensor]) -> list[type]:
    """Return the types of tensors."""
    return list({type(value) for value in values})


def _labels(equation: str, dims: list[int]) -> tuple[list[str], str]:
    left, _, out = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    widest = max(
        [dim - len(part.replace("...", "")) for part, dim in zip(inputs, dims, strict=True) if "..." in part], default=0
    )
    fill = "ABCDEFGH"[:widest]
    inputs = [
        part.replace("...", fill[widest - (dim - len(part.replace("...", ""))) :])
        for part, dim in zip(inputs, dims, strict=True)
    ]
    if "->" not in equation:
        letters = "".join(inputs)
        out = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return inputs, out.replace("...", fill)


def _as_x(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"x" if key == "input" else key: value for key, value in kwargs.items()}


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return str(name)
    bare = name.strip("_") if name.startswith("__") else name.rstrip("_") if name != "_" else name
    if name.startswith("__") and bare.startswith("i") and bare[1:] in ("add", "sub", "mul", "truediv", "div", "pow"):
        bare = bare[1:]
    if name.startswith("__") and bare.startswith("r") and bare[1:] in ("add", "sub", "mul", "truediv", "div", "pow"):
        bare = bare[1:]
    return str(bare)


def _flat(values: Any) -> Any:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        elif isinstance(value, Tensor):
            yield value


def _of_picture(args: Any, kwargs: Any) -> Ids:
    return next(value for value in _flat((*args, *kwargs.values())) if isinstance(value, Ids))


def _native(func: Any, args: Any, kwargs: Any) -> Any:
    """Run a function on the numbers themselves."""

    def bare(value: Any) -> Any:
        if isinstance(value, Ids):
            return plain(value)
        if isinstance(value, list | tuple):
            made = [bare(part) for part in value]
            return type(value)(made) if type(value) in (list, tuple) else value
        return value

    return func(*bare(args), **{key: bare(value) for key, value in kwargs.items()})


def _wrapped(out: Any, story: Story) -> Any:
    if isinstance(out, Tensor):
        return make(out, story)
    if isinstance(out, list | tuple):
        return type(out)(_wrapped(part, story) for part in out)
    return out
