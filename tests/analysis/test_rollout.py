"""Rollout, streamed row by row, against whole matrices in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmattn.analysis import look, look_at_heads, rollout
from mmattn.errors import InputError, ModelError, NotFoundError, PlaceError
from mmattn.schema.axes import PatchGrid, Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Blocks, Dense, Factored


def grid(rows=3, cols=4, special=("cls",)):
    return PatchGrid.plain(rows=rows, cols=cols, patch_px=(16, 16), size_px=(320, 240), special=special)


def random_maps(*, seed=0, depth=3, heads=2, axis=None, readout="cls", sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    axis = grid() if axis is None else axis

    def tensor():
        return sharpness * torch.randn(1, heads, len(axis), 4, generator=generator)

    layers = tuple(
        AttentionLayer(
            name=f"blocks.{i}.attn",
            stream="vision",
            query=(axis,),
            key=(axis,),
            heads=heads,
            storage=(Blocks(source=Factored(q=tensor(), k=tensor(), scale=0.5)),),
        )
        for i in range(depth)
    )
    return AttentionMaps(layers=layers, default_stream="vision", readout=readout)


def written_out(maps, *, fusion="mean", discard=0.0, start=0, residual=0.5):
    """Abnar & Zuidema with whole matrices, and vit-explain's discard with rows (not columns) brought back to one."""
    length = len(maps[0].query_axis)
    result = torch.eye(length, dtype=torch.float64)
    for layer in maps.layers[start:]:
        weights = layer.weights().double()
        fused = {"mean": weights.mean(0), "max": weights.amax(0), "min": weights.amin(0)}[fusion]
        drop = int(fused.numel() * discard)
        if drop:
            flat = fused.flatten().clone()
            flat[flat.topk(drop, largest=False).indices] = 0
            fused = flat.view_as(fused)
        joined = residual * torch.eye(length, dtype=torch.float64) + (1 - residual) * fused
        if drop or fusion != "mean":
            sums = joined.sum(-1, keepdim=True)  # a row may be dropped whole: it passes nothing on
            joined = joined / torch.where(sums > 0, sums, 1.0)
        result = joined @ result
    return result


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["mean", "max", "min"]),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.5, 0.8]),
)
def test_rollout_equals_the_formula_with_whole_matrices(seed, fusion, discard, start, residual):
    maps = random_maps(seed=seed)
    found = rollout(
        maps, head_fusion=fusion, discard_ratio=discard, start_layer=start, residual_weight=residual, query="cls"
    )
    expected = written_out(maps, fusion=fusion, discard=discard, start=start, residual=residual)[0]
    assert torch.allclose(found.values[0].double(), expected, atol=2e-6)


def test_rollout_of_a_patch_and_of_the_mean_are_rows_of_the_same_matrix():
    maps = random_maps(seed=3)
    expected = written_out(maps)
    patch = rollout(maps, query=(100.0, 100.0))
    token = maps[0].query_axis.token_at((100.0, 100.0))
    assert torch.allclose(patch.values[0].double(), expected[token], atol=2e-6)
    assert patch.query_tokens == ((token,),)
    mean = rollout(maps, query="mean")
    assert torch.allclose(mean.values[0].double(), expected[1:].mean(0), atol=2e-6)
    assert mean.labels == ("mean over 12 patches",)


def test_rollout_of_a_class_token_never_builds_tokens_by_tokens(monkeypatch):
    axis = grid(rows=40, cols=50)
    maps = random_maps(axis=axis, depth=2)
    largest = 0
    true = torch.softmax

    def watched(logits, dim):
        nonlocal largest
        largest = max(largest, logits.numel())
        return true(logits, dim=dim)

    monkeypatch.setattr(torch, "softmax", watched)
    rollout(maps)
    assert 0 < largest <= 1 << 20 < 2 * len(axis) ** 2


def test_without_a_class_token_the_mean_asks_and_the_label_says_so():
    maps = random_maps(axis=grid(special=()), readout="")
    assert rollout(maps).labels == ("mean over 12 patches (no class token)",)
    with pytest.raises(NotFoundError, match='no "cls" token'):
        rollout(maps, query="cls")


def test_a_model_that_reads_the_mean_is_asked_by_the_mean_though_it_has_a_class_token():
    label = rollout(random_maps(readout="mean")).labels[0]
    assert label == "mean over 12 patches, which the model reads its answer from"


def test_an_attention_pool_asks_where_the_model_reads_from_it():
    maps = random_maps(axis=grid(special=()), readout="pool", depth=2)
    axis = maps[0].query_axis
    weights = torch.softmax(torch.randn(1, 2, 1, len(axis)), dim=-1)
    pool = AttentionLayer(
        name="attn_pool",
        stream="vision",
        kind="cross",
        query=(Slots.count(1),),
        key=(axis,),
        heads=2,
        residual="none",
        storage=(Blocks(source=Dense(weights=weights)),),
    )
    pooled = AttentionMaps(layers=(*maps.layers, pool), default_stream="vision", readout="pool")
    found = rollout(pooled)
    expected = weights[0].double().mean(0) @ written_out(maps)
    assert torch.allclose(found.values.double(), expected, atol=2e-6)
    assert found.labels == ("attention pool",)


def test_a_pool_that_leaves_the_registers_out_is_still_who_asks():
    body = grid(special=("register", "register"))
    patches = grid(special=())
    maps = random_maps(axis=body, depth=2)
    weights = torch.softmax(torch.randn(1, 2, 1, len(patches)), dim=-1)
    pool = AttentionLayer(
        name="attn_pool",
        stream="vision",
        kind="cross",
        query=(Slots.count(1),),
        key=(patches,),
        heads=2,
        residual="none",
        storage=(Blocks(source=Dense(weights=weights)),),
    )
    found = rollout(AttentionMaps(layers=(*maps.layers, pool), default_stream="vision", readout="pool"))
    row = torch.cat([torch.zeros(1, 2), weights[0].mean(0)], dim=1).double()
    assert torch.allclose(found.values.double(), row @ written_out(maps), atol=2e-6)
    assert found.labels == ("attention pool",)
    assert found.parameters["layers"] == "0 to 1 and the pool"


def test_signed_weights_are_no_shares_and_rollout_takes_them_by_their_size():
    axis = grid(rows=1, cols=2, special=())
    layer = AttentionLayer(
        name="difference",
        query=(axis,),
        key=(axis,),
        heads=1,
        normalized="signed",
        storage=(Blocks(source=Dense(weights=torch.tensor([[[[0.8, -0.3], [0.2, 0.3]]]]))),),
    )
    maps = AttentionMaps(layers=(layer,))
    found = look(maps, query=0)
    assert found.unit == "signed relevance"
    assert found.outside is None
    rolled = rollout(maps, query=0)
    assert torch.allclose(rolled.values[0], torch.tensor([0.5 + 0.5 * 8 / 11, 0.5 * 3 / 11]))
    assert rolled.unit == "share"
    assert rolled.parameters["absolute weights"] == "in 1 of 1 layers"


def test_layers_counted_from_the_end_are_named_from_the_start():
    assert rollout(random_maps(depth=3), start_layer=-2).parameters["layers"] == "1 to 2"


def test_rollout_passes_a_merging_of_patches_by_overlap():
    fine, coarse = grid(rows=4, cols=4, special=()), grid(rows=2, cols=2, special=())
    lower, upper = random_maps(axis=fine, depth=1), random_maps(axis=coarse, depth=1, seed=1)
    maps = AttentionMaps(layers=(*lower.layers, *upper.layers), default_stream="vision")
    found = rollout(maps, query=0)
    bridge = torch.zeros(4, 16, dtype=torch.float64)
    for row in range(4):
        for col in range(4):
            bridge[(row // 2) * 2 + col // 2, row * 4 + col] = 0.25
    expected = written_out(upper)[0] @ bridge @ written_out(lower)
    assert torch.allclose(found.values[0].double(), expected, atol=2e-6)


def test_mass_that_the_model_gave_to_no_token_stays_lost_and_is_reported():
    axis = grid(rows=1, cols=2, special=())
    weights = torch.full((1, 1, 2, 3), 1 / 3)  # a sink column, which is no token
    key_index = torch.tensor([[0, 1, -1]])
    layer = AttentionLayer(
        name="a",
        query=(axis,),
        key=(axis,),
        heads=1,
        normalized="over_keys_and_outside",
        storage=(Blocks(source=Dense(weights=weights), key_index=key_index),),
    )
    found = rollout(AttentionMaps(layers=(layer,)), query=0)
    assert torch.allclose(found.values[0], torch.tensor([0.5 + 1 / 6, 1 / 6]))
    assert torch.allclose(found.outside, torch.tensor([1 / 6]))


def test_the_uniform_baseline_of_rollout_is_that_of_uniform_layers():
    maps = random_maps(depth=2)
    length = len(maps[0].query_axis)
    even = 0.5 * torch.eye(length) + 0.5 / length
    assert torch.allclose(rollout(maps).uniform[0], (even @ even)[0], atol=1e-6)


def test_look_is_the_row_of_the_layer_and_head_that_were_asked_for():
    maps = random_maps(seed=5)
    dense = maps[1].weights()
    assert torch.allclose(look(maps, layer=1, head=1).values[0], dense[1, 0], atol=1e-6)
    assert torch.allclose(look(maps, layer="blocks.1.attn", head="max").values[0], dense.amax(0)[0], atol=1e-6)
    assert torch.allclose(look(maps, layer=-2).values[0], dense.mean(0)[0], atol=1e-6)
    box = look(maps, layer=1, query=(0.0, 0.0, 160.0, 80.0))
    assert torch.allclose(box.values[0], dense.mean(0)[[1, 2]].mean(0), atol=1e-6)
    assert box.query_tokens == ((1, 2),)


def test_look_at_heads_gives_every_head_of_every_layer():
    maps = random_maps(seed=6)
    found = look_at_heads(maps, query=3, layers=[-1, 0])
    assert [row.label for row in found] == ["layer 2", "layer 0"]
    assert torch.allclose(found[0].heads[1].values[0], maps[2].weights()[1, 3], atol=1e-6)


def test_places_and_layers_that_are_not_there_are_named():
    maps = random_maps()
    with pytest.raises(NotFoundError, match="no layer 3: this stream has 3 self-attention layers, 0 to 2"):
        look(maps, layer=3)
    with pytest.raises(NotFoundError, match="no head 2: there are 2, 0 to 1"):
        look(maps, head=2)
    with pytest.raises(PlaceError, match="did not see the point"):
        look(maps, query=(400.0, 10.0))
    with pytest.raises(InputError, match="box .* is empty"):
        look(maps, query=(5.0, 5.0, 5.0, 9.0))
    with pytest.raises(NotFoundError, match="no layer 9"):
        rollout(maps, start_layer=9)
    with pytest.raises(InputError, match="discard_ratio=1"):
        rollout(maps, discard_ratio=1.0)
    with pytest.raises(InputError, match="median"):
        rollout(maps, head_fusion="median")
    with pytest.raises(InputError, match="not one map"):
        look(maps, head="each")


def test_weights_that_are_not_finite_are_refused_with_the_layer_named():
    maps = random_maps(depth=2)
    maps[1].storage[0].source.q[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"blocks\.1\.attn gives .* NaN or infinite"):
        look(maps)
    with pytest.raises(InputError, match=r"blocks\.1\.attn gives"):
        rollout(maps)


def test_a_residual_that_rollout_cannot_follow_is_refused():
    maps = random_maps(depth=1)
    layer = AttentionLayer(
        name="refiner",
        stream="vision",
        query=maps[0].query,
        key=maps[0].key,
        heads=2,
        residual="learned",
        storage=maps[0].storage,
    )
    with pytest.raises(ModelError, match=r"cannot pass layer refiner: its residual is learned.*no other layer either"):
        rollout(AttentionMaps(layers=(layer,), default_stream="vision"))
