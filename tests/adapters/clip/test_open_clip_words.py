"""Texts of open_clip's models: pieces on the characters that the user wrote, what is cut, tokenizers of each kind."""

import warnings

import numpy as np
import pytest
import transformers as hf
from open_clip.model import CLIP
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from small_clips import CONTEXT, clip, foreign_text, text, timm_tower, vision
from small_towers import word_pieces

import mmattn
from mmattn.adapters.clip.spelling import origins, spans_in
from mmattn.errors import InputError

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)


def axis_of(text, *, name="OpenAI", **given):
    return mmattn.attend(clip(name), text=text, **given)[0].query[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A small  Elephant's CAR.", ["A", "small", "Elephant's", "CAR", "."]),
        ("Ein Café\tmit Straßenkreuzung", ["Ein", "Café", "mit", "Straßenkreuzung"]),
        ("it\u2019s \u201cred\u201d", ["it\u2019s", "\u201c", "red", "\u201d"]),
        ("salt &amp; pepper", ["salt", "&", "pepper"]),
        ("☕ and 猫", ["☕", "and", "猫"]),
        ("İstanbul", ["İstanbul"]),
    ],
)
def test_words_are_those_that_the_user_wrote(text, words):
    axis = axis_of(text)
    assert [word.text for word in axis.words()] == words
    assert axis.text == text
    assert all(text[slice(*word.span)] == word.text for word in axis.words())


def test_what_the_model_gets_is_what_the_tokenizer_gives():
    text = "A small Elephant's next-door café"
    maps = mmattn.attend(clip("OpenAI"), text=text)
    assert maps.prepared.inputs[0].tolist() == SimpleTokenizer(context_length=CONTEXT)(text).tolist()


def test_roles_say_what_was_added():
    axis = axis_of("a red car")
    assert axis.roles == ("bos", "content", "content", "content", "eos", *["pad"] * (CONTEXT - 5))
    assert axis.pieces[:5] == ("<start_of_text>", "a</w>", "red</w>", "car</w>", "<end_of_text>")
    coca = axis_of("a red car", name="CoCa")
    assert (coca.roles[4], coca.roles[-1], len(coca)) == ("eos", "cls", CONTEXT)


def test_a_piece_whose_number_is_that_of_padding_is_content():
    assert SimpleTokenizer().encode("!☂")[0] == 0
    axis = axis_of("!☂ ok")
    assert [word.text for word in axis.words()] == ["!", "☂", "ok"]


def test_a_text_that_is_too_long_is_cut_and_the_words_that_were_cut_are_named():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    with pytest.warns(UserWarning, match=r"16 pieces and the model reads 14 .* does not see fifteen, sixteen\."):
        axis = axis_of(text)
    assert axis.words()[-1].text == "fourteen"
    with pytest.warns(UserWarning, match=r"fifteen, sixteen, a, a, a, a, a, a and 12 more"):
        axis_of(text + " a" * 18)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axis_of(" ".join(text.split()[:14]))


@pytest.mark.parametrize("text", ["", "  \n", [], ["a", " "]])
def test_an_empty_text_is_an_error(text):
    with pytest.raises(InputError):
        axis_of(text)


def test_a_text_of_which_the_tokenizer_leaves_nothing_is_an_error():
    with pytest.raises(InputError, match="Nothing of the text '!!!'"):
        axis_of("!!!", processor=SimpleTokenizer(clean="canonicalize"))


def test_a_tokenizer_may_drop_what_it_likes_at_the_cleaning():
    axis = axis_of("A red, RED car!", processor=SimpleTokenizer(clean="canonicalize"))
    assert [word.text for word in axis.words()] == ["A", "red", "RED", "car"]


def test_a_tokenizer_that_leaves_out_pieces_in_the_middle_is_refused():
    scattered = SimpleTokenizer(reduction_mask="shuffle")
    assert len(axis_of("a red car", processor=SimpleTokenizer(reduction_mask="simple")).words()) == 3
    with pytest.raises(InputError, match="changes the order"):
        axis_of("a b c d e f g h i j k l m n o p q r s t u v", processor=scattered)


@pytest.mark.parametrize("kind", ["alone", "wrapped", "pair"])
def test_fast_tokenizers_are_taken_alone_wrapped_and_in_a_pair(kind, tmp_path):
    word_pieces(pad=1).save_pretrained(tmp_path)
    wrapped = HFTokenizer(str(tmp_path), context_length=12)
    given = {"alone": word_pieces(pad=1), "wrapped": wrapped, "pair": (None, wrapped)}[kind]
    model = foreign_text("mean_pooler").eval()
    axis = mmattn.attend(model, text="The  CAT on a mat", processor=given)[0].query_axis
    assert [word.text for word in axis.words()] == ["The", "CAT", "on", "a", "mat"]
    assert len(axis) == (12 if kind != "alone" else 77)
    with pytest.warns(UserWarning, match="does not see mat"):
        mmattn.attend(model, text="the cat on the mat", processor=HFTokenizer(str(tmp_path), context_length=6))


def test_a_model_that_does_not_say_its_tokenizer_asks_for_it():
    with pytest.raises(InputError, match=r"tokenizer of the text tower \(roberta\) is not on this machine"):
        mmattn.attend(foreign_text("cls_pooler").eval(), text="a")
    other = timm_tower("test_vit", size=160, pool="avg", text_cfg=text(vocab_size=99)).eval()
    with pytest.raises(InputError, match="vocabulary of 99 pieces"):
        mmattn.attend(other, text="a")
    with pytest.raises(InputError, match="vocabulary ends at 98"):
        mmattn.attend(other, text="a", processor=SimpleTokenizer())
    assert len(mmattn.attend(other, image=PHOTO)) > 0  # a picture needs no tokenizer
    with pytest.raises(InputError, match="does not say which characters"):
        mmattn.attend(clip("OpenAI"), text="a", processor=(None, lambda texts: texts))


def test_letters_of_a_cleaned_text_are_led_back():
    assert origins("Ab", "ab") == [(0, 1), (1, 2)]
    assert origins("", "ab") == [None, None]
    assert origins("ab", "") == []
    assert spans_in("a,b", "ab", [(0, 2)]) == [(0, 3)]
    long = "word " * 3000
    assert origins(long + "x", long.strip() + " x")[-1] == (len(long), len(long) + 1)


LETTERS = [chr(code) for code in range(33, 127) if chr(code) not in "<>"]


def pieces_by_likelihood():
    words = [(f"\u2581{word}", -1.0) for word in ("the", "cat", "red", "mat")]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0), *words, *((one, -5.0) for one in LETTERS)]


def pieces_by_merging():
    pieces, merges = ["<pad>", "</s>", "<s>", "<unk>", "<bos>", "<eos>", "<mask>", "\u2581", *LETTERS], []
    for word in ("the", "cat", "red", "mat"):
        parts = [*word]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
        merges.append(("\u2581", word))
        pieces.append(f"\u2581{word}")
    return {"vocab": {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}, "merges": list(dict.fromkeys(merges))}


FOREIGN = {
    "SigLIP": (lambda: hf.T5Tokenizer(vocab=pieces_by_likelihood(), extra_ids=0), "canonicalize", ""),
    "SigLIP 2": (lambda: hf.GemmaTokenizer(**pieces_by_merging(), add_bos_token=False), "canonicalize", ""),
    "mT5": (lambda: hf.T5Tokenizer(vocab=pieces_by_likelihood(), extra_ids=0), "whitespace", ""),
    "NLLB": (lambda: hf.NllbTokenizer(**pieces_by_merging()), "whitespace", "special"),
    "XLM-R": (lambda: hf.XLMRobertaTokenizer(vocab=[("<s>", 0.0), *pieces_by_likelihood()]), "whitespace", "cls"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_tokenizers_of_other_kinds_lead_back_to_the_users_words(name, tmp_path):
    make, clean, first = FOREIGN[name]
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    model = CLIP(24, vision(), text(vocab_size=len(tokenizer), context_length=24)).eval()
    given = HFTokenizer(str(tmp_path), context_length=24, clean=clean, padding_side="right")
    maps = mmattn.attend(model, text="the  red cat, a zebra", processor=given)
    axis = maps[0].query_axis
    assert [word.text for word in axis.words() if word.text != ","] == ["the", "red", "cat", "a", "zebra"]
    assert axis.roles[0] == (first or "content")
    assert axis.tokens_of_word("red").tolist() == [2 if first else 1]
    assert maps.prepared.inputs[0].tolist() == given("the  red cat, a zebra").tolist()
