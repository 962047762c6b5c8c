"""What the tokens of timm's plain vision transformers are: prefix tokens, the patch grid.

Everything is read off the model that runs, never from its name: which prefix tokens there are
(`cls_token`, `dist_token`, `reg_token`, in the order in which `_pos_embed` joins them), and how many
patches an input of some size gives (`patch_embed.dynamic_feat_size`).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from mmattn.errors import InputError, ModelError
from mmattn.schema.axes import PatchGrid

from ..pixels import Geometry, Size

# The order in which timm joins them before the patches (timm 1.0: vision_transformer, deit, eva, beit).
_PREFIX = (("cls_token", "cls"), ("dist_token", "distillation"), ("reg_token", "register"))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tokens of a model for inputs of one size.

    Parameters
    ----------
    special
        Roles of the tokens before the patches.
    rows, cols
        Patches down and across.
    patch_px
        Width and height of a patch in model pixels.
    pool, pool_slots
        Path of an attention pool with learned queries, and how many; empty and 0 without one.
    refine
        Path of a pool that is self-attention without a residual; empty without one.

    """

    special: tuple[str, ...]
    rows: int
    cols: int
    patch_px: tuple[float, float]
    pool: str = ""
    pool_slots: int = 0
    refine: str = ""

    def axis(self, geometry: Geometry, *, with_special: bool = True) -> PatchGrid:
        """Return the axis for a picture that came to the model by `geometry`: one object for all layers."""
        return _axis(self, geometry, with_special)


@lru_cache(maxsize=64)
def _axis(layout: Layout, geometry: Geometry, with_special: bool) -> PatchGrid:
    return PatchGrid.plain(
        rows=layout.rows,
        cols=layout.cols,
        patch_px=layout.patch_px,
        size_px=geometry.size_px,
        to_input=geometry.to_input,
        special=layout.special if with_special else (),
    )


def layout_of(model: nn.Module, *, size_px: Size) -> Layout:
    """Return the token layout of `model` for inputs of `size_px` (width, height)."""
    embed: Any = model.patch_embed
    rows, cols = embed.dynamic_feat_size((size_px[1], size_px[0]))
    high, wide = embed.feat_ratio(as_scalar=False)
    pool: Any = getattr(model, "attn_pool", None)
    slots = int(getattr(pool, "latent_len", 0))
    return Layout(
        special=special_roles(model),
        rows=int(rows),
        cols=int(cols),
        patch_px=(float(wide), float(high)),
        pool="attn_pool" if slots else "",
        pool_slots=slots,
        refine="attn_pool" if pool is not None and not slots else "",
    )


def special_roles(model: nn.Module) -> tuple[str, ...]:
    """Return the roles of the tokens that stand before the patches, in the model's own order."""
    roles: list[str] = []
    for attribute, role in _PREFIX:
        token = getattr(model, attribute, None)
        if token is not None:
            roles += [role] * int(token.shape[1])
    count = int(getattr(model, "num_prefix_tokens", len(roles)))
    if count != len(roles):
        raise ModelError(
            f"{type(model).__name__} declares {count} prefix tokens and has {len(roles)} ({', '.join(roles)}). "
            "Its patches would be misplaced. Write an adapter for this class, or use mmattn.capture."
        )
    return tuple(roles)


def fixed_size(model: nn.Module) -> Size | None:
    """Return the only (width, height) that the model takes, or None if it takes others too."""
    embed: Any = model.patch_embed
    if not getattr(embed, "strict_img_size", True) or embed.img_size is None:
        return None
    return int(embed.img_size[1]), int(embed.img_size[0])


def check_size(model: nn.Module, size_px: Size) -> None:
    """Check that the model takes inputs of `size_px` (width, height).

    Raises
    ------
    InputError
        It does not; the message says which sizes it takes.

    """
    embed: Any = model.patch_embed
    fixed = fixed_size(model)
    asked = f"{type(model).__name__} cannot take inputs of {size_px[0]} x {size_px[1]} px."
    if fixed is not None and fixed != size_px:
        raise InputError(
            f"{asked} As it was built it takes {fixed[0]} x {fixed[1]} px only. Leave the size out, open the model by "
            "name, or build it with timm.create_model(..., dynamic_img_size=True) or model.set_input_size((h, w))."
        )
    high, wide = embed.feat_ratio(as_scalar=False)
    if min(size_px[0] // wide, size_px[1] // high) < 1 or (
        fixed is None and not embed.dynamic_img_pad and (size_px[0] % wide or size_px[1] % high)
    ):
        near = " x ".join(
            f"{max(1, side // unit) * unit} or {(side // unit + 1) * unit}"
            for side, unit in zip(size_px, (wide, high), strict=True)
        )
        raise InputError(
            f"{asked} Its patches are {wide} x {high} px, and both sides must be multiples of that: {near} px. "
            "Pass one of those."
        )
