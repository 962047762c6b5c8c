"""Shifted windows: how far a patch could look, and that every reading works on them as on whole matrices."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from windowed import patches, region_mask, window_index, windowed

import mmattn
from mmattn.analysis import look, look_at_heads
from mmattn.errors import NotFoundError
from mmattn.render.marks import Lines
from mmattn.schema import stream
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Blocks, Dense, Factored, forbidden


def maps_of(*layers):
    return AttentionMaps(layers=layers, default_stream="vision")


def window_mates(rows, cols, token, *, window, shift, regions):
    """The tokens in one window with a token, found by arithmetic on rows and columns alone."""
    down, across = -(-rows // window) * window, -(-cols // window) * window

    def rolled(cell):
        return (cell // cols - shift) % down, (cell % cols - shift) % across

    def region(cell):
        if not (regions and shift):
            return (0, 0)
        row, col = rolled(cell)
        return tuple(0 if v < side - window else 1 if v < side - shift else 2 for v, side in ((row, rows), (col, cols)))

    own, home = rolled(token), region(token)
    return {
        cell
        for cell in range(rows * cols)
        if all(a // window == b // window for a, b in zip(rolled(cell), own, strict=True)) and region(cell) == home
    }


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(8, 8, 4, 2), (8, 12, 4, 1), (6, 9, 3, 1), (7, 10, 4, 2), (5, 5, 4, 0)]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_a_patch_reaches_the_part_of_its_window_that_lies_in_its_own_region(shape, masked, dense, data):
    rows, cols, window, shift = shape
    masked = masked and rows % window == cols % window == 0
    layer = windowed(rows=rows, cols=cols, window=window, shift=shift, masked=masked, dense=dense)
    token = data.draw(st.integers(0, rows * cols - 1))
    expected = window_mates(rows, cols, token, window=window, shift=shift, regions=masked)
    found = look(maps_of(layer), query=token)
    assert set(torch.nonzero(found.reach[0]).flatten().tolist()) == expected
    assert found.parameters["reach"] == f"{len(expected)} of {rows * cols} patches"
    assert float(found.values[0, list(expected)].sum()) == pytest.approx(1, abs=1e-5)


def test_a_halo_is_within_reach_and_its_padding_is_not():
    axis = patches(4, 4)
    query = window_index(4, 4, window=2)
    padded = torch.nn.functional.pad(torch.arange(16).view(4, 4), (1, 1, 1, 1), value=-1)
    key = torch.stack([padded[r : r + 4, c : c + 4].reshape(-1) for r in (0, 2) for c in (0, 2)])
    q, k = torch.randn(4, 2, 4, 8), torch.randn(4, 2, 16, 8)
    layer = AttentionLayer(
        name="halo",
        stream="vision",
        query=(axis,),
        key=(axis,),
        heads=2,
        normalized="over_keys_and_outside",
        storage=(Blocks(source=Factored(q=q, k=k, scale=0.3), query_index=query, key_index=key),),
    )
    found = look(maps_of(layer), query=0)
    assert torch.nonzero(found.reach[0]).flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert found.outside[0] > 0.1
    assert look(maps_of(layer)).reach is None, "the mean of all patches reaches all of them"


def test_what_a_soft_mask_let_through_counts_as_reached():
    axis = patches(1, 2)
    q = torch.tensor([[[[100.0], [0.0]]]])
    k = torch.tensor([[[[0.0], [1.0]]]])
    bias = torch.tensor([[[[0.0, -100.0], [0.0, -100.0]]]])  # for query 0, q.k makes up for the mask
    layer = AttentionLayer(
        name="a",
        stream="vision",
        query=(axis,),
        key=(axis,),
        heads=1,
        storage=(Blocks(source=Factored(q=q, k=k, scale=1.0, bias=bias)),),
    )
    assert look(maps_of(layer), query=0).reach is None
    assert look(maps_of(layer), query=1).reach.tolist() == [[True, False]]


def test_every_head_has_its_own_reach():
    axis = patches(1, 3)
    mask = torch.tensor([[[[True, False, False]], [[True, True, False]]]]).expand(1, 2, 3, 3)
    source = Factored(q=torch.zeros(1, 2, 3, 4), k=torch.zeros(1, 2, 3, 4), scale=1.0, mask=mask)
    layer = AttentionLayer(
        name="a", stream="vision", query=(axis,), key=(axis,), heads=2, storage=(Blocks(source=source),)
    )
    maps = maps_of(layer)
    assert look(maps, query=0, head=0).reach.tolist() == [[True, False, False]]
    assert look(maps, query=0).reach.tolist() == [[True, True, False]]
    (row,) = look_at_heads(maps, query=0)
    assert [one.reach.tolist() for one in row.heads] == [[[True, False, False]], [[True, True, False]]]


def test_a_bias_forbids_what_lies_beyond_a_gap_and_not_what_a_slope_lets_fall():
    slope = -torch.arange(400.0)[None]
    assert not forbidden(slope).any()
    low = torch.finfo(torch.float16).min
    half = torch.tensor([[0.0, low, -3.0]], dtype=torch.float16)
    assert forbidden(half).tolist() == [[False, True, False]]
    assert forbidden(torch.tensor([[0.0, -math.inf, -10000.0, 5.0]])).tolist() == [[False, True, True, False]]
    assert not forbidden(torch.full((1, 4), -10000.0)).any(), "a row that is masked whole is as if it were not"
    assert torch.equal(
        forbidden(3 * torch.randn(4, 2, 16, 16) + region_mask(8, 8, window=4, shift=2)),
        (region_mask(8, 8, window=4, shift=2) < 0).expand(-1, 2, -1, -1),
    )


def dense_twin(layer):
    """[head, query, key] in float64, window by window from the formula."""
    (blocks,) = layer.storage
    source, width = blocks.source, len(layer.key_axis)
    out = torch.zeros(layer.heads, width, width, dtype=torch.float64)
    allowed = torch.zeros_like(out, dtype=torch.bool)
    for block in range(len(source.q)):
        logits = source.scale * source.q[block].double() @ source.k[block].double().transpose(-1, -2)
        bias = source.bias.expand(len(source.q), -1, -1, -1)[block].double()
        weights = torch.softmax(logits + bias, dim=-1)
        index = blocks.query_index[block]
        out[:, index[:, None], index[None, :]] = weights
        allowed[:, index[:, None], index[None, :]] = bias > -50
    return out, allowed


def test_products_statistics_and_the_uniform_baseline_equal_those_of_whole_matrices():
    layer = windowed(rows=12, cols=12, heads=3)
    weights, allowed = dense_twin(layer)
    x = torch.randn(144, 5)
    assert torch.allclose(layer.weights().double(), weights, atol=1e-6)
    for heads, fused in (("mean", weights.mean(0)), ("max", weights.amax(0)), (1, weights[1])):
        assert torch.allclose(stream.apply(layer, x, heads=heads).double(), fused @ x.double(), atol=1e-5)
        assert torch.allclose(stream.apply_transposed(layer, x, heads=heads).double(), fused.T @ x.double(), atol=1e-5)
    each = stream.apply_transposed(layer, x, heads="each").double()
    assert torch.allclose(each, weights.transpose(1, 2) @ x.double(), atol=1e-5)
    even = (allowed / allowed.sum(-1, keepdim=True)).mean(0).double()
    assert torch.allclose(stream.uniform_transposed(layer, x).double(), even.T @ x.double(), atol=1e-5)
    assert torch.allclose(stream.uniform_transposed(layer, x[:, :1] * (torch.arange(144) < 9)[:, None]).double(),
                          even.T @ (x[:, :1] * (torch.arange(144) < 9)[:, None]).double(), atol=1e-5)  # fmt: skip
    said = stream.statistics(layer)
    assert torch.equal(said.allowed_count, allowed.any(0).sum(-1))
    assert torch.allclose(said.largest.double(), weights.amax(-1), atol=1e-6)
    entropy = -(weights * torch.log2(weights.clamp(min=1e-300))).sum(-1)
    assert torch.allclose(said.entropy_bits.double(), entropy, atol=1e-5)
    assert said.outside.abs().max() < 1e-5
    assert not said.empty.any()


def test_head_grid_and_side_by_side_draw_windows_with_their_borders():
    layers = [windowed(shift=shift, name=f"blocks.{shift}") for shift in (0, 2)]
    maps = maps_of(*layers)
    sheet = mmattn.head_grid(maps, query=9)
    assert len(sheet.panels) == 4
    assert all(any(isinstance(mark, Lines) and mark.name == "reach" for mark in panel.marks) for panel in sheet.panels)
    pair = mmattn.side_by_side([mmattn.overlay(look(maps, layer=layer, query=9)) for layer in (0, 1)])
    captions = [panel.caption for panel in pair.panels]
    assert "reach 16 of 64 patches" in captions[0]
    assert "reach 4 of 64 patches" in captions[1]
    assert "as far as attention could reach" in [key.word for panel in pair.panels for key in panel.keys] + [
        key.word for key in pair.keys
    ]
    assert np.asarray(pair.image()).std() > 0


def test_a_grid_of_heads_names_the_layer_in_which_no_patch_asks_and_what_was_left_out():
    both = patches(8, 8, special=("cls",))
    alone = replace(both, roles=("cls",), cells=np.array([-1]))
    weights = torch.softmax(torch.randn(1, 2, 1, 65), dim=-1)
    last = AttentionLayer(
        name="cls_attn.0",
        stream="vision",
        query=(alone,),
        key=(both,),
        heads=2,
        storage=(Blocks(source=Dense(weights=weights)),),
    )
    maps = AttentionMaps(layers=(windowed(), last), default_stream="vision", left_out=("xca: between channels",))
    with pytest.raises(NotFoundError, match=r"Layer cls_attn\.0: No patch asks .* layers= chooses"):
        mmattn.head_grid(maps, query=(10.0, 10.0))
    sheet = mmattn.head_grid(maps, query=(10.0, 10.0), layers=[0])
    assert "left out 1 layer (between channels)" in sheet.caption


def test_windows_survive_saving_and_loading(tmp_path):
    layers = windowed(), windowed(dense=True, rows=7, cols=10, shift=2, masked=False, name="dense")
    maps = AttentionMaps(layers=layers, default_stream="vision", left_out=("a: attention between channels",))
    maps.save(tmp_path / "maps.safetensors")
    loaded = mmattn.load(tmp_path / "maps.safetensors")
    assert loaded.left_out == maps.left_out
    for name in ("blocks.1.attn", "dense"):
        before, after = look(maps, layer=name, query=3), look(loaded, layer=name, query=3)
        assert torch.equal(before.values, after.values)
        assert torch.equal(before.reach, after.reach)


def test_files_of_before_there_was_something_left_out_still_load(tmp_path):
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    maps_of(windowed()).save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["mmattn"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert header["maps"].pop("left_out") == []
    save_file(tensors, tmp_path / "old.safetensors", metadata={"mmattn": json.dumps(header)})
    assert mmattn.load(tmp_path / "old.safetensors").left_out == ()


def test_windows_of_a_batch_are_read_sample_by_sample():
    one, two = windowed(seed=1), windowed(seed=2)
    sources = [layer.storage[0].source for layer in (one, two)]
    index = one.storage[0].query_index
    joined = Blocks(
        source=Dense(weights=torch.cat([source.values(slice(None), slice(None)) for source in sources])),
        sample=torch.arange(2).repeat_interleave(len(index)),
        query_index=index.repeat(2, 1),
        key_index=index.repeat(2, 1),
    )
    batch = AttentionLayer(name="a", stream="vision", query=one.query, key=one.key, heads=2, storage=(joined,))
    found = mmattn.look(maps_of(batch), query=11)
    for sample, layer in zip(found, (one, two), strict=True):
        assert torch.allclose(sample.values, look(maps_of(layer), query=11).values, atol=1e-6)
