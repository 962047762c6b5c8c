"""Text encoders against transformers' own eager weights, on small models of every family and on the real MiniLM."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from weights import real_weights

import mmattn
from mmattn.adapters.text.transformers import adapter
from mmattn.adapters.text.transformers_open import FAMILIES
from mmattn.errors import DownloadError, InputError, ModelError
from mmattn.interception.protocol import Adapter, MediaGiven
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.media import Words
from mmattn.schema.sets import Positions
from mmattn.schema.tokens import Tokens

TEXTS = ["The cat sat.", "A much longer text about one cat and a hat!"]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    ".",
    "a",
    "much",
    "long",
    "##er",
    "text",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A small WordPiece tokenizer, uncased."""
    inner = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{word}_token": f"[{word.upper()}]" for word in ("pad", "unk", "cls", "sep", "mask")},
    )


def small(family: str, head: str = "Model", **changes: Any) -> Any:
    """A random model of a family: two layers, four heads, width 32."""
    given: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "embedding_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "pad_token_id": 0,
        "initializer_range": 0.5,  # sharp maps
    }
    if family == "distilbert":
        given |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        del given["hidden_size"], given["num_hidden_layers"], given["num_attention_heads"]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **given, **changes)
    auto: Any = getattr(transformers, "AutoModel" if head == "Model" else f"AutoModel{head}")
    return auto.from_config(config).eval()


def eager(model: Any, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The library's own weights, `[sample, head, query, key]` a layer."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    with torch.no_grad():
        weights: tuple[Tensor, ...] = twin(**tensors, output_attentions=True).attentions
    assert len(weights) == model.config.num_hidden_layers
    return weights


def attend(model: nn.Module, **given: Any) -> AttentionMaps:
    return mmattn.attend(model, **given)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_equal_the_librarys_own_in_a_padded_batch(family: str, tokenizer: Any) -> None:
    model = small(family)
    assert adapter.claims(model)
    maps = attend(model, text=TEXTS, processor=tokenizer)
    tensors = tokenizer(TEXTS, padding=True, return_tensors="pt")
    theirs = eager(model, dict(tensors))
    assert len(maps.layers) == len(theirs) == 2
    for layer, expected in zip(maps.layers, theirs, strict=True):
        for sample, words in enumerate(TEXTS):
            real = int(tensors["attention_mask"][sample].sum())
            ours = layer.sample(sample).weights()
            assert torch.allclose(ours[:, :real], expected[sample, :, :real], atol=1e-5), (layer, words)
            assert not ours[:, :real, real:].any(), "padding gets nothing"
        assert (layer.stream, layer.kind, layer.heads) == ("text", "self", 4)
        assert layer.error is None or layer.error < 1e-4


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_heads_are_read_and_leave_the_output_as_it_is(head: str, tokenizer: Any) -> None:
    model = small("bert", head)
    tensors = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        plain = model(**tensors).logits
    with torch.no_grad(), mmattn.capture(model) as recording:
        seen = model(**tensors).logits
    assert torch.equal(plain, seen)
    assert len(recording.calls) == 2
    assert attend(model, text=TEXTS, processor=tokenizer).readout == ("cls" if "Sequence" in head else "")


def test_padded_keys_are_known_to_be_forbidden_even_where_only_a_softmax_was_seen(tokenizer: Any) -> None:
    model = small("bert")
    model.set_attn_implementation("eager")
    maps = attend(model, text=TEXTS, processor=tokenizer)
    real = torch.tensor([role != "pad" for role in maps.layers[0].key[0].roles])
    (block,) = maps.layers[0].sample(0).storages
    for rows in block.chunks(with_allowed=True):
        assert rows.allowed is not None
        assert torch.equal(rows.allowed[0], real.expand_as(rows.allowed[0]))


def test_axes_name_the_users_own_characters_and_every_special_token(tokenizer: Any) -> None:
    maps = attend(small("bert"), text=TEXTS, processor=tokenizer)
    first, second = maps.layers[0].key
    assert isinstance(first, Tokens)
    assert isinstance(second, Tokens)
    assert first.roles[:6] == ("cls", "content", "content", "content", "content", "sep")
    assert set(first.roles[6:]) == {"pad"}
    assert [TEXTS[0][slice(*first.place(int(token)))] for token in first.content] == ["The", "cat", "sat", "."]
    assert second.tokens_of_word("longer").tolist() == [3, 4]
    assert list(maps.media) == [Words(text=text) for text in TEXTS]
    assert "tokens by" in maps.source.preprocessing


def test_changing_one_word_moves_the_token_that_the_axis_names(tokenizer: Any) -> None:
    model = small("bert")
    maps = [attend(model, text=text, processor=tokenizer) for text in ("the cat sat", "the text sat")]
    ones, others = (m.layers[0].weights() for m in maps)
    keys = maps[0].layers[0].key_axis
    assert isinstance(keys, Tokens)
    changed = [token for token in range(len(keys)) if not torch.allclose(ones[:, token], others[:, token], atol=1e-6)]
    moved = (torch.log(ones) - torch.log(others))[:, 0]  # what the class token gives, up to its normalizer
    moved = (moved - moved[:, :1]).abs().amax(dim=0)
    assert int(moved.argmax()) == keys.tokens_of_word("cat")[0]
    assert len(changed) == len(keys), "every row is normalized over the changed key"


def test_a_typed_special_token_is_content(tokenizer: Any) -> None:
    axis = attend(small("bert"), text="the [MASK] sat", processor=tokenizer).layers[0].key_axis
    assert axis.roles == ("cls", "content", "content", "content", "sep")
    assert axis.place(2) == (4, 10)


def test_prepared_tensors_have_positions_and_are_not_prepared_again(tokenizer: Any) -> None:
    model = small("bert")
    tensors = tokenizer(TEXTS, padding=True, return_tensors="pt")
    maps = attend(model, inputs=tensors)
    (axis, _) = maps.layers[0].key
    assert isinstance(axis, Positions)
    assert axis.roles.count("pad") == int((tensors["attention_mask"][0] == 0).sum())
    real = 6
    ours = maps.layers[1].sample(0).weights()[:, :real]
    assert torch.allclose(ours, eager(model, dict(tensors))[1][0, :, :real], atol=1e-5)


def test_a_recording_can_be_given_its_text_afterwards(tokenizer: Any) -> None:
    model = small("bert")
    with torch.no_grad(), mmattn.capture(model) as recording:
        model(**tokenizer(TEXTS[0], return_tensors="pt"))
    maps = mmattn.attend(recording, text=TEXTS[0], processor=tokenizer)
    assert isinstance(maps.layers[0].key_axis, Tokens)
    with pytest.raises(InputError, match="same"):
        mmattn.attend(recording, text="a cat a .", processor=tokenizer)


def test_a_target_is_a_class_or_a_word_at_a_token(tokenizer: Any) -> None:
    tensors = dict(tokenizer(TEXTS[0], return_tensors="pt"))
    output = small("bert", "ForSequenceClassification")(**tensors)
    assert torch.equal(adapter.score(output, 1), output.logits[0, 1])
    words = small("bert", "ForMaskedLM")(**tensors)
    assert torch.equal(adapter.score(words, (2, 6)), words.logits[0, 2, 6])
    with pytest.raises(InputError, match=r"target 2 names no logit: their shape is \(1, 2\)"):
        adapter.score(output, 2)
    with pytest.raises(InputError, match="names no logit"):
        adapter.score(words, 2)
    with pytest.raises(ModelError, match="has no logits"):
        adapter.score(small("bert")(**tensors), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The text is empty"),
        (["the cat", " \n"], "The text is empty"),
        (7, "The text is int '7'"),
        ([], r"The text is list '\[\]'"),
        ("cat " * 40, r"has 42 tokens\. This model takes 40"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text: Any, message: str, tokenizer: Any) -> None:
    model = small("bert", max_position_embeddings=40)
    with pytest.raises(InputError, match=message):
        adapter.prepare(model, MediaGiven(text=text), tokenizer, None)


def test_a_picture_given_to_a_reader_of_text_is_named() -> None:
    with pytest.raises(InputError, match=r"BertModel was given image\. It reads text"):
        adapter.prepare(small("bert"), MediaGiven(image="x"), None, None)


def test_roberta_counts_its_positions_from_behind_the_padding(tokenizer: Any) -> None:
    model = small("roberta", max_position_embeddings=41)
    attend(model, text="cat " * 38, processor=tokenizer)  # 40 tokens: as many as fit
    with pytest.raises(InputError, match=r"has 41 tokens\. This model takes 40"):
        attend(model, text="cat " * 39, processor=tokenizer)


def test_without_a_tokenizer_the_error_asks_for_one() -> None:
    with pytest.raises(InputError, match=r"No tokenizer was found for this BertModel.*processor=tokenizer"):
        adapter.prepare(small("bert"), MediaGiven(text="the cat"), None, None)


def test_decoders_and_other_models_are_not_claimed() -> None:
    assert not adapter.claims(nn.Linear(2, 2))
    assert not adapter.claims(small("bert", is_decoder=True))
    gpt = transformers.GPT2Model(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=10))
    assert not adapter.claims(gpt)
    assert adapter.opens({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    assert not adapter.opens({"model_type": "bert", "architectures": ["BertLMHeadModel"]})
    assert not adapter.opens({"model_type": "gpt2", "architectures": ["GPT2Model"]})
    assert not adapter.opens({"model_type": "bert"})
    assert isinstance(adapter, Adapter)


def test_a_saved_folder_is_opened_with_its_head_and_labels(tmp_path: Path, tokenizer: Any) -> None:
    model = small("distilbert", "ForSequenceClassification", id2label={0: "bad", 1: "good", 2: "so-so"})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened = adapter.open(str(tmp_path))
    assert type(opened.model) is type(model)
    assert opened.labels == ("bad", "good", "so-so")
    ours, theirs = (attend(m, text=TEXTS[0], processor=t) for m, t in ((opened.model, None), (model, tokenizer)))
    assert torch.equal(ours.layers[1].weights(), theirs.layers[1].weights())


def test_a_folder_that_lacks_weights_is_refused_not_filled_with_random_ones(tmp_path: Path, tokenizer: Any) -> None:
    small("bert").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lacks 16 weights of BertModel, such as encoder\.layer\.2"):
        adapter.open(str(tmp_path))


def test_a_pickle_is_never_loaded(tmp_path: Path, tokenizer: Any) -> None:
    model = small("bert")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be opened"):
        adapter.open(str(tmp_path))


def test_a_name_that_is_nowhere_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    with pytest.raises(DownloadError, match=r"hf:nobody/nothing could not be had.*mmattn:minilm"):
        adapter.open("nobody/nothing")


def test_the_real_minilm_comes_through_the_catalog_and_equals_eager() -> None:
    folder = real_weights("minilm")
    opened = adapter.open("sentence-transformers/all-MiniLM-L6-v2", weights=folder)
    text = "Unbelievably, the café was open 🙂"
    maps = attend(opened.model, text=text, processor=opened.processor)
    theirs = eager(opened.model, dict(opened.processor(text, return_tensors="pt")))
    assert len(maps.layers) == 6
    for layer, expected in zip(maps.layers, theirs, strict=True):
        assert (layer.weights() - expected[0]).abs().max() <= 1e-5
        assert layer.heads == 12
    axis = maps.layers[0].key_axis
    assert isinstance(axis, Tokens)
    words = {word.text: [axis.pieces[token] for token in word.tokens] for word in axis.words()}
    assert words["café"] == ["cafe"]
    assert len(words["Unbelievably"]) > 1
    assert text[slice(*axis.place(len(axis) - 2))] == "🙂"
