"""Drawing: panels and marks, not yet pixels.

A renderer (`image.py`, ...) turns numbers and media into a Drawing; a writer (`raster.py`,
`figure.py`, `page.py`) turns the Drawing into a file. Between the two everything can be asked:
where the hottest box is, what is marked, what the caption says.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmattn.errors import InputError
from mmattn.render.marks import Box, Boxes, Color, ColorBar, Heat, Key, Mark, Raster

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

RASTER = ("png", "jpg", "jpeg", "webp")
FIGURE = ("svg", "pdf")
PAGE = ("html", "htm")

_NOTEBOOK_PX = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One picture of a drawing, with its own coordinate space.

    Parameters
    ----------
    space
        The part of the plane that the panel shows, x0, y0, x1, y1, y downwards: `(0, 0, width,
        height)` of the original picture in pixels.
    marks
        In the order in which they are painted.
    title, caption
        Above and below.
    bar, keys
        The legend below the panel.
    background
        What is seen where no mark paints.
    """

    space: Box
    marks: tuple[Mark, ...]
    title: str = ""
    caption: str = ""
    bar: ColorBar | None = None
    keys: tuple[Key, ...] = ()
    background: Color = (238, 238, 240)

    @property
    def aspect(self) -> float:
        """Width over height."""
        x0, y0, x1, y1 = self.space
        return (x1 - x0) / (y1 - y0)

    @property
    def natural_px(self) -> tuple[float, float]:
        """Width and height at which the picture in it has its own pixels."""
        x0, y0, x1, y1 = self.space
        scale = 1.0
        for mark in self.marks:
            if isinstance(mark, Raster):
                scale = mark.pixels.shape[1] / (mark.box[2] - mark.box[0])
                break
        width, height = (x1 - x0) * scale, (y1 - y0) * scale
        return float(width), float(height)

    @property
    def heat(self) -> Heat:
        """The first heat of the panel."""
        for mark in self.marks:
            if isinstance(mark, Heat):
                return mark
        raise InputError("This panel holds no heat. A panel made by overlay does. Read its marks instead.")

    def boxes(self, name: str) -> list[Box]:
        """Return the outlined boxes with a name, such as `query`; an empty list when nothing is marked so."""
        return [
            (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
            for mark in self.marks
            if isinstance(mark, Boxes) and mark.name == name
            for box in mark.boxes
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """Panels in rows, with a title, a caption and a shared legend. Shows itself in notebooks.

    Parameters
    ----------
    panels
        Row by row.
    cols
        Panels in a row.
    title, caption
        Over and under everything.
    bar, keys
        The legend that all panels share.
    row_labels, col_labels
        Beside the rows and above the columns of a sheet; empty for none.
    tight
        Panels close together, as in a sheet of small tiles.

    Examples
    --------
    >>> panel = Panel(space=(0.0, 0.0, 64.0, 48.0), marks=())
    >>> Drawing(panels=(panel,), title="empty")
    Drawing: 1 panel(s) in 1 row(s) x 1 column(s)
      title    empty
      panel 0  64 x 48: no marks
    """

    panels: tuple[Panel, ...]
    cols: int = 1
    title: str = ""
    caption: str = ""
    bar: ColorBar | None = None
    keys: tuple[Key, ...] = ()
    row_labels: tuple[str, ...] = ()
    col_labels: tuple[str, ...] = ()
    tight: bool = False

    def __post_init__(self) -> None:
        if not self.panels or self.cols < 1:
            raise InputError(
                f"A drawing of {len(self.panels)} panels in {self.cols} columns shows nothing. "
                "It has at least one panel and one column. Pass something to draw."
            )
        for labels, count, what in ((self.row_labels, self.rows, "rows"), (self.col_labels, self.cols, "columns")):
            if labels and len(labels) != count:
                raise InputError(
                    f"{len(labels)} labels for {count} {what}. Every one has its label, or none has. "
                    f"Pass {count} labels, or an empty tuple."
                )

    @property
    def rows(self) -> int:
        """How many rows of panels."""
        return -(-len(self.panels) // self.cols)

    def image(self, *, width_px: int | None = None) -> "Image":
        """Return the drawing as a PIL image.

        Parameters
        ----------
        width_px
            Width of the whole image; by default a single photo keeps its own pixels.
        """
        from PIL import Image

        from mmattn.render import raster

        return Image.fromarray(raster.render(self, width_px=width_px))

    def figure(self, ax: "Axes | None" = None, *, width_px: int | None = None) -> "Figure | Axes":
        """Return the drawing as a new matplotlib Figure, or draw its first panel into the user's `ax`.

        In `ax` the data coordinates are the panel's own (pixels of the original picture), so that
        further plots line up; `ax` is returned.
        """
        from mmattn.render import figure

        return figure.render(self, width_px=width_px) if ax is None else figure.draw_into(self, ax)

    def save(self, path: str | Path, *, width_px: int | None = None, dpi: float = 96.0) -> Path:
        """Write the drawing to a file and return its path; the suffix chooses the format.

        Parameters
        ----------
        path
            `.png`, `.jpg`, `.webp`, `.svg`, `.pdf` or `.html`. The folder is made when missing.
        width_px
            Width of the whole picture; by default a single photo keeps its own pixels.
        dpi
            Pixels of the layout to an inch of paper, for `.svg` and `.pdf`: 1000 px at 200 dpi are 5 inches.

        Raises
        ------
        InputError
            For another suffix.
        OutputError
            When the file cannot be written; nothing half written is left.
        """
        from mmattn.render.files import write_whole

        if not 10.0 <= dpi <= 2400.0:
            raise InputError(f"dpi={dpi:g} is out of range. It is from 10 to 2400 pixels to an inch. Try 96.")

        target = Path(path)
        suffix = target.suffix.lower().removeprefix(".")
        if suffix in RASTER:
            from mmattn.render import raster

            data = raster.encode(self, suffix, width_px=width_px)
        elif suffix in FIGURE:
            from mmattn.render import figure

            data = figure.encode(self, suffix, width_px=width_px, dpi=dpi)
        elif suffix in PAGE:
            from mmattn.render import page

            data = page.encode(self, width_px=width_px)
        else:
            known = ", ".join(f".{name}" for name in RASTER + FIGURE + PAGE)
            raise InputError(
                f"A drawing cannot be saved as {target.name!r}: the suffix {target.suffix!r} is none that it knows. "
                f"Known are {known}. Rename the file."
            )
        return write_whole(target, data)

    def _repr_png_(self) -> bytes:
        from mmattn.render import raster

        return raster.encode(self, "png", width_px=raster.width_at_most(self, _NOTEBOOK_PX))

    def _repr_html_(self) -> str:
        from mmattn.render import page

        return page.fragment(self, most_px=_NOTEBOOK_PX)

    def __repr__(self) -> str:
        lines = [f"Drawing: {len(self.panels)} panel(s) in {self.rows} row(s) x {self.cols} column(s)"]
        if self.title:
            lines.append(f"  title    {_clip(self.title)}")
        if self.caption:
            lines.append(f"  caption  {_clip(self.caption)}")
        for index, panel in enumerate(self.panels[:4]):
            lines.append(f"  panel {index}  {_describe(panel)}")
        if len(self.panels) > 4:
            lines.append(f"  ... {len(self.panels) - 4} more panels")
        return "\n".join(lines)


def _describe(panel: Panel) -> str:
    x0, y0, x1, y1 = panel.space
    names = ", ".join(_mark_name(mark) for mark in panel.marks) or "no marks"
    return f"{x1 - x0:g} x {y1 - y0:g}" + (f" {_clip(panel.title, 40)!r}" if panel.title else "") + f": {names}"


def _mark_name(mark: Mark) -> str:
    if isinstance(mark, Heat):
        rows, cols = mark.values.shape
        if np.isnan(mark.values).all():
            return f"Heat {rows} x {cols}, nothing in reach"
        peak = ", ".join(f"{value:.4g}" for value in mark.peak_box())
        return f"Heat {rows} x {cols}, hottest box ({peak})"
    name = getattr(mark, "name", "")
    return type(mark).__name__ + (f" ({name})" if name else "")


def _clip(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def described(drawing: Drawing) -> dict[str, str]:
    """Return title and caption of a drawing and its panels as plain text, for pages and alternative texts."""
    titles = [drawing.title, *(panel.title for panel in drawing.panels)]
    captions = [drawing.caption, *(panel.caption for panel in drawing.panels)]
    return {
        "title": next((title for title in titles if title), "Attention"),
        "caption": " ".join(dict.fromkeys(caption for caption in captions if caption)),
    }
