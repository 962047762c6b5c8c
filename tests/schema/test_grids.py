"""Grids whose outermost cells reach to the edge of what the model saw."""

import numpy as np
import torch

from mmattn.schema.axes import PatchGrid
from mmattn.schema.transfer import transfer


def stem_grid() -> PatchGrid:
    """Two tokens of stride 4 on 8 pixels, whose middles lie at 0.5 and 4.5, as 3 x 3 convolutions put them."""
    return PatchGrid(
        rows=1,
        cols=2,
        patch_px=(4, 8),
        size_px=(16, 16),
        to_input=np.array([[2.0, 0.0, -3.0], [0.0, 2.0, 0.0]]),
        cells=np.arange(2),
        roles=("content",) * 2,
        limits_px=(1.5, 0.0, 9.5, 8.0),
    )


def test_cells_end_where_the_model_saw_no_further() -> None:
    grid = stem_grid()
    assert grid.places().tolist() == [[0.0, 0.0, 5.0, 16.0], [5.0, 0.0, 16.0, 16.0]]
    assert grid.seen_box() == (0.0, 0.0, 16.0, 16.0)
    assert (grid.token_at((4.9, 3.0)), grid.token_at((15.9, 3.0))) == (0, 1)


def test_nothing_is_lost_between_a_stem_s_cells_and_patches_of_the_same_picture() -> None:
    patches = PatchGrid.plain(rows=4, cols=4, patch_px=(2, 2), size_px=(16, 16))
    moved = transfer(stem_grid(), patches).move(torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    assert float(moved.sum()) == 1.0
    assert float(moved[0].reshape(4, 4)[:, 0].sum()) == 0.25 * 4 / 5  # 4 of the first cell's 5 pixels
    assert transfer(stem_grid(), patches).note == ""
