"""Branches that run side by side: which stream each attention belongs to.

Stages follow each other: once a grid was left for a coarser one it does not come back. Where one does
(CrossViT's two grids, TNT's inner and outer tokens), each grid is a branch of its own. An attention that
only special tokens ask (CrossViT's fusion) belongs to the branch in whose sequence those very tokens stand.
"""

from collections.abc import Sequence

import torch

from .grids import Grids
from .trace import Event


def branches(events: Sequence[Event], grids: Grids) -> list[str]:
    """Return the number of each event's branch, or nothing where all events follow each other."""
    asked = [_asked(event, grids) for event in events]
    order = [cells for cells, _ in asked if cells]
    runs = [cells for at, cells in enumerate(order) if not at or cells != order[at - 1]]
    distinct = list(dict.fromkeys(runs))
    if len(runs) == len(distinct):
        return [""] * len(events)
    owner = {special: cells for cells, own in reversed(asked) if cells for special in own}
    own = [cells or next((owner[special] for special in specials if special in owner), ()) for cells, specials in asked]
    return [str(distinct.index(cells)) if cells else "" for cells in own]


def _asked(event: Event, grids: Grids) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the grids of the cells that ask, and the special tokens among them."""
    numbers, _, _ = grids.decode(torch.unique(event.query))
    found = [number for number in torch.unique(numbers).tolist() if number >= 0]
    cells = tuple(number for number in found if grids.known[number].kind == "cells")
    return cells, tuple(number for number in found if grids.known[number].kind == "special")
