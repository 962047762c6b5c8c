"""How each class is built: which attention joins which tokens, told by module paths.

The vision tower's own attention is placed by its run on indices; every other attention is named
here once, by the path of its module, with the tokens that ask and the tokens that are asked:

    CLIP         text_model.                    words ask words
    BLIP         text_encoder. ... crossattention   words ask patches: real attention between the two
    BridgeTower  cross_modal_image_layers. ... crossattention   patches ask words
    ViLT         encoder.                       words and patches, in one sequence, ask all of it

Every class is held by a test to its own eager weights. A class that is not here is nobody's until
it is, and `mmattn.capture` records it without places.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: Who asks or is asked: `text`, `vision`, `joined`, or another group of tokens by its name.
Side = str


@dataclass(frozen=True, kw_only=True)
class Joins:
    """Attention of the modules whose path matches: its stream, who asks and who is asked.

    Parameters
    ----------
    path
        A regular expression, matched from the path's beginning.
    stream
        Of the layers.
    query, key
        `text`, `vision`, `joined` (both in one sequence), or another group of tokens, such as `qformer`.
    causal
        Whether a token is kept from those behind it; None: not known beforehand.
    together
        The part of a sequence whose tokens see each other all the same.
    turn
        Which of a module's calls in one pass, from 0; None: each.
    """

    path: str
    stream: str = "text"
    query: Side = "text"
    key: Side = "text"
    causal: bool | None = None
    together: str = ""
    turn: int | None = None


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a class is built.

    Parameters
    ----------
    joins
        Of all attention outside of the vision tower; the first that matches counts.
    vision
        Path of the vision tower; empty where pictures and texts are one sequence from the first layer on.
    apart
        Whether a text can be read without a picture: two towers that compare features at the end.
    full_length
        Texts are padded to the whole context, as the model was trained; its features may be the last token's.
    """

    joins: tuple[Joins, ...]
    vision: str = "vision_model"
    apart: bool = False
    full_length: bool = False

    def joins_of(self, path: str, *, turn: int = 0) -> Joins | None:
        """Return what a call of a module joins, the `turn`-th of a pass; None where that is not known."""
        return next((one for one in self.joins if re.match(one.path, path) and one.turn in (None, turn)), None)


def _bridge(prefix: str) -> Form:
    both = {"text": "text", "image": "vision"}
    joins = [Joins(path=re.escape(f"{prefix}text_model."), causal=False)]
    for name, side in both.items():
        layers = re.escape(f"{prefix}cross_modal_{name}_layers.") + r"\d+\."
        other = "vision" if side == "text" else "text"
        stream = f"cross.{side}"
        joins.append(Joins(path=layers + "attention", stream=stream, query=side, key=side, causal=False))
        joins.append(Joins(path=layers + "crossattention", stream=stream, query=side, key=other, causal=False))
    return Form(joins=tuple(joins), vision=f"{prefix}vision_model")


def _sequence(prefix: str) -> Form:
    path = re.escape(f"{prefix}encoder.")
    return Form(joins=(Joins(path=path, stream="joined", query="joined", key="joined", causal=False),), vision="")


_TOWERS = Form(joins=(Joins(path=r"text_model\."),), apart=True)
_PADDED = Form(joins=_TOWERS.joins, apart=True, full_length=True)

FORMS: Mapping[str, Form] = {
    "AltCLIPModel": _TOWERS,
    "Aimv2Model": _TOWERS,
    "BlipForConditionalGeneration": Form(
        joins=(
            Joins(path=r"text_decoder\..*\.crossattention\.", stream="decoder", key="vision", causal=False),
            Joins(path=r"text_decoder\.", stream="decoder", causal=True),
        )
    ),
    "BlipForImageTextRetrieval": Form(
        joins=(
            Joins(path=r"text_encoder\..*\.crossattention\.", stream="cross", key="vision", causal=False),
            Joins(path=r"text_encoder\.", causal=False),
        )
    ),
    "BlipModel": Form(joins=(Joins(path=r"text_model\.", causal=False),), apart=True),
    "BridgeTowerForImageAndTextRetrieval": _bridge("bridgetower."),
    "BridgeTowerModel": _bridge(""),
    "CLIPModel": _TOWERS,
    "CLIPSegModel": _TOWERS,
    "ChineseCLIPModel": _TOWERS,
    "MetaClip2Model": _TOWERS,
    "OwlViTModel": _PADDED,
    "Owlv2Model": _PADDED,
    "Siglip2Model": _PADDED,
    "SiglipModel": _PADDED,
    "ViltForImageAndTextRetrieval": _sequence("vilt."),
    "ViltForMaskedLM": _sequence("vilt."),
    "ViltForQuestionAnswering": _sequence("vilt."),
    "ViltModel": _sequence(""),
    "VisionTextDualEncoderModel": _TOWERS,
}
