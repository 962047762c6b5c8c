"""Decoders of one stream: weights against the library's own, boxes against pixels that are changed."""

import copy
import functools

import numpy as np
import pytest
import torch
from eager_weights import eager_weights
from PIL import Image
from small_streams import STREAMS, stream, stream_processor
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

import mmattn
from mmattn.adapters.pixels import Crop, Geometry, Resize
from mmattn.adapters.vlm.layouts import qwen, unpadded
from mmattn.schema.axes import Joined, PatchGrid

TEXT = "the cat on a red mat"
SIZE = (60, 40)

members = pytest.mark.parametrize("name", STREAMS)


def picture(size=SIZE, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def attended(name, image, text=TEXT, **more):
    return mmattn.attend(stream(name), image=image, text=text, processor=stream_processor(name), **more)


@functools.cache
def maps_of(name):
    return attended(name, picture())


def dense(layer, weights):
    """The library's weights of one module on the layer's axis: chunks in a row are blocks on the diagonal."""
    length, at = len(layer.query_axis), 0
    whole = torch.zeros(weights[0].shape[1], length, length)
    for chunk in weights:
        for block in chunk:
            stop = at + block.shape[-1]
            whole[:, at:stop, at:stop] = block
            at = stop
    assert at == length
    return whole


@members
def test_every_layer_has_the_weights_of_the_library(name):
    maps = maps_of(name)
    model = stream(name, eager=True)
    with torch.no_grad(), eager_weights(model) as own:
        model(**maps.prepared.facts.inputs)
    assert {layer.name for layer in maps} == set(own)
    assert not maps.left_out
    assert {layer.stream for layer in maps} == {"vision", "decoder"}
    for layer in maps:
        assert (layer.weights() - dense(layer, own[layer.name])).abs().max() <= 1e-5, layer.name
        assert layer.error is not None


@members
def test_words_and_the_picture_have_their_parts(name):
    axis = maps_of(name).select(stream="decoder")[0].query_axis
    assert isinstance(axis, Joined)
    text, at = axis.part("text")
    assert [word.text for word in text.words()] == TEXT.split()
    assert [TEXT[slice(*word.span)] for word in text.words()] == TEXT.split()
    ids = maps_of(name).prepared.facts.inputs["input_ids"][0]
    tokenizer = stream_processor(name).tokenizer
    for word in text.words():
        written = tokenizer.decode(ids[at[list(word.tokens)]]).strip()
        assert written == word.text
    parts = {part: axis.part(part)[0] for part in axis.names[1:]}
    assert {part: (grid.rows, grid.cols) for part, grid in parts.items()} == STREAMS[name].parts
    assert all(grid.size_px == SIZE for grid in parts.values())


def embeddings(name, images, processor=None):
    """What each token of the prompt starts as in the decoder, where no patch attends to another."""
    model, found = stream(name), []
    hooks = [
        module.register_forward_hook(_silent)
        for path, module in model.named_modules()
        if path.startswith(f"{STREAMS[name].tower}.") and type(module).__name__.endswith("Attention")
    ]
    inner = model.get_submodule(STREAMS[name].decoder)
    hooks.append(
        inner.register_forward_pre_hook(lambda _, args, given: found.append(given["inputs_embeds"]), with_kwargs=True)
    )
    try:
        with torch.no_grad():
            model(**inputs_of(images, processor or stream_processor(name)))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0][0]


def inputs_of(images, processor):
    """What the library's own processor makes of pictures with a word."""
    text = f"{processor.image_token} " * len(images) + "cat"
    found = processor(images=[images], text=[text], return_tensors="pt")
    return {name: value for name, value in found.items() if name != "labels"}


def _silent(module, given, output):
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


def inverted(image, box):
    pixels = np.asarray(image).copy()
    x0, y0, x1, y1 = box
    pixels[round(y0) : round(y1), round(x0) : round(x1)] ^= 255
    return Image.fromarray(pixels)


@members
def test_a_box_of_the_original_picture_is_what_its_token_sees(name):
    image = picture()
    before = embeddings(name, [image])
    text = f"{stream_processor(name).image_token} cat"
    axis = attended(name, image, text).select(stream="decoder")[0].query_axis
    for part in axis.names[1:]:
        grid, where = axis.part(part)
        content = grid.content
        for token in {int(content[0]), int(content[-1]), *content[:: max(1, len(content) // 3)].tolist()}:
            x0, y0, x1, y1 = np.clip(grid.place(token), 0, (*SIZE, *SIZE))
            if min(x1 - x0, y1 - y0) < 2:
                continue  # padding, mostly
            wide, high = (x1 - x0) / 4, (y1 - y0) / 4
            after = embeddings(name, [inverted(image, (x0 + wide, y0 + high, x1 - wide, y1 - high))])
            moved = (after - before).norm(dim=1)
            assert int(moved[where].argmax()) == token, (part, token)
            nothing = [n for n in range(len(axis)) if axis.part_of(n) in (None, "text")]
            assert not moved[nothing].any()
            far = [where[n] for n in content if _apart(grid.place(n), (x0, y0, x1, y1)) > max(x1 - x0, y1 - y0)]
            assert not far or moved[far].max() <= 1e-4 * moved[where].max()


def _apart(one, other):
    """How far two boxes are from each other, along the axis in which they are further apart."""
    return max(max(one[n], other[n]) - min(one[n + 2], other[n + 2]) for n in (0, 1))


@members
def test_the_towers_patches_are_of_the_original_picture(name):
    image = picture()
    maps = maps_of(name)
    layer = maps.select(stream="vision")[0]
    grids = layer.query_axis.parts if isinstance(layer.query_axis, Joined) else (layer.query_axis,)
    assert all(isinstance(grid, PatchGrid) and grid.size_px == SIZE for grid in grids)
    keys = first_keys(name, image)
    starts = np.cumsum([0, *(len(grid) for grid in grids)])
    some = {0, len(grids) // 2, len(grids) - 1}
    for start, grid in [(starts[n], grids[n]) for n in some]:
        for token in {int(grid.content[1]), int(grid.content[-2])}:
            x0, y0, x1, y1 = np.clip(grid.place(token), 0, (*SIZE, *SIZE))
            if min(x1 - x0, y1 - y0) < 2:
                continue
            wide, high = (x1 - x0) / 4, (y1 - y0) / 4
            box = (x0 + wide, y0 + high, max(x1 - wide, x0 + wide + 1), max(y1 - high, y0 + high + 1))
            moved = (first_keys(name, inverted(image, box)) - keys).norm(dim=1)
            assert int(moved[start : start + len(grid)].argmax()) == token


def first_keys(name, image):
    """The keys of the tower's first layer in the order of its calls."""
    model = stream(name)
    with torch.no_grad(), mmattn.capture(model) as recording:
        model(**inputs_of([image], stream_processor(name)))
    first = next(call.module for call in recording.calls if call.module.startswith(STREAMS[name].tower))
    calls = [call for call in recording.calls if call.module == first]
    return torch.cat([call.k.transpose(1, 2).flatten(2).flatten(0, 1) for call in calls])


@pytest.mark.parametrize(("name", "count"), [("Llava-OneVision", 2), ("Llava", 1)])
def test_a_picture_in_the_middle_of_a_square_keeps_its_boxes(name, count):
    """OneVision pads each of several pictures to a square, Llava each where it is told to; both resize after that."""
    processor = stream_processor(name)
    if name == "Llava":
        processor = copy.copy(processor)
        processor.image_processor = type(processor.image_processor)(
            do_pad=True, size={"height": 32, "width": 32}, do_center_crop=False
        )
    image, text = picture(), f"{processor.image_token} " * count + "cat"
    axis = mmattn.attend(stream(name), image=[image] * count, text=text, processor=processor).layers[-1].query_axis
    grid, where = axis.part(axis.names[1])
    # 60 x 40 in a square of 60 at 32 px: a patch of 8 px is 15 px, and 10 px of padding stand above
    assert np.allclose(grid.places()[0], (0, -10, 15, 5))
    before = embeddings(name, [image] * count, processor)
    for token in (5, 10):
        x0, y0, x1, y1 = grid.place(token)
        box = (x0 + 4, y0 + 4, x1 - 4, y1 - 4)
        moved = (embeddings(name, [inverted(image, box), *[image] * (count - 1)], processor) - before).norm(dim=1)
        assert int(moved[where].argmax()) == token


def test_a_tile_that_is_no_whole_number_of_patches_is_said_to_be_off():
    geometry = Geometry(size_px=(70, 70)).then(Resize(size_px=(70, 70)))
    tiles = [geometry.then(Crop(left=35 * col, top=35 * row, size_px=(35, 35))) for row in (0, 1) for col in (0, 1)]
    model = stream("Llava-Next")  # patches of 8 px: 4 of them leave 3 px of a tile
    seen = unpadded([geometry.then(Resize(size_px=(35, 35))), *tiles], model)
    assert "3 px of a tile of 35 px" in seen.note
    grid = seen.parts["tiles"]
    assert (grid.rows, grid.cols) == (8, 8)
    true = [35 * (n // 4) + 8 * (n % 4) + 4 for n in range(8)]  # middles of the tower's own patches
    middles = grid.places()[:8, [0, 2]].mean(axis=1)
    assert np.abs(middles - true).max() <= 3


def test_windows_and_merges_have_the_order_of_the_library():
    rows, cols, merge, side = 8, 12, 2, 3
    view = qwen([Geometry(size_px=(48, 32))], stream("Qwen2.5-VL")).views[0]
    grid = torch.tensor([[1, rows, cols]])
    index, _ = get_vision_window_index(grid, spatial_merge_size=merge, window_size=side * merge * 4, patch_size=4)
    position = get_vision_position_ids(grid, merge)
    merged = (position[:, 0] * cols + position[:, 1]).reshape(-1, merge * merge)
    assert view.order.tolist() == merged[index].flatten().tolist()
    plain = qwen([Geometry(size_px=(48, 32))], stream("Qwen2-VL")).views[0]
    assert plain.order.tolist() == merged.flatten().tolist()


@pytest.mark.parametrize(
    ("name", "changed", "size", "parts"),
    [
        ("Gemma 3", {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}, (120, 40), 4),
        ("InternVL", {"crop_to_patches": False}, (60, 40), 1),
        ("Llava-Next", {}, (30, 110), 2),
        ("Llava-OneVision", {}, (150, 37), 2),
    ],
)
def test_other_settings_and_shapes_have_their_own_boxes(name, changed, size, parts):
    processor = copy.copy(stream_processor(name))
    processor.images_kwargs = {**getattr(processor, "images_kwargs", {}), **changed}
    image = picture(size)
    axis = (
        mmattn.attend(stream(name), image=image, text=f"{processor.image_token} cat", processor=processor)
        .layers[-1]
        .query_axis
    )
    assert len(axis.names) == 1 + parts
    before = embeddings(name, [image], processor)
    for part in axis.names[1:]:
        grid, where = axis.part(part)
        token = int(grid.content[len(grid.content) // 2 - 1])
        x0, y0, x1, y1 = np.clip(grid.place(token), 0, (*size, *size))
        wide, high = (x1 - x0) / 4, (y1 - y0) / 4
        after = embeddings(name, [inverted(image, (x0 + wide, y0 + high, x1 - wide, y1 - high))], processor)
        assert int((after - before).norm(dim=1)[where].argmax()) == token, part
