"""A model writes behind its input: which characters each written token stands for, and the maps of all of it."""

import pytest
import torch
import transformers as hf
from small_towers import byte_pairs, word_pieces
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mmattn.adapters.text.transformers import TransformersText
from mmattn.adapters.writing import answer_axis, continued_inputs, followed, written_by
from mmattn.analysis.between import between
from mmattn.attending import run_and_join
from mmattn.errors import InputError
from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.protocol import MediaGiven, Prepared
from mmattn.schema.axes import Joined, Positions, Tokens
from mmattn.schema.layers import AttentionLayer


def ids_of(tokenizer, text):
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("tokenizer", [byte_pairs, word_pieces])
def test_each_token_has_its_characters_of_the_text_that_was_written(tokenizer):
    made = tokenizer()
    ids = ids_of(made, "a cat on the mat")
    axis = answer_axis(torch.cat([ids, torch.tensor([made.eos_token_id or made.sep_token_id])]), tokenizer=made)
    assert [word.text for word in axis.words()] == ["a", "cat", "on", "the", "mat"]
    assert axis.roles[-1] in ("eos", "sep", "special", "pad")
    assert axis.text.replace(" ", "") == "acatonthemat"
    for word in axis.words():
        assert axis.text[slice(*word.span)] == word.text


def test_a_character_in_several_tokens_is_the_first_ones_and_spaces_belong_to_none():
    backend = hf.GPT2TokenizerFast  # bytes without merges: an emoji is four tokens
    vocabulary = {piece: number for number, piece in enumerate(bytes_to_unicode().values())}
    tokenizer = backend(vocab=vocabulary, merges=[])
    axis = answer_axis(ids_of(tokenizer, "a ☕!"), tokenizer=tokenizer)
    assert axis.text == "a ☕!"
    assert axis.roles == ("content", "content", "content", "continuation", "continuation", "content")
    assert [word.text for word in axis.words()] == ["a", "☕", "!"]
    assert axis.place(2) == (2, 3)


def test_written_tokens_stand_behind_the_parts_that_there_were():
    tokenizer = byte_pairs()
    before = Joined.of(
        {"text": Tokens.of("hi", pieces=["hi"], spans=[(0, 2)])}, tokens=[[1]], length=3, rest={0: "bos", 2: "newline"}
    )
    found = followed([before], ids_of(tokenizer, "a cat")[None], tokenizer=tokenizer)[0]
    answer, where = found.part("answer")
    assert where.tolist() == list(range(3, 3 + len(answer)))
    assert found.roles[:3] == ("bos", "content", "newline")
    assert followed([Positions.count(2)], torch.tensor([[5]]), tokenizer=None)[0].names == ("text", "answer")


class Bare(TransformersText):
    """The least that an adapter of a decoder without pictures does."""

    name, default_stream = "tests.bare", "decoder"

    def prepare(self, model, media, processor, options):
        return self._prepared(model, dict(media.inputs), axes=(Positions.count(media.inputs["input_ids"].shape[1]),))

    def _prepared(self, model, inputs, *, axes):
        return Prepared(run=lambda: model(**inputs), inputs=tuple(inputs.values()), facts=(inputs, axes))

    def layers(self, calls, prepared):
        _, axes = prepared.facts
        return [
            AttentionLayer(
                name=call.module,
                query=axes,
                key=axes,
                heads=head_count(call),
                storage=(to_blocks(call),),
                stream="decoder",
                error=call.error,
            )
            for call in calls
        ]

    def writes(self, model):
        return self.way

    def write(self, model, prepared, count):
        return written_by(model, prepared.facts[0], count=count)

    def continued(self, model, prepared, written):
        inputs, axes = prepared.facts
        return self._prepared(
            model, continued_inputs(inputs, written), axes=followed(axes, written, tokenizer=byte_pairs())
        )


def decoder(**changed):
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=len(byte_pairs()), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=changed.pop("eos", None),
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).eval()


def maps_of(model, *, way="steps", count=4, **given):
    adapter = Bare()
    adapter.way = way
    inputs = {"input_ids": torch.tensor([[5, 9, 2]]), "attention_mask": torch.ones(1, 3).long(), **given}
    return run_and_join("tests.bare", adapter, model, MediaGiven(inputs=inputs, generate=count))


def test_steps_and_one_pass_over_all_give_the_same_maps_and_words():
    model = decoder()
    steps, anew = maps_of(model), maps_of(model, way="anew")
    for one, other in zip(steps, anew, strict=True):
        assert one.weights().shape == (4, 7, 7)
        assert torch.allclose(one.weights(), other.weights(), atol=1e-5)
    answer, where = steps[0].query_axis.part("answer")
    assert (len(answer), where.tolist()) == (4, [3, 4, 5, 6])
    found = between(steps, asked="text")
    assert torch.allclose(found.values, steps[-1].weights().mean(0)[[2, 3, 4, 5]][:, :3], atol=1e-6)
    expected = model.generate(steps.prepared.inputs[0][:, :3], max_new_tokens=4, do_sample=False)
    assert torch.equal(steps.prepared.inputs[0], expected)
    assert torch.equal(steps.rerun().logits[0, 2:6].argmax(1), expected[0, 3:])


def test_what_ends_the_text_ends_it_and_nothing_written_is_said():
    model = decoder()
    row = maps_of(model).prepared.inputs[0][0].tolist()
    second = maps_of(decoder(eos=row[4])) if row[4] != row[3] else None
    if second is not None:
        assert second.prepared.inputs[0][0].tolist() == row[:4]
    with pytest.raises(InputError, match="wrote nothing behind this input"):
        maps_of(decoder(eos=row[3]))


def test_numbers_and_padding_that_cannot_be_gone_on_with_are_refused():
    with pytest.raises(InputError, match="generate=0 is no number of tokens"):
        maps_of(decoder(), count=0)
    with pytest.raises(InputError, match="shorter ones end in padding"):
        maps_of(decoder(), attention_mask=torch.tensor([[1, 1, 0]]))
