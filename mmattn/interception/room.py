"""Memory for what is kept: large pages, so that keeping costs little more than copying.

What is kept outlives the forward pass, so it needs memory that nobody has touched yet, and a kernel
hands that out 4 KiB at a time: 1.5 to 2.5 GB a second, a tenth of what copying takes. A Room asks for
32 MiB of addresses at a time and has them backed with pages of 2 MiB as they are used (Linux, transparent
huge pages by advice). It is for large tensors: small ones are copied the plain way, into memory that the
C library still holds from the pass before.

Each tensor has a storage of its own; a chunk is given back when the last tensor in it is gone.
"""

import mmap

import torch
from torch import Tensor

CHUNK_BYTES = 32 << 20
PAGE_BYTES = 2 << 20
SMALLEST_BYTES = 1 << 20
_ALIGN = 64


class Room:
    """Makes contiguous copies, on the CPU in large pages, elsewhere as torch does."""

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy of a detached tensor, in memory of its own.

        Examples
        --------
        >>> Room().copy(torch.arange(3)).tolist()
        [0, 1, 2]
        """
        size = tensor.numel() * tensor.element_size()
        if size < SMALLEST_BYTES or type(tensor) is not Tensor or not _is_plain(tensor):
            return tensor.clone(memory_format=torch.contiguous_format)
        chunk = self._with_room_for(size)
        if chunk is None:
            return tensor.clone(memory_format=torch.contiguous_format)
        flat = torch.frombuffer(chunk, dtype=tensor.dtype, count=tensor.numel(), offset=self._used)
        self._used += -(-size // _ALIGN) * _ALIGN
        return flat.view(tensor.shape).copy_(tensor)

    def _with_room_for(self, size: int) -> mmap.mmap | None:
        if self._chunk is None or self._used + size > len(self._chunk):
            self._chunk, self._used = _chunk(size), 0
        return self._chunk


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in the processor's own memory, no view of the conjugate or negative."""
    strided = tensor.device.type == "cpu" and tensor.layout == torch.strided
    return strided and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def _chunk(size: int) -> mmap.mmap | None:
    """Return addresses without memory behind them yet; None where the system has no large pages to ask for."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return None
    try:
        length = -(-max(size, CHUNK_BYTES) // PAGE_BYTES) * PAGE_BYTES
        chunk = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        chunk.madvise(advice)
    except OSError:
        return None
    return chunk
