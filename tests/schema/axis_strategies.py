"""Random axes for property tests."""

import itertools

import numpy as np
from hypothesis import strategies as st

from mmattn.schema.axes import (
    Axis,
    Joined,
    Nodes,
    PatchGrid,
    Positions,
    Slots,
    SpectrogramGrid,
    Timeline,
    Tokens,
    TubeletGrid,
)

SPECIAL = st.lists(st.sampled_from(["cls", "register", "distillation"]), max_size=3).map(tuple)
SIDE = st.integers(1, 6)
SCALE = st.floats(0.05, 20.0)
TURNS = [
    np.array(m, dtype=float)
    for m in (
        [[1, 0], [0, 1]],
        [[-1, 0], [0, 1]],
        [[1, 0], [0, -1]],
        [[-1, 0], [0, -1]],
        [[0, 1], [1, 0]],
        [[0, -1], [1, 0]],
        [[0, 1], [-1, 0]],
        [[0, -1], [-1, 0]],
    )
]


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Crops, pads, unequal resizes, flips and quarter turns."""
    turn = draw(st.sampled_from(TURNS))
    scale = np.array([draw(SCALE), draw(SCALE)])
    shift = np.array([draw(st.floats(-500, 500)), draw(st.floats(-500, 500))])
    return np.concatenate([turn * scale[:, None], shift[:, None]], axis=1)


@st.composite
def scattered_cells(draw: st.DrawFn, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Cells in any order, some missing, special tokens anywhere among them."""
    kept = draw(st.permutations(range(count)))[: draw(st.integers(1, count))]
    cells, roles = list(kept), ["content"] * len(kept)
    for role in draw(SPECIAL):
        at = draw(st.integers(0, len(cells)))
        cells.insert(at, -1)
        roles.insert(at, role)
    return np.array(cells, dtype=np.int64), tuple(roles)


@st.composite
def patch_grids(draw: st.DrawFn) -> PatchGrid:
    rows, cols = draw(SIDE), draw(SIDE)
    cells, roles = draw(scattered_cells(rows * cols))
    wide, high = draw(st.integers(1, 32)), draw(st.integers(1, 32))
    over = [draw(st.floats(-0.45, 0.7)) for _ in range(4)]  # the outermost cells: shares that they are larger by
    limits = (-over[0] * wide, -over[1] * high, (cols + over[2]) * wide, (rows + over[3]) * high)
    return PatchGrid(
        rows=rows,
        cols=cols,
        patch_px=(wide, high),
        limits_px=draw(st.sampled_from([None, limits])),
        size_px=(draw(st.integers(1, 900)), draw(st.integers(1, 900))),
        to_input=draw(affines()),
        cells=cells,
        roles=roles,
    )


@st.composite
def tubelet_grids(draw: st.DrawFn) -> TubeletGrid:
    rows, cols, steps, depth = draw(SIDE), draw(SIDE), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    gaps = draw(st.lists(st.floats(0.01, 2.0), min_size=steps * depth, max_size=steps * depth))
    times = np.cumsum(gaps) - gaps[0]
    return TubeletGrid.plain(
        rows=rows,
        cols=cols,
        patch_px=(draw(st.integers(1, 32)), draw(st.integers(1, 32))),
        size_px=(draw(st.integers(1, 900)), draw(st.integers(1, 900))),
        frames=list(range(0, 3 * steps * depth, 3)),
        times_s=times,
        depth=depth,
        order=draw(st.sampled_from(["t h w", "h w t"])),
        to_input=draw(affines()),
        special=draw(SPECIAL),
        frame_s=draw(st.floats(0.01, 1.0)),
    )


@st.composite
def spectrogram_grids(draw: st.DrawFn) -> SpectrogramGrid:
    heights = draw(st.lists(st.floats(1.0, 500.0), min_size=1, max_size=6))
    steps = draw(SIDE)
    return SpectrogramGrid.plain(
        edges_s=np.arange(steps + 1) * draw(st.floats(0.01, 1.0)),
        edges_hz=np.cumsum([0.0, *heights]),
        order=draw(st.sampled_from(["frequency", "time"])),
        special=draw(SPECIAL),
        sound_s=draw(st.none() | st.floats(0.0, 5.0)),
    )


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    gaps = draw(st.lists(st.floats(0.05, 3.0), max_size=3))
    return Timeline.plain(
        count=draw(st.integers(1, 40)),
        hop_s=draw(st.sampled_from([0.01, 0.02, 0.0125, 1 / 3])),
        stride=draw(st.integers(1, 4)),
        audio_s=draw(st.floats(0.1, 6.0)),
        offsets_s=[0.0, *np.cumsum(gaps)],
        special=draw(SPECIAL),
    )


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    """Words cut into pieces, some characters into bytes, with lone word marks and special tokens."""
    words = draw(st.lists(st.text("abcé猫🎉", min_size=1, max_size=6), min_size=1, max_size=5))
    text, spans, pieces = "", [None], ["[CLS]"]
    for word in words:
        text += " " if text else ""
        if draw(st.booleans()):
            spans.append((len(text), len(text)))
            pieces.append("▁")
        at = len(text)
        text += word
        while at < len(text):
            length = draw(st.integers(1, len(text) - at))
            copies = draw(st.integers(1, 3)) if length == 1 else 1
            spans += [(at, at + length)] * copies
            pieces += [text[at : at + length]] * copies
            at += length
    return Tokens.of(text, pieces=pieces, spans=spans)


@st.composite
def nodes(draw: st.DrawFn) -> Nodes:
    ids = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True))
    count = len(ids) + 1
    return Nodes(
        roles=("graph",) + ("content",) * len(ids),
        ids=np.array([-1, *ids]),
        node_type=draw(st.sampled_from(["", "paper"])),
        labels=draw(st.none() | st.just(tuple(f"n{i}" for i in range(count)))),
        positions=draw(st.none() | st.just(np.linspace(-1, 1, 2 * count).reshape(-1, 2))),
        full_ids=draw(st.none() | st.just(np.arange(count) * 7 - 1)),
    )


COUNTED = st.integers(1, 9).map(Positions.count) | st.integers(1, 9).map(Slots.count)
PLACED = patch_grids() | tubelet_grids() | spectrogram_grids() | timelines() | tokens()
PARTS = PLACED | nodes() | COUNTED


@st.composite
def joined(draw: st.DrawFn) -> Joined:
    parts = draw(st.lists(PARTS, min_size=1, max_size=3))
    total = sum(map(len, parts)) + draw(st.integers(0, 3))
    order = draw(st.permutations(range(total)))
    ends = np.cumsum([0, *map(len, parts)])
    where = [sorted(order[a:b]) for a, b in itertools.pairwise(ends)]
    return Joined.of({f"part {i}": part for i, part in enumerate(parts)}, tokens=where, length=total, rest="newline")


AXES: st.SearchStrategy[Axis] = PARTS | joined()
