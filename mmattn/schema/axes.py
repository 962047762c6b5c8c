"""The axes: what token *i* is, in the coordinates of the user's original input. A closed union.

| axis | a place is | file |
|---|---|---|
| PatchGrid | a box in pixels | `grids.py` |
| TubeletGrid | a box and a time span | `tubelets.py` |
| SpectrogramGrid | a time span and a band | `spectrograms.py` |
| Timeline | a span of seconds | `timelines.py` |
| Tokens | a span of characters | `tokens.py` |
| Nodes, Slots, Positions | a node id; the slot's number; the index | `sets.py` |
| Regions | a box in pixels, which may overlap others | `regions.py` |
| Joined | its part's place | `joined.py` |

The first five stand on a lattice (`lattices.py`). Plug-ins add adapters, not axes.
"""

from mmattn.schema.grids import PatchGrid
from mmattn.schema.joined import Joined, Part
from mmattn.schema.places import AxisBase, Place
from mmattn.schema.regions import Regions
from mmattn.schema.sets import Nodes, Positions, Slots
from mmattn.schema.spectrograms import SpectrogramGrid
from mmattn.schema.timelines import Timeline
from mmattn.schema.tokens import Tokens
from mmattn.schema.tubelets import TubeletGrid

Axis = PatchGrid | TubeletGrid | SpectrogramGrid | Timeline | Tokens | Nodes | Slots | Positions | Regions | Joined

__all__ = [
    "Axis",
    "AxisBase",
    "Joined",
    "Nodes",
    "Part",
    "PatchGrid",
    "Place",
    "Positions",
    "Regions",
    "Slots",
    "SpectrogramGrid",
    "Timeline",
    "Tokens",
    "TubeletGrid",
]
