"""Drawing -> matplotlib: SVG with real text, PDF, a Figure, or the user's own axes.

A figure is laid out by the raster's own layout, a pixel of it being 1/96 inch unless asked
otherwise, so both look alike. Heat goes in as an image with its values, a Normalize and a color
map, so `fig.colorbar` works on it.
"""

import io
import warnings
from dataclasses import replace
from typing import Any, assert_never

import numpy as np
from jaxtyping import Float
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal as PlainStroke
from matplotlib.patheffects import Stroke, withStroke

from mmattn.render import brush, color, field, fonts
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.layout import Layout, Rect, Strip, Swatch, Text, arrange
from mmattn.render.marks import Boxes, Color, Dots, Fills, Heat, Key, Labels, Lines, Mark, Raster, Strokes, Unseen

DPI = 96.0
HALO = "#101014"
VEIL = "#2c2e36"
VEIL_OPACITY = 0.62

_ROUND = np.array([[0, 1], [2, 1], [2, 3], [0, 3], [0, 1]])  # once round a box (x0, y0, x1, y1)
_FINER = 2  # pictures in a vector file have twice the pixels of the layout
_FINE_PX = 1024  # side at which a skewed heat is sampled
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "mmattn", "pdf.fonttype": 42, "hatch.linewidth": 0.6}


def render(drawing: Drawing, *, width_px: int | None = None, dpi: float = DPI) -> Figure:
    """Return the drawing as a new Figure, laid out as the raster writer would."""
    layout = arrange(drawing, width_px=width_px)
    figure = Figure(figsize=(layout.width_px / dpi, layout.height_px / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    point = 72 / dpi
    unit = layout.em_px / 14 * point
    for panel, rect in zip(drawing.panels, layout.panels, strict=True):
        axes = _axes(figure, layout, rect)
        _panel(axes, panel, unit)
    _pieces(figure, layout, point)
    return figure


def draw_into(drawing: Drawing, ax: Axes) -> Axes:
    """Draw the first panel into the user's axes, in the panel's own coordinates, and return the axes."""
    panel = drawing.panels[0]
    _panel(ax, panel, 72 / DPI)
    if panel.title or drawing.title:
        ax.set_title(fonts.clean(panel.title or drawing.title), parse_math=False)
    return ax


def encode(drawing: Drawing, suffix: str, *, width_px: int | None = None, dpi: float = DPI) -> bytes:
    """Return the drawing as the bytes of an `svg` or `pdf` file, `dpi` pixels of the layout to an inch."""
    figure = render(_as_text(drawing) if suffix == "svg" else drawing, width_px=width_px, dpi=dpi)
    target = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {"CreationDate": None}
    with rc_context(_STYLE), warnings.catch_warnings():
        # A character that no font here has is still text in the file; `fonts` has warned already.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(target, format=suffix, metadata=metadata, dpi=_FINER * dpi)
    return target.getvalue()


def _as_text(drawing: Drawing) -> Drawing:
    """Return a drawing whose words stay themselves, whatever fonts are here: who opens the file may have them."""
    panels = [
        replace(panel, marks=tuple(replace(m, instead=()) if isinstance(m, Labels) else m for m in panel.marks))
        for panel in drawing.panels
    ]
    return replace(drawing, panels=tuple(panels))


def _axes(figure: Figure, layout: Layout, rect: Rect) -> Axes:
    x, y, width, height = rect
    across, down = layout.width_px, layout.height_px
    axes = figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))
    axes.set_axis_off()
    return axes


def _panel(axes: Axes, panel: Panel, unit: float) -> None:
    x0, y0, x1, y1 = panel.space
    if not any(isinstance(mark, Raster) for mark in panel.marks):
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=_hex(panel.background), edgecolor="none", zorder=1)
        )
    for order, mark in enumerate(panel.marks, start=2):
        _mark(axes, mark, panel, unit, order)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(x0, x1)
    axes.set_ylim(y1, y0)


def _mark(axes: Axes, mark: Mark, panel: Panel, unit: float, order: int) -> None:
    match mark:
        case Raster():
            left, top, right, bottom = mark.box
            axes.imshow(mark.pixels, extent=(left, right, bottom, top), zorder=order, interpolation="antialiased")
        case Heat():
            _heat(axes, mark, panel, order)
        case Unseen():
            for left, top, right, bottom in mark.boxes.tolist():
                _veil(axes, (left, top, right - left, bottom - top), order)
        case Lines():
            _paths(axes, mark, mark.paths, unit, order)
            for path in mark.paths if mark.arrow else ():
                _arrow(axes, path, mark, unit, order)
        case Strokes():
            _strokes(axes, mark, unit, order)
        case Fills():
            axes.add_collection(
                PolyCollection(list(mark.outlines()), facecolors=mark.colors / 255, linewidths=0, zorder=order),
                autolim=False,
            )
        case Boxes():
            _paths(axes, mark, mark.boxes[:, _ROUND], unit, order)
        case Dots():
            axes.plot(
                mark.points[:, 0],
                mark.points[:, 1],
                linestyle="none",
                marker="o",
                markersize=2 * mark.radius_px * unit,
                color=_hex(mark.color),
                markeredgecolor=HALO if mark.halo else _hex(mark.color),
                zorder=order,
            )
        case Labels():
            _labels(axes, mark, _point(axes, panel) if mark.scaled else unit, order)
        case _:
            assert_never(mark)


def _heat(axes: Axes, mark: Heat, panel: Panel, order: int) -> AxesImage:
    """Values, not colors, go into the image, so that a reader of the figure can ask for them."""
    placed = field.upright(mark)
    scale = mark.scale
    if placed is not None:
        x0, y0, x1, y1 = placed.box
        absent = np.isnan(placed.values)
        values = field.filled(placed.values)
        if mark.smooth:  # clipped first, as the raster writer does: what lies beyond the scale must not spread
            values = field.refine(np.clip(values, scale.vmin, scale.vmax)).astype(np.float64)
            absent = np.kron(absent, np.ones((field.REFINE, field.REFINE), bool))
    else:
        x0, y0, x1, y1 = panel.space
        values, absent = _sampled(mark, panel)
    table = color.lookup(mark.paint, scale.kind) / 255.0
    return axes.imshow(
        np.ma.masked_array(values, absent),
        extent=(x0, x1, y1, y0),
        cmap=ListedColormap(table, name=mark.paint.color_map),
        norm=Normalize(scale.vmin, scale.vmax),
        interpolation="bilinear" if mark.smooth else "nearest",
        interpolation_stage="data",
        zorder=order,
    )


def _sampled(mark: Heat, panel: Panel) -> tuple[Float[np.ndarray, "row col"], np.ndarray]:
    x0, y0, x1, y1 = panel.space
    zoom = _FINE_PX / max(x1 - x0, y1 - y0)
    width, height = max(1, round((x1 - x0) * zoom)), max(1, round((y1 - y0) * zoom))
    sx, sy = width / (x1 - x0), height / (y1 - y0)
    to_output = np.array([[sx, 0.0, -x0 * sx], [0.0, sy, -y0 * sy]])
    index, inside = field.sample(mark, to_output=to_output, width=width, height=height)
    return mark.scale.vmin + index / 255.0 * (mark.scale.vmax - mark.scale.vmin), ~inside


def _veil(axes: Axes, rect: tuple[float, float, float, float], order: int) -> None:
    x, y, width, height = rect
    axes.add_patch(Rectangle((x, y), width, height, facecolor=VEIL, alpha=VEIL_OPACITY, edgecolor="none", zorder=order))
    hatched = Rectangle(
        (x, y), width, height, facecolor="none", edgecolor="#ffffff", alpha=0.3, linewidth=0, hatch="////"
    )
    hatched.set_zorder(order)
    axes.add_patch(hatched)


def _paths(axes: Axes, mark: Lines | Boxes, paths: Float[np.ndarray, "line point 2"], unit: float, order: int) -> None:
    lines = LineCollection(
        list(paths), colors=[_hex(mark.color)], linewidths=[mark.width_px * unit], joinstyle="miter", zorder=order
    )
    if mark.halo:
        lines.set_path_effects([Stroke(linewidth=(mark.width_px + 1.6) * unit, foreground=HALO), PlainStroke()])
    axes.add_collection(lines, autolim=False)


def _strokes(axes: Axes, mark: Strokes, unit: float, order: int) -> None:
    """Each line over its own rim, one after the other, so that what crosses is seen to cross."""
    rims = (1.6, 0.0) if mark.halo else (0.0,)
    # Line and rim are blended one after the other here: the line stronger, the rim fainter, so that it looks as one.
    over = 1.0 - (1.0 - mark.opacities) ** 1.6 if mark.halo else mark.opacities
    inks = np.repeat(np.concatenate([mark.colors / 255, over[:, None]], axis=1), len(rims), axis=0)
    if mark.halo:
        inks[::2, :3], inks[::2, 3] = np.array(brush.HALO) / 255, mark.opacities * (0.5 + 0.5 * mark.opacities)
    dashes = [(0, (3.0, 1.6)) if broken else "solid" for broken in brush.broken(mark)]
    axes.add_collection(
        LineCollection(
            list(np.repeat(mark.paths, len(rims), axis=0)),
            colors=inks,
            linewidths=((mark.widths_px[:, None] + np.array(rims)) * unit).ravel(),
            linestyles=[dash for dash in dashes for _ in rims],
            capstyle="butt",
            zorder=order,
        ),
        autolim=False,
    )


def _point(axes: Axes, panel: Panel) -> float:
    """Return how many points of type one unit of the panel is, as the axes stand now."""
    box = axes.get_window_extent()
    x0, y0, x1, y1 = panel.space
    return 72 / axes.figure.dpi * min(box.width / (x1 - x0), box.height / (y1 - y0))


def _labels(axes: Axes, mark: Labels, unit: float, order: int) -> None:
    for (x, y), word, other in zip(mark.points.tolist(), mark.texts, mark.instead or mark.texts, strict=True):
        text = word if fonts.drawable(word) else other
        axes.text(
            x,
            y + 0.36 * mark.size_px if mark.scaled else y,
            fonts.clean(text),
            color=_hex(mark.color),
            fontsize=mark.size_px * unit,
            fontweight="bold" if mark.bold else "normal",
            ha=mark.anchor,
            va="baseline" if mark.scaled else "center",  # words in a row stand on one line
            zorder=order,
            parse_math=False,
            fontfamily=_families(),
            path_effects=[withStroke(linewidth=2.0 * unit, foreground=HALO)] if mark.halo else [],
        )


def _arrow(axes: Axes, path: Float[np.ndarray, "point 2"], mark: Lines, unit: float, order: int) -> None:
    style = {"arrowstyle": "->", "color": _hex(mark.color), "linewidth": mark.width_px * unit}
    axes.annotate("", xy=tuple(path[-1]), xytext=tuple(path[-2]), arrowprops=style, zorder=order)


def _pieces(figure: Figure, layout: Layout, point: float) -> None:
    for piece in layout.pieces:
        match piece:
            case Text():
                figure.text(
                    piece.x / layout.width_px,
                    1 - piece.y / layout.height_px,
                    piece.text,
                    fontsize=piece.size_px * point,
                    fontweight="bold" if piece.bold else "normal",
                    fontfamily=_families(),
                    color=_hex(piece.color),
                    ha=piece.anchor,
                    va="center_baseline",
                    parse_math=False,
                )
            case Strip():
                _strip(_axes(figure, layout, piece.rect), piece)
            case Swatch():
                _swatch(_axes(figure, layout, piece.rect), piece.key, layout.em_px / 14 * point)
            case _:
                assert_never(piece)


def _strip(axes: Axes, strip: Strip) -> None:
    x, _, width, _ = strip.rect
    axes.imshow(color.table(strip.bar.paint.color_map)[None], extent=(0.0, 1.0, 0.0, 1.0), aspect="auto")
    for tick in strip.ticks_x:
        line = axes.axvline((tick - x) / width, color="white", linewidth=1.2)
        line.set_path_effects([Stroke(linewidth=2.6, foreground=HALO), PlainStroke()])
    axes.set_xlim(0, 1)


def _swatch(axes: Axes, key: Key, unit: float) -> None:
    axes.add_patch(Rectangle((0, 0), 1, 1, facecolor="#96969c", edgecolor="none"))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    match key.kind:
        case "unseen":
            _veil(axes, (0, 0, 1, 1), 2)
        case "box":
            box = Boxes(boxes=np.array([[0.25, 0.2, 0.75, 0.8]]), color=key.color)
            _paths(axes, box, box.boxes[:, _ROUND], unit, 2)
        case "line":
            line = Lines(paths=np.array([[[0.2, 0.5], [0.8, 0.5]]]), color=key.color)
            _paths(axes, line, line.paths, unit, 2)
        case "dot":
            axes.plot([0.5], [0.5], marker="o", color=_hex(key.color), markeredgecolor=HALO)
        case "dashed":
            _strokes(axes, brush.sample(width=1, height=1), unit, 2)
        case "strokes":
            inks = [HALO, _hex(key.color)]
            axes.add_collection(PolyCollection(list(brush.wedge(width=1, height=1)), facecolors=inks, zorder=2))
        case _:
            assert_never(key.kind)


def _families() -> list[str]:
    """DejaVu Sans, and the same system fonts that the raster falls back to."""
    names = []
    for path in fonts.files():
        try:
            font_manager.fontManager.addfont(str(path))
            names.append(font_manager.FontProperties(fname=str(path)).get_name())
        except (OSError, RuntimeError):  # a collection or a bitmap font that matplotlib cannot read
            continue
    return list(dict.fromkeys(["DejaVu Sans", *names]))


def _hex(rgb: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
