"""How a timm model is called, what its answer is read from, and the logit that a class target names."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from .pictures import Features, class_logits, class_score


def call_timm(model: nn.Module, pixels: Float[Tensor, "sample channel row col"]) -> Any:
    """Run a timm model; the output of one without a classifier is marked as features."""
    output = model(pixels)
    return output if getattr(model, "num_classes", 1) else Features(values=output)


def score_timm(output: Any, target: Any) -> Float[Tensor, ""]:
    """Return the logit of a class, summed over the samples; None: each sample's own top class.

    Raises
    ------
    ModelError
        The model has no classifier.
    InputError
        The target is no class index.

    """
    return class_score(_one_output(output), target)


def logits_timm(output: Any) -> Float[Tensor, "sample cls"]:
    """Return the logits; see `pictures.class_logits`."""
    return class_logits(_one_output(output))


def _one_output(output: Any) -> Any:
    """Return the mean of the two heads of distilled training, any other output as it is."""
    if isinstance(output, tuple) and output and all(isinstance(part, Tensor) for part in output):
        return sum(output) / len(output)
    return output


def readout_of(model: nn.Module) -> str:
    """Return what the model's answer is read from: `pool`, `cls`, `mean`, or empty where it is not known.

    It is `pool` for an attention pool, `cls` for a class token that the head reads, also one that
    joins late (CaiT, VOLO, XCiT), and `mean` for patches that are averaged.
    """
    pool: Any = getattr(model, "attn_pool", None)
    if pool is not None and not isinstance(pool, nn.Identity):
        return "pool" if hasattr(pool, "latent") else "cls" if getattr(pool, "pool", "") == "token" else "mean"
    kind = _pooling(model)
    if "avg" in kind or kind == "max":
        return "mean"
    if any(type(part).__name__ in ("AttentionPool2d", "RotAttentionPool2d") for part in model.modules()):
        return "pool"
    tokens = (name.rsplit(".", 1)[-1] for name, _ in model.named_parameters())
    return "cls" if any(name.startswith("cls_token") for name in tokens) else ""


def _pooling(model: nn.Module) -> str:
    """Return timm's name of the pooling before the head, empty where nothing is named."""
    head = getattr(model, "head", None)
    for owner, name in ((model, "global_pool"), (head, "global_pool"), (head, "pool_type")):
        kind = getattr(owner, name, None)
        kind = getattr(kind, "pool_type", kind)
        if isinstance(kind, str) and kind:
            return kind
    return ""
