"""One small model of each class of transformers with more sides than two towers, random weights, real processors."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from PIL import Image
from small_towers import word_pieces
from tokenizers import Tokenizer, decoders, models, normalizers, processors

WORDS = ("cat", "dog", "red", "car", "mat", "the", "on", "photo")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def letters(*marks: str, left: str = "<s>", right: str = "", **settings: Any) -> Any:
    """A tokenizer in LLaMA's spelling: the words above are one piece, others are cut into letters.

    `marks` are special tokens of the picture; `left` and `right` stand around a text.
    """
    ends = ["<pad>", "<s>", "</s>", "<unk>"]
    chars = [chr(code) for code in range(33, 127)]
    pieces = [*ends, "\u2581", *chars]
    merges = []
    for word in WORDS:
        parts = [*word]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
        merges.append(("\u2581", word))
        pieces.append(f"\u2581{word}")
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges)), unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    inner.decoder = decoders.Metaspace()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if left or right:
        single = " ".join(part for part in (left, "$A", right) if part)
        around = [(piece, vocabulary[piece]) for piece in (left, right) if piece]
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    made = hf.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **named, **settings)
    if marks:
        made.add_special_tokens({"additional_special_tokens": list(marks)})
    return made


@dataclass(frozen=True, kw_only=True)
class Sided:
    """How to build a member and its processor.

    Parameters
    ----------
    cls
        The class.
    processor
        Builds it.
    config
        From the processor.
    call
        What the library is called with beside what the processor gives.
    texts
        Puts the marks of the picture into texts, where the user has to.
    softmaxes, compared
        Which of the library's softmaxes are attention, and which layers they are compared with.
    part
        Which part of a sequence of patches is looked at closely.
    overlap
        Whether a patch is seen by its neighbors' kernels too.
    blind
        How many words of each text stand before the picture and look at none.
    nested
        Whether the processor takes a list of pictures for each text.
    """

    cls: str
    processor: Callable[[], Any]
    config: Callable[[Any], Any]
    call: Callable[[Any], dict[str, Any]] = lambda inputs: {}
    texts: Callable[[list[str]], list[str]] = lambda texts: texts
    softmaxes: Callable[[list[Any]], list[Any]] = lambda results: results
    compared: Callable[[Any], bool] = lambda layer: True
    part: str = "image"
    overlap: bool = False
    blind: tuple[int, ...] = ()
    nested: bool = False


def _squeezed(kind: str = "BlipImageProcessor") -> Any:
    return getattr(hf, kind)(size={"height": 64, "width": 64})


def _blip2() -> Any:
    return hf.Blip2Processor(_squeezed(), letters("<image>"), num_query_tokens=6)


def _blip2_matching() -> Any:
    return hf.Blip2Processor(_squeezed(), word_pieces())


def _instruct() -> Any:
    return hf.InstructBlipProcessor(_squeezed(), letters("<image>"), word_pieces(), num_query_tokens=6)


_VISION = {**SMALL, "image_size": 64, "patch_size": 16}
_QUERIES = {**SMALL, "num_hidden_layers": 3, "encoder_hidden_size": 32, "max_position_embeddings": 64}


def _opt(tokenizer: Any) -> Any:
    return hf.OPTConfig(
        **{**SMALL, "ffn_dim": 64}, vocab_size=len(tokenizer), max_position_embeddings=128, word_embed_proj_dim=32,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, init_std=0.3,
    )  # fmt: skip


def _llama(tokenizer: Any) -> Any:
    return hf.LlamaConfig(
        **SMALL, num_key_value_heads=2, vocab_size=len(tokenizer), initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip


def _t5(tokenizer: Any) -> Any:
    return hf.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=tokenizer.pad_token_id, initializer_factor=1.0,
    )  # fmt: skip


def _with_queries(kind: str, language: Callable[[Any], Any], **more: Any) -> Callable[[Any], Any]:
    def build(processor: Any) -> Any:
        tokenizer = processor.tokenizer
        queries = {**_QUERIES, "initializer_range": 0.3, **more}
        asked = getattr(processor, "qformer_tokenizer", tokenizer)
        queries["vocab_size"] = len(asked)
        return getattr(hf, f"{kind}Config")(
            vision_config={**_VISION, "initializer_range": 0.3},
            qformer_config=queries,
            text_config=language(tokenizer).to_dict(),
            num_query_tokens=6,
            image_text_hidden_size=16,
            image_token_index=None if more else tokenizer.convert_tokens_to_ids("<image>"),
        )

    return build


def _begin(inputs: Any) -> dict[str, Any]:
    return {"decoder_input_ids": torch.zeros(len(inputs["input_ids"]), 1, dtype=torch.long)}


def _idefics() -> Any:
    tokenizer = letters("<fake_token_around_image>", "<image>", left="")
    return hf.IdeficsProcessor(hf.IdeficsImageProcessor(image_size=64), tokenizer)


def _idefics_config(processor: Any) -> Any:
    vision = {**_VISION, "embed_dim": 32}
    del vision["hidden_size"]
    return hf.IdeficsConfig(
        **{**SMALL, "num_hidden_layers": 4}, vocab_size=len(processor.tokenizer), cross_layer_interval=2,
        alpha_initializer="normal", alphas_initializer_range=0.7, use_resampler=True, initializer_range=0.2,
        qk_layer_norms=True, vision_config={**vision, "initializer_range": 0.3},
        perceiver_config={
            "use_resampler": True, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 4,
            "resampler_head_dim": 8, "qk_layer_norms_perceiver": True,
        },
        pad_token_id=processor.tokenizer.pad_token_id, alpha_type="vector",
    )  # fmt: skip


def _idefics2(*, split: bool) -> Any:
    images = hf.Idefics2ImageProcessor(size={"shortest_edge": 48, "longest_edge": 80}, do_image_splitting=split)
    return hf.Idefics2Processor(images, letters(), image_seq_len=5)


def _idefics2_config(processor: Any) -> Any:
    tokenizer = processor.tokenizer
    text = {**SMALL, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "initializer_range": 0.2}
    return hf.Idefics2Config(
        vision_config={**_VISION, "image_size": 96, "initializer_range": 0.3},
        perceiver_config={
            "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 8,
            "num_key_value_heads": 2, "hidden_size": 32, "initializer_range": 0.3,
        },
        text_config={**text, "model_type": "mistral", "pad_token_id": 0, "head_dim": 8, "sliding_window": None},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip


def _in_tiles(results: list[Any]) -> list[Any]:
    """Attention within each of five tiles as one matrix a sample, block after block along the diagonal."""
    return [_diagonal(weights) if len(weights) == 10 else weights for weights in results]


def _diagonal(weights: Any) -> Any:
    heads = [[torch.block_diag(*weights[5 * n : 5 * n + 5, head]) for head in range(4)] for n in range(2)]
    return torch.stack([torch.stack(one) for one in heads])


def _marked(texts: list[str]) -> list[str]:
    return [text if "<image>" in text else f"<image>{text}" for text in texts]


def _mllama() -> Any:
    images = hf.MllamaImageProcessor(size={"height": 48, "width": 48}, max_image_tiles=4)
    return hf.MllamaProcessor(images, letters("<|image|>", "<|python_tag|>", left=""))


def _mllama_config(processor: Any) -> Any:
    tokenizer = processor.tokenizer
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**SMALL, "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": len(tokenizer), **ends}
    vision = {**SMALL, "attention_heads": 4, "image_size": 48, "patch_size": 16, "num_global_layers": 1}
    del vision["num_attention_heads"]
    return hf.MllamaConfig(
        text_config={**text, "cross_attention_layers": [1], "initializer_range": 0.2},
        vision_config={
            **vision, "vision_output_dim": 64, "intermediate_layers_indices": [0], "initializer_range": 0.3,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip


def _imaged(texts: list[str]) -> list[str]:
    return [text if "<|image|>" in text else f"<|image|>{text}" for text in texts]


def _florence() -> Any:
    images = hf.CLIPImageProcessor(size={"height": 96, "width": 96}, do_center_crop=False)
    images.image_seq_length = 10
    return hf.Florence2Processor(images, letters(left="", extra_special_tokens={"image_token": "<image>"}))


def _florence_config(processor: Any) -> Any:
    tokenizer = processor.tokenizer
    text = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "init_std": 0.3,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    vision = {
        "depths": (1, 1, 1, 1), "embed_dim": (16, 16, 32, 32), "num_heads": (2, 2, 4, 4), "num_groups": (2, 2, 4, 4),
        "window_size": 4, "projection_dim": 32, "initializer_range": 0.3,
    }  # fmt: skip
    return hf.Florence2Config(
        vision_config=vision, text_config={**text, **ends, "vocab_size": len(tokenizer), "model_type": "bart"},
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip


def _tokens_alone(results: list[Any]) -> list[Any]:
    """Without DaViT's channels, which ask each other in every second block."""
    vision, rest = results[:8], results[8:]
    sides = zip(vision[::2], (24, 12, 6, 3), strict=True)
    return [*(_whole(weights, side=side) for weights, side in sides), *rest]


def _whole(windows: Any, *, side: int, window: int = 4) -> Any:
    """Weights of windows over a square, as one matrix a sample; the last windows reach beyond it."""
    across = -(-side // window)
    found = torch.zeros(2, windows.shape[1], side * side, side * side)
    inside = torch.arange(window * window)
    for number, weights in enumerate(windows):
        sample, place = divmod(number, across * across)
        top, left = (window * part for part in divmod(place, across))
        row, col = top + inside // window, left + inside % window
        real = (row < side) & (col < side)
        cells = (row * side + col)[real]
        found[sample][:, cells[:, None], cells[None, :]] = weights[:, real][:, :, real]
    return found


def _git() -> Any:
    images = hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return hf.GitProcessor(images, word_pieces())


def _git_config(processor: Any) -> Any:
    return hf.GitConfig(
        **SMALL, vision_config={**_VISION, "initializer_range": 0.3}, vocab_size=len(processor.tokenizer),
        initializer_range=0.3, max_position_embeddings=64, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip


SIDED = {
    "BLIP-2": Sided(cls="Blip2ForConditionalGeneration", processor=_blip2, config=_with_queries("Blip2", _opt)),
    "BLIP-2, T5": Sided(
        cls="Blip2ForConditionalGeneration", processor=_blip2, config=_with_queries("Blip2", _t5), call=_begin
    ),
    "BLIP-2, features": Sided(cls="Blip2Model", processor=_blip2, config=_with_queries("Blip2", _opt)),
    "BLIP-2, matching": Sided(
        cls="Blip2ForImageTextRetrieval",
        processor=_blip2_matching,
        config=_with_queries("Blip2", _opt, use_qformer_text_input=True),
        call=lambda inputs: {"use_image_text_matching_head": True},
    ),
    "InstructBLIP": Sided(
        cls="InstructBlipForConditionalGeneration",
        processor=_instruct,
        config=_with_queries("InstructBlip", _llama),
    ),
    "InstructBLIP, features": Sided(
        cls="InstructBlipModel", processor=_instruct, config=_with_queries("InstructBlip", _llama)
    ),
    "Idefics": Sided(cls="IdeficsForVisionText2Text", processor=_idefics, config=_idefics_config, blind=(2, 2)),
    "Idefics, features": Sided(cls="IdeficsModel", processor=_idefics, config=_idefics_config, blind=(2, 2)),
    "Florence-2": Sided(
        cls="Florence2ForConditionalGeneration",
        processor=_florence,
        config=_florence_config,
        softmaxes=_tokens_alone,
        overlap=True,
    ),
    "Florence-2, features": Sided(
        cls="Florence2Model", processor=_florence, config=_florence_config, softmaxes=_tokens_alone, overlap=True
    ),
    "GIT": Sided(cls="GitForCausalLM", processor=_git, config=_git_config),
    "GIT, features": Sided(cls="GitModel", processor=_git, config=_git_config),
    "Mllama": Sided(
        cls="MllamaForConditionalGeneration",
        processor=_mllama,
        config=_mllama_config,
        texts=_imaged,
        nested=True,
    ),
    "Mllama, features": Sided(cls="MllamaModel", processor=_mllama, config=_mllama_config, texts=_imaged, nested=True),
    "Idefics2": Sided(
        cls="Idefics2ForConditionalGeneration",
        processor=lambda: _idefics2(split=False),
        config=_idefics2_config,
        texts=_marked,
    ),
    "Idefics2, tiles": Sided(
        cls="Idefics2Model",
        processor=lambda: _idefics2(split=True),
        config=_idefics2_config,
        texts=_marked,
        softmaxes=_in_tiles,
        part="tile 4",
    ),
}


@functools.cache
def sided_processor(name: str) -> Any:
    """The processor of a member; shared, and not to be changed."""
    return SIDED[name].processor()


@functools.cache
def sided(name: str, *, eager: bool = False) -> Any:
    """A member with random weights, the same whichever way its attention runs; shared, and not to be changed."""
    torch.manual_seed(0)
    member = SIDED[name]
    cls = getattr(hf, member.cls)
    config = member.config(sided_processor(name))
    if eager:
        model = cls._from_config(config, attn_implementation="eager").eval()
        model.load_state_dict(sided(name).state_dict())
        return model
    model = cls(config).eval()
    for path, parameter in model.named_parameters():
        if path.endswith(("query_tokens", "cls_token", "latents", "gate", "gate_attn")):
            torch.nn.init.normal_(parameter)  # slots begin as zeros and ask all alike, and gates begin shut
    return model


def written(name: str, *, images: Any, texts: Any) -> Any:
    """What the library's call is given for pairs."""
    pictures: list[Any] = [Image.fromarray(image) for image in images]
    pictures = [[one] for one in pictures] if SIDED[name].nested else pictures
    inputs = sided_processor(name)(images=pictures, text=SIDED[name].texts(texts), padding=True, return_tensors="pt")
    return {**inputs, **SIDED[name].call(inputs)}
