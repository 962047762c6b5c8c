"""Drawing a map over its picture, and a sheet of all layers x heads: `python -m benchmarks.overlay`.

Without encoding: mmattn's overlay against OpenCV's own resize + LUT + addWeighted, which is the least that any
overlay does, grad-cam's show_cam_on_image with what its users write before it (the picture as floats, the map
resized), and matplotlib's imshow of picture and map with savefig, which can only be had as a file.

"photo and heat alone" does what those do: no title, legend or caption, the picture in its own color. The default
overlay also mutes the picture and has all three; both are told, and ours with its PNG.
"""

import io
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch

from benchmarks.harness import Case, Run, Target, Way, main
from mmattn.render import overlay, raster, sheet
from mmattn.schema.axes import PatchGrid, Slots
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

Opacity: TypeAlias = Literal["value"] | float

CONSTANT, BY_VALUE = "mmattn, constant opacity, photo and heat alone", "mmattn, by value, photo and heat alone"
DEFAULT_CONSTANT, DEFAULT, WITH_PNG = "mmattn, constant opacity", "mmattn, default", "mmattn, default, with PNG"
OPENCV, GRAD_CAM, MATPLOTLIB = "OpenCV resize + LUT + addWeighted", "grad-cam show_cam_on_image", "matplotlib savefig"
SHEET, SUBPLOTS = "mmattn sheet, with PNG", "matplotlib subplots, with PNG"
FULL_HD, TILES = "overlay, 1920 x 1080 px, 14 x 14 patches", "sheet, 12 layers x 12 heads, 196 patches"

TARGETS = (
    Target(case=FULL_HD, way=CONSTANT, against=OPENCV, limit=1.5),
    Target(case=FULL_HD, way=BY_VALUE, against=OPENCV, limit=3.0),
    Target(case=FULL_HD, way=CONSTANT, against=GRAD_CAM, limit=1 / 10),
    Target(case=FULL_HD, way=BY_VALUE, against=GRAD_CAM, limit=1 / 5),
    Target(case=FULL_HD, way=CONSTANT, against=MATPLOTLIB, limit=1 / 100),
    Target(case=FULL_HD, way=BY_VALUE, against=MATPLOTLIB, limit=1 / 100),
    Target(case=TILES, way=SHEET, against=SUBPLOTS, limit=1 / 10),
)


def cases(options: Namespace) -> list[Case]:
    size = (320, 180) if options.tiny else (1920, 1080)
    layers = 2 if options.tiny else 12
    return [
        _case("overlay, tiny" if options.tiny else FULL_HD, _OVERLAYS, OPENCV, size),
        _case("sheet, tiny" if options.tiny else TILES, _SHEETS, SUBPLOTS, (layers, 12)),
    ]


def _case(name: str, ways: dict[str, Callable[[tuple[int, int]], Run]], against: str, size: tuple[int, int]) -> Case:
    made = (Way(name=way, prepare=partial(prepare, size), against=against) for way, prepare in ways.items())
    return Case(name=name, ways=tuple(made))


def photo(width: int, height: int) -> np.ndarray:
    """Return a picture of soft shapes with some noise: what a PNG encoder meets in a photograph."""
    random = np.random.default_rng(0)
    import cv2

    coarse = random.integers(0, 255, (9, 16, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    noisy: np.ndarray = np.clip(smooth + random.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return noisy


def relevance(width: int, height: int, *, seed: int = 0, patches: int = 14) -> Relevance:
    """Return random shares of attention on a grid of patches over a picture."""
    grid = PatchGrid.plain(
        rows=patches,
        cols=patches,
        patch_px=(width / patches, height / patches),
        size_px=(width, height),
    )
    values = torch.rand(1, patches * patches, generator=torch.Generator().manual_seed(seed))
    return Relevance(
        values=values / values.sum(),
        axis=grid,
        query_axis=Slots.count(1),
        labels=("class token",),
        method="look",
        media=Photo(pixels=photo(width, height)),
    )


def _drawn(opacity: Opacity, size: tuple[int, int]) -> Run:
    found = relevance(*size)
    return lambda: raster.render(overlay(found, opacity=opacity))


def _alone(opacity: Opacity, size: tuple[int, int]) -> Run:
    found = relevance(*size)

    def run() -> object:
        drawing = overlay(found, opacity=opacity, saturation=1.0, title="", caption="")
        bare = replace(drawing.panels[0], bar=None, keys=())
        return raster.render(replace(drawing, panels=(bare,)))

    return run


def _with_png(size: tuple[int, int]) -> Run:
    found = relevance(*size)
    return lambda: raster.encode(overlay(found), "png")


def _opencv(size: tuple[int, int]) -> Run:
    import cv2

    from mmattn.render import color

    pixels, values = photo(*size), _grid(size)
    table = np.ascontiguousarray(color.table("inferno")[:, None, :3])

    def run() -> object:
        index = cv2.resize((values * 255).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
        return cv2.addWeighted(cv2.applyColorMap(index, table), 0.5, pixels, 0.5, 0.0)

    return run


def _grad_cam(size: tuple[int, int]) -> Run:
    import cv2
    from pytorch_grad_cam.utils.image import show_cam_on_image  # type: ignore[import-untyped]

    pixels, values = photo(*size), _grid(size)
    return lambda: show_cam_on_image(np.float32(pixels) / 255, cv2.resize(values, size), use_rgb=True)


def _matplotlib(size: tuple[int, int]) -> Run:
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    pixels, values = photo(*size), _grid(size)
    extent = (0, size[0], size[1], 0)

    def run() -> object:
        figure = plt.figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(pixels, extent=extent)
        axes.imshow(values, extent=extent, cmap="inferno", alpha=0.5, interpolation="bilinear")
        axes.set_axis_off()
        file = io.BytesIO()
        figure.savefig(file, format="png")
        plt.close(figure)
        return file.getvalue()

    return run


def _sheet(size: tuple[int, int]) -> Run:
    rows, cols = size
    made = [relevance(640, 480, seed=number) for number in range(rows * cols)]
    maps = [replace(one, media=made[0].media) for one in made]
    down, across = [f"layer {row}" for row in range(rows)], [f"head {col}" for col in range(cols)]

    def run() -> object:
        drawing = sheet(maps, rows=rows, cols=cols, row_labels=down, col_labels=across)
        return raster.encode(drawing, "png")

    return run


def _subplots(size: tuple[int, int]) -> Run:
    import cv2
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    rows, cols = size
    tile = cv2.resize(photo(640, 480), (112, 84), interpolation=cv2.INTER_AREA)
    grids = [relevance(640, 480, seed=number).values.view(14, 14).numpy() for number in range(rows * cols)]

    def run() -> object:
        figure, axes = plt.subplots(rows, cols, figsize=(1.2 * cols, 0.9 * rows), dpi=112, squeeze=False)
        for number, (ax, grid) in enumerate(zip(axes.flat, grids, strict=True)):
            ax.imshow(tile, extent=(0, 112, 84, 0))
            ax.imshow(grid, extent=(0, 112, 84, 0), cmap="inferno", alpha=0.5, interpolation="bilinear")
            ax.set_axis_off()
            if number < cols:
                ax.set_title(f"head {number}", fontsize=7)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        plt.close(figure)
        return file.getvalue()

    return run


def _grid(size: tuple[int, int]) -> np.ndarray:
    values = relevance(*size).values.view(14, 14).numpy()
    return np.ascontiguousarray((values - values.min()) / (values.max() - values.min()))


_OVERLAYS: dict[str, Callable[[tuple[int, int]], Run]] = {
    OPENCV: _opencv,
    CONSTANT: partial(_alone, 0.5),
    BY_VALUE: partial(_alone, "value"),
    DEFAULT_CONSTANT: partial(_drawn, 0.5),
    DEFAULT: partial(_drawn, "value"),
    WITH_PNG: _with_png,
    GRAD_CAM: _grad_cam,
    MATPLOTLIB: _matplotlib,
}
_SHEETS: dict[str, Callable[[tuple[int, int]], Run]] = {SUBPLOTS: _subplots, SHEET: _sheet}

if __name__ == "__main__":
    main(title="Drawing", module="benchmarks.overlay", cases=cases, targets=TARGETS)
