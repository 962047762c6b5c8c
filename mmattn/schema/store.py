"""Maps on disk: one safetensors file, its JSON in the header, never pickle.

q and k (or dense weights, or edges) lie in the file as they were held, in any dtype, with masks,
index tensors, axes, media and where they came from. What a process owns, the model and `rerun`,
does not: a loaded file can be read, drawn and compared, but not run again.

Reading is lazy in memory: tensors are views of the mapped file, and the system reads their pages
when they are first used and may drop them again. What comes from outside is hostile until parsed:
sizes are limited before anything is allocated, every index is in range, and the numbers are
checked for NaN and infinity in one pass over the file in small pieces (`check=False` leaves that out).
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.errors import FormatError, InputError, MmattnError, NotFoundError, OutputError
from mmattn.schema.edges import Edges
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.records import MOST_TOKENS, Reader, Writer
from mmattn.schema.weights import Blocks

# Raised when older readers would misread a newer file; new fields with a default do not need it.
SCHEMA_VERSION = 1

_KEY = "mmattn"
_MOST_HEADER = 32 << 20
_PIECE = 4 << 20


def save(maps: AttentionMaps, path: "str | PathLike[str]") -> None:
    """Write maps to a safetensors file, in place of what was there, whole or not at all.

    Raises
    ------
    InputError
        When weights are NaN or infinite: such a file would be refused when loaded.
    OutputError
        When the file cannot be written; nothing is left behind.

    Examples
    --------
    >>> import tempfile
    >>> from mmattn.schema.axes import Positions
    >>> from mmattn.schema.weights import Dense
    >>> blocks = Blocks(source=Dense(weights=torch.full((1, 1, 2, 2), 0.5)))
    >>> axes = (Positions.count(2),)
    >>> layer = AttentionLayer(name="attn", query=axes, key=axes, heads=1, storage=(blocks,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(AttentionMaps(layers=(layer,)), f"{folder}/maps.safetensors")
    ...     load(f"{folder}/maps.safetensors").layers[0].name
    'attn'
    """
    writer = Writer()
    header = {
        "format": "mmattn maps",
        "version": SCHEMA_VERSION,
        "written_by": _own_version(),
        "maps": writer.record(maps, path="maps"),
        "shared": writer.shared,
    }
    text = json.dumps(header, allow_nan=False, separators=(",", ":"))
    if len(text) > _MOST_HEADER:
        raise InputError(
            f"The words and labels of these maps take {len(text) >> 20} MB, and a file holds {_MOST_HEADER >> 20} MB. "
            "Labels are short. Save without them, or a sample at a time: maps.samples[i]."
        )
    for name, tensor in writer.tensors.items():
        if name.startswith("maps.layers") and not _is_sound(tensor, bias=name.endswith(".bias")):
            raise InputError(
                f"{_layer_of(maps, name)} has NaN or infinite numbers in {name.rsplit('.', 1)[-1]}. Weights are "
                "finite. Look for overflow in the model (half precision?) or attend in float32."
            )
    _write(writer.tensors, metadata={_KEY: text}, path=Path(path))


def load(path: "str | PathLike[str]", *, check: bool = True) -> AttentionMaps:
    """Return the maps of a saved file; their tensors stay on disk until they are used.

    Parameters
    ----------
    path
        What `maps.save` wrote.
    check
        Read all numbers once, in small pieces, to refuse NaN and infinity (0.1 s a GB from memory).

    Raises
    ------
    FormatError
        When the file is truncated, not one of ours, damaged, hostile, or of a newer schema.
    NotFoundError
        When there is no such file.
    """
    source = Path(path)
    if not source.is_file():
        raise NotFoundError(f"There is no file {source}. mmattn.load reads what maps.save(path) wrote. Check the path.")
    try:
        return _read(source, check=check)
    except FormatError as problem:
        raise _refused(source, str(problem)) from None
    except MmattnError as problem:  # what the schema says of values that do not fit together
        raise _refused(source, str(problem).split(". ")[0]) from problem
    except Exception as problem:  # from outside anything may come: a broken file has one error, whatever it broke
        first = str(problem).strip().splitlines()[:1] or [""]
        raise _refused(source, f"it is damaged ({type(problem).__name__}: {first[0][:200]})") from problem


def _read(path: Path, *, check: bool) -> AttentionMaps:
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as problem:
        raise FormatError(f"it is no whole safetensors file of {size} bytes ({problem})") from None
    with opened as file:
        header = _header((file.metadata() or {}).get(_KEY))
        names = set(file.keys())

        def tensor(name: Any) -> Tensor:
            if not isinstance(name, str) or name not in names:
                raise FormatError(f"the tensor {name!r:.80} is missing")
            found: Tensor = file.get_tensor(name)
            return found

        reader = Reader(shared=header.get("shared"), tensor=tensor, most_tokens=size + MOST_TOKENS)
        maps: AttentionMaps = reader.value(header.get("maps"), AttentionMaps, path="maps")
        if check:
            _check_numbers(path, file, standing=reader.numbers)
    for layer in maps.layers:
        _check_layer(layer, media_count=len(maps.media))
    return maps


def _header(text: str | None) -> dict[str, Any]:
    if text is None:
        raise FormatError("it is a safetensors file of something else: its header has no mmattn entry")
    if len(text) > _MOST_HEADER:
        raise FormatError(f"its header of {len(text)} characters is larger than any that is read ({_MOST_HEADER})")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"its header is no JSON ({str(problem)[:100]})") from None
    if not isinstance(header, dict) or header.get("format") != "mmattn maps" or type(header.get("version")) is not int:
        raise FormatError("its header is not that of saved maps")
    if header["version"] > SCHEMA_VERSION:
        by = str(header.get("written_by", "a newer version"))[:40]
        raise FormatError(
            f"it has schema version {header['version']}, written by mmattn {by}, and this mmattn ({_own_version()}) "
            f"reads up to {SCHEMA_VERSION}; upgrade with: pip install -U mmattn"
        )
    if header["version"] < 1:
        raise FormatError(f"schema version {header['version']} never was")
    return header


def _check_layer(layer: AttentionLayer, *, media_count: int) -> None:
    """Check what the schema itself takes on trust from an adapter: indices into the axes and samples."""
    for storage in layer.storages:
        if isinstance(storage, Edges):
            if len(storage.position) and int(storage.position.min()) < -1:
                raise FormatError(f"edges of layer {layer.name!r:.80} have positions below -1")
        elif storage.sample is not None and storage.sample.numel():
            blocks = sum(found.source.shape[0] for found in layer.storages if isinstance(found, Blocks))
            most = max(blocks, len(layer.query), len(layer.key), media_count)
            if int(storage.sample.min()) < 0 or int(storage.sample.max()) >= most:
                raise FormatError(f"blocks of layer {layer.name!r:.80} name samples that are not there")


def _check_numbers(path: Path, file: Any, *, standing: dict[str, set[str]]) -> None:
    """Read the layers' numbers once, in pieces that leave no trace in memory."""
    with path.open("rb") as raw:
        at = 8 + int.from_bytes(raw.read(8), "little")
        for name in file.offset_keys():  # the format has no holes: each tensor begins where the last one ended
            view = file.get_tensor(name)
            for piece in _pieces(raw, at, view.nbytes, view.dtype) if name in standing else ():
                if not _is_sound(piece, bias=standing[name] == {"bias"}):
                    raise FormatError(f"its {min(standing[name])} ({name}) has NaN or infinite numbers")
            at += view.nbytes


def _pieces(raw: Any, at: int, count: int, dtype: torch.dtype) -> Iterator[Tensor]:
    raw.seek(at)
    buffer = bytearray(min(_PIECE, count))
    while count > 0:
        got = raw.readinto(memoryview(buffer)[: min(len(buffer), count)])
        if not got:
            raise FormatError("it ends before its header says")
        yield torch.frombuffer(buffer, dtype=dtype, count=got // dtype.itemsize)
        count -= got


def _is_sound(piece: Tensor, *, bias: bool) -> bool:
    """Whether numbers are finite; a bias may forbid keys with minus infinity."""
    if not piece.is_floating_point():
        return True
    # A finite sum has finite parts, at a tenth of the time of looking at each.
    if bool(torch.isfinite(piece.sum(dtype=torch.promote_types(piece.dtype, torch.float32)))):
        return True
    if bias:
        return not bool((torch.isnan(piece) | torch.isposinf(piece)).any())
    return bool(torch.isfinite(piece).all())


def _write(tensors: dict[str, Tensor], *, metadata: dict[str, str], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if path.exists() and not path.is_file() and not path.is_dir():
        raise OutputError(f"{path} is a device, not a file, and is left alone. Pass the name of a file.")
    if path.is_dir():
        raise OutputError(
            f"{path} is a folder. Maps are saved to a file. Pass a name in it: {path / 'maps.safetensors'}."
        )
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        beside.touch(exist_ok=False)  # with the permissions that this user's files have; safetensors writes 0600
        mode = beside.stat().st_mode
        save_file(tensors, beside, metadata=metadata)
        beside.chmod(mode)
        with beside.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    except (OSError, SafetensorError) as problem:
        raise OutputError(
            f"{path} cannot be written: {problem}. Its folder must be there, writable, with room for the file. "
            "Choose another path."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _layer_of(maps: AttentionMaps, name: str) -> str:
    return f"Layer {maps.layers[int(name.split('.')[2])].name or '(root)'}"


def _refused(path: Path, why: str) -> FormatError:
    return FormatError(
        f"{path} cannot be loaded: {why.rstrip('. ')}. A file that maps.save(path) wrote, whole and unchanged, loads. "
        "Save the maps again, or check the path."
    )


def _own_version() -> str:
    try:
        return version("mmattn")
    except PackageNotFoundError:
        return "unknown"
