"""Both storages answer like a dense float64 reference, for random shapes, masks, windows and dtypes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.schema import stream
from mmattn.schema.axes import Positions
from mmattn.schema.edges import Edges
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks, Dense, Factored

DTYPES = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 2e-6, torch.bfloat16: 2e-6}


def reference_softmax(q, k, *, scale, mask, bias, causal, softcap):
    """The formula written out, one row at a time, in float64."""
    q, k = q.double(), k.double()
    blocks, heads, queries, _ = q.shape
    groups = heads // k.shape[1]
    keys = k.shape[2]
    out = torch.zeros(blocks, heads, queries, keys, dtype=torch.float64)
    full = (blocks, heads, queries, keys)
    mask = torch.ones(full, dtype=torch.bool) if mask is None else mask.expand(full)
    bias = torch.zeros(full, dtype=torch.float64) if bias is None else bias.double().expand(full)
    for b in range(blocks):
        for h in range(heads):
            for i in range(queries):
                logits = [scale * float(q[b, h, i] @ k[b, h // groups, j]) for j in range(keys)]
                if softcap is not None:
                    logits = [softcap * math.tanh(x / softcap) for x in logits]
                logits = [x + float(bias[b, h, i, j]) for j, x in enumerate(logits)]
                seen = [
                    bool(mask[b, h, i, j]) and not (causal and j > i) and logits[j] > -math.inf for j in range(keys)
                ]
                if not any(seen):
                    continue
                top = max(x for x, s in zip(logits, seen, strict=True) if s)
                parts = [math.exp(x - top) if s else 0.0 for x, s in zip(logits, seen, strict=True)]
                out[b, h, i] = torch.tensor(parts, dtype=torch.float64) / sum(parts)
    return out


@st.composite
def factored(draw):
    blocks, groups, repeat = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    queries, keys, dim = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    heads = groups * repeat
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dtype = draw(st.sampled_from(list(DTYPES)))
    shape = [draw(st.sampled_from([1, n])) for n in (blocks, heads, queries)] + [keys]
    mask = bias = None
    if draw(st.booleans()):
        mask = torch.rand(shape, generator=generator) > 0.3
    if draw(st.booleans()):
        bias = torch.randn(shape, generator=generator)
        if draw(st.booleans()):
            bias = bias.masked_fill(torch.rand(shape, generator=generator) > 0.7, -math.inf)
    return Factored(
        q=(3 * torch.randn(blocks, heads, queries, dim, generator=generator)).to(dtype),
        k=torch.randn(blocks, groups, keys, dim, generator=generator).to(dtype),
        scale=draw(st.sampled_from([1.0, 0.125, dim**-0.5])),
        mask=mask,
        bias=bias,
        causal=draw(st.booleans()),
        softcap=draw(st.sampled_from([None, 2.0])),
    )


def reference_of(source):
    return reference_softmax(
        source.q,
        source.k,
        scale=source.scale,
        mask=source.mask,
        bias=source.bias,
        causal=source.causal,
        softcap=source.softcap,
    )


@settings(max_examples=60, deadline=None)
@given(factored())
def test_factored_weights_equal_the_formula(source):
    expected = reference_of(source)
    error = (source.values(slice(None), slice(None)).double() - expected).abs().max()
    assert error <= DTYPES[source.q.dtype]


@settings(max_examples=60, deadline=None)
@given(factored(), st.data())
def test_rows_in_any_slices_equal_the_formula(source, data):
    blocks = Blocks(source=source)
    expected = reference_of(source).transpose(0, 1).flatten(1, 2)
    start = data.draw(st.integers(0, blocks.row_count - 1))
    stop = data.draw(st.integers(start + 1, blocks.row_count))
    rows = blocks.rows(start, stop)
    assert (rows.weights.double() - expected[:, start:stop]).abs().max() <= DTYPES[source.q.dtype]
    assert rows.query.tolist() == [r % source.q.shape[2] for r in range(start, stop)]


@settings(max_examples=60, deadline=None)
@given(factored(), st.integers(1, 40))
def test_chunks_hold_every_row_once_and_stay_small(source, limit):
    blocks = Blocks(source=source)
    expected = reference_of(source).transpose(0, 1).flatten(1, 2)
    chunks = list(blocks.chunks(limit=limit))
    joined = torch.cat([rows.weights for rows in chunks], dim=1)
    assert (joined.double() - expected).abs().max() <= DTYPES[source.q.dtype]
    row = source.q.shape[1] * source.k.shape[2]
    assert all(rows.weights.numel() <= max(limit, row) for rows in chunks)


@st.composite
def layers(draw):
    """Blocks scattered over longer axes: windows with padding, coefficients, queries in several blocks."""
    source = draw(factored())
    if draw(st.booleans()):
        dense = source.values(slice(None), slice(None))
        source = Dense(weights=dense, mask=source.allowed(slice(None), slice(None)))
    blocks, _, queries, keys = source.shape
    length, width = draw(st.integers(queries, 9)), draw(st.integers(keys, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    indexed = draw(st.booleans()) or length != queries or width != keys
    query_index = key_index = coefficient = None
    if indexed:
        query_index = torch.stack([torch.randperm(length, generator=generator)[:queries] for _ in range(blocks)])
        key_index = torch.stack([torch.randperm(width, generator=generator)[:keys] for _ in range(blocks)])
        query_index[torch.rand(query_index.shape, generator=generator) > 0.8] = -1
        key_index[torch.rand(key_index.shape, generator=generator) > 0.8] = -1
        coefficient = torch.rand(blocks, queries, generator=generator) if draw(st.booleans()) else None
    return AttentionLayer(
        name="layer",
        query=(Positions.count(length),),
        key=(Positions.count(width),),
        heads=source.shape[1],
        storage=(Blocks(source=source, query_index=query_index, key_index=key_index, coefficient=coefficient),),
    )


def dense_of(layer):
    """A[head, query, key] and the mass outside, put together entry by entry."""
    (blocks,) = layer.storage
    weights = blocks.source.values(slice(None), slice(None)).double()
    count, heads, queries, keys = weights.shape
    out = torch.zeros(heads, len(layer.query_axis), len(layer.key_axis), dtype=torch.float64)
    outside = torch.zeros(heads, len(layer.query_axis), dtype=torch.float64)
    for b in range(count):
        for i in range(queries):
            query = i if blocks.query_index is None else int(blocks.query_index[b, i])
            if query < 0:
                continue
            coefficient = 1.0 if blocks.coefficient is None else float(blocks.coefficient[b, i])
            outside[:, query] += coefficient
            for j in range(keys):
                key = j if blocks.key_index is None else int(blocks.key_index[b, j])
                if key >= 0:
                    out[:, query, key] += coefficient * weights[b, :, i, j]
                    outside[:, query] -= coefficient * weights[b, :, i, j]
    return out, outside


@settings(max_examples=80, deadline=None)
@given(layers(), st.sampled_from(["mean", "each", 0]), st.integers(1, 3))
def test_products_equal_the_dense_ones(layer, heads, dim):
    dense, _ = dense_of(layer)
    fused = {"mean": dense.mean(0), "each": dense, 0: dense[0]}[heads]
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn(dense.shape[2], dim, generator=generator)
    assert torch.allclose(stream.apply(layer, x, heads=heads).double(), fused @ x.double(), atol=1e-5)
    y = torch.randn(dense.shape[1], dim, generator=generator)
    y[torch.rand(len(y), generator=generator) > 0.5] = 0.0  # few rows: the short way
    expected = fused.transpose(-1, -2) @ y.double()
    assert torch.allclose(stream.apply_transposed(layer, y, heads=heads).double(), expected, atol=1e-5)
    assert torch.allclose(stream.received(layer, heads=heads).double(), fused.sum(-2), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(layers(), st.data())
def test_dense_weights_and_single_rows_equal_the_dense_reference(layer, data):
    dense, _ = dense_of(layer)
    assert torch.allclose(layer.weights().double(), dense, atol=1e-5)
    queries = data.draw(st.lists(st.integers(0, dense.shape[1] - 1), min_size=1, max_size=4))
    heads = data.draw(st.lists(st.integers(0, dense.shape[0] - 1), min_size=1, max_size=2))
    chosen = layer.weights(heads=heads, queries=queries).double()
    assert torch.allclose(chosen, dense[heads][:, queries], atol=1e-5)
    assert torch.allclose(stream.rows_of(layer, queries).double(), dense.mean(0)[queries], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(layers())
def test_rows_and_outside_sum_to_what_they_should(layer):
    dense, _ = dense_of(layer)
    found = stream.statistics(layer)
    (blocks,) = layer.storage
    allowed = blocks.source.allowed(slice(None), slice(None))
    # A row with allowed keys in every block it stands in gives exactly its coefficients.
    due = torch.zeros(len(layer.query_axis), dtype=torch.float64)
    full = torch.ones(len(layer.query_axis), dtype=torch.bool)
    count, _, queries, _ = blocks.source.shape
    for b in range(count):
        for i in range(queries):
            query = i if blocks.query_index is None else int(blocks.query_index[b, i])
            if query >= 0:
                due[query] += 1.0 if blocks.coefficient is None else float(blocks.coefficient[b, i])
                full[query] &= bool(allowed[b, :, i].any(-1).all())
    full &= ~found.empty
    total = dense.sum(-1) + found.outside.double()
    assert torch.allclose(total[:, full], due[full].expand_as(total[:, full]), atol=1e-5)
    entropy = -(dense * torch.where(dense > 0, dense, 1.0).log2()).sum(-1)
    if blocks.source.shape[0] == 1:  # in one block no pair of query and key stands twice
        assert torch.allclose(found.entropy_bits.double(), entropy, atol=1e-4)
        assert torch.allclose(found.largest.double(), dense.amax(-1), atol=1e-5)


def layer_of(storage, queries, keys, **more):
    return AttentionLayer(
        name="layer",
        query=(Positions.count(queries),),
        key=(Positions.count(keys),),
        heads=None,
        storage=storage,
        **more,
    )


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40), st.integers(1, 3), st.integers(0, 2**20))
def test_edges_equal_a_dense_matrix(queries, keys, count, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(queries, (count,), generator=generator)
    key = torch.randint(keys, (count,), generator=generator)
    values = torch.rand(heads, count, generator=generator)
    edges = Edges.sort(query=query, key=key, values=values, query_count=queries)
    layer = layer_of(edges, queries, keys, normalized="none")
    dense = torch.zeros(heads, queries, keys, dtype=torch.float64)
    for e in range(count):
        dense[:, query[e], key[e]] += values[:, e].double()
    assert torch.allclose(layer.weights().double(), dense, atol=1e-5)
    x, y = torch.randn(keys, 2, generator=generator), torch.randn(queries, 2, generator=generator)
    assert torch.allclose(stream.apply(layer, x).double(), dense.mean(0) @ x.double(), atol=1e-5)
    assert torch.allclose(stream.apply_transposed(layer, y).double(), dense.mean(0).T @ y.double(), atol=1e-5)
    assert torch.equal(values[:, edges.position], edges.values)
    degree = torch.bincount(query, minlength=queries)
    assert torch.equal(stream.statistics(layer).empty, degree == 0)
    rows = torch.cat([chunk.query for chunk in edges.chunks(limit=8)])
    assert sorted(rows.tolist()) == list(range(queries))


def test_uniform_is_one_over_the_number_of_allowed_keys():
    source = Factored(q=torch.randn(1, 2, 4, 3), k=torch.randn(1, 2, 4, 3), scale=1.0, causal=True)
    layer = layer_of((Blocks(source=source),), 4, 4)
    expected = torch.tril(torch.ones(4, 4)) / torch.arange(1, 5)[:, None]
    assert torch.allclose(stream.uniform_rows(layer, range(4)), expected)


def test_additive_masks_below_half_of_the_minimum_forbid_a_key():
    bias = torch.zeros(1, 1, 1, 3)
    bias[..., 2] = torch.finfo(torch.float32).min
    source = Factored(q=torch.randn(1, 1, 2, 3), k=torch.randn(1, 1, 3, 3), scale=1.0, bias=bias)
    layer = layer_of((Blocks(source=source),), 2, 3)
    assert stream.uniform_rows(layer, [0]).tolist() == [[0.5, 0.5, 0.0]]


def test_uniform_without_a_known_mask_raises():
    layer = layer_of((Blocks(source=Dense(weights=torch.full((1, 1, 2, 2), 0.5))),), 2, 2)
    with pytest.raises(ModelError, match="no uniform baseline"):
        stream.uniform_rows(layer, [0])


def test_a_row_without_an_allowed_key_is_empty_and_gives_nothing():
    mask = torch.tensor([[True, True], [False, False]])[None, None]
    source = Factored(q=torch.randn(1, 1, 2, 3), k=torch.randn(1, 1, 2, 3), scale=1.0, mask=mask)
    layer = layer_of((Blocks(source=source),), 2, 2)
    found = stream.statistics(layer)
    assert found.empty.tolist() == [False, True]
    assert layer.weights()[0, 1].tolist() == [0.0, 0.0]
    assert found.outside.abs().max() < 1e-6


def test_a_batch_is_split_into_samples_that_share_memory():
    source = Factored(q=torch.randn(3, 1, 4, 2), k=torch.randn(3, 1, 4, 2), scale=1.0)
    layer = layer_of((Blocks(source=source, sample=torch.arange(3)),), 4, 4)
    one = layer.sample(1)
    assert one.storage[0].source.q.data_ptr() == source.q[1].data_ptr()
    assert torch.equal(one.weights()[0], source.values(slice(1, 2), slice(None))[0, 0])
    with pytest.raises(InputError, match="3 samples"):
        layer.weights()
    with pytest.raises(InputError, match="3 samples"):
        stream.received(layer)


def test_heads_that_are_not_there_are_named():
    layer = layer_of((Blocks(source=Dense(weights=torch.full((1, 2, 2, 2), 0.5))),), 2, 2)
    with pytest.raises(NotFoundError, match="no head 2: there are 2, 0 to 1"):
        layer.weights(heads=[2])
    with pytest.raises(InputError, match="mean, max or min"):
        stream.received(layer, heads="median")


def test_an_axis_of_the_wrong_length_is_refused():
    with pytest.raises(InputError, match="4 query tokens"):
        layer_of((Blocks(source=Dense(weights=torch.rand(1, 1, 4, 4))),), 5, 4)


def test_empty_selections_are_empty_and_not_an_accident():
    layer = layer_of((Blocks(source=Dense(weights=torch.rand(1, 2, 3, 3))),), 3, 3)
    assert layer.weights(queries=[]).shape == (2, 0, 3)
    assert layer.weights(heads=[]).shape == (0, 3, 3)
    assert layer.storage[0].rows(1, 1).weights.shape == (2, 0, 3)
    with pytest.raises(InputError, match="No head was chosen"):
        stream.received(layer, heads=[])


def test_edges_beyond_their_axes_are_refused():
    edges = Edges.sort(query=torch.tensor([0]), key=torch.tensor([5]), values=torch.ones(1, 1), query_count=2)
    with pytest.raises(InputError, match="up to key node 5, over axes of 2 and 3 nodes"):
        layer_of(edges, 2, 3)
    with pytest.raises(InputError, match="edges of 2 query nodes"):
        layer_of(edges, 4, 6)
