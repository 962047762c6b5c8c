"""Schema objects as plain JSON records and named tensors, and back, each value held to its annotation.

A dataclass becomes `{"type": its name, field: value, ...}`, an array `{"tensor": name}`, a tuple a
list; roles are run lengths; an axis that several layers share is written once and referred to. The
way back trusts nothing: only classes of the schema, only fields that they have, dtypes and shapes
as the annotation says (jaxtyping, names bound over all fields of an object), sizes limited before
anything is allocated. Fields with a default may be missing, so that older files stay readable.
"""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

from mmattn.errors import FormatError, InputError
from mmattn.schema import axes, edges, layers, maps, media, source, weights
from mmattn.schema.places import AxisBase

# Everything that a file may hold: a name in a file that is not here is refused.
_KNOWN: dict[str, type] = {
    known.__name__: known
    for known in (
        *get_args(axes.Axis),
        *get_args(media.Media),
        maps.AttentionMaps,
        layers.AttentionLayer,
        source.Source,
        weights.Blocks,
        weights.Factored,
        weights.Dense,
        edges.Edges,
    )
}

# What belongs to a running process and not to a file.
_LIVE = {"rerun", "model_ref", "adapter", "prepared"}

# More cells, nodes or tokens than this are no attention that anybody ran, but a hostile header.
MOST_TOKENS = 1 << 24


class Writer:
    """Takes schema objects apart; `tensors` and `shared` fill as it goes."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.shared: list[Any] = []
        self._name_of: dict[tuple[object, ...], str] = {}
        self._axis_number: dict[AxisBase, int] = {}

    def record(self, value: Any, *, path: str) -> Any:
        """Return a value as JSON; its arrays go to `tensors`, named by where they stand."""
        match value:
            case AxisBase():
                return {"shared": self._share(value)}
            case Tensor() | np.ndarray():
                return {"tensor": self._tensor(value, path)}
            case tuple():
                return [self.record(item, path=f"{path}.{i}") for i, item in enumerate(value)]
            case Mapping():
                return {str(key): str(item) for key, item in value.items()}
            case _:
                return self._fields(value, path) if is_dataclass(value) else _plain(value, path)

    def _fields(self, value: Any, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"type": type(value).__name__}
        for field in _stored(type(value)):
            item = getattr(value, field.name)
            if field.name == "roles":
                found["roles"] = _run_lengths(item)
            elif item is not None or field.default is not None:
                found[field.name] = self.record(item, path=f"{path}.{field.name}")
        return found

    def _share(self, axis: AxisBase) -> int:
        if axis not in self._axis_number:
            record = self._fields(axis, f"axis.{len(self._axis_number)}.{type(axis).__name__}")
            self._axis_number[axis] = len(self.shared)
            self.shared.append(record)
        return self._axis_number[axis]

    def _tensor(self, value: Tensor | np.ndarray, path: str) -> str:
        if isinstance(value, np.ndarray):  # torch takes neither read-only nor mirrored arrays
            value = np.require(value, requirements=["C", "W"])
        tensor = torch.as_tensor(value).detach()
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
        if key not in self._name_of:
            self._name_of[key] = path
            tensor = tensor.cpu().contiguous()
            if tensor.untyped_storage().nbytes() != tensor.nbytes:  # a view keeps its whole buffer
                tensor = tensor.clone()
            self.tensors[path] = tensor
        return self._name_of[key]


class Reader:
    """Puts schema objects together again; `tensor` reads one by name."""

    def __init__(self, *, shared: Any, tensor: Callable[[str], Tensor], most_tokens: int) -> None:
        self._shared = shared if isinstance(shared, list) else []
        self._built: dict[int, Any] = {}
        self._tensor = tensor
        self._tokens_left = most_tokens
        # Names of the tensors whose numbers count, and where each stands.
        self.numbers: dict[str, set[str]] = {}

    def value(self, record: Any, hint: Any, *, path: str) -> Any:
        """Return what a record stands for, if it is what the annotation says."""
        for option in _options(hint):
            if _fits(record, option):
                return self._build(record, option, path)
        raise _wrong(path, f"{_short(record)} stands where {_named(hint)} belongs")

    def _build(self, record: Any, hint: Any, path: str) -> Any:
        if hint in (float, int):
            return hint(record)
        if get_origin(hint) is tuple:
            return self._tuple(record, get_args(hint), path)
        if get_origin(hint) is Mapping:
            return {self.value(k, str, path=path): self.value(v, str, path=path) for k, v in record.items()}
        if _is_array(hint):
            return self._array(record["tensor"], hint, path)
        if is_dataclass(hint):
            return self._axis(record["shared"]) if "shared" in record else self._object(record, path)
        return record

    def _array(self, name: Any, hint: Any, path: str) -> Tensor | np.ndarray:
        """Read an array and hold it to dtype and rank."""
        tensor = self._tensor(name)
        if hint.array_type is not np.ndarray:
            if tensor.dtype in (torch.int8, torch.int16):
                raise _wrong(path, f"indices of {tensor.dtype} stand where int64 belongs")
            self.numbers.setdefault(name, set()).add(path.rsplit(".", 1)[-1])
        found: Tensor | np.ndarray = tensor.numpy() if hint.array_type is np.ndarray else tensor
        _check_arrays({path.rsplit(".", 1)[-1]: (found, hint)}, path.rsplit(".", 1)[0])
        return found

    def _tuple(self, record: list[Any], kinds: tuple[Any, ...], path: str) -> tuple[Any, ...]:
        if kinds == (str, Ellipsis) and all(type(item) is str for item in record):
            return tuple(record)  # a million labels one by one would take a second
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            return tuple(self.value(item, kinds[0], path=f"{path}.{i}") for i, item in enumerate(record))
        if len(kinds) != len(record):
            raise _wrong(path, f"{len(record)} values stand where {len(kinds)} belong")
        return tuple(self.value(item, kind, path=path) for item, kind in zip(record, kinds, strict=True))

    def _axis(self, number: int) -> Any:
        if number not in self._built:
            # Marked first, so that an axis that refers to itself is an error and no endless loop.
            self._built[number] = None
            self._built[number] = self._object(self._shared[number], f"axis.{number}")
        if not isinstance(self._built[number], AxisBase):
            raise _wrong(f"axis.{number}", "it is no axis, or refers to itself")
        return self._built[number]

    def _object(self, record: dict[str, Any], path: str) -> Any:
        kind = _KNOWN[record["type"]]
        stored = {field.name: field for field in _stored(kind)}
        unknown = record.keys() - stored.keys() - {"type"}
        if unknown:
            raise _wrong(path, f"{kind.__name__} has no field {min(unknown)!r}")
        values: dict[str, Any] = {}
        for name, field in stored.items():
            if name in record:
                values[name] = self._field(record[name], field, f"{path}.{name}")
            elif field.default is MISSING and field.default_factory is MISSING:
                raise _wrong(path, f"{kind.__name__} lacks {name}")
        _check_arrays({name: (value, stored[name].type) for name, value in values.items()}, path)
        _check_sizes(kind, values, path)
        return kind(**values)

    def _field(self, record: Any, field: "Field[Any]", path: str) -> Any:
        if field.name == "roles":
            return self._roles(record, path)
        if field.name == "error" and record in ("nan", "inf", "-inf"):
            return float(record)
        return self.value(record, field.type, path=path)

    def _roles(self, record: Any, path: str) -> tuple[str, ...]:
        roles: list[str] = []
        for role, count in record:
            if not isinstance(role, str) or type(count) is not int or not 0 < count <= self._tokens_left:
                raise _wrong(path, f"{_short(count)} tokens of role {_short(role)} are more than such a file can have")
            self._tokens_left -= count
            roles += [role] * count
        return tuple(roles)


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if path.endswith(".error"):  # a self-check that failed may say so
        return str(value)
    raise InputError(
        f"{path} is {value}. Numbers in a file are finite. Check the adapter that built this layer or axis."
    )


def _stored(kind: type) -> "list[Field[Any]]":
    return [field for field in fields(kind) if field.init and field.name not in _LIVE]


def _run_lengths(roles: tuple[str, ...]) -> list[list[object]]:
    runs: list[list[Any]] = []
    for role in roles:
        if runs and runs[-1][0] == role:
            runs[-1][1] += 1
        else:
            runs.append([role, 1])
    return [list(run) for run in runs]


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(record: Any, hint: Any) -> bool:
    """Whether a record has the outer form of an annotation; what is inside is checked as it is built."""
    origin = get_origin(hint)
    if origin is Literal:
        return isinstance(record, str) and record in get_args(hint)
    if isinstance(record, list):
        return origin is tuple
    if isinstance(record, dict):
        if _is_array(hint):
            return record.keys() == {"tensor"}
        return origin is Mapping or (is_dataclass(hint) and _is_reference(record, hint))
    if type(record) in (int, float):
        whole = abs(record) < 1 << 53 and record == int(record)
        return (hint is float and math.isfinite(record)) or (hint is int and whole)
    return type(record) is hint or (record is None and hint is type(None))


def _is_reference(record: dict[str, Any], hint: Any) -> bool:
    if "shared" in record:  # which axis it is shows when it is built: every hint with axes takes all of them
        return issubclass(hint, AxisBase) and record.keys() == {"shared"}
    return bool(record.get("type") == hint.__name__)


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _check_arrays(found: dict[str, tuple[Any, Any]], path: str) -> None:
    """Hold arrays to dtype and rank, and to the sizes that they must share: jaxtyping binds names over all of them."""
    with jaxtyped("context"):
        for name, (value, hint) in found.items():
            options = [option for option in _options(hint) if _is_array(option)]
            if not options or not isinstance(value, Tensor | np.ndarray) or isinstance(value, options[0]):
                continue
            dtype = str(value.dtype).removeprefix("torch.")
            raise _wrong(
                f"{path}.{name}",
                f"an array of {dtype} {list(value.shape)} stands where {_named(options[0])} belongs",
            )


def _check_sizes(kind: type, values: dict[str, Any], path: str) -> None:
    """Limit what an object would allocate by its numbers alone."""
    for name in ("query_count", "node_count"):
        if not 0 <= values.get(name, 0) <= MOST_TOKENS:
            raise _wrong(path, f"{name} is {values[name]}, and at most {MOST_TOKENS} are read")
    if values.get("rate_hz", 1) < 1:
        raise _wrong(path, f"rate_hz is {values['rate_hz']}")
    cells = values.get("rows", 1) * values.get("cols", 1)
    if "frames" in values and "depth" in values:
        cells *= len(values["frames"]) // max(values["depth"], 1)
    if "edges_hz" in values:
        cells *= len(values["edges_s"]) * len(values["edges_hz"])
    if abs(cells) > MOST_TOKENS:
        raise _wrong(path, f"a {kind.__name__} of {cells} cells is larger than any that is read ({MOST_TOKENS})")


def _named(hint: Any) -> str:
    if _is_array(hint):
        return f"{hint.__name__}"
    names = [getattr(option, "__name__", str(option)) for option in _options(hint)]
    return " or ".join(dict.fromkeys(names))


def _short(record: Any) -> str:
    if isinstance(record, dict):
        return f"a {record.get('type', 'record')!s:.40}"
    return f"{record!r:.40}"


def _wrong(path: str, what: str) -> FormatError:
    return FormatError(f"at {path}: {what}")
