"""Everything that mmattn raises on purpose: one family, one clear line each.

Each kind is also the built-in that people already catch (ValueError, LookupError, OSError...).
A message has three sentences: what is wrong, with the values; what would be right; what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmattnError(Exception):
    """Base of every error that mmattn raises on purpose.

    The command line turns any of them into one line and exit code 2.
    """


class InputError(MmattnError, ValueError):
    """What the user gave cannot be used: an image, an option, a tensor."""


class NotFoundError(MmattnError, LookupError):
    """A name, layer, head or word that is not there; the message lists those that are."""


class PlaceError(MmattnError, LookupError):
    """A token without a place, or a place without a token."""


class ModelError(MmattnError, ValueError):
    """A model that cannot be read the way it was asked for.

    No TypeError: torch's operators such as `@` turn one that is raised inside them into "unsupported operand".
    """


class NoAttentionError(ModelError):
    """A model ran and no attention was seen."""


class GoneError(MmattnError, RuntimeError):
    """Something that a later step needs is no longer there, such as the model of a loaded file."""


class FormatError(MmattnError, ValueError):
    """A file that is not what it should be: truncated, foreign, hostile or too new."""


class OutputError(MmattnError, OSError):
    """A file or folder that cannot be written."""


class DownloadError(MmattnError, OSError):
    """Weights that could not be fetched, or that are not the pinned ones."""


class MissingExtraError(MmattnError, ImportError):
    """A package that this job needs is not installed."""


def nearest(name: str, known: Iterable[str], *, most: int = 5) -> str:
    """Return the known names as a phrase for an error, the ones nearest to `name` first.

    Examples
    --------
    >>> nearest("rollot", ["look", "rollout"])
    'rollout, look'
    """
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.4)
    ordered = close + [other for other in names if other not in close]
    listed = ", ".join(ordered[:most])
    return f"{listed}, ... ({len(ordered)} in all)" if len(ordered) > most else listed or "none"
