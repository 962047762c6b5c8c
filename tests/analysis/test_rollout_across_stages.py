"""Rollout where grids differ from layer to layer, against whole matrices in float64 that are written out here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from windowed import patches, windowed

from mmattn.analysis import look, rollout
from mmattn.errors import ModelError, NotFoundError
from mmattn.schema.axes import PatchGrid, Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Blocks, Dense


def layer(name, query, key, *, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.softmax(2 * torch.randn(1, 2, len(query), len(key), generator=generator), dim=-1)
    return AttentionLayer(
        name=name,
        stream=options.pop("stream", "vision"),
        query=(query,),
        key=(key,),
        heads=2,
        storage=(Blocks(source=Dense(weights=weights)),),
        **options,
    )


def maps_of(*layers, **options):
    return AttentionMaps(layers=layers, default_stream="vision", **options)


def fused(one):
    return one.weights().double().mean(0)


def spread(coarse, fine, factor, special=0):
    """Shares by which each coarse cell goes to its factor x factor fine cells; special tokens go to themselves."""
    out = torch.zeros(len(coarse), len(fine), dtype=torch.float64)
    for token in range(special):
        out[token, token] = 1.0
    for row in range(fine.rows):
        for col in range(fine.cols):
            source = special + (row // factor) * coarse.cols + col // factor
            out[source, special + row * fine.cols + col] = 1 / factor**2
    return out


def cls_alone(like):
    return PatchGrid(
        roles=("cls",), rows=like.rows, cols=like.cols, patch_px=like.patch_px, size_px=like.size_px,
        to_input=like.to_input, cells=torch.tensor([-1]).numpy(),
    )  # fmt: skip


def test_pooled_keys_spread_over_the_patches_that_they_stand_for():
    fine, coarse = patches(4, 4), patches(2, 2)
    maps = maps_of(layer("0", fine, coarse), layer("1", fine, coarse, seed=1))
    up, eye = spread(coarse, fine, 2), torch.eye(16, dtype=torch.float64)
    expected = (0.5 * eye + 0.5 * fused(maps[1]) @ up) @ (0.5 * eye + 0.5 * fused(maps[0]) @ up)
    for token in (0, 7):
        found = rollout(maps, query=token)
        assert torch.allclose(found.values[0].double(), expected[token], atol=1e-6)
        assert found.axis == fine
        assert found.outside[0] < 1e-6
        assert "not passed on" not in found.parameters


def test_pooled_queries_take_their_pooled_residual_along():
    special = ("cls",)
    fine, coarse = patches(4, 4, special=special), patches(2, 2, special=special)
    maps = maps_of(layer("0", fine, coarse), layer("1", coarse, fine, seed=1, residual="pooled"))
    up, eye = spread(coarse, fine, 2, special=1), torch.eye(17, dtype=torch.float64)
    expected = (0.5 * up + 0.5 * fused(maps[1])) @ (0.5 * eye + 0.5 * fused(maps[0]) @ up)
    for token in (0, 3):
        found = rollout(maps, query=token)
        assert torch.allclose(found.values[0].double(), expected[token], atol=1e-6)


def test_where_the_lowest_layer_pools_its_queries_the_result_lies_on_what_it_read():
    fine, coarse = patches(4, 4), patches(2, 2)
    found = rollout(maps_of(layer("0", coarse, fine, residual="pooled")), query=2)
    up = spread(coarse, fine, 2)
    expected = 0.5 * up + 0.5 * fused(layer("0", coarse, fine))
    assert found.axis == fine
    assert torch.allclose(found.values[0].double(), expected[2], atol=1e-6)
    assert found.query_tokens == ((),)
    assert found.query_places == ((coarse.place(2),),)


def test_merged_patches_between_stages_of_shifted_windows():
    fine, coarse = patches(8, 8), patches(4, 4)
    lower = [windowed(shift=shift, axis=fine, seed=shift, name=f"0.{shift}") for shift in (0, 2)]
    upper = windowed(rows=4, cols=4, shift=0, axis=coarse, seed=9, name="1.0")
    maps = maps_of(*lower, upper)
    eye = torch.eye(64, dtype=torch.float64)
    expected = (0.5 * torch.eye(16).double() + 0.5 * fused(upper)) @ spread(coarse, fine, 2)
    for one in reversed(lower):
        expected = expected @ (0.5 * eye + 0.5 * fused(one))
    found = rollout(maps, query="mean")
    assert torch.allclose(found.values[0].double(), expected.mean(0), atol=1e-6)


def test_a_class_token_that_joins_late_leaves_what_it_kept_to_itself_behind_and_says_so():
    body, both = patches(2, 3), patches(2, 3, special=("cls",))
    alone = cls_alone(both)
    maps = maps_of(
        layer("blocks.0", body, body),
        layer("blocks_token_only.0", alone, both, seed=1, kind="cross"),
        layer("blocks_token_only.1", alone, both, seed=2, kind="cross"),
        readout="cls",
    )
    found = rollout(maps)
    first, second = (fused(maps[i])[0] for i in (2, 1))
    row = 0.5 * first
    row[0] += 0.5
    below = 0.5 * row[0] * second
    below[0] += 0.5 * row[0]
    below[1:] += row[1:]
    block = 0.5 * torch.eye(6, dtype=torch.float64) + 0.5 * fused(maps[0])
    assert torch.allclose(found.values[0].double(), below[1:] @ block, atol=1e-6)
    assert found.labels == ("class token",)
    assert found.outside[0] == pytest.approx(float(below[0]), abs=1e-6)
    assert found.parameters["not passed on"] == f"{100 * float(below[0]):.2g} % (cls under blocks_token_only.0)"


def test_a_patch_of_a_model_with_class_attention_passes_it_by():
    body, both = patches(2, 3), patches(2, 3, special=("cls",))
    maps = maps_of(layer("0", body, body), layer("1", cls_alone(both), both, kind="cross"), readout="cls")
    found = rollout(maps, query=body.place(4)[:2])
    block = 0.5 * torch.eye(6, dtype=torch.float64) + 0.5 * fused(maps[0])
    assert torch.allclose(found.values[0].double(), block[4], atol=1e-6)
    assert found.query_places == ((body.place(4),),)


def test_class_attention_alone_is_rolled_out_over_class_token_and_patches():
    both = patches(2, 3, special=("cls",))
    maps = maps_of(layer("0", cls_alone(both), both), readout="cls", left_out=("a: attention between channels",) * 4)
    found = rollout(maps)
    expected = 0.5 * fused(maps[0])[0]
    expected[0] += 0.5
    assert found.axis == both
    assert torch.allclose(found.values[0].double(), expected, atol=1e-6)
    assert found.parameters["left out"] == "4 layers (attention between channels)"
    assert look(maps).parameters["left out"] == "4 layers (attention between channels)"


def cross_vit():
    """Two branches on two grids, self-attention in each, then each class token looks at the other's patches."""
    grids = patches(2, 2, special=("cls",)), patches(3, 3, special=("cls",))
    bodies = [layer(f"blocks.{i}", grid, grid, seed=i, stream=f"vision.{i}") for i, grid in enumerate(grids)]
    fusions = [
        layer(f"fusion.{i}", cls_alone(grids[i]), grids[1 - i], seed=5 + i, stream=f"vision.{i}", kind="cross")
        for i in range(2)
    ]
    return maps_of(*bodies, *fusions, readout="cls"), grids


def written_out_cross_vit(maps, grids, asked):
    """The whole network as one matrix over the tokens of both branches, one behind the other."""
    sizes = [len(grid) for grid in grids]
    at = [0, sizes[0]]
    body = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    for i in range(2):
        own = slice(at[i], at[i] + sizes[i])
        body[own, own] = 0.5 * torch.eye(sizes[i]).double() + 0.5 * fused(maps[i])
    fusion = torch.eye(sum(sizes), dtype=torch.float64)
    for i in range(2):
        other = 1 - i
        row = fused(maps[2 + i])[0]
        fusion[at[i]] = 0
        fusion[at[i], at[i]] = 0.5 + 0.5 * row[0]
        fusion[at[i], at[other] + 1 : at[other] + sizes[other]] = 0.5 * row[1:]
    row = asked @ fusion @ body
    return row[: sizes[0]], row[sizes[0] :]


def test_two_branches_are_followed_side_by_side_and_put_together_by_their_places():
    maps, grids = cross_vit()
    asked = torch.zeros(15, dtype=torch.float64)
    asked[0] = asked[5] = 0.5
    coarse, fine = written_out_cross_vit(maps, grids, asked)
    shares = torch.zeros(5, 10, dtype=torch.float64)
    shares[0, 0] = 1
    for row in range(3):
        for col in range(3):
            for r in range(2):
                for c in range(2):
                    down = max(0, min((r + 1) / 2, (row + 1) / 3) - max(r / 2, row / 3))
                    across = max(0, min((c + 1) / 2, (col + 1) / 3) - max(c / 2, col / 3))
                    shares[1 + 2 * r + c, 1 + 3 * row + col] = 4 * down * across
    found = rollout(maps)
    assert found.axis == grids[1]
    assert found.labels == ("class token, of each of 2 branches",)
    assert torch.allclose(found.values[0].double(), fine + coarse @ shares, atol=1e-6)
    assert float(found.values.sum()) == pytest.approx(1, abs=1e-6)


def test_branches_that_are_not_told_apart_are_refused_and_named():
    maps, _ = cross_vit()
    mixed = [
        AttentionLayer(**{**vars(one), "stream": "vision", "name": f"{turn}.{one.name}"})
        for turn in range(2)
        for one in maps.layers[:2]
    ]
    with pytest.raises(ModelError, match=r"1\.blocks\.0: its tokens .* run side by side .* pass start_layer=3"):
        rollout(maps_of(*mixed))
    with pytest.raises(ModelError, match="start_layer=3"):
        rollout(maps_of(*mixed), start_layer=2)
    assert rollout(maps_of(*mixed), start_layer=3).axis == maps[1].query_axis


def test_slots_in_the_middle_are_refused_with_the_layer_from_which_on_it_works():
    grid = patches(2, 2)
    maps = maps_of(
        layer("stem", grid, grid),
        layer("latents", Slots.count(3), grid),
        layer("head.0", grid, grid),
        layer("head.1", grid, grid, seed=1),
    )
    with pytest.raises(ModelError, match=r"cannot pass layer head\.0: .* From layer 2 \(head\.0\) .* start_layer=2"):
        rollout(maps)
    eye = torch.eye(4, dtype=torch.float64)
    expected = (0.5 * eye + 0.5 * fused(maps[3])) @ (0.5 * eye + 0.5 * fused(maps[2]))
    assert torch.allclose(rollout(maps, query=1, start_layer=2).values[0].double(), expected[1], atol=1e-6)


def test_keys_without_a_place_are_refused_from_the_next_layer_on():
    grid = patches(2, 2)
    maps = maps_of(layer("strips", grid, Slots.count(2)), layer("plain", grid, grid))
    with pytest.raises(ModelError, match=r"cannot pass layer strips: .* From layer 1 \(plain\)"):
        rollout(maps)
    assert rollout(maps, start_layer=1).axis == grid


def test_notes_of_layers_stand_in_the_caption_once():
    grid = patches(2, 2)
    maps = maps_of(*(layer(str(i), grid, grid, note="keys pooled by a convolution") for i in range(2)))
    assert rollout(maps).parameters["note"] == "keys pooled by a convolution"
    assert look(maps).parameters["note"] == "keys pooled by a convolution"


def test_a_layer_that_only_the_class_token_asks_names_who_asks():
    both = patches(2, 3, special=("cls",))
    maps = maps_of(layer("0", cls_alone(both), both))
    assert look(maps).labels == ("class token",)
    assert look(maps_of(layer("0", cls_alone(both), both), readout="mean")).labels == ("class token",)
    with pytest.raises(NotFoundError, match='No patch asks in this layer: .*"cls"'):
        look(maps, query=(10.0, 10.0))
    with pytest.raises(NotFoundError, match="No patch asks here"):
        look(maps, query="mean")


def test_a_single_slot_is_an_attention_pool():
    grid = patches(2, 2)
    maps = maps_of(layer("pool", Slots.count(1), grid, kind="cross", residual="none"), readout="pool")
    assert look(maps).labels == ("attention pool",)
    wide = maps_of(layer("pool", Slots.count(3), grid, kind="cross", residual="none"), readout="pool")
    assert look(wide).labels == ("attention pool (mean of 3 slots)",)


def test_a_branch_that_nobody_reads_is_not_followed_and_said():
    inner, outer = patches(4, 4), patches(2, 2, special=("cls",))
    layers = [
        layer(f"{turn}.{name}", axis, axis, seed=turn, stream=f"vision.{name}")
        for turn in range(2)
        for name, axis in (("inner", inner), ("outer", outer))
    ]
    found = rollout(maps_of(*layers, readout="cls"))
    eye = torch.eye(5, dtype=torch.float64)
    expected = (0.5 * eye + 0.5 * fused(layers[3])) @ (0.5 * eye + 0.5 * fused(layers[1]))
    assert torch.allclose(found.values[0].double(), expected[0], atol=1e-6)
    assert found.labels == ("class token",)
    assert found.parameters["beside it"] == "2 layers of vision.inner"


@pytest.mark.parametrize(
    ("low", "normalized", "unit"), [(0.0, "none", "relevance"), (-0.5, "signed", "signed relevance")]
)
def test_weights_that_are_no_shares_are_taken_as_shares_of_their_absolute_sum(low, normalized, unit):
    axis = patches(2, 3)
    generator = torch.Generator().manual_seed(4)
    matrices = [3 * torch.rand(2, 6, 6, generator=generator) + low for _ in range(2)]
    layers = [
        AttentionLayer(
            name=str(i),
            stream="vision",
            query=(axis,),
            key=(axis,),
            heads=2,
            normalized=normalized,
            storage=(Blocks(source=Dense(weights=matrix[None])),),
        )
        for i, matrix in enumerate(matrices)
    ]
    product = torch.eye(6, dtype=torch.float64)
    for matrix in matrices:
        mean = matrix.double().abs().mean(0)
        product = (0.5 * torch.eye(6) + 0.5 * mean / mean.sum(-1, keepdim=True)) @ product
    found = rollout(maps_of(*layers), query=3)
    assert torch.allclose(found.values[0].double(), product[3], atol=1e-6)
    assert found.unit == "share"
    assert found.parameters["absolute weights"] == "in 2 of 2 layers"
    assert look(maps_of(*layers), query=3).unit == unit


def test_a_pool_whose_query_is_the_mean_token_asks_by_it():
    axis = patches(2, 2, special=("mean",))
    maps = maps_of(layer("head", axis, axis, residual="none"), readout="pool")
    found = rollout(maps)
    assert found.labels == ("attention pool",)
    assert torch.allclose(found.values[0].double(), fused(maps[0])[0], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["mean", "max", "min"]),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([0.0, 0.5, 0.8]),
    st.lists(st.sampled_from(["plain", "pooled keys", "pooled queries"]), min_size=1, max_size=4),
)
def test_any_stack_of_stages_equals_its_whole_matrices(seed, fusion, discard, residual, kinds):
    """From below: every layer as a matrix from its queries to what the stack below it wrote, rows brought to one."""
    standing = carrier = patches(8, 8)
    product, layers = None, []
    for depth, kind in enumerate(kinds):
        coarse = patches(max(1, standing.rows // 2), max(1, standing.cols // 2))
        query = coarse if kind == "pooled queries" else standing
        key = coarse if kind == "pooled keys" else standing
        one = layer(str(depth), query, key, seed=seed + depth, residual="pooled" if query is coarse else "identity")
        layers.append(one)
        weights = one.weights()  # fused in float32, as the threshold of what is discarded is
        matrix = {"mean": weights.mean(0), "max": weights.amax(0), "min": weights.amin(0)}[fusion].double()
        drop = int(matrix.numel() * discard)
        if drop:
            floor = matrix.flatten().sort().values[drop - 1]
            tied = int((matrix <= floor).sum()) > drop  # equal weights go together or stay together
            matrix = torch.where(matrix < floor if tied else matrix <= floor, 0.0, matrix)
        beside = residual * spread(query, carrier, carrier.rows // query.rows)
        joined = beside + (1 - residual) * matrix @ spread(key, carrier, carrier.rows // key.rows)
        if drop or fusion != "mean":
            sums = residual + (1 - residual) * matrix.sum(-1, keepdim=True)
            joined = joined / torch.where(sums > 0, sums, 1.0)
        product = joined if product is None else joined @ product
        standing = carrier = query
    found = rollout(maps_of(*layers), query="mean", head_fusion=fusion, discard_ratio=discard, residual_weight=residual)
    assert torch.allclose(found.values[0].double(), product.mean(0), atol=3e-6)
