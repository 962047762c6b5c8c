"""Which classes of transformers are read, and how each is built: all families' forms in one place."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .transformers_florence import FLORENCES
from .transformers_forms import FORMS, Form
from .transformers_git import GITS
from .transformers_lxmert import LXMERTS
from .transformers_mllama import MLLAMAS
from .transformers_perceiver import PERCEIVERS
from .transformers_qformer import QFORMERS
from .transformers_sides import SidedForm

#: Classes whose processor writes the whole input; see `transformers_sides`.
SIDED: Mapping[str, SidedForm] = {**QFORMERS, **PERCEIVERS, **MLLAMAS, **FLORENCES, **GITS, **LXMERTS}

KNOWN: Mapping[str, Form] = {**FORMS, **SIDED}


def form_of(model: nn.Module) -> Form | None:
    """Return the form of a model's class, or of the class of transformers that it derives from."""
    bases = (base for base in type(model).__mro__ if base.__module__.partition(".")[0] == "transformers")
    return next((KNOWN[base.__name__] for base in bases if base.__name__ in KNOWN), None)


def opens_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names one of these classes.

    Examples
    --------
    >>> opens_config({"architectures": ["CLIPModel"]}), opens_config({"architectures": ["CLIPTextModel"]})
    (True, False)
    """
    named = config.get("architectures")
    return isinstance(named, list) and bool(named) and named[0] in KNOWN
