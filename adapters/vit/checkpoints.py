"""Checkpoints from a file: safetensors, or a torch file of tensors alone."""

import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.errors import FormatError, InputError


def read_state(path: Path, *, library: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name; never runs code from the file.

    Parameters
    ----------
    library
        Whose name stands before the file: the first word of `library:NAME@FILE`.

    Raises
    ------
    InputError
        The file is not there.
    FormatError
        It is no safetensors file and no plain torch checkpoint.

    """
    _check_there(path, library=library)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(str(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on foreign pickles: the error below says what matters
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from outside: unpicklers raise nearly anything
        raise FormatError(
            f"'{path.name}' cannot be read as a checkpoint ({reason(error, most=120)}). It would be "
            "safetensors, or a torch file of tensors alone. Save model.state_dict() with safetensors.torch.save_file."
        ) from None
    for key in ("state_dict", "model", "teacher", "module"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise FormatError(f"'{path.name}' holds no tensors by name. It would be a state dict. Save model.state_dict().")
    return tensors


def _check_there(path: Path, *, library: str) -> None:
    """Check that a checkpoint can be looked at, is a file, and has bytes."""
    try:
        there = path.is_file()
        empty = there and path.stat().st_size == 0
    except (OSError, ValueError) as error:  # no permission, a name too long
        raise InputError(
            f"The checkpoint '{path.name[:100]}' cannot be looked at: {getattr(error, 'strerror', None) or error}. "
            "It would be a file that may be read. Check the path and its permissions."
        ) from error
    if not there:
        raise InputError(
            f"There is no checkpoint '{path}'. It would be a file that is there. "
            f"Pass {library}:NAME@FILE with a .safetensors or .pth file."
        )
    if empty:
        raise FormatError(f"'{path.name}' is empty (0 bytes). It would be a checkpoint. Copy or save it again.")


def reason(error: Exception, *, most: int) -> str:
    """Return the first line of another library's error, cut between words, without a full stop at its end."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return textwrap.shorten(line, width=most, placeholder=" ...").rstrip(".: ") or type(error).__name__
