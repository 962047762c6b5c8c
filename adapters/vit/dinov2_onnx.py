"""DINOv2 out of an ONNX file, under timm's names: how `mmattn:dinov2-small` gets its weights.

An export of Hugging Face's Dinov2 keeps the names of norms, biases, layer scales, class token and
patch projection; the linear weights became `onnx::MatMul_*`, transposed, in the order in which the
graph uses them (key, value, query, ...). So each weight is found by the bias that is added after
it:

    x ── MatMul(W) ── Add(backbone.encoder.layer.3.mlp.fc1.bias)      W.T is layer.3.mlp.fc1.weight

The position table was cut in two: `[1, 1, dim]` for the class token and `[1, cells, dim]` for the
patches. What is not the backbone (a decoder) is left out.

An ONNX file is foreign: it is read with a size limit and without the files that it may point to,
nothing in it is run, and everything taken from it has its shape checked.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision".
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.errors import FormatError, OutputError

if TYPE_CHECKING:
    from onnx import GraphProto

Array = Float[np.ndarray, "..."]

_SIZE_LIMIT_BYTES = 2**31  # protobuf's own limit, and more than the largest DINOv2 needs in float16
_PARTS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.output.dense.weight": "attn.proj.weight",
    "attention.output.dense.bias": "attn.proj.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "layer_scale2.lambda1": "ls2.gamma",
}


def as_safetensors(source: Path) -> Path:
    """Return the converted file beside `source`, converting only when it is not there or not intact.

    The file is written beside and moved in place, so that two processes may do this at once; a
    record beside it holds its size and hash, and those of the file that it was made from.

    Raises
    ------
    FormatError
        `source` is no ONNX export of DINOv2.
    OutputError
        The folder cannot be written.

    """
    from safetensors.torch import save

    target = source.with_suffix(".safetensors")
    record = source.with_suffix(".safetensors.json")
    if _intact(source, target=target, record=record):
        return target
    converted = save(state_dict(source), metadata={"format": "pt"})
    try:
        _write(target, converted)
        note = {"made_from": _fingerprint(source), "is": _fingerprint(target)}
        _write(record, json.dumps(note, indent=2).encode())
    except OSError as problem:
        raise OutputError(
            f"The converted weights cannot be written to {target}: {problem.strerror or problem}. They need "
            f"{len(converted) / 2**20:.0f} MiB in a folder that can be written. Free space, or name another "
            "folder in MMATTN_CACHE."
        ) from problem
    return target


def state_dict(source: Path) -> dict[str, Tensor]:
    """Return the backbone as timm's state dict, float32.

    Raises
    ------
    FormatError
        The file is no ONNX, is too large, keeps its numbers elsewhere, or is not DINOv2.

    Examples
    --------
    >>> state_dict(Path("vit.onnx"))
    Traceback (most recent call last):
    mmattn.errors.FormatError: vit.onnx cannot be read: No such file or directory. ...

    """
    graph = _graph(source)
    named = {tensor.name: _array(tensor, source) for tensor in graph.initializer if not _is_shape(tensor)}
    try:
        arrays = _renamed(_backbone(graph, named), position=_position_table(named))
    except KeyError as missing:
        raise _not_dinov2(source, f"{missing} is missing") from missing
    except (ValueError, IndexError) as problem:
        raise _not_dinov2(source, f"its parts do not fit together ({problem})") from problem
    _check(arrays, source)
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def _graph(source: Path) -> "GraphProto":
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf has no types

    try:
        size = source.stat().st_size
        if size > _SIZE_LIMIT_BYTES:
            raise _not_dinov2(source, f"it has {size} bytes, more than {_SIZE_LIMIT_BYTES}")
        model = onnx.load(str(source), load_external_data=False)
    except OSError as problem:
        raise FormatError(
            f"{source.name} cannot be read: {problem.strerror or problem}. It should be an ONNX file. "
            "Check the path and its permissions."
        ) from problem
    except DecodeError as problem:
        raise _not_dinov2(source, "it is truncated, or no ONNX") from problem
    outside = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
    if outside:
        raise _not_dinov2(source, f"it keeps {outside[0]!r} in another file")
    return model.graph


def _is_shape(tensor: Any) -> bool:
    """Whether an initializer is a number for shapes (an integer) and no weight."""
    from onnx import TensorProto

    return tensor.data_type not in {TensorProto.FLOAT, TensorProto.FLOAT16}


def _array(tensor: Any, source: Path) -> Array:
    from onnx import numpy_helper

    try:
        array = np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)
    except (ValueError, TypeError) as problem:
        raise _not_dinov2(source, f"{tensor.name!r} is broken") from problem
    if not np.isfinite(array).all():
        raise _not_dinov2(source, f"{tensor.name!r} holds NaN or infinite numbers")
    return array


def _backbone(graph: "GraphProto", named: Mapping[str, Array]) -> dict[str, Array]:
    """Name every weight of the backbone as Hugging Face does, the unnamed ones by their bias."""
    unnamed = {
        bias.removesuffix("bias") + "weight": named[weight].T for bias, weight in _weight_of_bias(graph, named).items()
    }
    start = "backbone."
    return {name.removeprefix(start): array for name, array in {**named, **unnamed}.items() if name.startswith(start)}


def _weight_of_bias(graph: "GraphProto", named: Mapping[str, Array]) -> dict[str, str]:
    """Say for each bias which initializer was multiplied just before it was added."""
    multiplied = {
        node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in named
    }
    return {
        bias: multiplied[product]
        for node in graph.node
        if node.op_type == "Add"
        for bias, product in (tuple(node.input), tuple(reversed(node.input)))
        if bias.endswith(".bias") and product in multiplied
    }


def _position_table(named: Mapping[str, Array]) -> Array:
    """Join the class token's place and those of the patches, which export as two unnamed constants."""
    tables = [array for name, array in named.items() if not name.startswith("backbone.") and array.ndim == 3]
    first = [table for table in tables if table.shape[:2] == (1, 1)]
    cells = [table for table in tables if table.shape[1] > 1 and math.isqrt(table.shape[1]) ** 2 == table.shape[1]]
    if len(first) != 1 or len(cells) != 1:
        raise KeyError("position table")
    return np.concatenate([first[0], cells[0]], axis=1)


def _renamed(backbone: Mapping[str, Array], *, position: Array) -> dict[str, Array]:
    """Turn Hugging Face's names into timm's; query, key and value become one matrix."""
    arrays = {
        "cls_token": backbone["embeddings.cls_token"],
        "pos_embed": position,
        "patch_embed.proj.weight": backbone["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": backbone["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": backbone["layernorm.weight"],
        "norm.bias": backbone["layernorm.bias"],
    }
    depth = 0
    while f"encoder.layer.{depth}.norm1.weight" in backbone:
        layer = f"encoder.layer.{depth}."
        for theirs, ours in _PARTS.items():
            arrays[f"blocks.{depth}.{ours}"] = backbone[layer + theirs]
        for kind in ("weight", "bias"):
            qkv = [backbone[f"{layer}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            arrays[f"blocks.{depth}.attn.qkv.{kind}"] = np.concatenate(qkv)
        depth += 1
    if not depth:
        raise KeyError("encoder.layer.0.norm1.weight")
    return arrays


def _check(arrays: Mapping[str, Array], source: Path) -> None:
    """Check every shape against the embedding's width."""
    dim = arrays["norm.weight"].size
    hidden = arrays["blocks.0.mlp.fc1.bias"].size
    patch = arrays["patch_embed.proj.weight"].shape[1:]
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, arrays["pos_embed"].shape[1], dim),
        "patch_embed.proj.weight": (dim, *patch),
        "attn.qkv.weight": (3 * dim, dim),
        "attn.qkv.bias": (3 * dim,),
        "attn.proj.weight": (dim, dim),
        "mlp.fc1.weight": (hidden, dim),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden),
    }
    for name, array in arrays.items():
        part = name.split(".", 2)[2] if name.startswith("blocks.") else name
        expected = shapes.get(part, (dim,))
        if array.shape != expected:
            raise _not_dinov2(source, f"{name} has the shape {array.shape} instead of {expected}")


def _not_dinov2(source: Path, why: str) -> FormatError:
    return FormatError(
        f"{source.name} is not DINOv2 as ONNX: {why}. It should be an export of Hugging Face's Dinov2 that "
        "holds its own weights. Remove the file so that it is fetched again, or pass another."
    )


def _intact(source: Path, *, target: Path, record: Path) -> bool:
    try:
        note = json.loads(record.read_text())
        return bool(note["is"] == _fingerprint(target) and note["made_from"] == _fingerprint(source))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fingerprint(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return {"size_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write(path: Path, content: bytes) -> None:
    """Write beside and move in place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
