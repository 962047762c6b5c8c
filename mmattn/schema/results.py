"""What analysis gives and renderers take: plain data about places, with where it came from.

A result knows its axes, so it can say *where*; it knows its source, so a caption can say *who*.
It never runs a model and never draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.axes import Axis, Place
from mmattn.schema.media import Media
from mmattn.schema.source import Source

Unit = Literal["share", "relevance", "signed relevance", "bits"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Relevance:
    """How much each token of `axis` mattered to each asked row of `query_axis`.

    Parameters
    ----------
    values
        `[query, token]`: one row for each question, one column for each token of `axis`.
    axis
        What the columns are.
    query_axis
        What the rows are; a `Slots` of one for a single query or target.
    labels
        One phrase for each row, such as `class token` or `patch at (120, 80)`.
    unit
        `share` sums to at most 1 over a row; `relevance` is non-negative without a fixed sum.
    method, parameters
        How it was read, for the caption and for repeating it.
    uniform
        The same shape: what a layer that looks at everything alike would give; None if unknown.
    outside
        Share of each row that went to no token of the axis.
    query_tokens
        For each row, the tokens of `axis` that asked and have a place, for a picture to mark; none for a
        class token or a mean over everything.
    query_places
        For each row, the places of the tokens that asked where these are no tokens of `axis` (patches of
        another stage), for a picture to mark.
    reach
        The same shape as `values`: tokens that the row could attend to at all; None means all.
    target
        What it was read toward, such as `'tabby cat' (281)`; empty for a reading that knows no target.
    media, query_media
        What columns and rows are places in.
    source
        Model, weights and adapter.

    """

    values: Float[Tensor, "query token"]
    axis: Axis
    query_axis: Axis
    labels: tuple[str, ...]
    method: str
    unit: Unit = "share"
    parameters: Mapping[str, object] = field(default_factory=dict)
    uniform: Float[Tensor, "query token"] | None = None
    outside: Float[Tensor, " query"] | None = None
    query_tokens: tuple[tuple[int, ...], ...] | None = None
    query_places: tuple[tuple[Place, ...], ...] | None = None
    reach: Bool[Tensor, "query token"] | None = None
    target: str = ""
    media: Media | None = None
    query_media: Media | None = None
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        rows, columns = self.values.shape
        if columns != len(self.axis) or rows != len(self.labels) or rows != len(self.query_axis):
            raise InputError(
                f"A relevance of shape {rows} x {columns} does not fit its axes: "
                f"{len(self.query_axis)} queries, {len(self.labels)} labels, {len(self.axis)} tokens. "
                "Rows are queries and columns are tokens of the axis."
            )
        if not bool(torch.isfinite(self.values).all()):
            bad = int((~torch.isfinite(self.values)).sum())
            raise InputError(
                f"{bad} of {self.values.numel()} relevance values are NaN or infinite. "
                "Every value must be finite. Look for overflow in the model (half precision?) "
                "or pass float32 weights."
            )

    def row(self, row: int = 0) -> Float[Tensor, " token"]:
        """Return one row of values; negative rows count from the end."""
        if not isinstance(row, int) or not -len(self.labels) <= row < len(self.labels):
            raise InputError(
                f"There is no row {row}: this relevance has {len(self.labels)} row(s), 0 to {len(self.labels) - 1}. "
                "Pass row= within that range."
            )
        return self.values[row]

    def top(self, k: int, *, row: int = 0) -> list[tuple[Place, float]]:
        """Return the k strongest content tokens of a row as (place, value), strongest first."""
        values = self.row(row)
        content = torch.as_tensor(self.axis.content, dtype=torch.long)
        chosen = values.cpu()[content]
        order = torch.argsort(chosen, descending=True, stable=True)[:k]
        return [(self.axis.place(int(content[i])), float(chosen[i])) for i in order]

    def peak(self, *, row: int = 0) -> Place:
        """Return the place of the strongest content token of a row."""
        return self.top(1, row=row)[0][0]

    def __repr__(self) -> str:
        rows, columns = self.values.shape
        content = len(self.axis.content)
        read = self.method + (f" toward {self.target}" if self.target else "")
        lines = [
            f"Relevance: {read} ({self.unit}), {rows} row(s) x {columns} tokens ({content} with a place)",
            f"  axis    {self.axis!r}",
            f"  source  {self.source.model}, {self.source.weights}",
        ]
        if self.parameters:
            lines.append("  with    " + ", ".join(f"{k}={v}" for k, v in self.parameters.items()))
        for index, label in enumerate(self.labels[:4]):
            row = self.values[index]
            where = _short(self.peak(row=index)) if content else "no token has a place"
            lines.append(f"  row {index}   {label}: peak at {where}, {float(row.min()):.3g} to {float(row.max()):.3g}")
        if rows > 4:
            lines.append(f"  ... {rows - 4} more rows")
        return "\n".join(lines)


def _short(place: Place) -> str:
    return str(tuple(round(float(v), 1) for v in place)) if isinstance(place, tuple) else str(place)
