"""Chefer's co-attention and rollout across sides, against the published rules on the library's own softmaxes."""

import functools
import math

import numpy as np
import open_clip
import pytest
import torch
from small_captioner import coca
from small_towers import encoded, processor, towers
from torch import nn
from torch.nn import functional as F
from written_out import SoftmaxLog

import mmattn

NOTE = "composed with visual.attn_pool.attn"
PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "red sports car"]
BOTH = ["BLIP, matching", "BLIP, captions", "BridgeTower, matching"]


class Graph(SoftmaxLog):
    """Keeps the softmaxes themselves, in their graph."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (F.softmax, torch.softmax, torch.Tensor.softmax) and result.dim() >= 3:
            self.results.append(result)
        return result


def written(module, x, *others, **named):
    """torch's own attention layer as its formula."""
    heads = module.num_heads
    flat = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).movedim(0 if not module.batch_first else 1, -2) for part in flat)
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
    out = (weights @ v).movedim(-2, 0 if not module.batch_first else 1).flatten(-2)
    return module.out_proj(out), None


@functools.cache
def eager(name, text):
    """The library's softmaxes of one pair, with a graph, and its output."""
    model = towers(name, eager=True)
    plain = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    for module in plain:
        module.forward = lambda *given, own=module, **named: written(own, *given, **named)
    try:
        with torch.enable_grad(), Graph() as log:
            output = model(**encoded(name, images=[PHOTO], texts=[text]))
    finally:
        for module in plain:
            del module.forward
    return log.results, output


def cams(softmaxes, score):
    """Rule 5: the mean over heads of the positive part of attention x gradient."""
    slopes = torch.autograd.grad(score, softmaxes, retain_graph=True, allow_unused=True)
    zeros = [torch.zeros_like(one) if slope is None else slope for one, slope in zip(softmaxes, slopes, strict=True)]
    return [(a * s).clamp(min=0)[0].mean(dim=0).detach() for a, s in zip(softmaxes, zeros, strict=True)]


def normalized(r):
    """`handle_residual` of the released code."""
    rest = r - torch.eye(len(r))
    sums = rest.sum(dim=-1, keepdim=True)
    return torch.where(sums > 0, rest / sums, 0.0) + torch.eye(len(r))


class Published:
    """The rules of the released code for two modalities: t asks i, and i asks t where it does."""

    def __init__(self, words, patches):
        self.tt, self.ii = torch.eye(words), torch.eye(patches)
        self.ti, self.it = torch.zeros(words, patches), torch.zeros(patches, words)

    def words(self, cam):
        self.tt, self.ti = self.tt + cam @ self.tt, self.ti + cam @ self.ti

    def patches(self, cam):
        self.ii, self.it = self.ii + cam @ self.ii, self.it + cam @ self.it

    def words_ask(self, cam):
        self.ti, self.tt = (
            self.ti + normalized(self.tt).T @ cam @ normalized(self.ii),
            self.tt + cam @ self.it,
        )

    def together(self, text_self, text_cross, image_self, image_cross):
        """One layer of BridgeTower: both sides ask the other as it stood before."""
        ii, ti, tt, it = self.ii, self.ti, self.tt, self.it
        self.words(text_self)
        words = self.ti + normalized(self.tt).T @ text_cross @ normalized(ii), self.tt + text_cross @ it
        self.patches(image_self)
        patches = self.it + normalized(self.ii).T @ image_cross @ normalized(tt), self.ii + image_cross @ ti
        (self.ti, self.tt), (self.it, self.ii) = words, patches


def published(name, softmaxes, score):
    found, text = cams(softmaxes, score), len(softmaxes[-1][0, 0]) if name.startswith("BLIP") else None
    if name.startswith("BLIP"):
        rules = Published(text, 17)
        for cam in found[:2]:
            rules.patches(cam)
        for own, cross in (found[2:4], found[4:6]):
            rules.words(own)
            rules.words_ask(cross)
        return rules
    rules = Published(next(len(cam) for cam in found if len(cam) != 17), 17)
    for round_ in rounds(found):
        if len(round_) == 4:
            rules.together(*round_)
        else:
            (rules.patches if len(round_[0]) == 17 else rules.words)(*round_)
    return rules


def rounds(maps):
    """BridgeTower's maps: single layers of its towers, and rounds of words, words to patches, patches, back."""
    sides = ["p" if len(cam) == 17 else "w" for cam in maps]
    sides = [own + ("p" if cam.shape[1] == 17 else "w") for own, cam in zip(sides, maps, strict=True)]
    at = 0
    while at < len(maps):
        size = 4 if sides[at : at + 4] == ["ww", "wp", "pp", "pw"] else 1
        yield maps[at : at + size]
        at += size


@pytest.mark.parametrize("name", BOTH)
def test_words_and_patches_follow_the_published_rules(name):
    found = mmattn.match(towers(name), PHOTO, texts=TEXTS, processor=processor(name), method="chefer")
    for number, text in enumerate(TEXTS):
        softmaxes, output = eager(name, text)
        values = found.relevances[number].values
        axis = found.relevances[number].query_axis
        if "captions" in name:
            ids = encoded(name, images=[PHOTO], texts=[text])["input_ids"][0]
            for token in axis.content:
                rules = published(name, softmaxes, output.logits[0, token - 1, ids[token]])
                expected = rules.ti[token - 1]  # the map that wrote word i + 1 is row i
                assert torch.allclose(values[token], expected, atol=1e-5 * float(expected.max())), (text, token)
            continue
        judged = output.itm_score if name.startswith("BLIP") else output.logits
        expected = published(name, softmaxes, judged[0, 1]).ti
        span = float(expected.max())
        assert span > 0
        assert torch.allclose(values[axis.content], expected[axis.content], atol=1e-5 * span)
        assert torch.allclose(found.overall[number].values[0], expected[0], atol=1e-5 * span)
    assert found.relevances[0].unit == "relevance"


def test_chefer_is_what_is_read_where_words_ask_patches():
    found = mmattn.match(towers(BOTH[0]), PHOTO, texts=TEXTS, processor=processor(BOTH[0]))
    assert (found.method, found.relevances[0].parameters["toward"]) == ("chefer", "the logit of a match")


def test_what_cocas_slots_gathered_is_handed_on_to_its_words():
    """Words, slots and patches: the rules between words and slots, and the slots' own row over patches behind them."""
    model = coca()
    ids = open_clip.tokenizer.SimpleTokenizer(context_length=20)(["a cat"])
    found = mmattn.match(model, PHOTO, texts="a cat", method="chefer", stream="decoder").relevances[0]
    plain = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    from PIL import Image

    pixels = open_clip.image_transform(32, is_train=False)(Image.fromarray(PHOTO))[None]
    for module in plain:
        module.forward = lambda q, k=None, v=None, own=module, **named: masked(own, q, k, v, named.get("attn_mask"))
    try:
        with torch.enable_grad(), Graph() as log:
            logits = model(pixels, ids)["logits"]
    finally:
        for module in plain:
            del module.forward
    assert len(log.results) == 2 + 1 + 1 + 4  # the tower, its pool, the text tower, the decoder's own and cross
    for token in found.query_axis.content:
        of = cams(log.results, logits[0, token - 1, ids[0, token]])
        patches, slots = torch.eye(17), torch.zeros(5, 17)
        for cam in of[:2]:
            patches = patches + cam @ patches
        slots = of[2][1:] @ normalized(patches)  # the first query is not among the decoder's keys
        words = torch.eye(len(of[4]))
        words = words + of[3][: len(words), : len(words)] @ words
        reached = torch.zeros(len(words), 17)
        for own, cross in (of[4:6], of[6:8]):
            words, reached = words + own @ words, reached + own @ reached
            reached = reached + normalized(words).T @ cross @ slots
        expected = reached[token - 1]
        assert float(expected.max()) > 0
        assert torch.allclose(found.values[token], expected, atol=1e-5 * float(expected.max()))
    assert found.parameters["note"] == NOTE


def masked(module, q, k, v, mask):
    """torch's own attention between two inputs as its formula, batch first."""
    k, v = (q, q) if k is None else (k, v)
    heads = module.num_heads
    kinds = zip(module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), (q, k, v), strict=True)
    q, k, v = (F.linear(x, w, b).unflatten(-1, (heads, -1)).transpose(1, 2) for w, b, x in kinds)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        mask = mask.unflatten(0, (-1, heads)) if mask.dim() == 3 else mask
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1)
    return module.out_proj((weights @ v).transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("name", ["BLIP, matching", "BLIP, captions"])
def test_rollout_across_sides_is_a_product_of_matrices_over_all_tokens(name):
    found = mmattn.match(towers(name), PHOTO, texts=TEXTS, processor=processor(name), method="cross_rollout")
    for number, text in enumerate(TEXTS):
        maps = [one[0].mean(dim=0).detach() for one in eager(name, text)[0]]
        length = len(maps[2])
        total = torch.eye(17 + length)
        for cam in maps:
            step = torch.eye(17 + length)
            rows = slice(0, 17) if len(cam) == 17 else slice(17, None)
            cols = slice(0, 17) if cam.shape[1] == 17 else slice(17, None)
            step[rows] *= 0.5
            step[rows, cols] += 0.5 * cam
            total = step @ total
        relevance = found.relevances[number]
        for token in relevance.query_axis.content:
            row = total[17 + token - ("captions" in name), :17]
            assert torch.allclose(relevance.values[token], row, atol=1e-5)
            assert float(relevance.outside[token]) == pytest.approx(1 - float(row.sum()), abs=1e-5)


def test_rollout_through_a_round_asks_the_other_side_as_it_stood_before():
    name = "BridgeTower, matching"
    found = mmattn.match(towers(name), PHOTO, texts=TEXTS[0], processor=processor(name), method="cross_rollout")
    maps = [one[0].mean(dim=0).detach() for one in eager(name, TEXTS[0])[0]]
    words = next(len(cam) for cam in maps if len(cam) != 17)
    patch, word = slice(0, 17), slice(17, None)

    def step(*parts):
        made = torch.eye(17 + words)
        for rows, cols, cam in parts:
            made[rows] *= 0.5
            made[rows, cols] += 0.5 * cam
        return made

    total = torch.eye(17 + words)
    for cams_ in rounds(maps):
        if len(cams_) == 1:
            side = patch if len(cams_[0]) == 17 else word
            total = step((side, side, *cams_)) @ total
            continue
        text_self, text_cross, image_self, image_cross = cams_
        of_words = (step((word, patch, text_cross)) @ step((word, word, text_self)))[word]
        of_patches = (step((patch, word, image_cross)) @ step((patch, patch, image_self)))[patch]
        of_words[:, patch] = 0.5 * text_cross  # both from what stood before
        of_patches[:, word] = 0.5 * image_cross
        total = torch.cat([of_patches, of_words]) @ total
    relevance = found.relevances[0]
    content = relevance.query_axis.content
    assert torch.allclose(relevance.values[content], total[word][content][:, patch], atol=1e-5)


def test_rollout_over_cocas_slots_keeps_the_sum_of_a_row():
    found = mmattn.match(coca(), PHOTO, texts=TEXTS, method="cross_rollout")
    for relevance in found.relevances:
        content = relevance.query_axis.content
        assert torch.allclose(relevance.values[content].sum(dim=1) + relevance.outside[content], torch.ones(1))
        assert float(relevance.values[content].sum(dim=1).min()) > 0.5
