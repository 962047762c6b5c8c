"""The contract of DESIGN.md over every installed adapter, on a small example of each.

An adapter of ours without an example fails here; a third party's may bring one (`contract_example`).
"""

from typing import Any

import numpy as np
import pytest
import torch
from contract import (
    Example,
    check_axes_are_as_long_as_the_weights,
    check_nothing_is_changed_or_left,
    check_places_by_perturbation,
    check_rows_sum_to_one,
    check_streaming_equals_dense,
    layers_of,
)
from small_clips import clip
from small_stages import of_torchvision, staged
from small_streams import stream, stream_processor
from small_towers import processor, towers
from small_transformers import member
from small_vits import model_of

from mmattn import plugins
from mmattn.interception.protocol import Adapter, MediaGiven
from mmattn.schema.axes import Axis
from mmattn.schema.media import Photo, Words


def painted(media: MediaGiven, axis: Axis, token: int) -> MediaGiven:
    """The photo with the inner half of a patch inverted."""
    x0, y0, x1, y1 = axis.place(token)  # type: ignore[misc]
    wide, high = (x1 - x0) / 4, (y1 - y0) / 4
    pixels = media.image.pixels.copy()
    pixels[round(y0 + high) : round(y1 - high), round(x0 + wide) : round(x1 - wide)] ^= 255
    return MediaGiven(image=Photo(pixels=pixels))


def photo() -> MediaGiven:
    return MediaGiven(image=Photo(pixels=np.random.default_rng(0).integers(0, 256, (170, 700, 3), dtype=np.uint8)))


def vision_transformer() -> Example:
    return Example(model=lambda: model_of("ViT with registers"), media=photo(), changed=painted)


def vision_model_of_transformers() -> Example:
    """A DINOv2 with registers, whose processor cuts the middle out."""
    return Example(model=lambda: member("DINOv2 with registers"), media=photo(), changed=painted)


def timm_model() -> Example:
    """A NaFlexViT, which packs patches of any aspect into one sequence."""
    return Example(model=lambda: staged("naflex"), media=photo(), changed=painted)


def torchvision_model() -> Example:
    return Example(model=lambda: of_torchvision("vit"), media=photo(), changed=painted)


def two_towers() -> Example:
    """A CLIP with a word beside the picture."""
    media = MediaGiven(image=photo().image, text="a red cat")

    def changed(given: MediaGiven, axis: Axis, token: int) -> MediaGiven:
        return MediaGiven(image=painted(given, axis, token).image, text=given.text)

    return Example(model=lambda: towers("CLIP"), media=media, changed=changed, processor=processor("CLIP"))


WORDS = ("cat", "mat", "sat", "the", "dog", "ran")


def text_encoder() -> Example:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )

    def build() -> Any:
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
        )
        return transformers.BertModel(config).eval()

    def replaced(media: MediaGiven, axis: Axis, token: int) -> MediaGiven:
        start, end = axis.place(token)  # type: ignore[misc]
        text = media.text.text
        other = WORDS[(WORDS.index(text[int(start) : int(end)]) + 1) % len(WORDS)]
        return MediaGiven(text=Words(text=text[: int(start)] + other + text[int(end) :]))

    text = Words(text="the cat sat the mat ran")
    return Example(model=build, media=MediaGiven(text=text), changed=replaced, processor=tokenizer)


def open_clip_model() -> Example:
    """An EVA-02 tower beside a text tower; of a pair the picture is changed."""

    def changed(media: MediaGiven, axis: Axis, token: int) -> MediaGiven:
        return MediaGiven(image=painted(media, axis, token).image, text=media.text)

    media = MediaGiven(image=photo().image, text=Words(text="a red car"))
    return Example(model=lambda: clip("EVA-02"), media=media, changed=changed)


def one_stream() -> Example:
    """A Llava with a word behind the picture; of the pair the picture is changed."""

    def changed(media: MediaGiven, axis: Axis, token: int) -> MediaGiven:
        return MediaGiven(image=painted(media, axis, token).image, text=media.text)

    media = MediaGiven(image=photo().image, text=Words(text="a red car"))
    return Example(model=lambda: stream("Llava"), media=media, changed=changed, processor=stream_processor("Llava"))


EXAMPLES = {
    "open_clip.clip": open_clip_model,
    "timm.models": timm_model,
    "torchvision.vit": torchvision_model,
    "timm.vit": vision_transformer,
    "transformers.clip": two_towers,
    "transformers.text": text_encoder,
    "transformers.vit": vision_model_of_transformers,
    "transformers.vlm": one_stream,
}


def example_of(name: str) -> tuple[Adapter, Example]:
    adapter = plugins.adapters()[name]
    if name in EXAMPLES:
        return adapter, EXAMPLES[name]()
    own = getattr(adapter, "contract_example", None)
    if own is None and not plugins.installed()[name].value.startswith("mmattn."):
        pytest.skip(f"the third-party adapter {name} brings no contract_example")
    assert own is not None, f"{name} has no example in EXAMPLES"
    example: Example = own()
    return adapter, example


@pytest.fixture(params=sorted(plugins.installed()))
def seat(request: pytest.FixtureRequest) -> tuple[Adapter, Example]:
    return example_of(request.param)


def test_every_adapter_of_ours_has_an_example_and_no_example_is_left_over() -> None:
    ours = {name for name, entry in plugins.installed().items() if entry.value.startswith("mmattn.adapters.")}
    assert ours == set(EXAMPLES)


def test_the_adapter_takes_its_seat_under_its_own_name(seat: tuple[Adapter, Example]) -> None:
    adapter, example = seat
    assert plugins.adapters()[adapter.name] is adapter
    assert adapter.claims(example.model())
    assert not adapter.claims(torch.nn.Linear(2, 2))
    families = list(adapter.models())
    assert families
    assert all(family.name and family.what and family.how_exact and family.source for family in families)


def test_rows_and_outside_sum_to_one(seat: tuple[Adapter, Example]) -> None:
    for layer in layers_of(*seat):
        check_rows_sum_to_one(layer)


def test_axes_are_as_long_as_the_weights(seat: tuple[Adapter, Example]) -> None:
    layers = layers_of(*seat)
    assert {layer.stream for layer in layers} >= {seat[0].default_stream}
    for layer in layers:
        check_axes_are_as_long_as_the_weights(layer)


def test_streaming_equals_dense(seat: tuple[Adapter, Example]) -> None:
    for layer in layers_of(*seat):
        check_streaming_equals_dense(layer)


def test_the_output_is_unchanged_and_nothing_stays(seat: tuple[Adapter, Example]) -> None:
    check_nothing_is_changed_or_left(*seat)


def test_changing_a_cell_moves_the_token_that_the_axis_names(seat: tuple[Adapter, Example]) -> None:
    check_places_by_perturbation(*seat)
