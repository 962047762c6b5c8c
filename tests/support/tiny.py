"""A small model on disk, for tests in which the weights do not matter."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def tiny_model(folder: Path) -> str:
    """Write a tiny ViT with random weights and return the name that opens it."""
    torch.manual_seed(0)
    file = folder / "tiny.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=10).state_dict(), file)
    return f"timm:vit_tiny_patch16_224@{file}"
