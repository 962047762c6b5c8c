"""What CoCa writes about a picture, and the text that it wrote.

`CoCa.generate` of open_clip 3.3 cannot be called with transformers 5 (its beam search is gone), so the loop is here:
the picture is encoded once, and the decoder reads all that was written anew for each token. The text ends in one token
more, since the decoder drops the last of a row.

    row     <start> a cat on the mat <end>          rows of the decoder    <start> a cat on the mat
            the map that wrote a word is the row before it:                a   cat on the mat <end>
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from open_clip.coca_model import CoCa
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.interception.protocol import Prepared
from mmattn.schema.axes import Axis
from mmattn.schema.tokens import Tokens

from ..vit.pictures import runner
from ..writing import answer_axis
from .open_clip_layers import PairFacts
from .open_clip_run import encode
from .open_clip_words import own_tokenizer
from .spellers import speller_of


def writes(model: nn.Module) -> bool:
    """Whether a model writes texts."""
    return isinstance(model, CoCa)


def write(model: nn.Module, prepared: Prepared, count: int) -> Int[Tensor, "sample token"]:
    """Let CoCa write up to `count` tokens about each picture, greedily, behind the text if there is one.

    Raises
    ------
    InputError
        No picture, no number of tokens, or a text that would be longer than the context.
    """
    facts: PairFacts = prepared.facts
    runs: Any = model
    if facts.pixels is None:
        raise InputError("CoCa writes about a picture, and a text was given alone. Pass image= as well.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"generate={count!r} is no number of tokens. It is a whole number from 1. Pass such a number.")
    read = _Read(own_tokenizer(model) if facts.tokenizer is None else facts.tokenizer)
    row = _begun(facts, read)
    most = int(runs.context_length) - row.shape[1]
    if count > most:
        raise InputError(
            f"generate={count} is more than the {most} tokens that fit behind this text: the decoder reads "
            f"{runs.context_length}. Pass a smaller number, or a shorter text."
        )
    begun, done = row.shape[1], torch.zeros(len(row), dtype=torch.bool, device=row.device)
    with torch.no_grad():
        latent, seen = runs._encode_image(facts.pixels)
        for _ in range(count):
            out = runs(facts.pixels, row, image_latent=latent, image_embs=seen, output_labels=False)
            best = out["logits"][:, -1].argmax(dim=1)
            done |= best == read.end
            if bool(done.all()):
                break
            row = torch.cat([row, torch.where(done, read.end, best)[:, None]], dim=1)
    return row[:, begun:]


def continued(model: nn.Module, prepared: Prepared, written: Int[Tensor, "sample token"]) -> Prepared:
    """Return the picture with the text that was written about it."""
    facts: PairFacts = prepared.facts
    read = _Read(own_tokenizer(model) if facts.tokenizer is None else facts.tokenizer)
    row = torch.cat([_begun(facts, read), written], dim=1)
    ids = torch.cat([row, torch.full_like(row[:, :1], read.end)], dim=1)
    axes = tuple(_axis(one, read=read, appends=getattr(model.text, "cls_emb", None) is not None) for one in ids)

    def run(alive: nn.Module, _: Tensor) -> Any:
        return encode(alive, pixels=facts.pixels, ids=ids)

    assert facts.pixels is not None
    return replace(
        prepared,
        run=runner(model, facts.pixels, call=run),
        inputs=(facts.pixels, ids),
        facts=replace(facts, ids=ids, texts=axes),
        preprocessing=f"{prepared.preprocessing}; {written.shape[1]} tokens written",
    )


class _Read:
    """A tokenizer that reads tokens, with the names of a fast one of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = getattr(tokenizer, "tokenizer", tokenizer)
        if hasattr(self.inner, "sot_token_id"):
            self.start, self.end = int(self.inner.sot_token_id), int(self.inner.eot_token_id)
        else:
            first = [self.inner.bos_token_id, self.inner.cls_token_id]
            last = [self.inner.eos_token_id, self.inner.sep_token_id]
            self.start, self.end = (int(next(one for one in ids if one is not None)) for ids in (first, last))
        self.bos_token_id, self.eos_token_id = self.start, self.end
        self.all_special_ids = [self.start, self.end]
        self.speller = speller_of(tokenizer)

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the text of some tokens."""
        return str(self.inner.decode(list(ids)))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return each as it is printed."""
        return [self.speller.named(one) for one in ids]


def _begun(facts: PairFacts, read: _Read) -> Int[Tensor, "sample token"]:
    """Return the rows that are gone on with: the start, and the text that was given without its end."""
    assert facts.pixels is not None
    if facts.ids is None:
        return torch.full((len(facts.pixels), 1), read.start, dtype=torch.long, device=facts.pixels.device)
    ends = {int((row == read.end).int().argmax()) if bool((row == read.end).any()) else len(row) for row in facts.ids}
    if len(ends) > 1:
        raise InputError(
            "The texts are of different lengths, and one row is written behind all. Pass them one by one, or none."
        )
    return facts.ids[:, : ends.pop()]


def _axis(row: Int[Tensor, " token"], *, read: _Read, appends: bool) -> Axis:
    axis = answer_axis(row, tokenizer=read)
    assert isinstance(axis, Tokens)
    if not appends:
        return axis
    spans = [
        tuple(span) if role == "content" else None for span, role in zip(axis.spans.tolist(), axis.roles, strict=True)
    ]
    return Tokens.of(axis.text, pieces=[*axis.pieces, "[CLS]"], spans=[*spans, None], roles=[*axis.roles, "cls"])
