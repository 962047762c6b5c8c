"""What `--json` writes: an array with one object an input, in coordinates of the original."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import mmattn
from mmattn.render.files import write_whole
from mmattn.render.image import picture_axis
from mmattn.schema.matches import Match
from mmattn.schema.results import Relevance

PRINTED = "-"


def image_record(relevance: Relevance, *, model: str, source: str) -> dict[str, Any]:
    """Return the object of `mmattn image` for one picture.

    `values` holds `rows` lists of `cols` numbers, as the upright picture reads; `boxes_px` the box of
    each in the same order; a patch that the model dropped is null.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import PatchGrid, Slots
    >>> grid = PatchGrid.plain(rows=1, cols=2, patch_px=(16, 16), size_px=(64, 32))
    >>> one = Relevance(values=torch.tensor([[0.25, 0.75]]), axis=grid, query_axis=Slots.count(1),
    ...                 labels=("mean over 2 patches",), method="look")
    >>> record = image_record(one, model="mmattn:dinov2-small", source="cat.jpg")
    >>> record["values"], record["boxes_px"][1], record["peak_px"]
    ([[0.25, 0.75]], [32.0, 0.0, 64.0, 32.0], [48.0, 16.0])

    """
    grid = picture_axis(relevance)
    rows, cols, boxes, tokens = _reading_order(grid.places(), grid.content)
    values = relevance.row(0).detach().cpu().double().numpy()
    x0, y0, x1, y1 = relevance.peak()  # type: ignore[misc] # a patch's place is a box
    return {
        "mmattn": mmattn.__version__,
        "command": "image",
        "model": model,
        "method": relevance.method,
        "input": source,
        "query": relevance.labels[0],
        "target": relevance.target or None,
        "size_px": list(grid.size_px),
        "rows": rows,
        "cols": cols,
        "values": [
            [_number(values[token], digits=7) if token >= 0 else None for token in tokens[row]] for row in range(rows)
        ],
        "boxes_px": [[round(float(side), 3) for side in box] for box in boxes],
        "peak_px": [round((x0 + x1) / 2, 3), round((y0 + y1) / 2, 3)],
    }


def match_record(match: Match, number: int, *, model: str, source: str) -> dict[str, Any]:
    """Return the object of `mmattn match` for one text: each word with its weight on every patch, row by row.

    What the pieces of a word weigh is added; shares are averaged. Weights may be signed; a patch that the model dropped
    is null.
    """
    relevance = match.relevances[number]
    grid = picture_axis(relevance)
    _, _, boxes, tokens = _reading_order(grid.places(), grid.content)
    values = relevance.values.detach().cpu().double().numpy()
    words = []
    for word in match.words(number):
        pieces = values[list(word.tokens)]
        row = pieces.mean(axis=0) if relevance.unit == "share" else pieces.sum(axis=0)
        x0, y0, x1, y1 = grid.place(int(grid.content[row[grid.content].argmax()]))
        patches = [
            {
                "box_px": [round(float(side), 3) for side in box],
                "weight": _number(row[token], digits=7) if token >= 0 else None,
            }
            for box, token in zip(boxes, tokens.ravel(), strict=True)
        ]
        start, end = word.span
        peak = [round((x0 + x1) / 2, 3), round((y0 + y1) / 2, 3)]
        words.append({"text": word.text, "start_char": start, "end_char": end, "peak_px": peak, "patches": patches})
    return {
        "mmattn": mmattn.__version__,
        "command": "match",
        "model": model,
        "method": match.method,
        "input": source,
        "text": match.texts[number],
        "score": _number(float(match.scores[number]), digits=7),
        "words": words,
    }


def write_json(records: Sequence[dict[str, Any]], *, to: str) -> None:
    """Write an array of objects to a file, whole or not at all, or print it for `-`."""
    text = json.dumps(records, ensure_ascii=False, allow_nan=False, indent=None, separators=(", ", ": ")) + "\n"
    if to == PRINTED:
        sys.stdout.buffer.write(text.encode("utf-8")) if hasattr(sys.stdout, "buffer") else sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_whole(Path(os.path.expanduser(to)), text.encode("utf-8"))


def _reading_order(
    places: Float[np.ndarray, "content 4"], content: np.ndarray
) -> tuple[int, int, Float[np.ndarray, "cell 4"], np.ndarray]:
    """Return rows, columns, the boxes row by row, and the token at each cell (-1: none)."""
    left, col = np.unique(np.round(places[:, 0], 6), return_inverse=True)
    top, row = np.unique(np.round(places[:, 1], 6), return_inverse=True)
    tokens = np.full((len(top), len(left)), -1)
    tokens[row, col] = content
    right = np.array([places[col == index, 2][0] for index in range(len(left))])
    bottom = np.array([places[row == index, 3][0] for index in range(len(top))])
    x0, y0 = np.meshgrid(left, top)
    x1, y1 = np.meshgrid(right, bottom)
    return len(top), len(left), np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4), tokens


def _number(value: float, *, digits: int) -> float:
    return float(f"{value:.{digits}g}")
