"""Pieces to characters, against tokenizers that say it themselves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mmattn.adapters.spans import from_offsets, from_pieces, uncased
from mmattn.errors import InputError
from mmattn.schema.tokens import Tokens

CORPUS = [
    "the cat sat on the mat, and the catalog lay beside it",
    "Ein Café in Köln: größer als dort",
    "日本語 text",
    "naïve 🙂🚀",
]
TEXTS = st.text(st.sampled_from("abcCATé ñßÄ'!?.,日本\u3000🙂👩\u200d🚀\n\t0Ωσς"), max_size=24)


def byte_level(*, prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), *[(c, -3.0) for c in "▁abcCATéñßÄ'!?.,日本🙂👩🚀0Ωσς\u200d"]], 0)
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


BYTE_LEVEL, WORDPIECE, SENTENCEPIECE = byte_level(), wordpiece(), sentencepiece()


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_byte_level_pieces_get_the_characters_that_the_tokenizer_itself_names(text: str) -> None:
    encoded = BYTE_LEVEL.encode(text)
    ours = from_pieces(text, encoded.tokens, style="byte_level")
    for piece, span, theirs in zip(encoded.tokens, ours, from_offsets(text, encoded.offsets), strict=True):
        if span is None:
            assert not text[slice(*theirs)].strip(" \t\n"), piece
        elif text[slice(*theirs)].strip():  # a piece of U+3000 alone is space to one and bytes to the other
            assert text[slice(*span)].strip() == text[slice(*theirs)], piece


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_wordpieces_get_the_characters_that_the_tokenizer_itself_names(text: str) -> None:
    encoded = WORDPIECE.encode(text)
    ours = from_pieces(text, encoded.tokens, style="wordpiece", fold=uncased, unknown="[UNK]")
    for piece, span, theirs in zip(encoded.tokens, ours, encoded.offsets, strict=True):
        assert span is not None
        assert uncased_text(text, span) == uncased_text(text, theirs), (piece, span, theirs)


def uncased_text(text: str, span: tuple[int, int]) -> str:
    return "".join(uncased(character) for character in text[slice(*span)])


@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_sentencepieces_get_the_characters_that_the_tokenizer_itself_names(text: str) -> None:
    encoded = SENTENCEPIECE.encode(text)
    if "<unk>" in encoded.tokens:
        return
    ours = from_pieces(text, encoded.tokens, style="sentencepiece")
    for span, theirs in zip(ours, from_offsets(text, encoded.offsets), strict=True):
        assert span is None or span == theirs


def test_four_pieces_of_one_emoji_share_its_character_and_the_word_has_them_all() -> None:
    text = "go 🦄!"  # an emoji that the training never saw
    pieces = BYTE_LEVEL.encode(text).tokens
    spans = from_pieces(text, pieces, style="byte_level")
    assert spans.count((3, 4)) >= 3
    axis = Tokens.of(text, pieces=pieces, spans=spans)
    word = next(word for word in axis.words() if word.text == "🦄")
    assert len(word.tokens) == spans.count((3, 4))
    assert axis.roles.count("continuation") == spans.count((3, 4)) - 1


def test_clip_pieces_end_words_and_are_in_lower_case() -> None:
    pieces = ["a</w>", "photo</w>", "of</w>", "ca", "t</w>"]
    spans = from_pieces("A photo\nof  CaT", pieces, style="byte_level", fold=str.lower)
    assert spans == [(0, 1), (2, 7), (8, 10), (12, 14), (14, 15)]


def test_an_unknown_word_takes_the_whole_word_and_the_next_piece_goes_on_behind_it() -> None:
    spans = from_pieces("the ☃snow☃ fell", ["the", "[UNK]", "fell"], style="wordpiece", fold=uncased, unknown="[UNK]")
    assert spans == [(0, 3), (4, 10), (11, 15)]


def test_offsets_lose_the_space_that_some_tokenizers_count_in() -> None:
    text = "two\u00a0 words  "
    assert from_offsets(text, [(0, 3), (3, 10), (10, 12)]) == [(0, 3), (5, 10), (10, 12)]


def test_a_piece_that_does_not_follow_in_the_text_is_an_error_that_shows_where() -> None:
    with pytest.raises(InputError, match=r"'dog' does not stand at character 4 of the text, where 'cat' follows"):
        from_pieces("the cat", ["the", "dog"], style="wordpiece")
    with pytest.raises(InputError, match=r"at character 3 of the text, where '' follows"):
        from_pieces("cat", ["cat", "s"], style="wordpiece")
