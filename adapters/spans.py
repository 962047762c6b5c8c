"""Tokenizer pieces to characters of the user's text: which letters each token stands for.

Two ways lead there. A fast tokenizer says it itself (its offsets); what is left is to take away the
spaces that some count in. Every other tokenizer only prints its pieces, and the text is walked
along them, byte by byte, spaces skipped, in the spelling that the tokenizer made of it:

    text     C a f é   ☕          folded    c a f e ☕
    pieces   ca  ##fe  [UNK]       spans     (0, 2) (2, 4) (5, 6)

Bytes, because byte-level BPE cuts characters in two; all pieces of one character get its span.
Which piece then owns a shared character, and what a word is, `mmattn.schema.tokens` decides. A
piece that is not found where it must be is an error, never a guess.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from mmattn.errors import InputError

Span = tuple[int, int]
Style = Literal["wordpiece", "sentencepiece", "byte_level"]
Fold = Callable[[str], str]

_SPACES = b" \t\n\r\x0b\x0c"
_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def from_offsets(text: str, offsets: Sequence[Span]) -> list[Span]:
    """Return the spans of a fast tokenizer without the spaces at their edges.

    A piece that is nothing but space keeps its span.

    Examples
    --------
    >>> from_offsets("two words", [(0, 3), (3, 9)])
    [(0, 3), (4, 9)]

    """
    return [_stripped(text, int(start), int(end)) for start, end in offsets]


def from_pieces(
    text: str, pieces: Sequence[str], *, style: Style, fold: Fold = str, unknown: str | None = None
) -> list[Span | None]:
    """Return the characters of each piece, from the pieces alone; None for a piece of only spaces.

    Parameters
    ----------
    text
        As the user wrote it.
    pieces
        As the tokenizer prints them, without those that it added (`[CLS]`, `<s>`, padding).
    style
        How pieces are written: `##ing` (wordpiece), `▁ing` (sentencepiece), `Ġing` or CLIP's
        `ing</w>` (byte_level).
    fold
        What the tokenizer does to a character before it cuts: `uncased`, `str.lower`, or nothing.
    unknown
        The piece that stands for a whole word that the tokenizer does not know.

    Raises
    ------
    InputError
        A piece is not what stands next in the text.

    Examples
    --------
    >>> from_pieces("Café ☕", ["ca", "##fe", "[UNK]"], style="wordpiece", fold=uncased, unknown="[UNK]")
    [(0, 2), (2, 4), (5, 6)]

    """
    folded = _folded(text, fold, style)
    written = b"".join(bytes_ for bytes_, _ in folded)
    owner = [char for bytes_, char in folded for _ in bytes_]
    spans: list[Span | None] = []
    at = 0
    for piece in pieces:
        if piece == unknown and at < len(owner):
            end = _end_of_word(text, owner[at])
            spans.append((owner[at], end))
            at = next((later for later in range(at, len(owner)) if owner[later] >= end), len(owner))
            continue
        wanted = _bytes_of(piece, style)
        if not written.startswith(wanted, at):
            raise _not_there(piece, text, owner[at] if at < len(owner) else len(text))
        spans.append((owner[at], owner[at + len(wanted) - 1] + 1) if wanted else None)
        at += len(wanted)
    return spans


def uncased(character: str) -> str:
    """Return a character as uncased BERT reads it: without accents, in lower case, control characters gone.

    Examples
    --------
    >>> uncased("É")
    'e'

    """
    plain = (c for c in unicodedata.normalize("NFD", character) if unicodedata.category(c) != "Mn")
    return "".join(c for c in plain if unicodedata.category(c)[0] != "C" and c != "\ufffd").lower()


def _stripped(text: str, start: int, end: int) -> Span:
    inside = text[start:end]
    if not inside.strip():
        return (start, end)
    return (start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip()))


def _folded(text: str, fold: Fold, style: Style) -> list[tuple[bytes, int]]:
    """Return for each character that leaves something but space the bytes that it becomes."""
    kept = ((_without_space(fold(character), style), index) for index, character in enumerate(text))
    return [(left, index) for left, index in kept if left]


def _without_space(text: str, style: Style) -> bytes:
    """Return the bytes of a text without its spaces; bytes of others than ASCII's may be cut in two, and stay."""
    if style == "byte_level":
        return text.encode("utf-8", "surrogatepass").translate(None, delete=_SPACES)
    return "".join(text.split()).encode("utf-8", "surrogatepass")


def _bytes_of(piece: str, style: Style) -> bytes:
    """Return what a piece stands for, spaces and marks taken away."""
    if style == "byte_level":
        table = _byte_of_letter()
        letters = piece.removesuffix("</w>")
        if all(letter in table for letter in letters):
            return b"".join(bytes([table[letter]]) for letter in letters).translate(None, delete=_SPACES)
        return _without_space(piece, style)  # an added token, written as it is
    bare = piece.removeprefix("##") if style == "wordpiece" and len(piece) > 2 else piece
    bare = bare.replace("\u2581", "") if style == "sentencepiece" else bare
    return _without_space(bare, style)


@cache
def _byte_of_letter() -> dict[str, int]:
    """Return GPT-2's table: printable bytes are themselves, the others follow from U+0100 (space is Ġ)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}


def _end_of_word(text: str, start: int) -> int:
    """Return where BERT's word ends: at a space or punctuation; a mark or a Chinese character is one alone."""
    if _alone(text[start]):
        return start + 1
    end = start
    while end < len(text) and not text[end].isspace() and not _alone(text[end]):
        end += 1
    return end


def _alone(character: str) -> bool:
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    chinese = any(low <= code <= high for low, high in _CJK)
    return ascii_mark or chinese or unicodedata.category(character).startswith("P")


def _not_there(piece: str, text: str, char: int) -> InputError:
    rest = text[char : char + 20]
    return InputError(
        f"The piece {piece!r} does not stand at character {char} of the text, where {rest!r} follows. Pieces must "
        "come in the order of the text, as the tokenizer wrote them. Check style=, fold= and unknown=, or use a "
        "tokenizer that gives offsets."
    )
