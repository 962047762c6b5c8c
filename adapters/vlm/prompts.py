r"""From the user's words to a prompt with marks for its pictures, and from the prompt's tokens back to the words.

    text      "What is this?"
    prompt    "USER: <image>\nWhat is this? ASSISTANT:"      by the processor's chat template, or plainly
    tokens    USER : <image> x 576 \n What is this ? ...     the processor writes as many as the tower makes

A text that has its marks is taken as it is. Of another the place in the prompt is known, since we wrote it: a token
stands for those of its characters that are the user's, whatever else stands beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
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
    start
        Where the user's text begins in `written`.
    """

    words: Words
    written: str
    start: int


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
        return Prompt(words=words, written=words.text, start=0)
    if not getattr(processor, "chat_template", None):
        before = picture * pictures
        return Prompt(words=words, written=before + words.text, start=len(before))
    written, frame = (_filled(processor, text, pictures=pictures) for text in (words.text, _SENTINEL))
    start, kept = frame.find(_SENTINEL), words.text.strip()
    at = written.find(kept, start) if start >= 0 else -1
    if start < 0 or at < 0 or written[:start] != frame[:start]:
        raise InputError(
            f"The chat template of {type(processor).__name__} does not hold the text {words.text[:40]!r} as it is. It "
            f"would. Write the whole prompt yourself, with {mark} for each picture."
        )
    return Prompt(words=words, written=written, start=at - words.text.index(kept))


def _filled(processor: Any, text: str, *, pictures: int) -> str:
    content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]
    try:
        return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    except Exception as problem:  # templates are programs of other people
        raise InputError(
            f"The chat template of {type(processor).__name__} cannot be filled: {said(problem)}. It would take a "
            "picture and a text. Write the whole prompt yourself, with its marks for pictures."
        ) from problem


def words_axis(
    prompt: Prompt | None, ids: Int[Tensor, " token"], *, real: Bool[Tensor, " token"], tokenizer: Any
) -> Tokens | Positions:
    """Return the axis of the tokens that are no picture's: of Positions where the text is not known.

    Parameters
    ----------
    ids, real
        The row without the pictures' tokens, and which of it is no padding.

    Raises
    ------
    InputError
        The row does not hold the prompt.
    """
    if prompt is None or tokenizer is None or not getattr(tokenizer, "is_fast", False):
        return row_axis(None if prompt is None else prompt.words.text, ids, real=real, tokenizer=tokenizer)
    row = [int(token) for token in ids.tolist()]
    special = special_ids(tokenizer)
    encoded = tokenizer(prompt.written, return_offsets_mapping=True, verbose=False)
    own = {
        number: span
        for number, (token, span) in enumerate(
            zip(encoded["input_ids"], _spans(prompt, encoded["offset_mapping"]), strict=True)
        )
        if span is not None and token not in special
    }
    found = _aligned(encoded["input_ids"], row)
    if not own or not set(own) <= set(found):
        raise InputError(
            f"The processor's row does not hold the text {prompt.words.text[:60]!r} as its tokenizer "
            f"{type(tokenizer).__name__} cuts it. It would hold its pieces in their order. Pass the processor that was "
            "saved with the model."
        )
    span_at = {found[number]: span for number, span in own.items()}
    roles = [
        "pad" if not seen else "content" if n in span_at else role_of(token, tokenizer)
        for n, (token, seen) in enumerate(zip(row, real.tolist(), strict=True))
    ]
    pieces = tokenizer.convert_ids_to_tokens(row)
    return Tokens.of(prompt.words.text, pieces=pieces, spans=[span_at.get(n) for n in range(len(row))], roles=roles)


def _spans(prompt: Prompt, offsets: Sequence[Sequence[int]]) -> list[Span | None]:
    """Return the characters of the user's text that each token of the prompt holds; None for none."""
    length, found = len(prompt.words.text), []
    for start, end in from_offsets(prompt.written, [(int(pair[0]), int(pair[1])) for pair in offsets]):
        first, last = max(start - prompt.start, 0), min(end - prompt.start, length)
        found.append((first, last) if first < last else None)
    return found


def _aligned(plain: list[int], row: list[int]) -> dict[int, int]:
    """Return for each token of a prompt where it stands in the row that a processor made of it."""
    blocks = SequenceMatcher(None, plain, row, autojunk=False).get_matching_blocks()
    return {block.a + n: block.b + n for block in blocks for n in range(block.size)}
