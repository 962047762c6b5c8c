"""Each method against its formula, written out with open_clip's own modules on a small random model."""

import numpy as np
import open_clip
import pytest
import torch
from torch.autograd.functional import jacobian
from torch.nn import functional as F
from two_towers import PHOTO, TEXT, TEXTS, VISION, blanked, ids_of, last_attention, picture_tokens, pixels_of, small

import mmattn
from mmattn.errors import InputError, ModelError, NotFoundError


@pytest.fixture(scope="module")
def model():
    return small()


def picture_tail(model, tokens):
    visual = model.visual
    return F.normalize(visual.ln_post(visual.transformer.resblocks[1](tokens))[:, 0] @ visual.proj, dim=-1)


def text_tokens(model, ids):
    """What enters the first block."""
    return model.token_embedding(ids) + model.positional_embedding


def text_tail(model, tokens, ids):
    x = model.ln_final(model.transformer(tokens, attn_mask=model.attn_mask))
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(dim=1)] @ model.text_projection, dim=-1)


def corners(model, number):
    """Tokens of the picture and of a text, and of their references."""
    ids = ids_of(TEXTS[number : number + 1])
    with torch.no_grad():
        seen = [picture_tokens(model, pixels_of(photo)) for photo in (PHOTO, np.zeros_like(PHOTO))]
        said = [text_tokens(model, rows) for rows in (ids, blanked(ids))]
    return seen, said, ids


def test_an_interaction_is_the_product_of_both_jacobians_with_the_differences(model):
    found = mmattn.match(model, PHOTO, texts=TEXTS, steps=1)
    for number in range(len(TEXTS)):
        (seen, black), (said, blank), ids = corners(model, number)
        of_picture = jacobian(lambda x: picture_tail(model, x)[0], seen)[:, 0]
        of_text = jacobian(lambda x, ids=ids: text_tail(model, x, ids)[0], said)[:, 0]
        by_patch = torch.einsum("dpc,pc->dp", of_picture, (seen - black)[0])
        by_word = torch.einsum("dwc,wc->dw", of_text, (said - blank)[0])
        expected = torch.einsum("dw,dp->wp", by_word, by_patch)
        values = found.relevances[number].values
        assert torch.allclose(values, expected, atol=1e-5 * float(expected.abs().max()))
        assert float(values.min()) < 0 < float(values.max())
        assert torch.allclose(found.overall[number].values[0], expected.sum(dim=0), atol=1e-5)


def test_along_the_path_the_matrix_sums_to_what_the_pair_scores_more_than_its_references(model):
    found = mmattn.match(model, PHOTO, texts=TEXTS, steps=24)
    coarse = mmattn.match(model, PHOTO, texts=TEXTS, steps=1)
    for number in range(len(TEXTS)):
        seen, said, ids = corners(model, number)
        with torch.no_grad():
            (a, black), (b, blank) = [picture_tail(model, x) for x in seen], [text_tail(model, x, ids) for x in said]
            expected = float(a @ b.T - black @ b.T - a @ blank.T + black @ blank.T)
        assert abs(float(found.relevances[number].values.sum()) - expected) < 5e-3 * max(abs(expected), 0.1)
        special = [role != "content" for role in found.relevances[number].query_axis.roles]
        assert not bool(found.relevances[number].values[special].any())  # all of it lies on words
        assert abs(float(coarse.relevances[number].values.sum()) - expected) > 1e-3


def test_the_path_may_lead_through_several_blocks(model):
    deep = mmattn.match(model, PHOTO, texts=TEXTS, steps=24, blocks=2).overall[0].values.sum()
    ids = ids_of(TEXTS[:1])
    with torch.no_grad():
        images = [F.normalize(model.encode_image(pixels_of(photo)), dim=-1) for photo in (PHOTO, np.zeros_like(PHOTO))]
        texts = [text_tail(model, text_tokens(model, rows), ids) for rows in (ids, blanked(ids))]
    expected = float((images[0] - images[1]) @ (texts[0] - texts[1]).T)
    assert abs(float(deep) - expected) < 5e-3 * max(abs(expected), 0.1)
    with pytest.raises(NotFoundError, match="The vision tower has 2 blocks on its last tokens, and 3 were asked for"):
        mmattn.match(model, PHOTO, texts="a cat", blocks=3)


def test_chefers_relevance_is_that_of_the_last_layer_as_published(model):
    def ask(weights, output, logits, flat):
        slopes = [torch.autograd.grad(logit, weights, retain_graph=True)[0] for logit in logits]
        return torch.stack([(weights * slope).clamp(min=0).mean(dim=1)[0, 0].detach() for slope in slopes])

    expected = last_attention(model, ask=ask)
    found = mmattn.match(model, PHOTO, texts=TEXTS, method="chefer")
    values = torch.cat([one.values for one in found.overall])
    assert torch.allclose(values, expected, atol=1e-5 * float(expected.max()))
    assert found.overall[0].unit == "relevance"


def test_grad_eclip_is_the_formula_of_the_paper(model):
    def ask(weights, output, logits, flat):
        query, keys = flat[0][0, 0], flat[1][0, 1:]
        near = F.cosine_similarity(query[None], keys, dim=1)
        near = (near - near.min()) / (near.max() - near.min())
        value = flat[2][0, 1:]
        slopes = [torch.autograd.grad(logit, output, retain_graph=True)[0][0, 0] for logit in logits]
        return torch.stack([F.relu((slope * value).sum(dim=1)) * near for slope in slopes]).detach()

    expected = last_attention(model, ask=ask)
    found = mmattn.match(model, PHOTO, texts=TEXTS, method="gradeclip")
    values = torch.cat([one.values for one in found.overall])
    assert torch.allclose(values[:, 1:], expected, atol=1e-5 * float(expected.max()))
    assert not bool(values[:, 0].any())


def test_similarity_is_the_cosine_of_a_patch_behind_the_last_norm_and_projection(model):
    with torch.no_grad():
        tokens = model.visual.transformer(model.visual._embeds(pixels_of(PHOTO)))
        patches = F.normalize(model.visual.ln_post(tokens)[0, 1:] @ model.visual.proj, dim=-1)
        expected = F.normalize(model.encode_text(ids_of(TEXTS)), dim=-1) @ patches.T
    found = mmattn.match(model, PHOTO, texts=TEXTS, method="similarity")
    values = torch.cat([one.values for one in found.overall])
    assert torch.allclose(values[:, 1:], expected, atol=1e-5)
    assert "background" in str(found.overall[0].parameters)


def test_a_patch_of_an_attention_pool_is_the_pool_run_on_it_alone():
    torch.manual_seed(0)
    pooled = {**VISION, "attentional_pool": True, "attn_pooler_queries": 1, "attn_pooler_heads": 2}
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=pooled, text_cfg=TEXT).eval()
    with torch.no_grad():
        tokens = model.visual.transformer(model.visual._embeds(pixels_of(PHOTO)))[0, 1:, None]
        patches = F.normalize(model.visual.ln_post(model.visual.attn_pool(tokens))[:, 0] @ model.visual.proj, dim=-1)
        expected = F.normalize(model.encode_text(ids_of(TEXTS)), dim=-1) @ patches.T
    found = mmattn.match(model, PHOTO, texts=TEXTS, method="similarity")
    assert torch.allclose(torch.cat([one.values for one in found.overall])[:, 1:], expected, atol=1e-5)
    for method in ("interaction", "chefer", "gradeclip"):
        assert mmattn.match(model, PHOTO, texts=TEXTS, method=method).word("cat").values.abs().sum() > 0


def test_a_words_map_is_that_word_as_a_prompt_of_its_own_where_a_method_knows_prompts_alone(model):
    for method in ("chefer", "gradeclip", "similarity"):
        found = mmattn.match(model, PHOTO, texts=TEXTS, method=method)
        alone = mmattn.match(model, PHOTO, texts="cat", method=method)
        assert torch.allclose(found.word("cat").values, alone.overall[0].values, atol=1e-6)
        assert found.relevances[0].parameters["words"] == "each as a prompt of its own"


@pytest.mark.parametrize("method", ["interaction", "chefer", "gradeclip", "similarity"])
def test_a_text_is_read_alike_alone_and_among_others(model, method):
    both = mmattn.match(model, PHOTO, texts=TEXTS, method=method)
    alone = mmattn.match(model, PHOTO, texts=TEXTS[1], method=method)
    assert torch.allclose(both.relevances[1].values, alone.relevances[0].values, atol=1e-6)
    assert torch.allclose(both.scores[1:], alone.scores, atol=1e-5)


@pytest.mark.parametrize("method", ["interaction", "chefer", "gradeclip", "similarity"])
def test_the_picture_is_looked_at_as_often_for_many_texts_as_for_one(model, method):
    ran = []
    handle = model.visual.register_forward_pre_hook(lambda module, args: ran.append(len(args[0])))
    try:
        mmattn.match(model, PHOTO, texts="a cat", method=method)
        once = len(ran)
        mmattn.match(model, PHOTO, texts=[f"a cat and {n} dogs" for n in "12345"], method=method)
    finally:
        handle.remove()
    assert len(ran) == 2 * once
    assert set(ran) == {1}


def test_scores_are_the_models_own_and_nothing_of_the_model_changes(model):
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    with torch.inference_mode():
        found = mmattn.match(model, PHOTO, texts=TEXTS)
    with torch.no_grad():
        image, text, scale = model(pixels_of(PHOTO), ids_of(TEXTS))
    assert torch.allclose(found.cosines, (image @ text.T)[0], atol=1e-5)
    assert torch.allclose(found.scores, scale * (image @ text.T)[0], atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks == sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_a_frozen_model_is_read_alike():
    frozen = small()
    frozen.requires_grad_(False)
    for method in ("interaction", "chefer", "gradeclip"):
        ours, theirs = (mmattn.match(one, PHOTO, texts=TEXTS, method=method) for one in (frozen, small()))
        assert torch.allclose(ours.relevances[0].values, theirs.relevances[0].values, atol=1e-7)


def test_several_pictures_give_a_list(model):
    found = mmattn.match(model, [PHOTO, PHOTO[:, ::-1].copy()], texts="a cat")
    assert len(found) == 2
    assert not torch.allclose(found[0].scores, found[1].scores)
    assert torch.allclose(found[0].scores, mmattn.match(model, PHOTO, texts="a cat").scores, atol=1e-5)


def test_what_a_method_cannot_read_is_refused_with_another_that_can():
    averaged = small(vision={"pool_type": "avg"})
    with pytest.raises(
        ModelError, match='one token: a class token, or the query of an attention pool. Use method="int'
    ):
        mmattn.match(averaged, PHOTO, texts="a cat", method="gradeclip")
    assert mmattn.match(averaged, PHOTO, texts="a cat").word("cat").values.shape == (1, 17)
    resnet = small(vision={"layers": (1, 1, 1, 1), "width": 16, "image_size": 64, "head_width": 16})
    assert mmattn.match(resnet, PHOTO, texts="a cat", method="chefer").overall[0].values.abs().sum() > 0


def test_options_that_do_not_go_together_are_refused(model):
    with pytest.raises(NotFoundError, match='no method "rollout" to link .* interaction, chefer, gradeclip, naclip'):
        mmattn.match(model, PHOTO, texts="a cat", method="rollout")
    with pytest.raises(InputError, match='steps=4 and method="chefer" do not go together'):
        mmattn.match(model, PHOTO, texts="a cat", method="chefer", steps=4)
    with pytest.raises(InputError, match="steps=0 is no number of steps"):
        mmattn.match(model, PHOTO, texts="a cat", steps=0)
