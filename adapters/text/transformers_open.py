"""Opening text encoders of transformers: folders and names on the hub, whole, safetensors only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmattn.errors import DownloadError, InputError, ModelError
from mmattn.interception.protocol import Opened

from ..hub import address, local_or_hub, no_bar, said

# model_type in config.json; each is held by a test against the library's own eager weights.
FAMILIES = ("albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names an encoder of the family: no decoder, no language model from left to right."""
    architectures = [str(name) for name in config.get("architectures") or ()]
    decodes = any(name.endswith(("ForCausalLM", "LMHeadModel", "Decoder")) for name in architectures)
    return config.get("model_type") in FAMILIES and bool(architectures) and not decodes


def open_model(name: str, *, weights: Path | None) -> Opened:
    """Open a folder, or a name on the Hugging Face hub: from the hub's local cache where it is there.

    Raises
    ------
    InputError
        A folder that holds no such model.
    DownloadError
        A name that the hub does not give.
    ModelError
        A model of another kind, or one that lacks weights.
    """
    where = address(name, weights=weights)
    model, tokenizer = local_or_hub(where, _load, unreadable=_unreadable, unreachable=_not_on_hub)
    labels = getattr(model.config, "id2label", None) if "Classification" in type(model).__name__ else None
    return Opened(
        model=model,
        processor=tokenizer,
        labels=None if labels is None else tuple(labels[index] for index in sorted(labels)),
        weights=name,
    )


def _load(where: str, local: bool) -> tuple[Any, Any]:
    """Load the class that the config names, in float32, and its tokenizer; weights must all be there."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(where, local_files_only=local)
    if not is_encoder(config.to_dict()):
        raise ModelError(
            f"{where} is {config.architectures or 'a model without a named class'} ({config.model_type}). This adapter "
            f"opens encoders of these kinds: {', '.join(FAMILIES)}. Open it yourself and pass the module."
        )
    loader = getattr(transformers, config.architectures[0], transformers.AutoModel)
    with no_bar():
        model, report = loader.from_pretrained(
            where, local_files_only=local, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # no attention comes after it
    if missing:
        raise ModelError(
            f"{where} lacks {len(missing)} weights of {config.architectures[0]}, such as {missing[0]}. They would be "
            "random numbers, and so would the maps. Pass a complete model."
        )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(where, local_files_only=local)


def _unreadable(where: str, problem: Exception) -> InputError:
    return InputError(
        f"The folder {where} cannot be opened: {said(problem)}. It should hold config.json, model.safetensors and the "
        "tokenizer's files. Save the model there with save_pretrained."
    )


def _not_on_hub(where: str, problem: Exception) -> DownloadError:
    return DownloadError(
        f"hf:{where} could not be had from the Hugging Face hub: {said(problem)}. It is neither a folder nor in "
        "the hub's cache on this machine. Check the name and the network, pass a folder, or mmattn:minilm, which needs "
        "no hub."
    )


def tokenizer_of(model: nn.Module) -> Any:
    """Return the tokenizer that was saved where the model was, if it is on this machine; InputError else."""
    from transformers import AutoTokenizer

    name = str(getattr(model, "name_or_path", ""))
    try:
        if name:
            return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        pass
    raise InputError(
        f"No tokenizer was found for this {type(model).__name__}"
        + (f" from {name}" if name else ", which names no place that it was loaded from")
        + ". A text needs the tokenizer that the model was trained with. Pass processor=tokenizer."
    )
