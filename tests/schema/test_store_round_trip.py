"""Maps of any storage, axis and medium come back from a file as they were."""

import copy
import os
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from axis_strategies import AXES

from mmattn.schema.axes import Axis
from mmattn.schema.edges import Edges
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.media import Clip, Graph, Photo, Sound, Words
from mmattn.schema.source import Source
from mmattn.schema.store import load, save
from mmattn.schema.weights import Blocks, Dense, Factored

# beartype looks at a random item of a list; hypothesis would rather we did not.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(one: object, two: object) -> bool:
    """Field by field and bit by bit, with dtypes: the plain twin of a round trip."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    if is_dataclass(one):
        return type(one) is type(two) and all(
            same(getattr(one, f.name), getattr(two, f.name))
            for f in fields(one)
            if f.name not in ("rerun", "model_ref")
        )
    if isinstance(one, tuple):
        return isinstance(two, tuple) and len(one) == len(two) and all(map(same, one, two))
    return one == two


DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])


@st.composite
def blocks(draw: st.DrawFn, queries: int, keys: int, heads: int) -> Blocks:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    indexed = draw(st.booleans())
    count, dim = draw(st.integers(1, 3)) if indexed else 1, 3
    dtype = draw(DTYPES)
    query, key = (draw(st.integers(1, 4)), draw(st.integers(1, 4))) if indexed else (queries, keys)
    mask = torch.rand(1, 1, query, key, generator=generator) > 0.3 if draw(st.booleans()) else None
    if draw(st.booleans()):
        source = Dense(weights=torch.rand(count, heads, query, key, generator=generator).to(dtype), mask=mask)
    else:
        bias = torch.rand(1, heads, query, key, generator=generator)
        bias[..., 0] = -torch.inf
        source = Factored(
            q=torch.randn(count, heads, query, dim, generator=generator).to(dtype),
            k=torch.randn(
                count, draw(st.sampled_from([h for h in (1, 2, 4) if heads % h == 0])), key, dim, generator=generator
            ).to(dtype),
            scale=draw(st.floats(0.1, 2.0)),
            mask=mask,
            bias=draw(st.sampled_from([None, bias])),
            causal=draw(st.booleans()),
            softcap=draw(st.sampled_from([None, 30.0])),
        )
    if not indexed:
        return Blocks(source=source)
    return Blocks(
        source=source,
        sample=torch.zeros(count, dtype=torch.long),
        query_index=torch.randint(-1, queries, (count, query), generator=generator),
        key_index=torch.randint(-1, keys, (count, key), generator=generator),
        coefficient=torch.rand(count, query, generator=generator),
    )


@st.composite
def layers(draw: st.DrawFn, axes: st.SearchStrategy[Axis]) -> AttentionLayer:
    query = draw(axes)
    key = draw(st.just(query) | axes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    if draw(st.booleans()):
        edge = draw(st.integers(0, 6))
        storage = Edges.sort(
            query=torch.randint(0, len(query), (edge,), generator=generator),
            key=torch.randint(0, len(key), (edge,), generator=generator),
            values=torch.rand(2, edge, generator=generator),
            query_count=len(query),
        )
    else:
        heads = draw(st.sampled_from([1, 2, 4]))
        storage = tuple(draw(st.lists(blocks(len(query), len(key), heads), min_size=1, max_size=2)))
    return AttentionLayer(
        name=draw(st.text(max_size=8)),
        query=(query,),
        key=(key,),
        heads=draw(st.sampled_from([None, (storage if isinstance(storage, Edges) else storage[0]).head_count])),
        storage=storage,
        stream="vision",
        kind=draw(st.sampled_from(["self", "cross"])),
        residual=draw(st.sampled_from(["identity", "learned", "pooled", "none"])),
        normalized=draw(st.sampled_from(["over_keys", "signed"])),
        error=draw(st.none() | st.just(1e-7)),
    )


MEDIA = st.sampled_from(
    [
        Photo(pixels=np.arange(24, dtype=np.uint8).reshape(2, 4, 3), name="cat.jpg"),
        Words(text="Ein Käse\n猫 \ud800 \x00"),
        Sound(samples=np.linspace(-1, 1, 9).astype(np.float32), rate_hz=16000),
        Clip(frames=np.zeros((2, 3, 4, 3), np.uint8), times_s=np.array([0.0, 0.04])),
        Graph(edges=np.array([[0, 1], [1, 0]]), node_count=2, labels=("a", "b"), positions=np.zeros((2, 2))),
    ]
)


@st.composite
def maps(draw: st.DrawFn) -> AttentionMaps:
    return AttentionMaps(
        layers=tuple(draw(st.lists(layers(AXES), min_size=1, max_size=3))),
        media=tuple(draw(st.lists(MEDIA, max_size=1))),
        source=Source(model="timm ViT", versions={"torch": "2.14"}),
        labels=draw(st.sampled_from([None, ("cat", "dog")])),
        readout="cls",
        rerun=lambda: None,
    )


@quick
@given(maps())
def test_maps_of_any_storage_axis_and_medium_come_back_as_they_were(tmp_path_factory, given_maps):
    path = tmp_path_factory.mktemp("maps") / "maps.safetensors"
    save(given_maps, path)
    loaded = load(path)
    assert same(given_maps, loaded)
    assert loaded.rerun is None
    assert os.listdir(path.parent) == [path.name]
    for one, two in zip(given_maps.layers, loaded.layers, strict=True):
        assert all(torch.equal(a.weights(), b.weights()) for a, b in zip(one.storages, two.storages, strict=True))
        assert one.query_axis == two.query_axis


@quick
@given(AXES)
def test_an_axis_that_layers_share_is_one_object_again(tmp_path_factory, axis):
    path = tmp_path_factory.mktemp("maps") / "maps.safetensors"
    edges = Edges.sort(
        query=torch.zeros(0).long(), key=torch.zeros(0).long(), values=torch.zeros(1, 0), query_count=len(axis)
    )
    layer = [
        AttentionLayer(name=name, query=(axis,), key=(copy.deepcopy(axis),), heads=1, storage=edges) for name in "ab"
    ]
    save(AttentionMaps(layers=tuple(layer)), path)
    first, second = load(path).layers
    assert first.query_axis is first.key_axis is second.query_axis
    assert first.query_axis == axis
