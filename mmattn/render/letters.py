"""One line of text onto pixels, with Pillow: only its own small rectangle is touched."""

from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import UInt8

from mmattn.render import fonts
from mmattn.render.layout import Text
from mmattn.render.marks import Color


def draw(canvas: UInt8[np.ndarray, "row col 3"], line: Text, *, halo: Color | None = None) -> None:
    """Draw a line of text; what reaches over the edge is cut off."""
    text = fonts.clean(line.text)
    if not text:
        return
    mask, above = _mask(text, line.size_px, line.bold)
    pad = line.size_px // 2
    width = mask.shape[1] - 2 * pad
    offset = {"left": 0.0, "center": width / 2, "right": float(width)}[line.anchor]
    x, y = round(line.x - offset) - pad, round(line.y) - above
    if halo is not None:
        rim = 2 * max(1, round(line.size_px / 12)) + 1
        _ink(canvas, cv2.dilate(mask, np.ones((rim, rim), np.uint8)), x, y, halo)
    _ink(canvas, mask, x, y, line.color)


@lru_cache(maxsize=512)
def _mask(text: str, size_px: int, bold: bool) -> tuple[UInt8[np.ndarray, "row col"], int]:
    """Return the coverage of a line, half its size wider on both sides, and the rows of it above its middle."""
    from PIL import Image, ImageDraw

    pad = size_px // 2
    width = round(fonts.width(text, size_px=size_px, bold=bold)) + 2 * pad + 1
    picture = Image.new("L", (width, 2 * size_px), 0)
    pen = ImageDraw.Draw(picture)
    x = float(pad)
    for piece, font in fonts.runs(text, size_px=size_px, bold=bold):
        # The middle of a line is that of its small letters and capitals together: a third above the baseline.
        pen.text((x, size_px + 0.36 * size_px), piece, fill=255, font=font, anchor="ls")
        x += font.getlength(piece)
    mask = np.asarray(picture)
    inked = np.flatnonzero(mask.any(axis=1))
    if not inked.size:
        return mask[:1], 0
    rim = max(2, size_px // 6)  # for the halo
    top, bottom = max(int(inked[0]) - rim, 0), min(int(inked[-1]) + 1 + rim, len(mask))
    return np.ascontiguousarray(mask[top:bottom]), size_px - top


def _ink(
    canvas: UInt8[np.ndarray, "row col 3"], mask: UInt8[np.ndarray, "mask_row mask_col"], x: int, y: int, color: Color
) -> None:
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + mask.shape[0], canvas.shape[0]), min(x + mask.shape[1], canvas.shape[1])
    if bottom <= top or right <= left:
        return
    part = canvas[top:bottom, left:right]
    share = cv2.merge([mask[top - y : bottom - y, left - x : right - x]] * 3)
    # part * (1 - share) + color * share, as multiply and add of bytes
    inked = cv2.multiply(share, np.array([*color, 0], np.float64), scale=1 / 255)
    cv2.add(cv2.multiply(part, cv2.bitwise_not(share), scale=1 / 255), inked, dst=part)
