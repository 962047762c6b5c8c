"""The axes: what token *i* is, in the coordinates of the user's original input. A closed union.

| axis | a place is | file |
|---|---|---|
| PatchGrid, TubeletGrid, SpectrogramGrid | a box; a box and a time span; a time span and a band | `grids.py`, `tubelets.py` |
| Timeline, Tokens | a span of seconds; a span of characters | `sequences.py` |
| Nodes, Slots, Positions | a node id; the slot's number; the index | `sets.py` |
| Joined | its part's place | `joined.py` |

Plug-ins add adapters, not axes.
"""

from mmattn.schema.grids import PatchGrid
from mmattn.schema.places import AxisBase, Place
from mmattn.schema.sets import Positions, Slots

Axis = PatchGrid | Slots | Positions

__all__ = ["Axis", "AxisBase", "PatchGrid", "Place", "Positions", "Slots"]
