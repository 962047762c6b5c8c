"""What a file of maps holds and costs, and that every other file gives one clear error."""

import contextlib
import json
import os
import stat
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mmattn.errors import FormatError, GoneError, InputError, MmattnError, NotFoundError, OutputError
from mmattn.schema.axes import Nodes, PatchGrid, Positions, Slots, Tokens
from mmattn.schema.edges import Edges
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.media import Photo, Words
from mmattn.schema.store import load, save
from mmattn.schema.weights import Blocks, Dense, Factored

# beartype looks at a random item of a list; hypothesis would rather we did not.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


def vit(tokens: int = 5, *, q: torch.Tensor | None = None) -> AttentionMaps:
    axis = PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=(16, 16), special=("cls",))
    q = torch.randn(1, 2, tokens, 4) if q is None else q
    k, mask = torch.randn(1, 2, tokens, 4), torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
    made = [
        AttentionLayer(
            name=f"blocks.{i}.attn",
            query=(axis,),
            key=(axis,),
            heads=2,
            storage=(Blocks(source=Factored(q=q, k=k, scale=0.5, mask=mask)),),
        )
        for i in range(2)
    ]
    return AttentionMaps(layers=tuple(made))


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "maps.safetensors"
    save(vit(), path)
    return path


def header_of(path: Path) -> tuple[dict, dict]:
    """The tensors and the JSON of a saved file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, json.loads(file.metadata()["mmattn"])  # noqa: SIM118


def forge(path: Path, change) -> Path:
    """Write the file again with something changed in its tensors or its JSON."""
    tensors, header = header_of(path)
    change(tensors, header)
    save_file(tensors, path, metadata={"mmattn": json.dumps(header)})
    return path


def test_a_loaded_file_cannot_run_again(saved):
    with pytest.raises(GoneError, match="a loaded file has none"):
        _ = load(saved).model


def test_a_mask_that_layers_share_is_written_once(saved):
    tensors, _ = header_of(saved)
    assert sum(name.endswith("mask") for name in tensors) == 1


def test_a_view_is_written_without_the_buffer_that_it_views(tmp_path):
    buffer = torch.randn(3, 1, 2, 5, 4)
    save(vit(q=buffer[1]), tmp_path / "a")
    assert torch.equal(load(tmp_path / "a").layers[0].storage[0].source.q, buffer[1])
    assert (tmp_path / "a").stat().st_size < 4500


def test_a_file_may_be_saved_over_the_one_that_it_was_loaded_from(saved):
    loaded = load(saved)
    before = loaded.layers[0].weights()
    save(loaded, saved)
    assert torch.equal(loaded.layers[1].weights(), load(saved).layers[1].weights())
    assert torch.equal(before, load(saved).layers[0].weights())


def test_loading_keeps_tensors_on_disk(tmp_path):
    axis = Positions.count(4000)
    q = torch.zeros(1, 8, 4000, 512)
    layer = AttentionLayer(
        name="a", query=(axis,), key=(axis,), heads=8, storage=(Blocks(source=Factored(q=q, k=q, scale=1.0)),)
    )
    save(AttentionMaps(layers=(layer,)), tmp_path / "a")
    assert (tmp_path / "a").stat().st_size > 60e6

    def own():
        return int(
            next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon")).split()[1]
        )

    if not Path("/proc/self/status").exists():
        pytest.skip("reads memory from /proc")
    before = own()
    loaded = load(tmp_path / "a")
    assert own() - before < 20_000
    assert loaded.layers[0].storage[0].source.q.shape == q.shape


def test_every_cut_of_a_file_is_one_clear_error(saved):
    whole = saved.read_bytes()
    for length in sorted({0, 1, 7, 8, 9, *range(10, len(whole), 97), len(whole) - 1}):
        saved.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"cannot be loaded: it is no whole safetensors file of \d+ bytes"):
            load(saved)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_with_a_changed_byte_loads_or_is_refused_but_never_breaks(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    if not (whole := _WHOLE):
        save(vit(), path)
        whole.extend(path.read_bytes())
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    with contextlib.suppress(FormatError):
        load(path).layers[0].weights()


_WHOLE = bytearray()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a safetensors file at all, only some text", "no whole safetensors file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "no whole safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "safetensors file of something else"),
    ],
)
def test_foreign_and_absurd_files_are_refused(tmp_path, content, said):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError, match=said):
        load(tmp_path / "a")


def test_the_weights_of_a_model_are_told_from_maps(tmp_path):
    save_file({"head.weight": torch.zeros(2, 2)}, tmp_path / "a", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"safetensors file of something else.* Save the maps again"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[]", "null", '{"format": "mmattn maps"}', '{"a": 1e999}', "\ud800"[:0]]
)
def test_headers_that_are_no_header_are_refused(tmp_path, text):
    save_file({}, tmp_path / "a", metadata={"mmattn": text})
    with pytest.raises(FormatError, match="its header is"):
        load(tmp_path / "a")


def test_a_newer_schema_says_which_and_what_to_upgrade(saved):
    def newer(_, header):
        header |= {"version": 7, "written_by": "3.1"}

    with pytest.raises(
        FormatError, match=r"schema version 7, written by mmattn 3.1, .* upgrade with: pip install -U mmattn"
    ):
        load(forge(saved, newer))


def q_of(header: dict) -> dict:
    return header["maps"]["layers"][0]["storage"][0]["source"]


HOSTILE = {
    "a tensor that is missing": (lambda t, h: t.pop("maps.layers.0.storage.0.source.q"), "tensor .* is missing"),
    "integers for q": (
        lambda t, h: t.update({"maps.layers.0.storage.0.source.q": torch.ones(1, 2, 5, 4).long()}),
        r"an array of int64 \[1, 2, 5, 4\] stands where Float",
    ),
    "q of another rank": (
        lambda t, h: t.update({"maps.layers.0.storage.0.source.q": torch.ones(2, 5, 4)}),
        r"an array of float32 \[2, 5, 4\]",
    ),
    "q of another width than k": (
        lambda t, h: t.update({"maps.layers.0.storage.0.source.q": torch.ones(1, 2, 5, 7)}),
        "an array of float32",
    ),
    "NaN in q": (
        lambda t, h: t["maps.layers.0.storage.0.source.q"].view(-1)[3:4].fill_(torch.nan),
        "its q .* has NaN or infinite",
    ),
    "infinity in k": (
        lambda t, h: t["maps.layers.0.storage.0.source.k"].view(-1)[:1].fill_(torch.inf),
        "its k .* has NaN or infinite",
    ),
    "NaN in weights under another name": (
        lambda t, h: (t.update({"x": torch.full((1, 2, 5, 4), torch.nan)}), q_of(h).update(q={"tensor": "x"})),
        r"its q \(x\) has NaN",
    ),
    "a billion tokens": (
        lambda t, h: h["shared"][0].update(roles=[["content", 10**9]]),
        "1000000000 tokens of role 'content' are more",
    ),
    "a negative count": (lambda t, h: h["shared"][0].update(roles=[["content", -1]]), "tokens of role"),
    "a grid of a trillion cells": (lambda t, h: h["shared"][0].update(rows=10**6, cols=10**6), "larger than any"),
    "a cell outside its grid": (
        lambda t, h: t.update({"axis.0.PatchGrid.cells": torch.tensor([-1, 0, 1, 2, 99])}),
        "Cells of a 2 x 2 grid",
    ),
    "a class of python": (lambda t, h: h["maps"]["layers"][0].update(type="os.system"), "stands where AttentionLayer"),
    "a class of the wrong kind": (lambda t, h: h["shared"].__setitem__(0, {"type": "Source"}), "it is no axis"),
    "an axis of its own": (
        lambda t, h: h["shared"].__setitem__(
            0,
            {"type": "Joined", "roles": [["content", 5]], "parts": [{"shared": 0}], "tokens": [], "names": ["a"]},
        ),
        "refers to itself",
    ),
    "an axis that is not there": (lambda t, h: h["maps"]["layers"][0]["query"][0].update(shared=9), "IndexError"),
    "a field that is not there": (lambda t, h: h["maps"].update(extra=1), "AttentionMaps has no field 'extra'"),
    "a field that is missing": (lambda t, h: q_of(h).pop("scale"), "Factored lacks scale"),
    "a word for a number": (lambda t, h: q_of(h).update(scale="1"), "'1' stands where float"),
    "an infinite number": (lambda t, h: q_of(h).update(scale=float("inf")), "inf stands where float"),
    "a kind that nobody knows": (lambda t, h: h["maps"]["layers"][0].update(kind="psychic"), "'psychic' stands where"),
    "no layers": (lambda t, h: h["maps"].update(layers=[]), "These maps have no layer"),
    "a name for the tensors' name": (lambda t, h: q_of(h).update(q={"tensor": ["a"]}), "is missing"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_clear_error(saved, case):
    change, said = HOSTILE[case]
    with pytest.raises(FormatError, match=said) as caught:
        load(forge(saved, change))
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


def test_a_hostile_count_allocates_nothing(saved):
    path = forge(
        saved,
        lambda t, h: h["shared"][0].update(roles=[["content", 1 << 23], ["content", 1 << 23], ["content", 1 << 23]]),
    )
    tracemalloc.start()
    with pytest.raises(FormatError):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 400 << 20
    tracemalloc.stop()


def edges_file(path: Path, change) -> Path:
    axis = Nodes.count(3)
    edges = Edges.sort(query=torch.tensor([0, 1]), key=torch.tensor([1, 2]), values=torch.ones(1, 2), query_count=3)
    save(AttentionMaps(layers=(AttentionLayer(name="gat", query=(axis,), key=(axis,), heads=1, storage=edges),)), path)
    return forge(path, change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, h: t["maps.layers.0.storage.key"].fill_(7), "up to key node 7, over axes of 3 and 3 nodes"),
        (lambda t, h: t["maps.layers.0.storage.query"].fill_(7), "Edges name query nodes 7 to 7"),
        (lambda t, h: t["maps.layers.0.storage.position"].fill_(-9), "positions below -1"),
        (lambda t, h: t["maps.layers.0.storage.values"].fill_(torch.nan), "its values .* NaN"),
        (lambda t, h: h["maps"]["layers"][0]["storage"].update(query_count=10**12), "query_count is 1000000000000"),
        (lambda t, h: t.update({"maps.layers.0.storage.key": torch.tensor([1])}), "an array of int64"),
    ],
)
def test_edges_out_of_range_are_refused(tmp_path, change, said):
    with pytest.raises(FormatError, match=said):
        load(edges_file(tmp_path / "a", change))


def test_block_indices_and_samples_out_of_range_are_refused(tmp_path):
    axis = Slots.count(3)
    index = torch.tensor([[0, 1]])
    source = Dense(weights=torch.ones(1, 1, 2, 2) / 2)
    for field, bad in (("query_index", 3), ("key_index", -2), ("sample", 5), ("sample", -1)):
        made = Blocks(source=source, query_index=index.clone(), key_index=index.clone(), sample=torch.zeros(1).long())
        layer = AttentionLayer(name="a", query=(axis,), key=(axis,), heads=1, storage=(made,))
        save(AttentionMaps(layers=(layer,)), tmp_path / "a")
        name = f"maps.layers.0.storage.0.{field}"
        with pytest.raises(FormatError, match=r"names? (query|key) token|name samples"):
            load(
                forge(tmp_path / "a", lambda t, h, name=name, bad=bad: t.update({name: torch.full_like(t[name], bad)}))
            )


def test_check_false_reads_a_file_with_nan_as_it_is(saved):
    path = forge(saved, HOSTILE["NaN in q"][0])
    assert torch.isnan(load(path, check=False).layers[0].storage[0].source.q).any()


def test_maps_with_nan_are_not_saved_in_the_first_place(tmp_path):
    q = torch.randn(1, 2, 5, 4).half()
    q[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"Layer blocks.0.attn has NaN or infinite numbers in q"):
        save(vit(q=q), tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_large_finite_half_precision_numbers_are_finite(tmp_path):
    save(vit(q=torch.full((1, 2, 5, 4), 65504.0, dtype=torch.float16)), tmp_path / "a")
    assert load(tmp_path / "a").layers[0].storage[0].source.q.max() == 65504


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match=r"There is no file .*nothing.safetensors"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(NotFoundError, match="There is no file"):
        load(tmp_path)


@pytest.mark.parametrize("where", ["missing/maps.safetensors", "file/maps.safetensors", "."])
def test_a_place_that_cannot_be_written_leaves_nothing_behind(tmp_path, where):
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match=r"cannot be written|is a folder"):
        save(vit(), tmp_path / where)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "maps.safetensors"
    save(vit(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save(vit(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["maps.safetensors"]


def test_a_saved_file_has_the_permissions_of_any_other(saved, tmp_path):
    (tmp_path / "plain").write_text("")
    mode = lambda p: stat.S_IMODE(p.stat().st_mode)  # noqa: E731
    assert mode(saved) == mode(tmp_path / "plain")


def test_every_error_of_the_store_is_of_the_family(tmp_path):
    with pytest.raises(MmattnError):
        load(tmp_path / "nothing")


def test_texts_with_bytes_and_words_come_back(tmp_path):
    axis = Tokens.of("hi 🎉", pieces=["hi", "Ġð", "Ł"], spans=[(0, 2), (3, 4), (3, 4)])
    edges = Edges.sort(query=torch.tensor([0]), key=torch.tensor([1]), values=torch.ones(1, 1), query_count=3)
    layer = AttentionLayer(name="a", query=(axis,), key=(axis,), heads=1, storage=edges)
    AttentionMaps(layers=(layer,), media=(Words(text="hi 🎉"),)).save(tmp_path / "a")
    assert [w.text for w in load(tmp_path / "a").layers[0].key_axis.words()] == ["hi", "🎉"]


def test_a_read_only_or_mirrored_picture_is_saved_without_a_warning(tmp_path, recwarn):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    fixed = pixels.copy()
    fixed.setflags(write=False)
    for picture in (fixed, pixels[:, ::-1]):
        save(replace(vit(), media=(Photo(pixels=picture),)), tmp_path / "a")
        assert np.array_equal(load(tmp_path / "a").media[0].pixels, picture)
    assert not [w for w in recwarn if "writable" in str(w.message)]
