"""One small decoder of one stream of each family of transformers, random weights, with the real processor."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from small_sides import letters

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DECODER = {**SMALL, "num_key_value_heads": 2, "initializer_range": 0.5, "max_position_embeddings": 1024}
TOWER = {**SMALL, "image_size": 32, "patch_size": 8, "initializer_range": 0.5}


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


STREAMS = {
    "Llava": Member(cls="LlavaForConditionalGeneration", processor=_llava, config=_llava_config),
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
    return cls(config).eval()
