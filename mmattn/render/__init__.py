"""Drawings from numbers: renderers return marks, writers lower them to pixels, figures and pages."""

from mmattn.render.arrange import side_by_side
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.image import overlay
from mmattn.render.marks import Paint, Scale
from mmattn.render.outline import outlined
from mmattn.render.sheets import sheet

__all__ = ["Drawing", "Paint", "Panel", "Scale", "outlined", "overlay", "sheet", "side_by_side"]
