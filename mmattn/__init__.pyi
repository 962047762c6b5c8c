from .api import attend as attend
from .api import between as between
from .api import capture as capture
from .api import draw as draw
from .api import head_grid as head_grid
from .api import intervene as intervene
from .api import links as links
from .api import load as load
from .api import look as look
from .api import match as match
from .api import overlay as overlay
from .api import relevance as relevance
from .api import rollout as rollout
from .api import side_by_side as side_by_side
from .api import word_grid as word_grid
from .errors import MmattnError as MmattnError
from .schema.maps import AttentionLayer as AttentionLayer
from .schema.maps import AttentionMaps as AttentionMaps
from .schema.matches import Match as Match
from .schema.results import Relevance as Relevance

__version__: str
