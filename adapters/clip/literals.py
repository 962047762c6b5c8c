"""A text that spells one of its tokenizer's own signs: `a cat <end_of_text> on a mat`.

Tokenizers take such letters for the sign itself, and a tower that reads its answer from the end of a text
then stops there: what the user wrote behind it counts for nothing, without a word.
"""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.axes import Axis
from mmattn.schema.tokens import Tokens

_SIGNS = ("bos", "eos", "cls", "sep")


def refuse_literals(axes: Sequence[Axis], ids: Int[Tensor, "text token"]) -> None:
    """Raise where a piece of a text is what the tokenizer itself puts around texts.

    Raises
    ------
    InputError
        It is; the piece is named.
    """
    for axis, row in zip(axes, ids.tolist(), strict=True):
        if not isinstance(axis, Tokens):  # prepared tensors, of which no letters are known
            continue
        signs = {one for one, role in zip(row, axis.roles, strict=False) if role in _SIGNS}
        for token in axis.content.tolist():
            written = axis.text[slice(*axis.place(token))]
            if row[token] in signs and written.casefold() == axis.pieces[token].casefold():
                raise InputError(
                    f"The text holds {written}, which its tokenizer takes for the sign that it puts at the start or "
                    "end of a text: what stands behind it would count for nothing. A text is words. Leave it out, or "
                    "put a space into it."
                )
