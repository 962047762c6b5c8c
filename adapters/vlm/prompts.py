r"""From the user's words to a prompt with marks for its pictures, and from the prompt's tokens back to the words.

    text      "What is this?"
    prompt    "USER: <image>\nWhat is this? ASSISTANT:"      by the processor's chat template, or plainly
    tokens    USER : <image> x 576 \n What is this ? ...     the processor writes as many as the tower makes

A text that has its marks is taken as it is. Of another the place in the prompt is known, since we wrote it: a token
stands for those of its characters that are the user's, whatever else stands beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.media import Words
from mmattn.schema.sets import Positions
from mmattn.schema.tokens import Tokens

from ..clip.transformers_row import row_axis, special_ids
from ..clip.transformers_text import role_of
from ..hub import said
from ..spans import Span, from_offsets

# Stands for the user's text in a template, to see where that comes to stand.
_SENTINEL = "\ue000\ue001"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What goes to the processor for one text.

    Parameters
    ----------
    words
        As the user wrote them.
    written
        With marks for its pictures, in the form that the model was trained with.
    end
        Where the user's text ends in `written`, without spaces behind it.
    mark
        What stands for a picture in it.
    """

    words: Words
    written: str
    end: int
    mark: str


def prompt_of(words: Words, *, pictures: int, mark: str, picture: str, processor: Any) -> Prompt:
    """Return the prompt for a text with some pictures.

    Parameters
    ----------
    mark
        What stands for a picture in a text.
    picture
        What is written before a text for each of its pictures, where there is no template.
    processor
        Its chat template is used if it has one and the text has no marks of its own.

    Raises
    ------
    InputError
        The text has marks for another number of pictures, or the template cannot be filled.
    """
    marks = words.text.count(mark)
    if marks and marks != pictures:
        raise InputError(
            f"The text has {marks} mark(s) {mark} for {pictures} picture(s). Each mark is a picture's place. Pass as "
            "many of both, or a text without marks."
        )
    if marks:
        return Prompt(words=words, written=words.text, end=len(words.text.rstrip()), mark=mark)
    if not getattr(processor, "chat_template", None):
        written = picture * pictures + words.text
        return Prompt(words=words, written=written, end=len(written.rstrip()), mark=mark)
    written, frame = (_filled(processor, text, pictures=pictures) for text in (words.text, _SENTINEL))
    start, kept = frame.find(_SENTINEL), words.text.strip()
    at = written.find(kept, start) if start >= 0 else -1
    if start < 0 or at < 0 or written[:start] != frame[:start]:
        raise InputError(
            f"The chat template of {type(processor).__name__} does not hold the text {words.text[:40]!r} as it is. It "
            f"would. Write the whole prompt yourself, with {mark} for each picture."
        )
    return Prompt(words=words, written=written, end=at + len(kept), mark=mark)


def _filled(processor: Any, text: str, *, pictures: int) -> str:
    content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]
    try:
        return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    except Exception as problem:  # templates are programs of other people
        raise InputError(
            f"The chat template of {type(processor).__name__} cannot be filled: {said(problem)}. It would take a "
            "picture and a text. Write the whole prompt yourself, with its marks for pictures."
        ) from problem


class Hearing:
    """A tokenizer that remembers which texts it was given: what a processor made of prompts."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, *args: Any, **settings: Any) -> Any:
        """Tokenize."""
        self.heard = [text] if isinstance(text, str) else list(text)
        return self._tokenizer(text, *args, **settings)


def words_axis(
    prompt: Prompt | None,
    ids: Int[Tensor, " token"],
    *,
    real: Bool[Tensor, " token"],
    others: Sequence[int],
    written: str,
    tokenizer: Any,
) -> Tokens | Positions:
    """Return the axis of the tokens that are no picture's: of Positions where the text is not known.

    Parameters
    ----------
    ids, real
        The row, and which of it is no padding.
    others
        Where those tokens stand in it.
    written
        What the processor gave to its tokenizer.

    Raises
    ------
    InputError
        The row does not hold the text.
    """
    chosen = list(others)
    if prompt is None or tokenizer is None or not getattr(tokenizer, "is_fast", False):
        text = None if prompt is None else prompt.words.text
        return row_axis(text, ids[chosen], real=real[chosen], tokenizer=tokenizer)
    spans = _spans(prompt, ids, real=real, written=written, tokenizer=tokenizer)
    special = special_ids(tokenizer)
    row = [int(token) for token in ids.tolist()]
    own = {n: span for n in chosen if (span := spans[n]) is not None and row[n] not in special}
    roles = ["pad" if not real[n] else "content" if n in own else role_of(row[n], tokenizer) for n in chosen]
    pieces = tokenizer.convert_ids_to_tokens([row[n] for n in chosen])
    return Tokens.of(prompt.words.text, pieces=pieces, spans=[own.get(n) for n in chosen], roles=roles)


def _spans(
    prompt: Prompt, ids: Int[Tensor, " token"], *, real: Bool[Tensor, " token"], written: str, tokenizer: Any
) -> list[Span | None]:
    """Return the characters of the user's text that each token of a row holds; None for none."""
    encoded = tokenizer(written, return_offsets_mapping=True, verbose=False)
    where = [n for n, seen in enumerate(real.tolist()) if seen]
    segments = _segments(prompt, written)
    if [int(token) for token in ids[where].tolist()] != list(encoded["input_ids"]) or segments is None:
        raise InputError(
            f"The processor's row does not hold the text {prompt.words.text[:60]!r} as its tokenizer "
            f"{type(tokenizer).__name__} cuts it: it may be longer than the tokenizer's model_max_length. It would be "
            "there whole. Pass a shorter text, or the processor that was saved with the model."
        )
    found: list[Span | None] = [None] * len(ids)
    for at, (start, end) in zip(where, from_offsets(written, _pairs(encoded["offset_mapping"])), strict=True):
        for text_start, written_start, length in segments:
            first, last = max(start - written_start, 0), min(end - written_start, length)
            if first < last and found[at] is None:
                found[at] = (text_start + first, text_start + last)
    return found


def _pairs(offsets: Sequence[Sequence[int]]) -> list[Span]:
    return [(int(pair[0]), int(pair[1])) for pair in offsets]


def _segments(prompt: Prompt, written: str) -> list[tuple[int, int, int]] | None:
    """Return what lies between the marks of the user's text: where it begins there and in what was written, its length.

    What stands behind the last mark reaches the end of the prompt, so it is found from there. None: it is not there.
    """
    text, behind = prompt.words.text, prompt.written[prompt.end :]
    pieces, found, bound = text.split(prompt.mark) if prompt.mark else [text], [], len(written)
    start = len(text)
    for number, piece in enumerate(reversed(pieces)):
        start, kept = start - len(piece), piece.strip()
        at = written.rfind(kept + behind if number == 0 else kept, 0, bound)
        if at < 0:
            return None
        if kept:
            found.append((start + piece.index(kept), at, len(kept)))
        bound, start = at, start - len(prompt.mark)
    return found
