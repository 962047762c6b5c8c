"""One small model of pictures and texts of each class of transformers with random weights, and its processor."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ("cat", "dog", "red", "car", "mat", "the", "on", "photo")
CONTEXT = 24
PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.5,  # sharp maps
}


def byte_pairs(**settings: Any) -> Any:
    """CLIP's tokenizer: the words above are one piece, others are cut into letters."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    merges = list(dict.fromkeys(merges))
    vocabulary = {piece: n for n, piece in enumerate([*dict.fromkeys(pieces), "<|endoftext|>"])}
    return hf.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT, **settings)


def small_pieces() -> Any:
    """SigLIP 2's tokenizer: small letters, the space before a word belongs to its piece, one token at the end."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *(chr(code) for code in range(33, 127))]
    merges = []
    for word in WORDS:
        parts = [*word]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
        merges.append(("\u2581", word))
        pieces.append(f"\u2581{word}")
    return hf.Siglip2Tokenizer(
        vocab={piece: n for n, piece in enumerate(dict.fromkeys(pieces))},
        merges=list(dict.fromkeys(merges)),
        model_input_names=["input_ids"],
        padding_side="right",
        model_max_length=CONTEXT,
        add_eos_token=True,
    )


def word_pieces(*, pad: int = 0, **settings: Any) -> Any:
    """A BERT-like tokenizer, uncased; `pad` moves the special tokens to where RoBERTa has them."""
    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"] if pad else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = [*special, *WORDS, *(chr(code) for code in range(97, 123)), *(f"##{chr(code)}" for code in range(97, 123))]
    inner = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(piece, special.index(piece)) for piece in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{word}_token": f"[{word.upper()}]" for word in ("pad", "unk", "cls", "sep")}
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=CONTEXT, **names, **settings)


def _clip_images() -> Any:
    return hf.CLIPImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})


def _squeezed() -> Any:
    return hf.SiglipImageProcessor(size={"height": 64, "width": 64})


def _no_mask() -> Any:
    return byte_pairs(model_input_names=["input_ids"])


def _blip() -> Any:
    return hf.BlipProcessor(hf.BlipImageProcessor(size={"height": 64, "width": 64}), word_pieces())


def _bridge() -> Any:
    images = hf.BridgeTowerImageProcessor(size={"shortest_edge": 64}, crop_size={"shortest_edge": 64}, size_divisor=16)
    return hf.BridgeTowerProcessor(images, word_pieces(pad=1))


def _vilt() -> Any:
    images = hf.ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=16)
    return hf.ViltProcessor(images, word_pieces())


BRIDGE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "initializer_factor": 8.0,
}
BRIDGE_TEXT = {
    "max_position_embeddings": CONTEXT + 2,
    "pad_token_id": 1,
    "num_hidden_layers": 3,
    "type_vocab_size": 1,
    "initializer_factor": 8.0,
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """How to build a member and its processor, what the processor is told, and what is expected of the maps."""

    name: str
    processor: Callable[[], Any]
    kind: str = "Model"
    more: dict[str, Any] | None = None
    padding: bool | str = True
    vision: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    images: dict[str, Any] | None = None
    readout: str = "cls"
    special: tuple[str, ...] = ("cls",)

    @property
    def cls(self) -> str:
        """The name of the class."""
        return f"{self.name}{self.kind}"


PAIRS = {
    "CLIP": Pair(name="CLIP", processor=lambda: hf.CLIPProcessor(_clip_images(), byte_pairs())),
    "MetaCLIP 2": Pair(name="MetaClip2", processor=lambda: hf.CLIPProcessor(_clip_images(), byte_pairs())),
    "CLIPSeg": Pair(
        name="CLIPSeg",
        processor=lambda: hf.CLIPSegProcessor(hf.ViTImageProcessor(size={"height": 64, "width": 64}), byte_pairs()),
    ),
    "AltCLIP": Pair(
        name="AltCLIP",
        processor=lambda: hf.AltCLIPProcessor(_clip_images(), word_pieces(pad=1)),
        text={"max_position_embeddings": CONTEXT + 2, "pad_token_id": 1, "project_dim": 24},
    ),
    "ChineseCLIP": Pair(
        name="ChineseCLIP",
        processor=lambda: hf.ChineseCLIPProcessor(
            hf.ChineseCLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False), word_pieces()
        ),
        text={"pad_token_id": 0},
    ),
    "OWL-ViT": Pair(
        name="OwlViT",
        processor=lambda: hf.OwlViTProcessor(
            hf.OwlViTImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False), byte_pairs()
        ),
        padding="max_length",
    ),
    "OWLv2": Pair(
        name="Owlv2",
        processor=lambda: hf.Owlv2Processor(
            hf.Owlv2ImageProcessor(size={"height": 64, "width": 64}), byte_pairs(pad_token="!")
        ),
        padding="max_length",
    ),
    "SigLIP": Pair(
        name="Siglip",
        processor=lambda: hf.SiglipProcessor(_squeezed(), _no_mask()),
        padding="max_length",
        readout="pool",
        special=(),
    ),
    "SigLIP 2": Pair(
        name="Siglip2",
        processor=lambda: hf.Siglip2Processor(
            hf.Siglip2ImageProcessor(max_num_patches=16, patch_size=16), small_pieces()
        ),
        padding="max_length",
        images={"max_num_patches": 16},
        vision={"num_patches": 16},
        readout="pool",
        special=(),
    ),
    "AIMv2": Pair(
        name="Aimv2", processor=lambda: hf.CLIPProcessor(_clip_images(), byte_pairs()), readout="pool", special=()
    ),
    "BLIP": Pair(name="Blip", processor=_blip, text={"pad_token_id": 0}),
    "any two": Pair(
        name="VisionTextDualEncoder",
        processor=lambda: hf.VisionTextDualEncoderProcessor(
            hf.ViTImageProcessor(size={"height": 64, "width": 64}), word_pieces(pad=1)
        ),
        text={"max_position_embeddings": CONTEXT + 2, "pad_token_id": 1, "type_vocab_size": 1},
    ),
}

# Models in which words and patches attend to each other; they need both.
CROSSED = {
    "BLIP, matching": Pair(name="Blip", kind="ForImageTextRetrieval", processor=_blip, text={"pad_token_id": 0}),
    "BLIP, captions": Pair(name="Blip", kind="ForConditionalGeneration", processor=_blip, text={"pad_token_id": 0}),
    "BridgeTower": Pair(name="BridgeTower", processor=_bridge, more=BRIDGE, text=BRIDGE_TEXT),
    "BridgeTower, matching": Pair(
        name="BridgeTower", kind="ForImageAndTextRetrieval", processor=_bridge, more=BRIDGE, text=BRIDGE_TEXT
    ),
}

# Words and patches in one sequence.
JOINED = {
    f"ViLT, {what}": Pair(name="Vilt", kind=kind, processor=_vilt, text={"pad_token_id": 0, "image_size": 64})
    for what, kind in (
        ("features", "Model"),
        ("matching", "ForImageAndTextRetrieval"),
        ("answers", "ForQuestionAnswering"),
        ("masked words", "ForMaskedLM"),
    )
}
MEMBERS = {**PAIRS, **CROSSED, **JOINED}


def _config(pair: Pair, tokenizer: Any) -> Any:
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    vision = {**PLAIN, "patch_size": 16, **(pair.vision or {"image_size": 64})}
    text = {**PLAIN, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **ids, **(pair.text or {})}
    if pair.name == "VisionTextDualEncoder":
        config = hf.VisionTextDualEncoderConfig
        return config.from_vision_text_configs(hf.ViTConfig(**vision), hf.RobertaConfig(**text), projection_dim=24)
    if pair.name == "Vilt":
        return hf.ViltConfig(**{**vision, **text}, num_labels=5)
    if pair.name == "BridgeTower":
        vision |= {"num_hidden_layers": text["num_hidden_layers"], "hidden_size": 128}  # 64 a head, always
    more = pair.more or {"projection_dim": 24}
    return getattr(hf, f"{pair.name}Config")(text_config=text, vision_config=vision, **more)


@functools.cache
def processor(name: str) -> Any:
    """The processor of a member; shared, and not to be changed."""
    return MEMBERS[name].processor()


@functools.cache
def towers(name: str, *, eager: bool = False) -> Any:
    """A member with random weights, the same whichever way its attention runs; shared, and not to be changed."""
    torch.manual_seed(0)
    pair = MEMBERS[name]
    config = _config(pair, processor(name).tokenizer)
    cls = getattr(hf, pair.cls)
    if eager:
        model = cls._from_config(config, attn_implementation="eager").eval()
        model.load_state_dict(towers(name).state_dict())
        return model
    model = cls(config).eval()
    for path, parameter in model.named_parameters():
        if path.endswith("cls_token"):
            torch.nn.init.normal_(parameter)  # AIMv2's begins as zeros, and asks all patches alike
    return model


def encoded(name: str, *, images: Any, texts: Any) -> Any:
    """What the processor itself makes of pairs."""
    return processor(name)(
        images=images,
        text=texts,
        padding=MEMBERS[name].padding,
        max_length=CONTEXT,
        truncation=True,
        return_tensors="pt",
        **(MEMBERS[name].images or {}),
    )
