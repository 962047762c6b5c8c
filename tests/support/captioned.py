"""Relevances between the words of a caption and the patches of a picture, with known peaks."""

import numpy as np
import torch

from mmattn.schema.axes import PatchGrid, Slots, Tokens
from mmattn.schema.media import Photo, Words
from mmattn.schema.results import Relevance, Source
from mmattn.schema.tokens import split_words

CAPTION = "a dog next to a watermelon"
PEAKS = {1: (60.0, 50.0), 5: (300.0, 200.0)}  # word: where it looks


def tokens(text: str, *, pads: int = 0, cut: int | None = None) -> Tokens:
    """Words as one token each, those of more than six letters as two, between a bos and an eos."""
    pieces, spans, roles = ["<s>"], [None], ["bos"]
    for start, end in split_words(text)[:cut]:
        middle = (start + end) // 2
        for span in [(start, middle), (middle, end)] if end - start > 6 else [(start, end)]:
            pieces.append(text[slice(*span)])
            spans.append(span)
            roles.append("content")
    pieces += ["</s>"] + ["<pad>"] * pads
    roles += ["eos"] + ["pad"] * pads
    return Tokens.of(text, pieces=pieces, spans=spans + [None] * (1 + pads), roles=roles)


def captioned(
    text: str = CAPTION,
    *,
    size_px: tuple[int, int] = (400, 280),
    peaks: dict[int, tuple[float, float]] | None = None,
    unit: str = "share",
    photo: np.ndarray | None = None,
    pads: int = 3,
    to_input: np.ndarray | None = None,
    sign: float = 1.0,
) -> Relevance:
    """Each word looks everywhere alike, and those with a peak ten times as much at one patch."""
    axis = tokens(text, pads=pads)
    grid = PatchGrid.plain(rows=7, cols=10, patch_px=(16, 16), size_px=size_px, special=("cls",), to_input=to_input)
    values = np.full((len(axis), len(grid)), 1.0)
    for word, point in (PEAKS if peaks is None else peaks).items():
        values[list(axis.words()[word].tokens), grid.token_at(point)] = 10.0 * sign
    if unit == "share":
        values /= values.sum(axis=1, keepdims=True)
    elif unit == "signed relevance":
        values[values == 1.0] = 0.0
    width, height = size_px
    pixels = np.full((height, width, 3), 128, np.uint8) if photo is None else photo
    return Relevance(
        values=torch.tensor(values, dtype=torch.float32),
        axis=grid,
        query_axis=axis,
        labels=axis.pieces,
        method="cross",
        unit=unit,
        media=Photo(pixels=pixels, name="photo.png"),
        query_media=Words(text=text),
        source=Source(model="open_clip CustomTextCLIP", weights="random"),
    )


def over_text(text: str, values: list[float], *, unit: str = "share", cut: int | None = None) -> Relevance:
    """One row over the tokens of a text."""
    return Relevance(
        values=torch.tensor([values], dtype=torch.float32),
        axis=tokens(text, cut=cut),
        query_axis=Slots.count(1),
        labels=("class token",),
        method="look",
        unit=unit,
        source=Source(model="BertModel", weights="random"),
    )
