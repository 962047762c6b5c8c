"""Lines between the words of a text and the patches of a picture: `python -m benchmarks.links`.

20 words with 5 lines each, drawn 1280 px wide, without encoding. mmattn's links against what people write with
matplotlib today: a picture with its grid in one axes, the words in another, and a ConnectionPatch for every line,
its width and opacity by weight; and against one LineCollection of the same curves, matplotlib's fastest way, which has
to know where the words stand.

"lines alone" draws what is drawn in matplotlib's ways: the picture, its grid, the lines and the words. The default
also mutes the picture, chooses the links, lays the words out, outlines patches, and has a legend and a caption.
"""

from argparse import Namespace
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks.harness import Case, Run, Target, Way, main
from benchmarks.overlay import photo
from mmattn.render import links, raster
from mmattn.render.columns import beside, curves
from mmattn.render.marks import Boxes, Dots
from mmattn.schema.axes import PatchGrid, Tokens
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance
from mmattn.schema.tokens import split_words

ALONE, DEFAULT = "mmattn, lines alone", "mmattn, default"
PATCHES, COLLECTION = "matplotlib ConnectionPatch", "matplotlib LineCollection"
NAME = "20 words x 5 lines, 1280 px"
TEXT = "two brown dogs lying on green grass beside an old red car while seven small white birds fly over tall trees"
WIDTH_PX, SIZE = 1280, (1003, 668)  # a picture that is 1280 px wide with its words

TARGETS = (
    Target(case=NAME, way=ALONE, against=PATCHES, limit=1 / 8),
    Target(case=NAME, way=DEFAULT, against=PATCHES, limit=1 / 5),
)


def cases(options: Namespace) -> list[Case]:
    ways = {PATCHES: _connection_patches, COLLECTION: _collection, DEFAULT: _default, ALONE: _alone}
    count, width = (3, 320) if options.tiny else (20, WIDTH_PX)
    made = [Way(name=name, prepare=partial(prepare, count, width), against=PATCHES) for name, prepare in ways.items()]
    return [Case(name="3 words x 5 lines, 320 px" if options.tiny else NAME, ways=tuple(made))]


def relevance(count: int) -> Relevance:
    """Return random shares of attention from words to 14 x 14 patches, a few of them strong."""
    spans = split_words(TEXT)[:count]
    text = Tokens.of(TEXT, pieces=[TEXT[slice(*span)] for span in spans], spans=spans)
    grid = PatchGrid.plain(rows=14, cols=14, patch_px=(16, 16), size_px=SIZE)
    values = torch.rand(len(spans), 196, generator=torch.Generator().manual_seed(0)) ** 8
    return Relevance(
        values=values / values.sum(dim=1, keepdim=True),
        axis=grid,
        query_axis=text,
        labels=text.pieces,
        method="cross",
        media=Photo(pixels=photo(*SIZE)),
    )


def _default(count: int, width: int) -> Run:
    found = relevance(count)
    return lambda: raster.render(links(found, k=5), width_px=width)


def _alone(count: int, width: int) -> Run:
    drawing = links(relevance(count), k=5, title="", caption="")
    kept = tuple(mark for mark in drawing.panels[0].marks if not isinstance(mark, Boxes | Dots))
    bare = replace(drawing, panels=(replace(drawing.panels[0], marks=kept, keys=()),))
    return lambda: raster.render(bare, width_px=width)


def _connection_patches(count: int, width: int) -> Run:
    import matplotlib.pyplot as plt
    from matplotlib.patches import ConnectionPatch

    plt.switch_backend("agg")
    found = relevance(count)
    links_ = _links(found)

    def run() -> object:
        figure, left, right = _figure(found, width)
        for word, (x, y), share in links_:
            line = ConnectionPatch(
                xyA=(0.0, word),
                coordsA=right.transData,
                xyB=(x, y),
                coordsB=left.transData,
                connectionstyle="arc3,rad=0.1",
                linewidth=0.5 + 4 * share,
                alpha=0.3 + 0.7 * share,
                color=f"C{word % 10}",
            )
            figure.add_artist(line)
        return _drawn(figure)

    return run


def _collection(count: int, width: int) -> Run:
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    plt.switch_backend("agg")
    found = relevance(count)
    links_ = _links(found)
    column = beside(SIZE, found.labels)

    def run() -> object:
        figure, left, _ = _figure(found, width)
        paths = curves(column.anchors[[word for word, _, _ in links_]], np.array([at for _, at, _ in links_]))
        shares = np.array([share for _, _, share in links_])
        colors = [f"C{word % 10}" for word, _, _ in links_]
        left.add_collection(
            LineCollection(
                list(paths), linewidths=0.5 + 4 * shares, alpha=0.3 + 0.7 * shares, colors=colors, clip_on=False
            )
        )
        return _drawn(figure)

    return run


def _links(found: Relevance) -> list[tuple[int, tuple[float, float], float]]:
    """Return word, place and share of the strongest for the five strongest patches of each word."""
    boxes = found.axis.places()
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    top = found.values.topk(5, dim=1)
    most = float(found.values.max())
    return [
        (word, (float(middles[patch][0]), float(middles[patch][1])), float(value) / most)
        for word, (patches, values) in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        for patch, value in zip(patches, values, strict=True)
    ]


def _figure(found: Relevance, width: int):  # type: ignore[no-untyped-def]
    """Return a figure with the picture and its grid at the left and the words at the right."""
    import matplotlib.pyplot as plt

    assert isinstance(found.media, Photo)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(width / 100, 0.56 * width / 100), dpi=100, gridspec_kw={"width_ratios": [4, 1]}
    )
    left.imshow(found.media.pixels)
    for step in range(1, 14):
        left.axvline(step * SIZE[0] / 14, color="white", alpha=0.25, linewidth=0.7)
        left.axhline(step * SIZE[1] / 14, color="white", alpha=0.25, linewidth=0.7)
    for word, label in enumerate(found.labels):
        right.text(0.1, word, label, va="center")
    right.set_xlim(0, 1)
    right.set_ylim(len(found.labels) - 0.5, -0.5)
    left.set_axis_off()
    right.set_axis_off()
    return figure, left, right


def _drawn(figure) -> object:  # type: ignore[no-untyped-def]
    import matplotlib.pyplot as plt

    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()
    plt.close(figure)
    return pixels


if __name__ == "__main__":
    main(title="Links", module="benchmarks.links", cases=cases, targets=TARGETS)
