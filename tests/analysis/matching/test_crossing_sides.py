"""Models with more sides than two: words that ask slots, latents or tiles are followed to patches."""

import functools

import numpy as np
import pytest
import torch
from small_sides import SIDED, sided, sided_processor, written

import mmattn
from mmattn.errors import ModelError
from mmattn.schema.axes import PatchGrid
from mmattn.schema.joined import Joined

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "red sports car"]
THROUGH = {
    "BLIP-2": "qformer.encoder.layer.2.crossattention.attention",
    "BLIP-2, matching": "qformer.encoder.layer.2.crossattention.attention",
    "InstructBLIP": "qformer.encoder.layer.2.crossattention.attention",
    "Idefics": "model.perceiver_resampler.blocks.1.0",
    "Idefics2": "model.connector.perceiver_resampler.layers.1.self_attn",
}


@functools.cache
def matched(name, **asked):
    texts = SIDED[name].texts(TEXTS)
    return mmattn.match(sided(name), PHOTO, texts=texts, processor=sided_processor(name), **asked)


@pytest.mark.parametrize("name", [*THROUGH, "Mllama"])
def test_a_words_map_is_its_row_times_the_rows_of_what_it_asked(name):
    """Of the last layer, mean over heads: slots that are asked stand for the patches that they asked last."""
    found = matched(name, method="cross").relevances[0]
    maps = mmattn.attend(
        sided(name), image=PHOTO, text=SIDED[name].texts(TEXTS[:1])[0], processor=sided_processor(name)
    )
    layer = maps[found.parameters["layer"].split("), ")[1]]
    rows = layer.weights().mean(dim=0)
    words, where = found.query_axis, range(len(found.query_axis))
    if isinstance(layer.query_axis, Joined):  # slots stand before the words
        words, where = layer.query_axis.part("text")
        rows = rows[:, layer.query_axis.part("image")[1]]
    if name in THROUGH:
        pool = maps[THROUGH[name]]
        onward = pool.weights().mean(dim=0)
        if isinstance(pool.key_axis, Joined):  # a perceiver's latents ask patches and each other
            onward = onward[
                :,
                next(
                    where
                    for part, where in zip(pool.key_axis.parts, pool.key_axis.tokens, strict=True)
                    if isinstance(part, PatchGrid)
                ),
            ]
        rows = rows @ onward
    before = "probability" not in matched(name, method="cross").unit
    for token in words.content:
        assert torch.allclose(found.values[token], rows[where[token] - before], atol=1e-5)
    assert f"composed with {THROUGH[name]}" in found.parameters["note"] if name in THROUGH else True


@pytest.mark.parametrize("name", ["BLIP-2", "Mllama"])
def test_a_text_is_scored_by_how_likely_it_is_to_be_written(name):
    given = written(name, images=[PHOTO, PHOTO], texts=TEXTS)
    with torch.no_grad():
        steps = sided(name)(**given).logits.log_softmax(dim=-1)
    found = matched(name, method="cross")
    for text, axis in enumerate(one.query_axis for one in found.relevances):
        ids = given["input_ids"][text]
        last = [token for token, role in enumerate(axis.roles) if role in ("content", "continuation")]
        shift = len(ids) - len(axis)  # slots stand before
        expected = sum(float(steps[text, shift + token - 1, ids[shift + token]]) for token in last) / len(last)
        assert float(found.scores[text]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["InstructBLIP", "Idefics"])
@pytest.mark.parametrize("method", ["chefer", "cross_rollout"])
def test_every_method_reaches_patches_through_slots(name, method):
    found = matched(name, method=method).relevances[0]
    values = found.values[found.query_axis.content][:, found.axis.content]
    assert bool((values.sum(dim=1) > 0).all())
    assert isinstance(found.axis, PatchGrid)
    drawing = mmattn.links(found, focus="cat", k=1)
    assert "composed" in drawing.caption


def test_a_model_that_says_nothing_of_a_pair_is_refused():
    with pytest.raises(ModelError, match="neither judges a picture with a text nor writes the text"):
        matched("Idefics, features")
