"""Which decoders of one stream are read, one line a class: where its tower and decoder are, and how pictures lie.

    cut         takes a picture's views out of what the processor returned (`cuts`)
    lay         says what each view's patches and each placeholder in the prompt are (`layouts`)
    picture     what is written before a text without marks, for each of its pictures, where there is no template

Every class is held by tests to its own eager weights, and its boxes to pixels that are changed. A class whose
towers differ has a line for each: `CLASS:MODEL_TYPE of the tower`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from . import cuts, layouts
from .layouts import Lay
from .views import Cut


@dataclass(frozen=True, kw_only=True)
class OneStream:
    """How a class is built; see the module.

    Parameters
    ----------
    named
        What people call it.
    picture
        With `{}` for the mark.
    tower, decoder
        Paths of their modules.
    alone
        Whether prepared tensors tell where patches lie in the picture that they show, without it.
    together
        Whether a processor treats pictures otherwise where several stand in one prompt.
    marks
        Names of the processor's ids that stand for pictures too, beside the picture's own.
    """

    named: str
    cut: Cut
    lay: Lay
    picture: str = "{}\n"
    tower: str = "model.vision_tower"
    decoder: str = "model.language_model"
    alone: bool = False
    together: bool = False
    marks: tuple[str, ...] = ()

    def placeholders(self, model: nn.Module, processor: Any) -> frozenset[int]:
        """Return the ids of the tokens that stand for pictures in a prompt."""
        config: Any = model.config
        more = (getattr(processor, name) for name in self.marks)
        return frozenset([int(config.image_token_id), *map(int, more)])


_QWEN: dict[str, Any] = {
    "cut": cuts.packed,
    "lay": layouts.qwen,
    "picture": "<|vision_start|>{}<|vision_end|>",
    "tower": "model.visual",
}
_IDEFICS: dict[str, Any] = {
    "cut": cuts.nested,
    "lay": layouts.tiles_last,
    "picture": "{}",
    "tower": "model.vision_model",
    "decoder": "model.text_model",
}
_NEXT: dict[str, Any] = {"cut": cuts.nested, "lay": layouts.unpadded}

CLASSES: Mapping[str, OneStream] = {
    "Gemma3ForConditionalGeneration": OneStream(named="Gemma 3", cut=cuts.several, lay=layouts.squares, picture="{}"),
    "Idefics3ForConditionalGeneration": OneStream(named="Idefics3", **_IDEFICS),
    "InternVLForConditionalGeneration": OneStream(named="InternVL", cut=cuts.several, lay=layouts.tiles_last),
    "LlavaForConditionalGeneration": OneStream(named="Llava", cut=cuts.several, lay=layouts.llava, alone=True),
    "LlavaForConditionalGeneration:pixtral": OneStream(
        named="Pixtral",
        cut=cuts.sized,
        lay=layouts.pixtral,
        picture="{}",
        marks=("image_break_token_id", "image_end_token_id"),
    ),
    "LlavaNextForConditionalGeneration": OneStream(named="Llava-Next", **_NEXT),
    "LlavaOnevisionForConditionalGeneration": OneStream(named="Llava-OneVision", together=True, **_NEXT),
    "PaliGemmaForConditionalGeneration": OneStream(
        named="PaliGemma", cut=cuts.several, lay=layouts.squares, picture="{}", alone=True
    ),
    "Qwen2VLForConditionalGeneration": OneStream(named="Qwen2-VL", **_QWEN),
    "Qwen2_5_VLForConditionalGeneration": OneStream(named="Qwen2.5-VL", **_QWEN),
    "Qwen3VLForConditionalGeneration": OneStream(named="Qwen3-VL", **_QWEN),
    "SmolVLMForConditionalGeneration": OneStream(named="SmolVLM", **_IDEFICS),
}


def class_of(model: nn.Module) -> OneStream | None:
    """Return how a model's class is built, or the class of transformers that it derives from."""
    tower = getattr(getattr(getattr(model, "config", None), "vision_config", None), "model_type", "")
    bases = (base.__name__ for base in type(model).__mro__ if base.__module__.partition(".")[0] == "transformers")
    names = (name for base in bases for name in (f"{base}:{tower}", base))
    return next((CLASSES[name] for name in names if name in CLASSES), None)


def opens_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names one of these classes.

    Examples
    --------
    >>> opens_config({"architectures": ["LlavaForConditionalGeneration"]}), opens_config({})
    (True, False)
    """
    named = config.get("architectures")
    return isinstance(named, list) and bool(named) and named[0] in CLASSES
