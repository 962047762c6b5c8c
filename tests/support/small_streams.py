"""One small decoder of one stream of each family of transformers, random weights, with the real processor."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from small_sides import letters

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DECODER = {**SMALL, "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 1024}
TOWER = {**SMALL, "image_size": 32, "patch_size": 8, "initializer_range": 0.3}


@dataclass(frozen=True, kw_only=True)
class Member:
    """How to build a decoder and its processor.

    Parameters
    ----------
    cls
        The class.
    processor
        Builds it.
    config
        Of the model, from its tokenizer.
    parts
        What one picture is in a prompt, by name, for a picture of 60 x 40 px: rows and columns.
    tower, decoder
        Paths of its modules.
    """

    cls: str
    processor: Callable[[], Any]
    config: Callable[[Any], Any]
    parts: dict[str, tuple[int, int]] = field(default_factory=lambda: {"image": (4, 4)})
    tower: str = "model.vision_tower"
    decoder: str = "model.language_model"


def _decoder(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    return {**DECODER, **ids, "vocab_size": len(tokenizer), **more}


def _mark(tokenizer: Any, mark: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(mark))


def _llava() -> Any:
    images = hf.LlavaImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    return hf.LlavaProcessor(
        images,
        letters("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _llava_config(tokenizer: Any) -> Any:
    return hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER),
        text_config=hf.LlamaConfig(**_decoder(tokenizer)),
        image_token_index=_mark(tokenizer, "<image>"),
    )


QWEN = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
QWEN_TOWER = {"patch_size": 4, "depth": 2, "num_heads": 2, "initializer_range": 0.3}


def _qwen(name: str, **settings: Any) -> Any:
    """A processor whose pictures keep their aspect, of 160 to 2,000 pixels."""
    side = {"patch_size": 4, "size": {"shortest_edge": 160, "longest_edge": 2000}}
    images, videos = hf.Qwen2VLImageProcessor(**side), getattr(hf, f"Qwen{settings['video']}VideoProcessor")(**side)
    return getattr(hf, f"{name}Processor")(images, letters(*QWEN), videos)


def _qwen_config(name: str, tokenizer: Any, *, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    marks = dict(zip(("vision_start", "image", "vision_end", "video"), QWEN, strict=True))
    ids = {f"{what}_token_id": _mark(tokenizer, mark) for what, mark in marks.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, **text}
    return getattr(hf, f"{name}Config")(
        vision_config={**QWEN_TOWER, **vision}, text_config=_decoder(tokenizer, rope_parameters=rope), **ids
    )


PINS = [[32, 64], [64, 32], [64, 64]]


def _next() -> Any:
    size = {"shortest_edge": 32}
    images = hf.LlavaNextImageProcessor(size=size, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINS)
    tokens = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return hf.LlavaNextProcessor(images, letters("<image>"), **tokens)


def _one_vision() -> Any:
    size = {"height": 32, "width": 32}
    images = hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINS)
    videos = hf.LlavaOnevisionVideoProcessor(size=size)
    tokens = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_1"}
    return hf.LlavaOnevisionProcessor(images, letters("<image>", "<video>"), videos, **tokens)


def _idefics(images: str) -> Any:
    """Pictures at 96 px, in tiles of 32: SmolVLM's own processor of texts is this one and one of videos."""
    side = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
    marks = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tiles = tuple(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7))
    made = getattr(hf, f"{images}ImageProcessor")(**side)
    return hf.Idefics3Processor(made, letters(*marks, *tiles), image_seq_len=4)


def _idefics_config(name: str, tokenizer: Any) -> Any:
    return getattr(hf, f"{name}Config")(
        vision_config=TOWER,
        text_config={"model_type": "llama", **_decoder(tokenizer)},
        image_token_id=_mark(tokenizer, "<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )


def _internvl() -> Any:
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    size = {"height": 32, "width": 32}
    images = hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=6)
    tokenizer = letters(extra_special_tokens={**marks, "video_token": "<video>"})
    return hf.InternVLProcessor(images, tokenizer, hf.InternVLVideoProcessor(size=size), image_seq_length=4)


def _pali_gemma() -> Any:
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    return hf.PaliGemmaProcessor(images, letters("<image>"))


def _gemma() -> Any:
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    images = hf.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    return hf.Gemma3Processor(images, letters(extra_special_tokens=marks), image_seq_length=4)


def _pixtral() -> Any:
    marks = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    images = hf.PixtralImageProcessor(size={"longest_edge": 48}, patch_size={"height": 8, "width": 8})
    return hf.PixtralProcessor(images, letters(*marks), patch_size=8)


def _with_image(kind: str, tower: Any, tokenizer: Any, mark: str = "<image>", *, text: Any = None, **more: Any) -> Any:
    decoder = hf.LlamaConfig(**_decoder(tokenizer)) if text is None else text
    ids = {"image_token_index": _mark(tokenizer, mark)}
    return getattr(hf, f"{kind}Config")(vision_config=tower, text_config=decoder, **ids, **more)


def _siglip() -> Any:
    return hf.SiglipVisionConfig(
        **{name: value for name, value in TOWER.items() if name != "initializer_range"}, vision_use_head=False
    )


STREAMS = {
    "Llava": Member(cls="LlavaForConditionalGeneration", processor=_llava, config=_llava_config),
    "Qwen2-VL": Member(
        cls="Qwen2VLForConditionalGeneration",
        processor=lambda: _qwen("Qwen2VL", video="2VL"),
        config=lambda tokenizer: _qwen_config(
            "Qwen2VL",
            tokenizer,
            vision={"embed_dim": 32, "hidden_size": 32},
            text={"mrope_section": [1, 1, 2]},
        ),
        parts={"image": (4, 6)},
        tower="model.visual",
    ),
    "Qwen2.5-VL": Member(
        cls="Qwen2_5_VLForConditionalGeneration",
        processor=lambda: _qwen("Qwen2_5_VL", video="2VL"),
        config=lambda tokenizer: _qwen_config(
            "Qwen2_5_VL",
            tokenizer,
            vision={
                "hidden_size": 32,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "window_size": 24,
                "fullatt_block_indexes": [1],
            },
            text={"mrope_section": [1, 1, 2]},
        ),
        parts={"image": (4, 6)},
        tower="model.visual",
    ),
    "Qwen3-VL": Member(
        cls="Qwen3VLForConditionalGeneration",
        processor=lambda: _qwen("Qwen3VL", video="3VL"),
        config=lambda tokenizer: _qwen_config(
            "Qwen3VL",
            tokenizer,
            vision={
                "hidden_size": 32,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
            },
            text={"mrope_section": [1, 1, 2], "mrope_interleaved": True},
        ),
        parts={"image": (4, 6)},
        tower="model.visual",
    ),
    "Idefics3": Member(
        cls="Idefics3ForConditionalGeneration",
        processor=lambda: _idefics("Idefics3"),
        config=lambda tokenizer: _idefics_config("Idefics3", tokenizer),
        parts={"tiles": (4, 6), "image": (2, 2)},
        tower="model.vision_model",
        decoder="model.text_model",
    ),
    "SmolVLM": Member(
        cls="SmolVLMForConditionalGeneration",
        processor=lambda: _idefics("SmolVLM"),
        config=lambda tokenizer: _idefics_config("SmolVLM", tokenizer),
        parts={"tiles": (4, 6), "image": (2, 2)},
        tower="model.vision_model",
        decoder="model.text_model",
    ),
    "Llava-Next": Member(
        cls="LlavaNextForConditionalGeneration",
        processor=_next,
        config=lambda tokenizer: _with_image(
            "LlavaNext", hf.CLIPVisionConfig(**TOWER), tokenizer, image_grid_pinpoints=PINS
        ),
        parts={"image": (4, 4), "tiles": (6, 8)},
    ),
    "Llava-OneVision": Member(
        cls="LlavaOnevisionForConditionalGeneration",
        processor=_one_vision,
        config=lambda tokenizer: _with_image(
            "LlavaOnevision",
            _siglip(),
            tokenizer,
            image_grid_pinpoints=PINS,
            vision_aspect_ratio="anyres_max_1",
            video_token_index=_mark(tokenizer, "<video>"),
        ),
        parts={"image": (4, 4), "tiles": (3, 4)},
    ),
    "PaliGemma": Member(
        cls="PaliGemmaForConditionalGeneration",
        processor=_pali_gemma,
        config=lambda tokenizer: _with_image(
            "PaliGemma",
            _siglip(),
            tokenizer,
            text=hf.GemmaConfig(**_decoder(tokenizer), head_dim=8),
            projection_dim=32,
        ),
    ),
    "Gemma 3": Member(
        cls="Gemma3ForConditionalGeneration",
        processor=_gemma,
        config=lambda tokenizer: hf.Gemma3Config(
            vision_config=_siglip(),
            text_config=hf.Gemma3TextConfig(
                **_decoder(tokenizer),
                head_dim=8,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            ),
            mm_tokens_per_image=4,
            image_token_id=_mark(tokenizer, "<image_soft_token>"),
            boi_token_index=_mark(tokenizer, "<start_of_image>"),
            eoi_token_index=_mark(tokenizer, "<end_of_image>"),
        ),
        parts={"image": (2, 2)},
    ),
    "InternVL": Member(
        cls="InternVLForConditionalGeneration",
        processor=_internvl,
        config=lambda tokenizer: hf.InternVLConfig(
            vision_config={**TOWER, "layer_scale_init_value": 1.0},
            text_config={"model_type": "llama", **_decoder(tokenizer)},
            image_token_id=_mark(tokenizer, "<IMG_CONTEXT>"),
        ),
        parts={"tiles": (4, 6), "image": (2, 2)},
    ),
    "Pixtral": Member(
        cls="LlavaForConditionalGeneration",
        processor=_pixtral,
        config=lambda tokenizer: _with_image(
            "Llava",
            hf.PixtralVisionConfig(**TOWER, head_dim=8),
            tokenizer,
            "[IMG]",
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        parts={"image": (4, 6)},
    ),
}


@functools.cache
def stream_processor(name: str) -> Any:
    """The processor of a member; shared, and not to be changed."""
    return STREAMS[name].processor()


@functools.cache
def stream(name: str, *, eager: bool = False) -> Any:
    """A member with random weights, the same whichever way its attention runs; shared, and not to be changed."""
    torch.manual_seed(0)
    member = STREAMS[name]
    config = member.config(stream_processor(name).tokenizer)
    cls = getattr(hf, member.cls)
    if eager:
        model = cls._from_config(config, attn_implementation="eager").eval()
        model.load_state_dict(stream(name).state_dict())
        return model
    model = cls(config).eval()
    for path, parameter in model.named_parameters():
        if path.endswith("mm_input_projection_weight"):
            torch.nn.init.normal_(parameter)  # Gemma's begins as zeros
    return model
