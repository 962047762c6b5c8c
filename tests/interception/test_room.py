"""Where a recording's copies lie: exact, apart from one another, and given back."""

import gc
import weakref

import pytest
import torch
from torch import nn

from mmattn.interception import capture
from mmattn.interception.room import CHUNK_BYTES, SMALLEST_BYTES, Room


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool])
def test_a_copy_equals_its_tensor_whatever_its_strides(dtype: torch.dtype) -> None:
    room = Room()
    whole = torch.randn(700, 3, 6, 384).to(dtype)
    for view in (whole, whole.permute(1, 2, 0, 3)[0], whole[:, 1].transpose(1, 2), whole[::2]):
        copy = room.copy(view)
        assert copy.is_contiguous()
        assert copy.dtype == dtype
        assert torch.equal(copy, view)


def test_copies_do_not_overlap_and_each_has_a_storage_of_its_own_size() -> None:
    room = Room()
    given = [torch.full((SMALLEST_BYTES // 4 + number,), float(number)) for number in range(40)]
    copies = [room.copy(tensor) for tensor in given]
    for tensor, copy in zip(given, copies, strict=True):
        assert torch.equal(tensor, copy)
        assert copy.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    copies[3].zero_()
    del given[3], copies[3]
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, copies, strict=True))


def test_a_tensor_larger_than_a_chunk_fits() -> None:
    large = torch.arange(CHUNK_BYTES // 4 + 1, dtype=torch.int32)
    assert torch.equal(Room().copy(large), large)


def test_memory_is_given_back_with_the_last_tensor_in_it() -> None:
    room = Room()
    one, other = (room.copy(torch.ones(SMALLEST_BYTES)) for _ in range(2))
    if room._chunk is None:
        pytest.skip("this system has no large pages to ask for")
    chunk = weakref.ref(room._chunk)
    del room, one
    gc.collect()
    assert chunk() is not None
    assert float(other.sum()) == SMALLEST_BYTES
    del other
    gc.collect()
    assert chunk() is None


def test_what_a_recording_keeps_outlives_it_and_the_model() -> None:
    attention = nn.MultiheadAttention(64, 2, batch_first=True).eval()
    tokens = torch.randn(1, 5000, 64)
    with torch.no_grad(), capture(attention) as recording:
        attention(tokens, tokens, tokens, need_weights=False)
    call = recording.calls[0]
    assert call.q is not None
    assert call.q.numel() * 4 > SMALLEST_BYTES
    query = nn.functional.linear(tokens, attention.in_proj_weight[:64], attention.in_proj_bias[:64])
    del recording, attention
    gc.collect()
    torch.testing.assert_close(call.q, query.view(1, 5000, 2, 32).transpose(1, 2))
