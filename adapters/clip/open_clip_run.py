"""How an open_clip model is called, what it gives, and what a target names in that.

CLIP's classes give tuples or dicts and CoCa another dict; here all become one form, with gradients where
the caller has them on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.coca_model import CoCa
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from mmattn.errors import InputError, ModelError
from mmattn.interception.protocol import PairScores
from mmattn.schema.axes import Axis

from ..vit.timm_run import readout_of as readout_of_timm
from .written import written


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """What a model of two towers gives.

    Parameters
    ----------
    image, text
        Features of length one, `[sample, feature]`; None where that tower did not run.
    scale, bias
        What their products are multiplied with, and what is added; None where nothing is.
    caption
        CoCa's logits `[sample, token, piece]`: row i is asked for the piece at i + 1. None of the others.
    ids
        The texts' tokens, where they were given.

    """

    image: Float[Tensor, "sample feature"] | None
    text: Float[Tensor, "sample feature"] | None
    scale: Tensor | None = None
    bias: Tensor | None = None
    caption: Float[Tensor, "sample token piece"] | None = None
    ids: Int[Tensor, "sample _"] | None = None

    @property
    def similarity(self) -> Float[Tensor, "picture text"]:
        """Return the logit of each picture with each text.

        Raises
        ------
        ModelError
            Only one tower ran.

        """
        if self.image is None or self.text is None:
            raise ModelError(
                "Only one tower ran, and the score of a two-tower model compares a picture with a text. Both are "
                "needed. Pass image= and text=, or use a method without a target (look, rollout)."
            )
        logits: Tensor = self.image @ self.text.T
        logits = logits if self.scale is None else self.scale * logits
        return logits if self.bias is None else logits + self.bias


def encode(
    model: nn.Module,
    *,
    pixels: Float[Tensor, "sample channel row col"] | None = None,
    ids: Int[Tensor, "sample token"] | None = None,
) -> Encoded:
    """Return the features of pictures and texts; a tower without an input does not run.

    Parameters
    ----------
    model
        A CLIP, CustomTextCLIP or CoCa of open_clip.
    pixels, ids
        What `prepare` made of pictures and texts (`Prepared.inputs`).

    """
    runs: Any = model
    if isinstance(model, CoCa):
        if pixels is None:  # its forward has no text without a picture
            return Encoded(image=None, text=runs.encode_text(ids), scale=runs.logit_scale.exp(), bias=runs.logit_bias)
        out = runs(pixels, ids)
        return Encoded(
            image=flat(out["image_features"]),
            text=out.get("text_features"),
            scale=out.get("logit_scale"),
            bias=out.get("logit_bias"),
            caption=out.get("logits"),
            ids=ids,
        )
    out = runs(image=pixels, text=ids)
    if isinstance(out, dict):
        out = tuple(out.get(name) for name in ("image_features", "text_features", "logit_scale", "logit_bias"))
    image, text, scale, *bias = out
    return Encoded(image=flat(image), text=text, scale=scale, bias=bias[0] if bias else None)


def flat(features: Tensor | None) -> Float[Tensor, "sample feature"] | None:
    """Return features as one row a sample: those of a pool with one query stand in a dimension of its own."""
    return None if features is None else features.flatten(1)


def score_of(output: Any, target: Any) -> Float[Tensor, ""]:
    """Return the logit that a target names.

    Parameters
    ----------
    target
        None or "similarity": each picture with its own text, summed over the pairs. A number: that text with
        every picture, summed. `(picture, text)`: those two. `("caption", token)`: the logit by which CoCa's decoder
        writes the texts' token at that place, summed over the pairs; the row before it gives that.

    Raises
    ------
    ModelError
        Only one tower ran, or there is no decoder.
    InputError
        The target names no picture and text, or no token that is written.

    """
    if not isinstance(output, Encoded):
        raise ModelError(
            f"The output is a {type(output).__name__}, which holds no features of pictures and texts. "
            "Scores are of the maps' own rerun. Use maps of mmattn.attend."
        )
    if isinstance(target, tuple) and len(target) == 2 and target[0] == "caption":
        return _caption_logit(output, target[1])
    logits = output.similarity
    if target is None or target == "similarity":
        return logits.diagonal().sum()
    pair = target if isinstance(target, tuple) and len(target) == 2 else (0, target)
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in pair)
    if not whole or any(not -most <= one < most for one, most in zip(pair, logits.shape, strict=True)):
        raise InputError(
            f"The target {target!r} names none of {logits.shape[0]} picture(s) and {logits.shape[1]} text(s). It is "
            'the number of a text, or (picture, text), from 0. Pass that, or "similarity" for the pairs as given.'
        )
    return logits[pair] if isinstance(target, tuple) else logits[:, target].sum()


def _caption_logit(output: Encoded, token: Any) -> Float[Tensor, ""]:
    if output.caption is None or output.ids is None:
        raise ModelError(
            "The model writes no texts: it has no decoder. CoCa has one. Pass a target of pictures and texts: None, "
            "or (picture, text)."
        )
    last = min(output.caption.shape[1], output.ids.shape[1] - 1)
    if type(token) is not int or not 1 <= token <= last:
        raise InputError(
            f"The target ('caption', {token!r}) names no token that is written: they are 1 to {last}, and token 0 "
            "begins the text. Pass one of those."
        )
    own = output.ids[:, token, None].to(output.caption.device)
    return output.caption[:, token - 1].gather(1, own).sum()


def pair_scores(output: Any, *, ids: Int[Tensor, "pair token"] | None, axes: Sequence[Axis]) -> PairScores:
    """Return how likely CoCa's decoder is to write each text.

    Parameters
    ----------
    ids, axes
        The texts as the model got them.

    Raises
    ------
    ModelError
        There is no decoder: two towers have features to compare, and write nothing.

    """
    if not isinstance(output, Encoded) or output.caption is None or ids is None:
        raise ModelError(
            "The model writes no texts: it has no decoder. CoCa has one; two towers compare features. "
            "Leave stream= out, to match by those."
        )
    real = torch.tensor([[role != "pad" for role in axis.roles[: ids.shape[1]]] for axis in axes])
    return written(output.caption, ids=ids, real=real)


def readout_of(model: nn.Module) -> str:
    """Return what the image tower's features are read from: `cls`, `mean`, `pool`, or empty where unknown."""
    visual: Any = model.visual
    if isinstance(visual, TimmModel):
        return "pool" if hasattr(visual.head, "pool") else readout_of_timm(visual.trunk)
    if isinstance(visual, ModifiedResNet) or getattr(visual, "attn_pool", None) is not None:
        return "pool"
    return {"tok": "cls", "avg": "mean"}.get(getattr(visual, "pool_type", ""), "")
