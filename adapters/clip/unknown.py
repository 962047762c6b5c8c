"""Words that a tokenizer does not know: it reads all of them as one and the same piece."""

import warnings
from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mmattn.schema.axes import Axis
from mmattn.schema.tokens import Tokens, split_words


def warn_of_unknown(axes: Sequence[Axis], ids: Int[Tensor, "text token"], *, tokenizer: Any) -> None:
    """Warn of the words of texts that a tokenizer has no piece for.

    Warns
    -----
    UserWarning
        There are such words; they are named.
    """
    unknown = getattr(getattr(tokenizer, "tokenizer", tokenizer), "unk_token_id", None)
    found: dict[str, None] = {}
    for axis, row in zip(axes, ids.tolist(), strict=True):
        if unknown is None or not isinstance(axis, Tokens):
            continue
        words = split_words(axis.text)
        for token in axis.content.tolist():
            if row[token] == unknown:
                first, last = axis.place(token)
                found |= {axis.text[start:end]: None for start, end in words if start < last and first < end}
    if found:
        named = ", ".join(f'"{word}"' for word in found)
        many = len(found) > 1
        warnings.warn(
            f"The tokenizer does not know {named}: {'all of them read' if many else 'it reads'} as one unknown word. "
            "What is drawn for that means nothing. Use words that the model was trained with.",
            stacklevel=2,
        )
