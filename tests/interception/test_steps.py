"""Calls of a model that writes token by token, joined: the weights of one eager pass over the whole sequence."""

import pytest
import torch
import transformers as hf

from mmattn.errors import ModelError
from mmattn.interception import capture
from mmattn.interception.blocks import to_blocks
from mmattn.interception.calls import Call
from mmattn.interception.steps import Steps

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 59,
    "bos_token_id": 1,
}


def pair(config_class, model_class, **changed):
    """A model as it runs, and the same with its softmax written out."""
    made = []
    for how in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = config_class(**{**SMALL, **changed})
        made.append(model_class._from_config(config, attn_implementation=how).eval())
    made[1].load_state_dict(made[0].state_dict())
    return made


def weights_of_steps(model, ids, *, count=5, **given):
    steps = Steps()
    with torch.no_grad(), capture(model, reduce=steps.reduce) as seen:
        written = model.generate(
            input_ids=ids, max_new_tokens=count + 1, min_new_tokens=count + 1, do_sample=False, **given
        )
    assert seen.passes == count + 1
    sizes = [call.k.numel() for call in seen.calls if call.k is not None and call.pass_index]
    calls = steps.joined(seen.calls)
    assert max((call.error or 0.0) for call in calls) < 1e-5
    return written[:, :-1], calls, sizes


def agree(calls, expected):
    assert len(calls) == len(expected)
    for call, theirs in zip(calls, expected, strict=True):
        found = to_blocks(call).source.values(slice(None), slice(None))
        assert found.shape == theirs.shape
        assert torch.allclose(found, theirs, atol=1e-5)


LLAMA = (hf.LlamaConfig, hf.LlamaForCausalLM)
CASES = {
    "one key head each": (*LLAMA, {"num_key_value_heads": 4}, {}),
    "grouped queries": (*LLAMA, {"num_key_value_heads": 2}, {}),
    "one key head for all": (*LLAMA, {"num_key_value_heads": 1}, {}),
    "grouped, fixed cache": (*LLAMA, {"num_key_value_heads": 2}, {"cache_implementation": "static"}),
    "grouped, no cache": (*LLAMA, {"num_key_value_heads": 2}, {"use_cache": False}),
    "sliding window": (hf.MistralConfig, hf.MistralForCausalLM, {"num_key_value_heads": 2, "sliding_window": 4}, {}),
    "absolute positions": (hf.GPT2Config, hf.GPT2LMHeadModel, {"n_embd": 32, "n_layer": 2, "n_head": 4}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_joined_steps_equal_one_eager_pass_over_the_whole(name):
    config, kind, changed, given = CASES[name]
    model, eager = pair(config, kind, **changed)
    ids = torch.tensor([[1, 7, 9, 23, 40, 11], [1, 8, 8, 31, 5, 2]])
    written, calls, sizes = weights_of_steps(model, ids, attention_mask=torch.ones_like(ids), **given)
    assert written.shape == (2, 11)
    with torch.no_grad():
        expected = eager(written, attention_mask=torch.ones_like(written), output_attentions=True).attentions
    agree(calls, expected)
    if given.get("use_cache", True):
        assert len(set(sizes)) == 1  # a step keeps its own key alone


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_padding_before_a_shorter_prompt_and_packed_heads_under_a_mask(cache):
    model, eager = pair(*LLAMA, num_key_value_heads=2)
    ids = torch.tensor([[1, 7, 9, 23, 40, 11], [0, 0, 1, 31, 5, 2]])
    mask = (ids != 0).long()
    given = {"cache_implementation": "static"} if cache == "static" else {}
    written, calls, _ = weights_of_steps(model, ids, attention_mask=mask, **given)
    whole = torch.cat([mask, mask.new_ones(2, 5)], dim=1)
    with torch.no_grad():
        positions = (whole.cumsum(1) - 1).clamp(min=0)
        expected = eager(written, attention_mask=whole, position_ids=positions, output_attentions=True).attentions
    for call, theirs in zip(calls, expected, strict=True):
        found = to_blocks(call).source.values(slice(None), slice(None))
        assert found.shape == (2, 4, 11, 11)
        assert torch.allclose(found[0], theirs[0], atol=1e-5)
        assert torch.allclose(found[1, :, 2:], theirs[1, :, 2:], atol=1e-5)
        assert not found[1, :, 2:, :2].any()


def test_a_softmax_that_is_written_out_is_joined_row_by_row():
    _, eager = pair(*LLAMA, num_key_value_heads=2)
    ids = torch.tensor([[1, 7, 9, 23]])
    written, calls, _ = weights_of_steps(eager, ids, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        agree(calls, eager(written, output_attentions=True).attentions)


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_attention_across_keeps_its_keys_and_the_encoder_runs_once(how):
    def config():
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 1, "decoder_layers": 2}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 59, "decoder_start_token_id": 1}
        return hf.BartConfig(
            vocab_size=60, max_position_embeddings=64, forced_eos_token_id=None, **heads, **sizes, **ids
        )

    torch.manual_seed(0)
    model = hf.BartForConditionalGeneration._from_config(config(), attn_implementation=how).eval()
    eager = hf.BartForConditionalGeneration._from_config(config(), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    ids, steps = torch.tensor([[5, 6, 7, 8, 9]]), Steps()
    with torch.no_grad(), capture(model, reduce=steps.reduce) as seen:
        written = model.generate(input_ids=ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, num_beams=1)
    with torch.no_grad():
        expected = eager(input_ids=ids, decoder_input_ids=written[:, :-1], output_attentions=True)
    calls = {call.module: call for call in steps.joined(seen.calls)}
    assert [name for name in calls if "encoder.layers" in name]
    for number in range(2):
        for part, theirs in (("self_attn", expected.decoder_attentions), ("encoder_attn", expected.cross_attentions)):
            found = to_blocks(calls[f"model.decoder.layers.{number}.{part}"]).source.values(slice(None), slice(None))
            assert torch.allclose(found, theirs[number], atol=1e-5)


def test_passes_that_do_not_follow_each_other_are_refused():
    q = torch.rand(1, 2, 3, 4)
    calls = [Call(module="a", order=n, pass_index=p, q=q, k=q, scale=1.0) for n, p in enumerate((0, 0, 1))]
    with pytest.raises(ModelError, match="a made 3 calls in 2 passes"):
        Steps().joined(calls)
    calls = [Call(module="a", order=n, pass_index=n, q=q, k=q[:, :, : 3 - n], scale=1.0) for n in (0, 1)]
    with pytest.raises(ModelError, match="the text has 4 tokens"):
        Steps().joined(calls)
