"""What a model of pictures and texts was given, looked at before any work is done."""

from typing import Any, TypeVar

from mmattn.errors import InputError
from mmattn.interception.protocol import MediaGiven

_Options = TypeVar("_Options")


def checked_options(media: MediaGiven, options: Any, *, kind: type[_Options], fields: str) -> _Options:
    """Return the options (those of `kind`, or its defaults), after a look at what was given.

    Raises
    ------
    InputError
        Neither a picture nor a text, another modality, options of another adapter.
    """
    others = [name for name in ("audio", "video", "graph", "generate") if getattr(media, name) is not None]
    if others or (media.image is None and media.text is None and media.inputs is None):
        raise InputError(
            f"A model of pictures and texts got {', '.join(others) or 'neither'}. This one takes the two and is not "
            "let write (decoders behind a prompt are: Llava, GIT, CoCa, ...). Pass image=, text=, both, or inputs= for "
            "prepared tensors."
        )
    if options is not None and not isinstance(options, kind):
        raise InputError(
            f"options= is a {type(options).__name__}. This adapter takes {kind.__name__}({fields}) from "
            f"{kind.__module__}. Pass one of those."
        )
    return kind() if options is None else options
