"""Words and patches of models of two towers, linked by a method that is chosen by name; one method a file."""

from mmattn.analysis.matching.match import Pair as Pair
from mmattn.analysis.matching.match import match as match
