"""A small model on disk, for tests in which the weights do not matter."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def tiny_model(folder: Path, *, classes: int = 10, architecture: str = "vit_tiny_patch16_224") -> str:
    """Write a small model with random weights and return the name that opens it."""
    torch.manual_seed(0)
    file = folder / "tiny.safetensors"
    save_file(timm.create_model(architecture, num_classes=classes).state_dict(), file)
    return f"timm:{architecture}@{file}"
