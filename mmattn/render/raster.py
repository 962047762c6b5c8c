"""Drawing -> pixels, with OpenCV; the fast way.

The inner step is `blend_heat`: the heat as one byte a pixel, one table look-up, one blend. Opacity
alike everywhere costs what OpenCV's own resize + LUT + addWeighted costs; opacity by value uses a
table of colors already multiplied by their opacity, and about twice that.
"""

from functools import lru_cache
from typing import TypeAlias, assert_never

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mmattn.errors import InputError
from mmattn.render import brush, color, field, fonts, letters
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.layout import Layout, Rect, Strip, Swatch, Text, arrange, natural_width, panel_affine
from mmattn.render.marks import Boxes, Color, Dots, Fills, Heat, Key, Labels, Lines, Raster, Strokes, Unseen

Pixels: TypeAlias = UInt8[np.ndarray, "row col 3"]

# Pictures that were resized already, by identity and size; many shapes, so without one in the annotation.
Resized: TypeAlias = dict[tuple[int, int, int], np.ndarray]

HALO = brush.HALO
PAPER: Color = (255, 255, 255)

_SHIFT = 4  # OpenCV draws at sixteenths of a pixel


def render(drawing: Drawing, *, width_px: int | None = None) -> Pixels:
    """Return the drawing as RGB pixels; by default a single photo keeps its own pixels.

    Examples
    --------
    >>> from mmattn.render.drawing import Panel
    >>> render(Drawing(panels=(Panel(space=(0.0, 0.0, 64.0, 48.0), marks=()),)), width_px=300).shape[1:]
    (300, 3)
    """
    layout = arrange(drawing, width_px=width_px)
    canvas = np.full((layout.height_px, layout.width_px, 3), 255, dtype=np.uint8)
    seen: Resized = {}
    for panel, rect in zip(drawing.panels, layout.panels, strict=True):
        _panel(canvas, panel, rect, layout.em_px / 14, seen)
    _pieces(canvas, layout)
    return canvas


def encode(drawing: Drawing, suffix: str, *, width_px: int | None = None) -> bytes:
    """Return the drawing as the bytes of a PNG, JPEG (quality 92, full color) or WebP (quality 92) file."""
    pixels = render(drawing, width_px=width_px)
    most = {"jpg": 65_500, "jpeg": 65_500, "webp": 16_383}.get(suffix, 1_000_000)
    if max(pixels.shape[:2]) > most:
        raise InputError(
            f"The drawing is {pixels.shape[1]} x {pixels.shape[0]} px. A .{suffix} file holds at most {most} px a "
            "side. Save it as .png, or pass a smaller width_px."
        )
    return encode_pixels(pixels, suffix)


def encode_pixels(pixels: Pixels, suffix: str) -> bytes:
    """Return RGB pixels as the bytes of a `png`, `jpg` or `webp` file."""
    options = {
        # Runs alone: a quarter faster than level 2 and a tenth smaller on photographs under heat.
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, 92],
    }.get(
        suffix,
        [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
    )
    done, data = cv2.imencode(f".{suffix}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise InputError(f"OpenCV could not encode {pixels.shape[1]} x {pixels.shape[0]} px as .{suffix}. Try .png.")
    return data.tobytes()


def width_at_most(drawing: Drawing, most_px: int) -> int:
    """Return the natural width of a drawing, or `most_px` where that is less."""
    return min(natural_width(drawing), most_px)


def blend_heat(
    pixels: UInt8[np.ndarray, "row col 3"],
    index: UInt8[np.ndarray, "row col"],
    *,
    lookup: UInt8[np.ndarray, "256 4"],
    out: UInt8[np.ndarray, "row col 3"] | None = None,
) -> UInt8[np.ndarray, "row col 3"]:
    """Return a photo with heat over it.

    Parameters
    ----------
    index
        Where each pixel lies on the scale, 0 to 255.
    lookup
        RGBA for each index, from `color.lookup`.
    out
        Written in place when given; may be `pixels`.
    """
    alpha = lookup[:, 3]
    out = np.empty_like(pixels) if out is None else out
    if alpha[0] == alpha[-1] == alpha.min():
        share = float(alpha[0]) / 255
        painted = cv2.applyColorMap(index, np.ascontiguousarray(lookup[:, None, :3]))
        cv2.addWeighted(painted, share, pixels, 1.0 - share, 0.0, dst=out)
        return out
    rest, painted_table = _premultiplied(lookup.tobytes())
    covered = cv2.applyColorMap(index, rest)
    cv2.multiply(pixels, covered, dst=out, scale=1 / 255)
    cv2.add(out, cv2.applyColorMap(index, painted_table, dst=covered), dst=out)
    return out


@lru_cache(maxsize=64)
def _premultiplied(lookup: bytes) -> tuple[UInt8[np.ndarray, "256 1 3"], UInt8[np.ndarray, "256 1 3"]]:
    """Return what is left of the photo, and the color already multiplied by its opacity, for each index."""
    table = np.frombuffer(lookup, np.uint8).reshape(256, 1, 4).astype(np.float64)
    alpha = table[:, :, 3:]
    rest = np.repeat(255 - alpha, 3, axis=2).astype(np.uint8)
    return rest, np.round(table[:, :, :3] * alpha / 255).astype(np.uint8)


def heat_index(
    heat: Heat, *, to_output: Float[np.ndarray, "2 3"], width: int, height: int
) -> tuple[UInt8[np.ndarray, "part_row part_col"], Bool[np.ndarray, "part_row part_col"] | None, Rect]:
    """Return the heat as one byte a pixel, where it is valid (None: everywhere), and its rectangle in the output.

    A straight grid inside the output, the usual case, is resized onto the nearest whole pixels (at
    most half a pixel off); any other is sampled exactly.
    """
    placed = field.upright(field.moved(heat, to_output))
    if placed is None or not _moderate(placed.box, width, height):
        index, inside = field.sample(heat, to_output=to_output, width=width, height=height)
        return index, inside, (0, 0, width, height)
    x0, y0, x1, y1 = (round(value) for value in placed.box)
    size = (max(x1 - x0, 1), max(y1 - y0, 1))
    left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    right, bottom = max(min(x0 + size[0], width), left + 1), max(min(y0 + size[1], height), top + 1)
    part = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
    absent = np.isnan(placed.values)
    there = None
    if absent.any():
        there = cv2.resize((~absent).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)[part].astype(bool)
    return _resized(heat, field.filled(placed.values), size)[part], there, (left, top, right - left, bottom - top)


def _resized(
    heat: Heat, values: Float[np.ndarray, "row col"], size: tuple[int, int]
) -> UInt8[np.ndarray, "to_row to_col"]:
    """Return the index on the scale for an upright grid, resized to whole pixels (width, height)."""
    if not heat.smooth:
        blocks = cv2.resize(field.index_of(heat, values), size, interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(blocks, dtype=np.uint8)
    fine = heat.scale.normalize(values)
    if size[0] > 2 * values.shape[1]:
        fine = field.refine(fine)
    resized = cv2.resize(np.round(fine * 255.0).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def _moderate(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    """Say whether a box overlaps the output and reaches so little over it that it can be resized whole and cut."""
    x0, y0, x1, y1 = box
    overlaps = x0 < width - 0.5 and y0 < height - 0.5 and x1 > 0.5 and y1 > 0.5
    return overlaps and (x1 - x0) * (y1 - y0) <= 4.0 * max(width * height, 10_000)


def _panel(canvas: Pixels, panel: Panel, rect: Rect, unit: float, seen: Resized) -> None:
    """Paint one panel into its rectangle of the canvas."""
    x, y, width, height = rect
    view = canvas[y : y + height, x : x + width]
    sx, sy, tx, ty = panel_affine(panel, rect)
    to_output = np.array([[sx, 0.0, tx - x], [0.0, sy, ty - y]])
    if not any(isinstance(mark, Raster) for mark in panel.marks):
        view[:] = panel.background
    ground: Pixels | None = None  # a picture that fills the panel, not copied yet: heat over it writes every pixel
    for mark in panel.marks:
        if isinstance(mark, Heat):
            _heat(view, mark, to_output, ground)
            ground = None
            continue
        if ground is not None:
            view[:], ground = ground, None
        if isinstance(mark, Raster):
            ground = _raster(view, mark, to_output, seen)
        else:
            _drawn(view, mark, to_output, unit)
    if ground is not None:
        view[:] = ground


def _drawn(
    view: Pixels,
    mark: Unseen | Lines | Strokes | Fills | Boxes | Dots | Labels,
    to_output: Float[np.ndarray, "2 3"],
    unit: float,
) -> None:
    match mark:
        case Unseen():
            for box in _points(mark.boxes.reshape(-1, 2, 2), to_output).reshape(-1, 4):
                brush.veil(view, box, unit)
        case Lines():
            _lines(view, mark, to_output, unit)
        case Strokes():
            brush.strokes(view, mark, paths=_points(mark.paths, to_output), unit=unit)
        case Fills():
            brush.polygons(view, _points(mark.outlines(), to_output), inks=mark.colors.tolist())
        case Boxes():
            for box in _points(mark.boxes.reshape(-1, 2, 2), to_output).reshape(-1, 4):
                _box(view, box, mark, unit)
        case Dots():
            _dots(view, mark, to_output, unit)
        case Labels():
            _labels(view, mark, to_output, unit)
        case _:
            assert_never(mark)


def _raster(view: Pixels, mark: Raster, to_output: Float[np.ndarray, "2 3"], seen: Resized) -> Pixels | None:
    """Resize a picture into its box, or return it when it fills the view.

    The same picture at the same size is resized once for a whole sheet.
    """
    height, width = view.shape[:2]
    x0, y0, x1, y1 = (round(v) for v in _points(np.array(mark.box).reshape(1, 2, 2), to_output).ravel().tolist())
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    size = (x1 - x0, y1 - y0)
    source = mark.pixels
    if source.shape[:2] == size[::-1]:
        placed = source
    else:
        key = (id(source), *size)
        if key not in seen:
            shrinks = size[0] < source.shape[1] or size[1] < source.shape[0]
            seen[key] = cv2.resize(source, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        placed = seen[key]
    if (x0, y0, *size) == (0, 0, width, height):
        return placed
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x1, width), min(y1, height)
    if right > left and bottom > top:
        view[top:bottom, left:right] = placed[top - y0 : bottom - y0, left - x0 : right - x0]
    return None


def _heat(view: Pixels, mark: Heat, to_output: Float[np.ndarray, "2 3"], ground: Pixels | None) -> None:
    index, there, (x, y, width, height) = heat_index(
        mark, to_output=to_output, width=view.shape[1], height=view.shape[0]
    )
    lookup = color.lookup(mark.paint, mark.scale.kind)
    if ground is not None:
        if there is None and index.shape == view.shape[:2]:
            blend_heat(ground, index, lookup=lookup, out=view)
            return
        view[:] = ground
    target = view[y : y + height, x : x + width]
    if there is None:
        blend_heat(target, index, lookup=lookup, out=target)
    else:
        cv2.copyTo(blend_heat(target, index, lookup=lookup), there.astype(np.uint8), target)


def _lines(view: Pixels, mark: Lines, to_output: Float[np.ndarray, "2 3"], unit: float) -> None:
    paths = _thinned(_points(mark.paths, to_output))
    thick = max(1, round(mark.width_px * unit))
    if mark.halo:
        cv2.polylines(view, paths, False, HALO, thick + 2 * max(1, round(0.7 * unit)), cv2.LINE_AA, _SHIFT)
    cv2.polylines(view, paths, False, mark.color, thick, cv2.LINE_AA, _SHIFT)
    if mark.arrow:
        for path in paths:
            tip, before = path[-1], path[-2]
            length = float(np.hypot(*(tip - before)))
            if length > 0:
                start = tip - (tip - before) / length * min(length, 12 * unit * 2**_SHIFT)
                at = tuple(int(v) for v in start)
                cv2.arrowedLine(view, at, tuple(map(int, tip)), mark.color, thick, cv2.LINE_AA, _SHIFT, 0.8)


def _thinned(paths: Float[np.ndarray, "line point 2"]) -> list[np.ndarray]:
    """Paths in OpenCV's numbers, with at most one point for every two pixels: short pieces make its lines bumpy."""
    fixed = _fixed(paths)
    if paths.shape[1] <= 4:
        return list(fixed)
    step = np.hypot(*np.diff(paths, axis=1).transpose(2, 0, 1))
    mile = (np.cumsum(step, axis=1) // 2).astype(np.int64)
    new = np.ones(fixed.shape[:2], dtype=bool)
    new[:, 1:-1] = np.diff(mile, axis=1) > 0
    return [path[kept] for path, kept in zip(fixed, new, strict=True)]


def _box(view: Pixels, box: Float[np.ndarray, "4"], mark: Boxes, unit: float) -> None:
    """An outline just inside the box, with a dark rim on both sides."""
    x0, y0, x1, y1 = (int(v) for v in np.round(box))
    thick = max(1, round(mark.width_px * unit))
    rim = max(1, round(0.7 * unit)) if mark.halo else 0
    for grow, weight, ink in ((rim, thick + 2 * rim, HALO), (0, thick, mark.color)):
        left, top, right, bottom = x0 - grow, y0 - grow, max(x1, x0 + 1) + grow, max(y1, y0 + 1) + grow
        for a, b, c, d in (
            (top, top + weight, left, right),
            (bottom - weight, bottom, left, right),
            (top, bottom, left, left + weight),
            (top, bottom, right - weight, right),
        ):
            cv2.rectangle(view, (c, a), (d - 1, b - 1), ink, -1)


def _dots(view: Pixels, mark: Dots, to_output: Float[np.ndarray, "2 3"], unit: float) -> None:
    radius = mark.radius_px * unit * 2**_SHIFT
    rim = max(1.0, unit) * 2**_SHIFT
    for point in _fixed(_points(mark.points[None], to_output))[0]:
        at = (int(point[0]), int(point[1]))
        if mark.halo:
            cv2.circle(view, at, round(radius + rim), HALO, -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(view, at, round(radius), mark.color, -1, cv2.LINE_AA, _SHIFT)


def _labels(view: Pixels, mark: Labels, to_output: Float[np.ndarray, "2 3"], unit: float) -> None:
    size = max(5, round(mark.size_px * float(to_output[0, 0]))) if mark.scaled else max(9, round(mark.size_px * unit))
    points = _points(mark.points[None], to_output)[0].tolist()
    for (x, y), text, other in zip(points, mark.texts, mark.instead or mark.texts, strict=True):
        said = text if fonts.drawable(text) else other
        line = Text(x=x, y=y, text=said, size_px=size, color=mark.color, anchor=mark.anchor, bold=mark.bold)
        letters.draw(view, line, halo=HALO if mark.halo else None)


def _pieces(canvas: Pixels, layout: Layout) -> None:
    for piece in layout.pieces:
        match piece:
            case Text():
                letters.draw(canvas, piece)
            case Strip():
                _strip(canvas, piece)
            case Swatch():
                _swatch(canvas, piece.rect, piece.key, layout.em_px / 14)
            case _:
                assert_never(piece)


def _strip(canvas: Pixels, strip: Strip) -> None:
    x, y, width, height = strip.rect
    colors = color.table(strip.bar.paint.color_map)
    canvas[y : y + height, x : x + width] = colors[np.round(np.linspace(0, 255, width)).astype(int)][None]
    thick = max(1, height // 6)
    for tick in strip.ticks_x:
        at = round(tick)
        canvas[y - thick : y + height + thick, max(at - thick, 0) : at + 2 * thick] = HALO
        canvas[y : y + height, at : at + thick] = PAPER


def _swatch(canvas: Pixels, rect: Rect, key: Key, unit: float) -> None:
    """A small sample of a mark, on gray so that a white line shows."""
    x, y, width, height = rect
    view = canvas[y : y + height, x : x + width]
    view[:] = (150, 150, 156)
    middle = np.array([[[0.2 * width, 0.5 * height], [0.8 * width, 0.5 * height]]])
    same = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    match key.kind:
        case "unseen":
            brush.veil(view, np.array([0.0, 0.0, width, height]), unit)
        case "box":
            box = Boxes(boxes=np.zeros((0, 4)), color=key.color)
            _box(view, np.array([0.22 * width, 0.15 * height, 0.78 * width, 0.85 * height]), box, unit)
        case "line":
            _lines(view, Lines(paths=middle, color=key.color), same, unit)
        case "dot":
            _dots(view, Dots(points=middle.mean(axis=1), color=key.color), same, unit)
        case "dashed":
            dashed = brush.sample(width=width, height=height)
            brush.strokes(view, dashed, paths=dashed.paths, unit=unit)
        case "strokes":
            brush.polygons(view, brush.wedge(width=width, height=height), inks=[HALO, key.color])
        case _:
            assert_never(key.kind)


def _points(
    points: Float[np.ndarray, "line point 2"], to_output: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "line point 2"]:
    moved: np.ndarray = points @ to_output[:, :2].T + to_output[:, 2]
    return moved


def _fixed(points: Float[np.ndarray, "line point 2"]) -> np.ndarray:
    """Pixel edges to OpenCV's pixel centers, in sixteenths; kept inside what it can draw."""
    whole: np.ndarray = np.clip(np.round((points - 0.5) * 2**_SHIFT), -(2**26), 2**26).astype(np.int32)
    return whole
