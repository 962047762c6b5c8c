"""The words that our CLIP reads: those of the captions, each a token of its own, and one token for all others.

The tokenizer is saved with the weights, as transformers reads it (`tokenizer.json`), so that open_clip finds it in the
folder. Text is lowercased and cut at spaces and punctuation; each token knows its characters. `<end>` has the highest
number, as open_clip's pooling expects.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from assets.training.captions import BESIDE, RICH
from assets.training.draws import Draws
from assets.training.things import things

CONTEXT = 32
PAD, UNKNOWN, START, END = "<pad>", "<unknown>", "<start>", "<end>"

_PLAIN = ("a", "an", "the", "one", "two", "three", "and", ",", ".", "photo", "picture", "of")
_OPENINGS = ("a photo of ", "a picture of ")


@cache
def words() -> tuple[str, ...]:
    """Return all tokens, in the order of their numbers.

    Examples
    --------
    >>> words()[:3], words()[-1], "giraffes" in words()
    (('<pad>', '<unknown>', '<start>'), '<end>', True)

    """
    said = [*_PLAIN, *" ".join((*RICH, BESIDE)).split()]
    for each in things():
        said += f"{each.noun} {each.plural or ''} {each.color or ''}".split()
    return PAD, UNKNOWN, START, *dict.fromkeys(said), END


@cache
def tokenizer() -> Tokenizer:
    """Return the tokenizer; a text is padded or cut to `CONTEXT` tokens.

    Examples
    --------
    >>> tokenizer().encode("A dog, two gryphons").tokens[:7]
    ['<start>', 'a', 'dog', ',', 'two', '<unknown>', '<end>']

    """
    numbers = {word: at for at, word in enumerate(words())}
    found = Tokenizer(WordLevel(numbers, unk_token=UNKNOWN))
    found.normalizer = Lowercase()
    found.pre_tokenizer = Whitespace()
    found.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(each, numbers[each]) for each in (START, END)]
    )
    found.enable_truncation(CONTEXT)
    found.enable_padding(length=CONTEXT, pad_id=numbers[PAD], pad_token=PAD)
    return found


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer into a folder as transformers' `AutoTokenizer` reads it."""
    saved = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer(),
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
    )
    saved.save_pretrained(folder)


def encoded(texts: Sequence[str]) -> Tensor:
    """Return the numbers of texts, [text, token]."""
    return torch.tensor([each.ids for each in tokenizer().encode_batch(list(texts))], dtype=torch.long).reshape(
        len(texts), CONTEXT
    )


def worded(texts: Sequence[str], draws: Draws) -> list[str]:
    """Return texts in other words that say the same, all of them in the same way.

    Some begin with "a photo of"; some have "the" for "a"; in some the colors are words that nobody knows, which takes
    nothing away, since each thing has one color. So a word that the model never saw says nothing to it.

    Examples
    --------
    >>> {worded(["a red car"], Draws(number))[0].split()[-1] for number in range(40)}
    {'car'}

    """
    opening = _OPENINGS[draws.below(2)] if draws.chance(0.2) else ""
    definite, colorless = draws.chance(0.15), draws.chance(0.15)
    found = []
    for text in texts:
        said = text.split(" ")
        if definite:
            said = ["the" if word in ("a", "an") else word for word in said]
        if colorless:
            said = [UNKNOWN if word in _colors() and at + 1 < len(said) else word for at, word in enumerate(said)]
        found.append(opening + " ".join(said))
    return found


@cache
def _colors() -> frozenset[str]:
    return frozenset(each.color for each in things() if each.color is not None) - {each.noun for each in things()}
