"""The model that learns words: open_clip's own `CustomTextCLIP`, as a folder that open_clip opens by itself.

`open_clip.create_model_and_transforms("local-dir:FOLDER")` and `open_clip.get_tokenizer("local-dir:FOLDER")` need
nothing of this project: `open_clip_config.json` has the architecture and how pixels are prepared, `model.safetensors`
the weights in float16 with the recipe in their header, and `tokenizer.json` the words.

The vision tower is open_clip's `VisionTransformer` and begins as our ViT: the two compute the same (timm's patch bias
goes into the positions). A timm tower would need a name in timm, and ours has none: open_clip passes no sizes on. The
class token is not read out: one learned query attends to all tokens (`attentional_pool`), which is what makes patches
speak. A patch by itself, as the pooler would see it alone, lies where words lie (`patch_features`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CustomTextCLIP
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from assets.training.clip_words import CONTEXT, END, save_tokenizer, words
from assets.training.model import MEAN, STD, Recipe, write_weights
from mmattn.errors import FormatError

POSITIONS, TOKENS = 30.0, 5.0
"""How many times as large as open_clip's a text's positions and words begin: 0.3 and 0.1.

With open_clip's 0.01 a text tower learned in 700 steps nothing of the order of words; with these it does in 350.
"""

POOLER = ("attn_pool", "ln_post", "proj")
"""What of the vision tower does not come from the ViT."""


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(Recipe):
    """Everything that the trained weights follow from, beside the tower that they begin with.

    Parameters
    ----------
    steps, batch, scenes
        Of the second half, which learns words (`clip_learning.py`).
    embed_dim, pool_heads
        Of the space where words and pictures meet, and of the query that reads the picture.
    text_width, text_layers, text_heads
        The text transformer.
    singles_in
        One of how many scenes may have a single thing; the others have two or three.
    exchanged
        Whether each caption that says how two things lie stands against its twin with the two exchanged.
    taught
        How much it counts that a text means what the first half's table says.
    seeing_steps, seeing_batch
        Of the first half, which learns what is where (`clip_seeing.py`).
    tower_times
        How many times the learning rate the weights move with, there, that come from the ViT.
    pooled_class
        In one of how many steps the pooler sees the class token too; in the others it has patches only.
    placed
        How much a thing's place counts beside its name.
    place_length, side_lead
        What the tower begins with (`clip_places.py`).

    """

    steps: int = 1500
    batch: int = 256
    scenes: int = 16384
    warmup_steps: int = 100
    singles: int = 0
    ema: float = 0.996
    shards: int = 2
    embed_dim: int = 384
    pool_heads: int = 8
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 4
    singles_in: int = 4
    exchanged: bool = True
    taught: float = 20.0
    seeing_steps: int = 2800
    seeing_batch: int = 64
    tower_times: float = 0.3
    pooled_class: int = 4
    placed: float = 2.0
    place_length: float = 60.0
    side_lead: float = 3.0

    def seeing(self) -> "ClipRecipe":
        """Return the recipe of the first half, `clip_seeing.py`."""
        return replace(self, steps=self.seeing_steps, batch=self.seeing_batch)

    def least(self, scene: int) -> int:
        """Return how many things a scene has at least."""
        return 1 if scene % self.singles_in == 0 else 2

    def times(self, name: str) -> float:
        """Return how many times the learning rate a weight moves with."""
        known = name.startswith("visual.") and not name.removeprefix("visual.").startswith(POOLER)
        return self.tower_times if known else 1.0

    def architecture(self) -> dict[str, Any]:
        """Return open_clip's `model_cfg`, without the class of the model."""
        return {
            "embed_dim": self.embed_dim,
            "vision_cfg": {
                "image_size": self.size_px,
                "patch_size": self.patch_px,
                "width": self.width,
                "layers": self.layers,
                "head_width": self.width // self.heads,
                "no_ln_pre": True,
                "norm_kwargs": {"eps": 1e-6},
                "attentional_pool": True,
                "attn_pooler_queries": 1,
                "attn_pooler_heads": self.pool_heads,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": len(words()),
                "width": self.text_width,
                "layers": self.text_layers,
                "heads": self.text_heads,
                "eos_id": words().index(END),
            },
        }


def build_clip(recipe: ClipRecipe, tower: VisionTransformer | None) -> CustomTextCLIP:
    """Return the untrained model of a recipe, its vision tower begun as a ViT's (None: at random)."""
    torch.manual_seed(recipe.seed)
    model = CustomTextCLIP(**recipe.architecture())
    with torch.no_grad():
        model.text.positional_embedding.mul_(POSITIONS)
        model.text.token_embedding.weight.mul_(TOKENS)
    if tower is not None:
        missing, unexpected = model.visual.load_state_dict(tower_state(tower), strict=False)
        assert not unexpected
        assert all(name.startswith(POOLER) for name in missing)
    return model


def tower_state(vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a timm ViT's weights under the names of open_clip's VisionTransformer; class token and patches first.

    Its last norm and its classes are left out: a pooler follows with a norm of its own.
    """
    told = {key: value for key, value in vit.state_dict().items() if not key.startswith(("norm.", "head."))}
    positions = told.pop("pos_embed")[0].clone()
    positions[1:] += told.pop("patch_embed.proj.bias")
    found = {
        "class_embedding": told.pop("cls_token")[0, 0],
        "positional_embedding": positions,
        "conv1.weight": told.pop("patch_embed.proj.weight"),
    }
    inside = {"norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj"}
    inside |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for name, value in told.items():
        renamed = name.replace("blocks.", "transformer.resblocks.")
        for ours, theirs in inside.items():
            renamed = renamed.replace(ours, theirs)
        found[renamed] = value
    return found


def patch_features(model: CustomTextCLIP, pixels: Tensor) -> Tensor:
    """Return what each patch says by itself, [sample, patch, feature], of length 1: the pooler run on it alone."""
    visual = model.visual
    tokens = visual.transformer(visual._embeds(pixels))[:, 1:]
    samples, patches, width = tokens.shape
    alone, _ = visual._pool(tokens.reshape(samples * patches, 1, width))
    return F.normalize((alone @ visual.proj).reshape(samples, patches, -1), dim=-1)


def save_clip(state: Mapping[str, Tensor], folder: Path, *, recipe: ClipRecipe, step: int) -> None:
    """Write weights in float16 into a folder as open_clip reads it; the weights are there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)
    write_weights(state, folder, config=("open_clip_config.json", _config(recipe)), recipe=recipe, step=step)


def load_clip(folder: Path) -> CustomTextCLIP:
    """Return the model that `save_clip` wrote, in float32 and evaluation mode.

    Raises
    ------
    FormatError
        The folder does not hold such a model, or not all of it.

    """
    try:
        model = open_clip.create_model(f"local-dir:{folder}")
        assert isinstance(model, CustomTextCLIP)
    except Exception as problem:  # safetensors raises its own, torch a RuntimeError, open_clip several
        raise FormatError(
            f"{folder} does not hold a CLIP: {type(problem).__name__}. It is a folder that clip_train.py wrote, with "
            "open_clip_config.json and model.safetensors. Train again, or name another folder."
        ) from problem
    return model.eval()


def _config(recipe: ClipRecipe) -> str:
    """Return what open_clip's `local-dir:` reads beside the weights."""
    told = recipe.architecture()
    told["text_cfg"]["hf_tokenizer_name"] = "mmattn/clip"  # in a local folder open_clip takes the tokenizer there
    pixels = {"size": recipe.size_px, "mean": [MEAN] * 3, "std": [STD] * 3, "mode": "RGB"}
    resizing = {"interpolation": "bicubic", "resize_mode": "squash"}
    return json.dumps({"model_cfg": told | {"custom_text": True}, "preprocess_cfg": pixels | resizing}, indent=1) + "\n"
