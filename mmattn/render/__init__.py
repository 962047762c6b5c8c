"""Drawings from numbers: renderers return marks, writers lower them to pixels, figures and pages."""

from mmattn.render.arrange import side_by_side
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.links import links
from mmattn.render.marks import Paint, Scale
from mmattn.render.outline import outlined
from mmattn.render.overlays import overlay
from mmattn.render.sheets import sheet
from mmattn.render.word_sheets import word_grid

__all__ = ["Drawing", "Paint", "Panel", "Scale", "links", "outlined", "overlay", "sheet", "side_by_side", "word_grid"]
