"""Numbers from maps; one idea a file, its paper cited. Analysis never runs a renderer."""

from mmattn.analysis.between import between as between
from mmattn.analysis.heads import look_at_heads as look_at_heads
from mmattn.analysis.look import look as look
from mmattn.analysis.relevance import relevance as relevance
from mmattn.analysis.rollout import rollout as rollout
