"""A few whole pictures, compared with tolerance.

`MMATTN_UPDATE_GOLDEN=1 pytest tests/render/test_golden.py` writes them anew. On failure the picture
and the difference are written to the test's temporary folder, named in the message.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import captioned, over_text
from drawn import grid, relevance
from PIL import Image

from mmattn.render import Drawing, links, overlay, sheet, side_by_side, word_grid

GOLDEN = Path(__file__).parent / "golden"


def scene(width: int, height: int) -> np.ndarray:
    """A picture with edges and slopes, made of formulas only."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / width
    green = 255 * y / height
    blue = np.where((x // 40 + y // 40) % 2 == 0, 90, 190)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def bumps(name: str, *, sign: float = 1.0, **more: object) -> Drawing | object:
    axis = grid(name)
    boxes = axis.places()
    x, y = ((boxes[:, 0] + boxes[:, 2]) / 2 / axis.size_px[0], (boxes[:, 1] + boxes[:, 3]) / 2 / axis.size_px[1])
    values = np.zeros(len(axis))
    values[axis.content] = np.exp(-((x - 0.4) ** 2 + (y - 0.4) ** 2) / 0.02) + sign * 0.5 * np.exp(
        -((x - 0.65) ** 2 + (y - 0.7) ** 2) / 0.01
    )
    if sign > 0:
        values /= values.sum()
    return relevance(values, axis, photo=scene(*axis.size_px), **more)


def smooth_with_everything() -> Drawing:
    axis = grid("crop")
    return overlay(
        bumps(
            "crop", query_tokens=((60,),), uniform=torch.full((1, len(axis)), 1 / len(axis)), parameters={"layer": 11}
        ),
        contour=0.6,
    )


def beside_one_another() -> Drawing:
    return side_by_side(
        [
            overlay(bumps("quarter turn"), smooth=False, contour=0.5),
            overlay(bumps("squash", sign=-1.0, unit="signed relevance")),
            overlay(bumps("padded"), opacity=0.5, color_map="viridis"),
        ],
        titles=["blocks, turned", "signed", "one opacity, padded"],
    )


def tiles() -> Drawing:
    return sheet(
        [bumps("crop")] * 6,
        rows=2,
        cols=3,
        row_labels=["layer 0", "layer 1"],
        col_labels=["head 0", "head 1", "head 2"],
        title="a sheet",
    )


def lines_of_words() -> Drawing:
    to_input = np.array([[40 / 16, 0.0, 60.0], [0.0, 40 / 16, 20.0]])
    return links(captioned(photo=scene(520, 320), size_px=(520, 320), to_input=to_input))


def lines_for_and_against() -> Drawing:
    one = captioned(photo=scene(400, 280), unit="signed relevance")
    values = one.values.clone()
    values[2, 30] = -6.0
    return links(replace(one, values=values), focus="dog", k=2)


def lines_of_a_place() -> Drawing:
    return links(captioned(photo=scene(400, 280)), query=(300, 200), k=3)


def words_on_colors() -> Drawing:
    values = [0.1, 0.02, 0.3, 0.2, 0.05, 0.01, 0.2, 0.05, 0.02, 0.05]
    return overlay(over_text("the quick fox jumps over, a dog", values))


def tiles_of_words() -> Drawing:
    return word_grid(captioned(photo=scene(400, 280)))


MADE = [
    *(smooth_with_everything, beside_one_another, tiles, lines_of_words, lines_for_and_against, lines_of_a_place),
    *(words_on_colors, tiles_of_words),
]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_the_picture_is_the_golden_one(make, tmp_path: Path) -> None:
    pixels = np.asarray(make().image(width_px=720))
    path = GOLDEN / f"{make.__name__}.png"
    if os.environ.get("MMATTN_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, optimize=True)
    golden = np.asarray(Image.open(path).convert("RGB"))
    assert golden.shape == pixels.shape
    difference = np.abs(pixels.astype(int) - golden)
    if difference.mean() > 1.0 or (difference.max(axis=2) > 40).mean() > 0.01:
        Image.fromarray(pixels).save(tmp_path / "drawn.png")
        Image.fromarray((difference * 4).clip(0, 255).astype(np.uint8)).save(tmp_path / "difference.png")
        pytest.fail(f"{path.name} differs by {difference.mean():.2f} levels on average; see {tmp_path}")
