"""A third party's adapter: everything that one needs, and nothing of mmattn but interception, schema and errors."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import acme_models
import numpy as np
import torch
from torch import Tensor, nn

from mmattn.errors import InputError, ModelError, NotFoundError, nearest
from mmattn.interception.blocks import to_blocks
from mmattn.interception.calls import Call
from mmattn.interception.protocol import Emit, MediaGiven, ModelFamily, Opened, Prepared
from mmattn.schema.axes import PatchGrid
from mmattn.schema.maps import AttentionLayer

NAMES = ("square_net", "deep_square_net")


@dataclass(frozen=True, kw_only=True)
class SquaresAdapter:
    """Reads SquareNet: gray pictures, never resized, cut into squares."""

    name: str = "acme_models.squares"
    default_stream: str = "vision"

    def claims(self, model: nn.Module) -> bool:
        return isinstance(model, acme_models.SquareNet)

    def opens(self, config: Mapping[str, Any]) -> bool:
        return False

    def open(self, name: str, weights: Path | None = None) -> Opened:
        if name not in NAMES:
            raise NotFoundError(
                f'acme_models has no "{name}". It has: {nearest(name, NAMES)}. Pass acme_models:NAME with one of those.'
            )
        return Opened(model=acme_models.create_model(name), weights=f"acme_models:{name}")

    def models(self) -> Iterable[ModelFamily]:
        return [
            ModelFamily(name=f"acme_models:{name}", what="squares", how_exact="all", source="random") for name in NAMES
        ]

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        photo = media.image
        side = acme_models.SIDE_PX
        if any(length % side for length in photo.size_px):
            raise InputError(f"The picture is {photo.size_px} px. Sides are multiples of {side}. Crop it first.")
        gray = torch.from_numpy(photo.pixels.mean(axis=2, dtype=np.float32) / 255)[None, None]
        width, height = photo.size_px
        grid = PatchGrid.plain(rows=height // side, cols=width // side, patch_px=(side, side), size_px=photo.size_px)
        return Prepared(run=lambda: model(gray), inputs=(gray,), media=(photo,), facts=grid, readout="mean")

    def taps(self, model: nn.Module, emit: Emit) -> AbstractContextManager[None]:
        return nullcontext()

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        axis = (prepared.facts,)
        return [
            AttentionLayer(
                name=call.module,
                stream="vision",
                query=axis,
                key=axis,
                heads=2,
                storage=(to_blocks(call),),
                error=call.error,
            )
            for call in calls
        ]

    def score(self, output: Any, target: Any) -> Tensor:
        raise ModelError("SquareNet has no classes. A target names one. Use a method without a target.")


adapter = SquaresAdapter()
