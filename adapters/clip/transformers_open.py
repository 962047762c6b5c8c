"""Opening models of pictures and texts of transformers: folders and names on the hub, whole, safetensors only."""

from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmattn.errors import DownloadError, InputError, ModelError
from mmattn.interception.protocol import ModelFamily, Opened

from ..hub import address, local_or_hub, no_bar, said
from .transformers_known import KNOWN


def open_model(name: str, *, weights: Path | None, known: Collection[str] = KNOWN) -> Opened:
    """Open a folder, or a name on the Hugging Face hub: from the hub's local cache where it is there.

    Parameters
    ----------
    name, weights
        As `Adapter.open` has them.
    known
        The classes that are opened.

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
    model, processor = local_or_hub(where, partial(_load, known=known), unreadable=_unreadable, unreachable=_not_on_hub)
    return Opened(model=model, processor=processor, weights=name.rstrip("/").rsplit("/", 1)[-1])


def families() -> Iterable[ModelFamily]:
    """Return what can be opened, by how the towers are built."""
    kinds = (
        "CLIP and its kin, a class token and causal text: CLIP, MetaCLIP 2, CLIPSeg, OWL-ViT, OWLv2",
        "CLIP with a text encoder that looks both ways: AltCLIP, ChineseCLIP, VisionTextDualEncoder",
        "towers with an attention pool: SigLIP, SigLIP 2 (patches at the picture's own aspect), AIMv2",
        "BLIP: two towers, image-text matching and captions, in which words attend to patches",
        "BridgeTower: words attend to patches and patches to words",
        "BLIP-2, InstructBLIP: slots ask patches, and words ask slots (composed for a map of the picture)",
        "Idefics (Flamingo's architecture), Idefics2: latents ask patches, words ask latents; gates are told",
        "Mllama: words ask the patches of all tiles, through gates",
        "Florence-2: patches and words in an encoder, which a decoder asks",
        "GIT: patches, then words, in one decoder",
        "LXMERT: words and the regions of a detector that the user passes ask each other",
        "ViLT: words and patches in one sequence (no drawing yet)",
    )
    return [
        ModelFamily(
            name="hf:OWNER/NAME",
            what=what,
            how_exact="weights, patches and words exact, in every stream",
            source="a folder, or the Hugging Face hub (safetensors only)",
        )
        for what in kinds
    ]


def _load(where: str, local: bool, *, known: Collection[str]) -> tuple[nn.Module, Any]:
    """Load the class that the config names, in float32, and its processor; weights must all be there."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(where, local_files_only=local)
    named = (config.architectures or [""])[0]
    loader: Any = getattr(transformers, named, None)
    if loader is None or named not in known:
        raise ModelError(
            f"{where} is {config.architectures or 'a model without a named class'} ({config.model_type}). This adapter "
            f"opens {', '.join(known)}. Open it yourself and record it with mmattn.capture(model)."
        )
    with no_bar():
        model, report = loader.from_pretrained(
            where, local_files_only=local, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    missing = sorted(key for key in report["missing_keys"] if "text_model.pooler" not in key)  # ChineseCLIP's is unused
    if missing:
        raise ModelError(
            f"{where} lacks {len(missing)} weights of {config.architectures[0]}, such as {missing[0]}. They would be "
            "random numbers, and so would the maps. Pass a complete model."
        )
    return model.eval(), _processor(where, local=local)


def _processor(where: str, *, local: bool) -> Any:
    """Return the processor that was saved with the model; None where there is none: a picture needs no tokenizer."""
    from transformers import AutoProcessor

    auto: Any = AutoProcessor
    try:
        return auto.from_pretrained(where, local_files_only=local)
    except (ImportError, OSError, ValueError):
        return None  # what a text or a picture lacks is said when one is given


def _unreadable(where: str, problem: Exception) -> InputError:
    return InputError(
        f"The folder {where} cannot be opened: {said(problem)}. It should hold config.json, model.safetensors and the "
        "files of a processor. Save the model and its processor there with save_pretrained."
    )


def _not_on_hub(where: str, problem: Exception) -> DownloadError:
    return DownloadError(
        f"hf:{where} could not be had from the Hugging Face hub: {said(problem)}. It is neither a folder nor in "
        "the hub's cache on this machine. Check the name and the network, or pass a folder."
    )
