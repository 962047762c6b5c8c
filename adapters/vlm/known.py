"""Which decoders of one stream are read, one line a class: where its tower and decoder are, and how pictures lie.

    mark        what stands for a picture in a text that the user writes
    picture     what is written before a text without marks, for each of its pictures
    cut         takes a picture's views out of what the processor of pictures returned
    lay         says what each view's patches and each placeholder in the prompt are

Every class is held by tests to its own eager weights, and its boxes to pixels that are changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .layouts import Lay, first_image, llava
from .views import Cut


@dataclass(frozen=True, kw_only=True)
class OneStream:
    """How a class is built; see the module.

    Parameters
    ----------
    named
        What people call it.
    tower, decoder
        Paths of their modules.
    tiles
        Whether one picture may reach the tower as several, or cut into patches.
    """

    named: str
    cut: Cut
    lay: Lay
    mark: str = "<image>"
    picture: str = "<image>\n"
    tower: str = "model.vision_tower"
    decoder: str = "model.language_model"
    tiles: bool = False

    def placeholders(self, model: nn.Module) -> frozenset[int]:
        """Return the ids of the tokens that stand for pictures in a prompt."""
        config: Any = model.config
        return frozenset([int(config.image_token_id)])


CLASSES: Mapping[str, OneStream] = {
    "LlavaForConditionalGeneration": OneStream(named="Llava", cut=first_image, lay=llava),
}


def class_of(model: nn.Module) -> OneStream | None:
    """Return how a model's class is built, or the class of transformers that it derives from."""
    bases = (base for base in type(model).__mro__ if base.__module__.partition(".")[0] == "transformers")
    return next((CLASSES[base.__name__] for base in bases if base.__name__ in CLASSES), None)


def opens_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names one of these classes.

    Examples
    --------
    >>> opens_config({"architectures": ["LlavaForConditionalGeneration"]}), opens_config({})
    (True, False)
    """
    named = config.get("architectures")
    return isinstance(named, list) and bool(named) and named[0] in CLASSES
