"""What analysis gives and renderers take: plain data about places, with where it came from.

A result knows its axes, so it can say *where*; it knows its source, so a caption can say *who*.
It never runs a model and never draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.axes import Axis, Joined, Place, Tokens
from mmattn.schema.media import Media, Words
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
        What each row gave to no token of the axis: a share, or in other units the sum of absolute values.
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

    def part(self, columns: str | int | None = None, *, rows: str | int | None = None) -> "Relevance":
        """Return what the tokens of one part of a sequence gave to those of another: words and patches, say.

        What the rows gave to the other tokens of the sequence is kept: in `outside`, and as a phrase for captions.

        Parameters
        ----------
        columns
            A part of `axis`, by its name or number; None: all columns stay.
        rows
            A part of `query_axis`, likewise.

        Raises
        ------
        NotFoundError
            There is no such part.
        InputError
            The axis is none of parts.

        Examples
        --------
        >>> from mmattn.schema.axes import PatchGrid, Slots
        >>> image = PatchGrid.plain(rows=1, cols=2, patch_px=(16, 16), size_px=(32, 16))
        >>> text = Tokens.of("a cat", pieces=["a", "cat"], spans=[(0, 1), (2, 5)])
        >>> both = Joined.of({"text": text, "image": image}, tokens=[[0, 3], [1, 2]])
        >>> one = Relevance(values=torch.tensor([[0.1, 0.2, 0.3, 0.4]]), axis=both, query_axis=Slots.count(1),
        ...                 labels=("cat",), method="look").part("image")
        >>> one.values.tolist(), one.outside.tolist(), one.parameters["part"]
        ([[0.20000000298023224, 0.30000001192092896]], [0.5], 'image (text 50 % of the weight)')
        """
        one = self
        if rows is not None:
            axis, where = _part_of(one.query_axis, rows, side="rows")
            one = _rows_of(one, axis, where)
        if columns is not None:
            axis, where = _part_of(one.axis, columns, side="columns")
            one = _columns_of(one, axis, where)
        return one

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


def _part_of(axis: Axis, name: str | int, *, side: str) -> tuple[Axis, Int[np.ndarray, " _"]]:
    if not isinstance(axis, Joined):
        raise InputError(
            f"The {side} of this relevance are {axis!r}: one axis, without parts. Parts are of a sequence that several "
            f"inputs share. Leave part {name!r} out."
        )
    return axis.part(name)


def _rows_of(one: Relevance, axis: Axis, where: Int[np.ndarray, " _"]) -> Relevance:
    """Return the rows of a part alone."""

    def taken(given: Tensor | None) -> Tensor | None:
        return None if given is None else given[torch.as_tensor(where, device=given.device)]

    values = taken(one.values)
    assert values is not None
    return replace(
        one,
        values=values,
        query_axis=axis,
        labels=tuple(one.labels[row] for row in where),
        uniform=taken(one.uniform),
        outside=taken(one.outside),
        reach=taken(one.reach),
        query_tokens=None if one.query_tokens is None else tuple(one.query_tokens[row] for row in where),
        query_places=None if one.query_places is None else tuple(one.query_places[row] for row in where),
        query_media=_medium(axis, one.query_media),
    )


def _columns_of(one: Relevance, axis: Axis, where: Int[np.ndarray, " _"]) -> Relevance:
    """Return the columns of a part alone, with what went to others beside them."""

    def taken(given: Tensor | None) -> Tensor | None:
        return None if given is None else given[:, torch.as_tensor(where, device=given.device)]

    values = taken(one.values)
    assert values is not None
    others = torch.ones(one.values.shape[1], dtype=torch.bool, device=one.values.device)
    others[torch.as_tensor(where, device=others.device)] = False
    beside = one.values[:, others].abs().sum(dim=1)
    number = {int(token): index for index, token in enumerate(where)}
    asked = None
    if one.query_tokens is not None:
        asked = tuple(tuple(number[token] for token in row if token in number) for row in one.query_tokens)
    return replace(
        one,
        values=values,
        axis=axis,
        uniform=taken(one.uniform),
        outside=beside if one.outside is None else one.outside + beside,
        reach=taken(one.reach),
        query_tokens=asked,
        parameters={**one.parameters, "part": _part_phrase(one, where)},
        media=_medium(axis, one.media),
    )


def _part_phrase(one: Relevance, where: Int[np.ndarray, " _"]) -> str:
    """Return the name of a part, with what lies on the others."""
    assert isinstance(one.axis, Joined)
    weights = one.values.detach().abs().sum(dim=0).double().cpu().numpy()
    whole = weights.sum() + (0.0 if one.outside is None else float(one.outside.sum()))
    chosen, found = "", {}
    rest = np.ones(len(weights), dtype=bool)
    for name, tokens in zip(one.axis.names, one.axis.tokens, strict=True):
        rest[tokens] = False
        if np.array_equal(tokens, where):
            chosen = name
        else:
            found[name] = weights[tokens].sum()
    found["other tokens"] = weights[rest].sum()
    said = [f"{name} {100 * weight / whole:.2g} %" for name, weight in found.items() if whole and weight]
    return chosen + (f" ({', '.join(said)} of the weight)" if said else "")


def _medium(axis: Axis, medium: Media | None) -> Media | None:
    """Return what a part's places are places in: of words their own text."""
    return Words(text=axis.text) if isinstance(axis, Tokens) else medium
