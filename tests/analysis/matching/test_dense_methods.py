"""NACLIP, LeGrad and Grad-CAM against their formulas, written out with the models' own modules."""

import numpy as np
import open_clip
import pytest
import small_clips
import torch
from small_towers import processor, towers
from torch.nn import functional as F
from two_towers import PHOTO, TEXT, TEXTS, blanked, ids_of, picture_tokens, pixels_of, small

import mmattn
from mmattn.analysis.matching import tail
from mmattn.errors import InputError, ModelError, NoAttentionError, NotFoundError

SQUARE = np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return small()


def timm_tower(**settings):
    """A tower of timm in open_clip's class."""
    torch.manual_seed(0)
    vision = {"timm_pool": "avg", "timm_proj": "linear", "image_size": 64, **settings}
    return open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT).eval()


def siglip_tower():
    """SigLIP's tower with a scale behind each attention, sharp in all its blocks."""
    small = {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 4, "init_values": 1.0}
    one = small_clips.timm_tower("vit_base_patch16_siglip_224", size=32, pool="map", text_cfg=TEXT, **small).eval()
    torch.manual_seed(0)
    for path, parameter in one.visual.trunk.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
        if "gamma" in path:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return one


@pytest.fixture(scope="module")
def convnext():
    return timm_tower(timm_model_name="convnext_atto")


def texts_of(model):
    with torch.no_grad():
        return F.normalize(model.encode_text(ids_of(TEXTS)), dim=-1)


def gaussian(rows, cols):
    """The paper's omega, pair by pair."""
    places = [(r, c) for r in range(rows) for c in range(cols)]
    return torch.tensor(
        [[2.718281828459045 ** (-((r - s) ** 2 + (c - d) ** 2) / (2 * 5.0**2)) for s, d in places] for r, c in places]
    )


def neighborly(q_k_v, heads, omega):
    """softmax(k k^T / sqrt(d) + omega) v, heads joined; omega is nothing for tokens in front of the patches."""
    _, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in q_k_v)
    front = k.shape[2] - len(omega)
    logits = k @ k.mT * k.shape[-1] ** -0.5 + F.pad(omega, (front, 0, front, 0))
    return (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def found_by(model, method, **options):
    one = mmattn.match(model, PHOTO, texts=TEXTS, method=method, **options)
    return torch.cat([each.values for each in one.overall])


def test_naclip_is_the_papers_attention_in_the_last_block_without_what_stands_beside_it(model):
    block = model.visual.transformer.resblocks[1]
    with torch.no_grad():
        normed = block.ln_1(picture_tokens(model, pixels_of(PHOTO)))
        parts = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        z = block.attn.out_proj(neighborly(parts, block.attn.num_heads, gaussian(4, 4)))
        patches = F.normalize(model.visual.ln_post(z)[0, 1:] @ model.visual.proj, dim=-1)
        expected = texts_of(model) @ patches.T
    found = found_by(model, "naclip")
    assert torch.allclose(found[:, 1:], expected, atol=1e-5)
    assert not bool(found[:, 0].any())
    assert not torch.allclose(found, found_by(model, "similarity"), atol=1e-2)


def test_naclip_goes_through_the_blocks_own_scale_and_the_pools_value_path():
    model = siglip_tower()
    trunk = model.visual.trunk
    block = trunk.blocks[-1]
    with torch.no_grad():
        x = trunk.pos_drop(trunk._pos_embed(trunk.patch_embed(pixels_of(PHOTO))))
        normed = block.norm1(trunk.blocks[0](x))
        z = block.attn.proj(neighborly(block.attn.qkv(normed).chunk(3, dim=-1), block.attn.num_heads, gaussian(2, 2)))
        z = trunk.norm(z * block.ls1.gamma)
        pooled = trunk.attn_pool(z[0][:, None])  # each patch alone
        expected = texts_of(model) @ F.normalize(model.visual.head(pooled), dim=-1).T
    assert torch.allclose(found_by(model, "naclip"), expected, atol=1e-5)


@pytest.mark.parametrize("made", ["class token", "pool", "map"])
def test_many_patches_run_in_short_sequences_with_the_same_features(made, model, convnext, monkeypatch):
    one = {"class token": model, "pool": siglip_tower(), "map": convnext}[made]
    photo = SQUARE if made == "map" else PHOTO
    whole = mmattn.match(one, photo, texts=TEXTS, method="similarity")
    monkeypatch.setattr(tail, "_NUMBERS", 2 * 64)  # a patch or two at once
    lengths = []
    plain = tail.everywhere

    def counted(tokens, *, like):
        lengths.append(like.shape[1:-1].numel())
        return plain(tokens, like=like)

    monkeypatch.setattr(tail, "everywhere", counted)
    parts = mmattn.match(one, photo, texts=TEXTS, method="similarity")
    assert torch.allclose(whole.overall[0].values, parts.overall[0].values, atol=1e-5)
    short = 2 if made == "class token" else 1
    assert len(lengths) > 2
    assert lengths[1:] == [short] * (len(lengths) - 1)


def test_legrad_is_the_gradient_of_what_each_layer_forms_by_its_own_attention(model):
    visual, texts = model.visual, texts_of(model)
    expected = torch.zeros(2, 16)
    tokens = visual._embeds(pixels_of(PHOTO))
    by_layer = []
    for block in visual.transformer.resblocks:
        tokens = tokens.detach()
        parts = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for part in parts)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).detach().requires_grad_()
        tokens = tokens + block.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp(block.ln_2(tokens))
        feature = F.normalize(visual.ln_post(tokens.mean(dim=1)) @ visual.proj, dim=-1)
        scores = model.logit_scale.exp() * feature @ texts.T
        slopes = [torch.autograd.grad(score, weights, retain_graph=True)[0] for score in scores[0]]
        by_layer.append(torch.stack([slope.clamp(min=0)[0].mean(dim=(0, 1))[1:] for slope in slopes]))
    expected = torch.stack(by_layer).sum(dim=0)
    found = found_by(model, "legrad")
    assert torch.allclose(found[:, 1:], expected, atol=1e-5 * float(expected.max()))
    assert not bool(found[:, 0].any())
    assert torch.allclose(found_by(model, "legrad", blocks=1)[:, 1:], by_layer[-1], atol=1e-5 * float(expected.max()))
    with pytest.raises(NotFoundError, match="The vision tower has 2 blocks on its last tokens, and 3 were asked for"):
        found_by(model, "legrad", blocks=3)


def test_legrad_of_a_pool_is_the_gradient_of_the_pools_map_over_each_layers_tokens():
    model = siglip_tower()
    trunk, texts = model.visual.trunk, texts_of(model)
    pool = trunk.attn_pool
    expected = torch.zeros(2, 4)
    with torch.no_grad():
        tokens = trunk.pos_drop(trunk._pos_embed(trunk.patch_embed(pixels_of(PHOTO))))
    for block in trunk.blocks:
        with torch.no_grad():
            tokens = block(tokens)
            x = trunk.norm(tokens)
            q = pool.q(pool.latent).reshape(1, 1, pool.num_heads, -1).transpose(1, 2)
            k, v = pool.kv(x).reshape(1, 4, 2, pool.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * pool.scale).softmax(dim=-1).detach().requires_grad_()
        pooled = pool.proj((weights @ v).transpose(1, 2).reshape(1, 1, -1))
        pooled = pooled + pool.mlp(pool.norm(pooled))
        feature = F.normalize(model.visual.head(pooled[:, 0]), dim=-1)
        for number, score in enumerate((model.logit_scale.exp() * feature @ texts.T)[0]):
            (slope,) = torch.autograd.grad(score, weights, retain_graph=True)
            expected[number] += slope.clamp(min=0)[0, :, 0].mean(dim=0)
    assert torch.allclose(found_by(model, "legrad"), expected, atol=1e-5 * float(expected.max()))


def test_grad_cam_is_the_last_feature_map_weighed_by_the_mean_gradient_of_its_channels(convnext):
    trunk = convnext.visual.trunk
    with torch.no_grad():
        features = trunk.stages(trunk.stem(pixels_of(SQUARE)))
    features.requires_grad_()
    image = F.normalize(convnext.visual.head(trunk.head(features)), dim=-1)
    logits = convnext.logit_scale.exp() * image @ texts_of(convnext).T
    slopes = [torch.autograd.grad(logit, features, retain_graph=True)[0] for logit in logits[0]]
    expected = [F.relu((slope.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)).flatten() for slope in slopes]
    found = mmattn.match(convnext, SQUARE, texts=TEXTS, method="gradcam")
    for one, wanted in zip(found.overall, torch.stack(expected).detach(), strict=True):
        assert torch.allclose(one.values[0], wanted, atol=1e-5 * float(wanted.max()))
    assert "visual.trunk.norm_pre" in str(found.overall[0].parameters["tokens"])


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18"])
def test_a_tower_of_convolutions_is_read_at_the_places_of_its_last_map_where_the_model_looked(name, convnext):
    wide = np.random.default_rng(1).integers(0, 255, (64, 160, 3), dtype=np.uint8)
    model = convnext if name == "convnext_atto" else timm_tower(timm_model_name=name)
    default = mmattn.match(model, wide, texts=TEXTS, steps=1)
    assert default.method == "interaction"
    axis = default.relevances[0].axis
    assert (axis.rows, axis.cols) == (2, 2)
    assert axis.seen_box() == pytest.approx((48, 0, 112, 64), abs=1e-6)  # its transform cuts the middle out
    assert bool(default.word("cat").values.any())
    assert len(mmattn.links(default.relevances[0], focus="cat", k=1).panels[0].boxes("cat")) == 1


def test_what_a_tower_of_convolutions_has_not_is_said_with_what_reads_it(convnext):
    with pytest.raises(
        NoAttentionError, match=r'convolutions alone. method="naclip" reads attention. Use "interaction"'
    ):
        mmattn.match(convnext, SQUARE, texts=TEXTS, method="naclip")
    with pytest.raises(NotFoundError, match="there are no blocks, and 2 were asked for"):
        mmattn.match(convnext, SQUARE, texts=TEXTS, blocks=2)


def test_interactions_of_a_map_of_convolutions_sum_to_what_the_pair_scores_more_than_its_references(convnext):
    found = mmattn.match(convnext, SQUARE, texts=TEXTS[0], steps=12)
    trunk, ids = convnext.visual.trunk, ids_of(TEXTS[:1])
    with torch.no_grad():
        maps = [trunk.stages(trunk.stem(pixels_of(one))) for one in (SQUARE, SQUARE * 0)]
        image, black = (F.normalize(convnext.visual.head(trunk.head(one)), dim=-1) for one in maps)
        text, blank = (F.normalize(convnext.encode_text(rows), dim=-1) for rows in (ids, blanked(ids)))
    expected = float((image - black) @ (text - blank).T)
    assert abs(float(found.overall[0].values.sum()) - expected) < 1e-2 * max(abs(expected), 0.1)


def test_a_resnets_map_is_read_where_its_pool_has_no_blocks():
    resnet = small(vision={"layers": (1, 1, 1, 1), "width": 16, "image_size": 64, "head_width": 16})
    for method in ("interaction", "gradcam", "similarity"):
        one = mmattn.match(resnet, PHOTO, texts=TEXTS, method=method).relevances[0]
        assert one.parameters["tokens"] == "places of the last feature map (visual.layer4)"
        assert (len(one.axis), one.axis.rows, one.axis.cols) == (4, 2, 2)
    with pytest.raises(
        ModelError, match=r'visual.attnpool of the vision tower of CLIP cannot be told.*method="chefer"'
    ):
        mmattn.match(resnet, PHOTO, texts=TEXTS, method="legrad")


def test_blocks_that_carry_a_map_of_channels_are_read_behind_it():
    mobile = small_clips.clip("MobileCLIP")
    for options in ({"steps": 1}, {"method": "gradcam"}):
        one = mmattn.match(mobile, SQUARE, texts="a cat", **options)
        assert "last feature map" in str(one.relevances[0].parameters["tokens"])
        assert bool(one.overall[0].values.any())


@pytest.mark.parametrize("method", ["legrad", "gradeclip"])
def test_a_pool_that_asks_another_pool_is_no_map_of_patches(method):
    coca = small_clips.clip("CoCa, two pools")
    with pytest.raises(ModelError, match=f'asks Slots.* and no patches.*"{method}" reads a pool over patches'):
        mmattn.match(coca, SQUARE, texts="a cat", method=method)
    assert bool(mmattn.match(coca, SQUARE, texts="a cat", steps=1).word("cat").values.any())


def test_grad_cam_of_patches_that_are_tokens_is_refused(model):
    with pytest.raises(ModelError, match="no feature map of convolutions at its end: its patches are tokens"):
        found_by(model, "gradcam")


def siglip_pool(model, tokens):
    """transformers' SigLIP head with its query, keys, values and weights."""
    head = model.vision_model.head
    pool = head.attention
    flat = [
        F.linear(x, weight, bias)
        for x, weight, bias in zip(
            (head.probe, tokens, tokens), pool.in_proj_weight.chunk(3), pool.in_proj_bias.chunk(3), strict=True
        )
    ]
    q, k, v = (part.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2) for part in flat)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).detach().requires_grad_()
    out = (weights @ v).transpose(1, 2).flatten(2)
    x = pool.out_proj(out)
    x = x + head.mlp(head.layernorm(x))
    return F.normalize(x[:, 0], dim=-1), flat, out


def test_grad_eclip_reads_a_pool_of_transformers_that_writes_its_softmax_out():
    model, made = towers("SigLIP"), processor("SigLIP")
    found = mmattn.match(model, PHOTO, texts=TEXTS, processor=made, method="gradeclip")
    given = made(text=TEXTS, images=[PHOTO], padding="max_length", max_length=24, return_tensors="pt")
    with torch.no_grad():
        texts = F.normalize(model.get_text_features(input_ids=given["input_ids"]).pooler_output, dim=-1)
        tokens = model.vision_model(given["pixel_values"]).last_hidden_state
    feature, (q, k, v), out = siglip_pool(model, tokens)
    near = F.cosine_similarity(q[0], k[0], dim=1)
    near = ((near - near.min()) / (near.max() - near.min())).detach()
    for number, one in enumerate(found.overall):
        logit = model.logit_scale.exp() * (feature @ texts[number])[0]
        (slope,) = torch.autograd.grad(logit, out, retain_graph=True)
        expected = (F.relu((slope[0] * v[0]).sum(dim=1)) * near).detach()
        assert torch.allclose(one.values[0], expected, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("name", ["CLIP", "AltCLIP", "SigLIP", "SigLIP 2", "AIMv2", "ChineseCLIP"])
@pytest.mark.parametrize("method", ["naclip", "legrad", "gradeclip"])
def test_models_of_transformers_are_read_by_every_method(name, method):
    found = mmattn.match(towers(name), PHOTO, texts=TEXTS, processor=processor(name), method=method)
    content = found.overall[0].axis.content
    assert bool(found.overall[0].values[:, content].any())
    assert bool(found.word("cat").values.isfinite().all())


def test_blocks_go_with_legrad_and_no_other_map_of_prompts(model):
    with pytest.raises(InputError, match='blocks=2 and method="naclip" do not go together: blocks= is for interaction'):
        found_by(model, "naclip", blocks=2)
