"""How each family lays a picture into its tower and its prompt: one function a family.

    llava       one view; a token a patch, row by row
    squares     one view; a square of patches a token, row by row (PaliGemma, Gemma 3 by average)
    qwen        one view at the picture's own aspect; the patches of a token stand together in the tower, which
                goes from window to window where it has windows
    pixtral     one view at the picture's own aspect; behind each row of the prompt stands a mark without pixels
    tiles_last  tiles first, the whole picture last (Idefics3, SmolVLM, InternVL): each row by row in itself
    unpadded    the whole picture, then all tiles as one, row by row, without the rows or columns that are
                padding; behind each row a learned token without pixels (Llava-Next, Llava-OneVision)

Each takes the views' geometries, as they were measured, and the model, and returns a `Seen`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from mmattn.errors import InputError
from mmattn.schema.grids import PatchGrid

from ..pixels import Geometry
from .seen import Seen, Slot, View, grid_of, whole

#: Says what became of one picture: from where its views' pixels lie, for a model.
Lay = Callable[[Sequence[Geometry], nn.Module], Seen]


def llava(geometries: Sequence[Geometry], model: nn.Module) -> Seen:
    """Llava: the tower's patches in their order, with its class token where features are taken in full."""
    config: Any = model.config
    full = config.vision_feature_select_strategy == "full"
    return whole(view_of(geometries[0], model=model), special=("image_cls",) * (special_count(model) if full else 0))


def squares(geometries: Sequence[Geometry], model: nn.Module) -> Seen:
    """PaliGemma and Gemma 3: the whole picture; Gemma's crops (pan and scan) are parts of their own behind it."""
    views = [view_of(one, model=model, name=f"crop {n}" if n else "image") for n, one in enumerate(geometries)]
    merge = merged_by(model, views[0].rows)
    parts = {view.name: view.merged(by=merge) for view in views}
    slots: list[Slot] = [(name, token) for name, part in parts.items() for token in range(len(part))]
    return Seen(views=tuple(views), parts=parts, slots=tuple(slots))


def qwen(geometries: Sequence[Geometry], model: nn.Module) -> Seen:
    """Qwen-VL: tokens row by row; in the tower their patches stand together, and windows one after the other."""
    settings, view = vision_settings(model), view_of(geometries[0], model=model)
    merge = int(settings.spatial_merge_size)
    window = getattr(settings, "window_size", 0) // merge // view.patch_px
    row, col = np.divmod(np.arange(view.rows * view.cols), view.cols)
    keys = [col % merge, row % merge, col // merge, row // merge]
    if window:
        keys += [col // (merge * window), row // (merge * window)]
    return whole(replace(view, order=np.lexsort(keys)), merge=merge)


def pixtral(geometries: Sequence[Geometry], model: nn.Module) -> Seen:
    """Pixtral: a mark behind each row of the prompt, and another one at the end."""
    view = view_of(geometries[0], model=model)
    slots: list[Slot] = []
    for row in range(view.rows):
        slots += [("image", row * view.cols + col) for col in range(view.cols)]
        slots.append("newline" if row < view.rows - 1 else "special")
    return Seen(views=(view,), parts={"image": view.merged()}, slots=tuple(slots))


def tiles_last(geometries: Sequence[Geometry], model: nn.Module) -> Seen:
    """Idefics3, SmolVLM and InternVL: tile by tile, then the whole picture; of one view the whole alone."""
    image = view_of(geometries[-1], model=model)
    merge = merged_by(model, image.rows)
    part = image.merged(by=merge)
    own: list[Slot] = [("image", token) for token in range(len(part))]
    if len(geometries) == 1:
        return Seen(views=(image,), parts={"image": part}, slots=tuple(own))
    tiles, across = tile_views(geometries[:-1], model=model)
    rows, cols = tiles[0].rows // merge, tiles[0].cols // merge
    slots: list[Slot] = [
        ("tiles", (number // across * rows + row) * cols * across + number % across * cols + col)
        for number in range(len(tiles))
        for row in range(rows)
        for col in range(cols)
    ]
    fine = tiled(tiles, across=across, shape=(len(tiles) // across * rows, across * cols))
    return Seen(
        views=(*tiles, image),
        parts={"tiles": fine, "image": part},
        slots=(*slots, *own),
        note=_gap(tiles[0]),
    )


def unpadded(geometries: Sequence[Geometry], model: nn.Module) -> Seen:
    """Llava-Next and Llava-OneVision: the whole, then its tiles as one, less padding, a newline behind each row.

    Where there are many tiles OneVision brings their tokens to fewer rows and columns.
    """
    config: Any = model.config
    image = view_of(geometries[0], model=model)
    part = image.merged()
    own: list[Slot] = [("image", token) for token in range(len(part))]
    if len(geometries) == 1:  # one of several pictures in a prompt
        return Seen(views=(image,), parts={"image": part}, slots=(*own, "newline"))
    tiles, across = tile_views(geometries[1:], model=model)
    rows, cols = len(tiles) // across * image.rows, across * image.cols
    top, left = padding(geometries[0].size_px, shape=(rows, cols))
    kept = (rows - 2 * top, cols - 2 * left)
    shape, most = kept, getattr(config, "vision_aspect_ratio", "")
    if most.startswith("anyres_max_"):
        ratio = math.sqrt(kept[0] * kept[1] / (int(most.removeprefix("anyres_max_")) * image.rows**2))
        if ratio > 1.1:
            shape = (int(kept[0] // ratio), int(kept[1] // ratio))
    fine = tiled(tiles, across=across, shape=shape, inside=(top, left, *kept))
    slots: list[Slot] = []
    for row in range(shape[0]):
        slots += [("tiles", row * shape[1] + col) for col in range(shape[1])]
        slots.append("newline")
    return Seen(views=(image, *tiles), parts={"image": part, "tiles": fine}, slots=(*own, *slots), note=_gap(tiles[0]))


def padding(size_px: tuple[int, int], *, shape: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows at the top and columns at the left of a grid are padding alone, for a picture in it.

    Examples
    --------
    >>> padding((60, 40), shape=(8, 8)), padding((60, 40), shape=(4, 8))
    ((1, 0), (0, 1))
    """
    (width, height), (rows, cols) = size_px, shape
    if width / height > cols / rows:
        return (rows - int(round(height * (cols / width), 7))) // 2, 0
    return 0, (cols - int(round(width * (rows / height), 7))) // 2


def tile_views(geometries: Sequence[Geometry], *, model: nn.Module) -> tuple[tuple[View, ...], int]:
    """Return the tiles of a picture, row by row, and how many stand side by side.

    Raises
    ------
    InputError
        They are no rows of equal tiles.
    """
    tops = [one.to_model[1, 2] for one in geometries]
    across = sum(1 for top in tops if abs(top - tops[0]) < 1)
    if len(tops) % across or len({one.model_px for one in geometries}) > 1:
        raise InputError(
            f"The processor cuts the picture into {len(tops)} tiles, {across} of them in the first row. Tiles would be "
            "rows of equal squares. Pass the processor that was saved with the model."
        )
    views = (view_of(one, model=model, name=f"tile {n + 1}") for n, one in enumerate(geometries))
    return tuple(views), across


def tiled(
    tiles: Sequence[View],
    *,
    across: int,
    shape: tuple[int, int],
    inside: tuple[int, int, int, int] | None = None,
) -> PatchGrid:
    """Return one grid over all tiles.

    Parameters
    ----------
    shape
        Rows and columns of tokens.
    inside
        Top, left, height and width of what they cover, in patches of all tiles; None: everything.
    """
    first = tiles[0]
    width, height = first.geometry.model_px
    top, left, rows, cols = inside or (0, 0, len(tiles) // across * first.rows, across * first.cols)
    wide, high = width / first.cols, height / first.rows  # of a patch, with what no patch of a tile reaches
    return grid_of(
        first.geometry,
        shape=shape,
        patch_px=(cols * wide / shape[1], rows * high / shape[0]),
        origin_px=(left * wide, top * high),
    )


def _gap(tile: View) -> str:
    """Return what a caption says where a tile is no whole number of patches, so that its end is not seen."""
    rest = tile.geometry.model_px[0] - tile.cols * tile.patch_px
    return f"boxes of tiles lie up to {rest} px of a tile of {tile.geometry.model_px[0]} px off" if rest else ""


def merged_by(model: nn.Module, side: int) -> int:
    """Return how many patches of a row become one token, where a view has `side` of them."""
    config: Any = model.config
    if (factor := getattr(config, "scale_factor", None)) is not None:
        return int(factor)
    if (ratio := getattr(config, "downsample_ratio", None)) is not None:
        return round(1 / float(ratio))
    if (count := getattr(config, "mm_tokens_per_image", None)) is not None:
        return side // math.isqrt(int(count))
    return 1


def special_count(model: nn.Module) -> int:
    """Return how many tokens of its own the tower has: a class token or none."""
    names = (name.rsplit(".", 1)[-1] for name, _ in model.named_parameters())
    return int(any(name in ("class_embedding", "cls_token") for name in names))


def vision_settings(model: nn.Module) -> Any:
    """Return the settings of the tower."""
    config: Any = model.config
    return config.vision_config


def view_of(geometry: Geometry, *, model: nn.Module, name: str = "image") -> View:
    """Return what a tower gets, cut into its patches."""
    patch = vision_settings(model).patch_size
    side = int(patch[0] if isinstance(patch, list | tuple) else patch)
    width, height = geometry.model_px
    return View(name=name, geometry=geometry, rows=height // side, cols=width // side, patch_px=side)
