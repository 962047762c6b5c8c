"""Words of a tokenizer that gives no offsets: SigLIP's, which prints pieces of a text without case and punctuation."""

import re
import string

import numpy as np
import pytest
from small_towers import CONTEXT, towers
from transformers import PreTrainedTokenizer

from mmattn.adapters.clip.transformers_text import encoded_texts, texts_of
from mmattn.errors import InputError
from mmattn.schema.media import Words

PIECES = ["<unk>", "</s>", "\u2581a", "\u2581cat", "\u2581do", "g", "\u2581on", "\u2581red", "\u2581mat", "\u2581its"]


class Printing(PreTrainedTokenizer):
    """Cuts as SigLIP's does: small letters, no punctuation, the longest piece that fits; one token at the end."""

    model_input_names = ("input_ids",)
    sp_model = None  # transformers' SentencePiece tokenizers keep their library's model here

    def __init__(self, **settings):
        self.ids = {piece: n for n, piece in enumerate(PIECES)}
        super().__init__(unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=CONTEXT, **settings)

    @property
    def vocab_size(self):
        return len(PIECES)

    def get_vocab(self):
        return dict(self.ids)

    def canonicalize_text(self, text):
        return re.sub(r"\s+", " ", text.lower().translate(str.maketrans("", "", string.punctuation))).strip()

    def _tokenize(self, text, **_):
        rest, found = "".join(f"\u2581{word}" for word in self.canonicalize_text(text).split()), []
        while rest:
            piece = max((p for p in PIECES if rest.startswith(p)), key=len, default=rest[: rest.find("\u2581", 1)])
            found.append(piece or rest)
            rest = rest[len(found[-1]) :]
        return found

    def _convert_token_to_id(self, token):
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index):
        return PIECES[index]

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [*token_ids_0, 1]

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
        return [0] * len(token_ids_0) + [1]


def axis_of(text):
    (axis,) = encoded_texts(texts_of(text), tokenizer=Printing(), model=towers("SigLIP"), full_length=True).axes
    return axis


def test_pieces_are_found_along_the_text():
    with pytest.warns(UserWarning, match='does not know "Dog\'s"'):
        axis = axis_of("A Dog's, on its red  mat!")
    assert axis.roles == ("content",) * 8 + ("eos",) + ("pad",) * (CONTEXT - 9)
    assert [axis.text[slice(*axis.place(token))] for token in axis.content] == [
        "A", "Do", "g", "s", "on", "its", "red", "mat",
    ]  # fmt: skip
    assert [(word.text, word.tokens) for word in axis.words()][1] == ("Dog's", (1, 2, 3))


def test_a_word_that_has_no_piece_keeps_its_characters_and_is_named():
    with pytest.warns(UserWarning, match=r'does not know "zebra", "gnu": all of them read as one unknown word'):
        encoded_texts(texts_of(["a zebra", "a gnu on a mat"]), tokenizer=Printing(), model=towers("SigLIP"))
    with pytest.warns(UserWarning, match=r'does not know "zebra": it reads as one unknown word'):
        axis = axis_of("a zebra on a mat")
    assert [axis.text[slice(*axis.place(token))] for token in axis.content] == ["a", "zebra", "on", "a", "mat"]
    assert axis.pieces[1] == "<unk>"


def test_what_was_cut_is_named_there_too():
    with pytest.warns(UserWarning, match=r"31 tokens and SiglipModel reads 24: it does not see .*mat"):
        axis = axis_of("a cat on a red mat " * 5)
    assert len(axis.content) == CONTEXT - 1
    assert np.all(np.diff(axis.places()[:, 0]) > 0)


def test_texts_are_strings_or_words():
    assert [words.text for words in texts_of(["a", Words(text="b")])] == ["a", "b"]
    with pytest.raises(InputError, match="Text 1 is empty"):
        texts_of(["a", " "])
