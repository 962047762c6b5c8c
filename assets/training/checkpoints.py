"""A training run on disk: where it stood, whole or not at all.

A checkpoint is one line of JSON and the state as safetensors:

    {"format": 1, "step": 900, "recipe": {...}, "bytes": 44212345, "sha256": "..."}
    <safetensors: weights, average, both moments of AdamW>

The hash is of the state and of step and recipe. A checkpoint is written beside, flushed to the disk and moved in
place; the last two are kept. When the newest is not whole, the one before is resumed from, and that is said; when none
is, training is refused: it neither goes on from what is broken nor begins anew in silence.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
from torch import Tensor

from assets.training.model import Recipe
from mmattn.errors import FormatError, InputError

FORMAT = 1
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after `step` steps of a recipe."""

    step: int
    recipe: Recipe
    state: Mapping[str, Tensor]


def write(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint into a folder, and remove all but the last `KEPT`; return its path."""
    payload = safetensors.torch.save({name: value.contiguous() for name, value in checkpoint.state.items()})
    about = {"format": FORMAT, "step": checkpoint.step, "recipe": asdict(checkpoint.recipe), "bytes": len(payload)}
    header = json.dumps(about | {"sha256": _hash(about, payload)}) + "\n"
    path = folder / f"checkpoint-{checkpoint.step:07d}.mmattn"
    beside = folder / f".{path.name}.part"
    with beside.open("wb") as file:
        file.write(header.encode("utf-8"))
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    for old in found(folder)[:-KEPT]:
        old.unlink()
    return path


def read(path: Path, *, kind: type[Recipe] = Recipe) -> Checkpoint:
    """Return a checkpoint of a kind of recipe.

    Raises
    ------
    FormatError
        It is not whole, or of another kind.

    """
    with path.open("rb") as file:
        first, payload = file.readline(1_000_000), file.read()
    try:
        about = json.loads(first)
        told = about.pop("sha256")
        whole = about["format"] == FORMAT and len(payload) == about["bytes"] and _hash(about, payload) == told
        recipe = kind(**about["recipe"]) if whole else None
    except (ValueError, KeyError, TypeError, AttributeError):
        recipe = None
    if recipe is None:
        raise FormatError(
            f"{path.name} is not whole: its {len(payload)} bytes are not those that its header names. "
            "Writing it was interrupted, or it was changed. Remove it."
        )
    return Checkpoint(step=about["step"], recipe=recipe, state=safetensors.torch.load(payload))


def latest(folder: Path, *, recipe: Recipe) -> Checkpoint | None:
    """Return the last whole checkpoint of a folder, or None where there is no checkpoint at all.

    Raises
    ------
    FormatError
        There are checkpoints, and none is whole.
    InputError
        The last whole one is of another recipe. Another number of steps is none as long as the learning rate, at the
        checkpoint, has not begun to fall in either.

    Warns
    -----
    UserWarning
        A newer one is not whole.

    """
    broken: list[str] = []
    for path in reversed(found(folder)):
        try:
            checkpoint = read(path, kind=type(recipe))
        except FormatError:
            broken.append(path.name)
            continue
        _same(checkpoint, recipe, name=path.name)
        if broken:
            warnings.warn(f"{', '.join(broken)} is not whole; training goes on from {path.name}.", stacklevel=2)
        return checkpoint
    if broken:
        raise FormatError(
            f"No checkpoint in {folder} is whole ({', '.join(broken)}). Training goes on from a whole one only. "
            "Remove them to begin anew, or name another folder with --out."
        )
    return None


def found(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the oldest first."""
    return sorted(folder.glob("checkpoint-*.mmattn"))


def _same(checkpoint: Checkpoint, asked: Recipe, *, name: str) -> None:
    there = checkpoint.recipe
    if checkpoint.step <= min(there.falls_from(), asked.falls_from()):
        there = replace(there, steps=asked.steps)
    one, other = asdict(there), asdict(asked)
    changed = [f"{key} {one[key]} (asked: {other[key]})" for key in one if one[key] != other[key]]
    if changed:
        raise InputError(
            f"{name} was trained with {', '.join(changed)}. A run is resumed with its own recipe. "
            "Give the same options, or name another folder with --out."
        )


def _hash(about: Mapping[str, object], payload: bytes) -> str:
    told = hashlib.sha256(json.dumps(about, sort_keys=True).encode("utf-8"))
    told.update(payload)
    return told.hexdigest()
