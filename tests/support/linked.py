"""What stands in a drawing of links."""

from mmattn.render.marks import Strokes


def of(drawing: object, kind: type, name: str = "") -> list:
    return [mark for mark in drawing.panels[0].marks if isinstance(mark, kind) and (not name or mark.name == name)]


def lines(drawing: object) -> Strokes:
    (found,) = of(drawing, Strokes, "links")
    return found
