"""The layers of an open_clip model: which axes each of its attentions joins.

    stream `vision`    the image tower; its attention pools are `cross`: learned queries over patches (those of
                       ResNets are `self`: there the mean of the patches and they themselves ask)
    stream `text`      the text tower, between the pieces of a text
    stream `decoder`   CoCa's captioner: between the words so far (`self`), and from each to what the
                       picture became (`cross`)

Where patches stand is found by a run of the image tower on indices (`..vit.layouts`). What CoCa's decoder
looks at are the queries of the image tower's pool behind the first, which have no place in the picture; a
CoCa without a pool looks at the patches themselves. Both are positions on axes of the image tower's own
layers, so that maps compose.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.hf_model import ClsPooler, HFTextEncoder
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from mmattn.errors import ModelError
from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.calls import Call
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.sets import Positions, Slots
from mmattn.schema.tokens import Tokens

from ..vit.layouts import PictureFacts, left_out, picture_layers
from .open_clip_words import text_tower

_VISUAL, _DECODER, _CROSS = "visual.", "text_decoder.", "text_decoder.cross_attn."
_POOL = "visual.attn_pool.attn"
_POOLED = "its keys are pooled queries, no patches"


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFacts:
    """What the layers of both towers need.

    Parameters
    ----------
    picture
        Of the image tower; None where it does not run.
    texts
        One axis a sample; empty where the text tower does not run.
    pixels, ids
        What the towers are called with; None where one does not run.
    first_query
        Whether the first query of CoCa's pool alone makes the picture's features.
    first_key, first_word
        How many tokens of the image tower's last axis, and of the text, the decoder leaves out before its own.
    hides_pads
        Whether no token of a text looks at padding, as in towers of Hugging Face.
    tokenizer
        The user's own; None for the model's.

    """

    picture: PictureFacts | None
    texts: tuple[Axis, ...]
    pixels: Float[Tensor, "sample channel row col"] | None = None
    ids: Int[Tensor, "sample token"] | None = None
    first_query: bool = False
    first_key: int = 0
    first_word: int = 0
    hides_pads: bool = False
    tokenizer: Any = None


def pair_facts(
    model: nn.Module,
    *,
    picture: PictureFacts | None,
    texts: tuple[Axis, ...],
    pixels: Float[Tensor, "sample channel row col"] | None,
    ids: Int[Tensor, "sample token"] | None,
) -> PairFacts:
    """Return the facts of a model, with what its image tower hands to a decoder."""
    visual: Any = model.visual
    first = isinstance(visual, VisionTransformer) and visual.pool_type in ("tok", "avg")
    text = text_tower(model)
    return PairFacts(
        picture=picture,
        texts=texts,
        pixels=pixels,
        ids=ids,
        first_query=first and visual.attn_pool is not None and visual.pool_type == "tok",
        first_key=int(first),
        first_word=int(isinstance(text, HFTextEncoder) and type(text.pooler) is ClsPooler),
        hides_pads=isinstance(text, HFTextEncoder),
    )


def layers_of(calls: Sequence[Call], facts: PairFacts) -> list[AttentionLayer]:
    """Return a layer for each attention that can be placed, in the order in which they ran."""
    vision = _vision(calls, facts)
    rest = [call for call in calls if call.kind == "token" and not call.module.startswith(_VISUAL)]
    found = [*vision]
    for call in rest:
        if call.module.startswith(_CROSS):
            found.append(_cross(call, facts, vision))
        elif call.module.startswith(_DECODER):
            found.append(_self(call, _words_so_far(call, facts), stream="decoder"))
        else:
            found.append(_self(call, facts.texts, stream="text", hides_pads=facts.hides_pads))
    return found


def left_out_of(calls: Sequence[Call], facts: PairFacts) -> tuple[str, ...]:
    """Return the attention of the image tower that is no layer, with the reason."""
    if facts.picture is None:
        return ()
    return left_out([call for call in calls if call.module.startswith(_VISUAL)], facts.picture)


def _vision(calls: Sequence[Call], facts: PairFacts) -> list[AttentionLayer]:
    if facts.picture is None:
        return []
    own = [call for call in calls if call.module.startswith(_VISUAL)]
    found = [_named_query(layer, facts) for layer in picture_layers(own, facts.picture)] if own else []
    return [replace(layer, kind="cross") if isinstance(layer.query[0], Slots) else layer for layer in found]


def _named_query(layer: AttentionLayer, facts: PairFacts) -> AttentionLayer:
    """Return CoCa's pool with its first query named, which alone is the picture's feature; the others go on."""
    if not (facts.first_query and layer.name == _POOL and len(layer.query[0]) > 1):
        return layer
    slots = Slots(roles=("cls",) + ("content",) * (len(layer.query[0]) - 1))
    return replace(layer, query=(slots,) * len(layer.query))


def _self(call: Call, axes: tuple[Axis, ...], *, stream: str, hides_pads: bool = False) -> AttentionLayer:
    storage = to_blocks(call, mask=_real(call, axes, hides_pads=hides_pads))
    blocks, _, queries, keys = storage.source.shape
    tokens = len(axes[0]) if axes else 0
    if (blocks, queries, keys) != (len(axes), tokens, tokens):
        raise ModelError(
            f"The attention {call.module} joins {blocks} x {queries} queries and {keys} keys, but the texts have "
            f"{len(axes)} x {tokens} tokens. A text tower joins all tokens with all. Use mmattn.capture, which knows "
            "positions only."
        )
    return AttentionLayer(
        name=call.module,
        query=axes,
        key=axes,
        heads=head_count(call),
        storage=(storage,),
        stream=stream,
        error=call.error,
    )


def _real(call: Call, axes: tuple[Axis, ...], *, hides_pads: bool) -> Tensor | None:
    """Return which keys are no padding, for a softmax that was only seen in a tower that hides padding."""
    if call.weights is None or not hides_pads:
        return None
    real = torch.tensor([[role != "pad" for role in axis.roles] for axis in axes])
    return real[:, None, None, :].to(call.weights.device)


def _cross(call: Call, facts: PairFacts, vision: Sequence[AttentionLayer]) -> AttentionLayer:
    storage = to_blocks(call)
    words = _words_so_far(call, facts)
    keys = storage.source.shape[3]
    last = vision[-1] if vision else None
    pooled = last is not None and last.name == _POOL
    axes = () if last is None else last.query if pooled else last.key
    if axes and len(axes[0]) == facts.first_key + keys:
        index = _from(facts.first_key, keys, storage.source.shape[0])
        storage = replace(storage, key_index=index.to(storage.device)) if facts.first_key else storage
        note = _POOLED if pooled else ""
    else:
        axes, note = (Slots.count(keys),), "what its keys stand for is not known"
    return AttentionLayer(
        name=call.module,
        query=words,
        key=axes,
        heads=head_count(call),
        storage=(storage,),
        stream="decoder",
        kind="cross",
        error=call.error,
        note=note,
    )


def _from(first: int, count: int, blocks: int) -> Int[Tensor, "block key"]:
    return torch.arange(first, first + count).expand(blocks, count)


def _words_so_far(call: Call, facts: PairFacts) -> tuple[Axis, ...]:
    """Return the tokens of a text that the decoder reads: all but what makes the text's feature and the last."""
    source = call.q if call.q is not None else call.weights
    assert source is not None
    start = facts.first_word
    return tuple(_part(axis, start, start + source.shape[-2]) for axis in facts.texts)


def _part(axis: Axis, start: int, stop: int) -> Axis:
    if isinstance(axis, Tokens):
        return replace(
            axis,
            roles=axis.roles[start:stop],
            pieces=axis.pieces[start:stop],
            spans=axis.spans[start:stop],
            word_of=axis.word_of[start:stop],
        )
    return Positions(roles=axis.roles[start:stop])
