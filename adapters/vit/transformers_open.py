"""Which models of transformers look at one picture, and opening them: folders and names on the hub.

No list of families is kept. A class is ours if the first thing that its `forward` takes is
`pixel_values` and nothing else is needed; if it takes words, prompts or object queries beside, it
is another part's; if transformers counts it among video models, its pictures are frames.
"""

import inspect
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmattn.errors import DownloadError, InputError, ModelError
from mmattn.interception.protocol import ModelFamily, Opened

from ..hub import address, local_or_hub, no_bar, said
from .transformers_detectors import is_detector, refuse_deformable

# What a forward takes beside pixels if it is no model of pictures alone: words, prompts, decoders of object queries.
_OTHERS = (
    "input_ids",
    "inputs_embeds",
    "decoder_input_ids",
    "decoder_attention_mask",
    "decoder_inputs_embeds",
    "encoder_outputs",
    "pixel_mask",
    "pixel_values_videos",
    "prompt_pixel_values",
    "input_points",
    "grid_thw",
)

# What a forward may need beside pixel_values: the shape and mask of patches that were cut already (SigLIP 2).
_OF_PATCHES = {"pixel_attention_mask", "spatial_shapes"}

# Attributes of a config whose model looks at frames.
_VIDEO = ("num_frames", "tubelet_size", "num_frames_per_video")


def is_picture_model(model: nn.Module) -> bool:
    """Whether a model of transformers looks at single pictures and at nothing else."""
    config = getattr(model, "config", None)
    cls: Any = type(model)
    return is_picture_class(cls) and config is not None and not _of_video(config)


@lru_cache(maxsize=512)
def is_picture_class(cls: type) -> bool:
    """Whether objects of a class do, as far as its `forward` and transformers' registry tell.

    Examples
    --------
    >>> import transformers
    >>> [is_picture_class(cls) for cls in (transformers.ViTModel, transformers.CLIPModel, transformers.VideoMAEModel)]
    [True, False, False]
    """
    if not any(base.__name__ == "PreTrainedModel" for base in cls.__mro__):  # transformers need not be loaded to see it
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]

    forward: Any = getattr(cls, "forward", None)
    taken = dict(list(inspect.signature(forward).parameters.items())[1:])
    needed = {name for name, one in taken.items() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD}
    if next(iter(taken), "") != "pixel_values" or any(name in taken for name in _OTHERS):
        return False
    if needed - {"pixel_values"} - (_OF_PATCHES if set(taken) >= _OF_PATCHES else set()):
        return False
    config_class: Any = getattr(cls, "config_class", None)
    kind = getattr(config_class, "model_type", "")
    return kind not in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES and kind not in VIDEO_PROCESSOR_MAPPING_NAMES


def opens_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names such a class, and one that this transformers has."""
    cls = _class_of(config.get("architectures"))
    if cls is None:
        return False
    return is_detector(cls) or (is_picture_class(cls) and not any(config.get(name) for name in _VIDEO))


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's `forward` has an argument of that name."""
    return argument in inspect.signature(type(model).forward).parameters


def open_model(name: str, *, weights: Path | None) -> Opened:
    """Open a folder, or a name on the Hugging Face hub: from the hub's local cache where it is there.

    Models that were trained on masked pictures (ViTMAE) are opened to see all of it.

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
    model, processor = local_or_hub(where, _load, unreadable=_unreadable, unreachable=_not_on_hub)
    return Opened(
        model=model, processor=processor, labels=labels_of(model), weights=name.rstrip("/").rsplit("/", 1)[-1]
    )


def families() -> Iterable[ModelFamily]:
    """Return what can be opened, by what the models are for."""
    source = "a folder, or the Hugging Face hub (safetensors only)"
    kinds = (
        "picture encoders: ViT, DeiT, BEiT, Data2Vec, DINOv2, DINOv3, I-JEPA, MSN, MAE, AIMv2",
        "pyramids and windows: Swin, Swinv2, Hiera, PVT, SegFormer, CvT, LeViT, MobileViT, SwiftFormer",
        "vision towers: CLIPVisionModel, SiglipVisionModel, SAM's vision encoder, Donut's Swin",
        "dense heads: segmentation and depth (SegFormer, DPT, GLPN, BEiT), detection by YOLOS",
        "detectors: DETR, Conditional DETR, DAB-DETR, Table Transformer, in which object queries ask the picture",
    )
    return [
        ModelFamily(name="hf:OWNER/NAME", what=what, how_exact="weights and places exact", source=source)
        for what in kinds
    ]


def _class_of(architectures: Any) -> type | None:
    """Return the class that a config names, if transformers has it."""
    import transformers

    named = architectures[0] if isinstance(architectures, list) and architectures else None
    cls = getattr(transformers, named, None) if isinstance(named, str) and named.isidentifier() else None
    return cls if isinstance(cls, type) else None


def _load(where: str, local: bool) -> tuple[nn.Module, Any]:
    """Load the class that the config names, in float32, and its processor; weights must all be there."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(where, local_files_only=local)
    loader: Any = _class_of(config.architectures)
    if loader is not None:
        refuse_deformable(loader)
    if loader is None or not (is_picture_class(loader) or is_detector(loader)) or _of_video(config):
        raise ModelError(
            f"{where} is {config.architectures or 'a model without a named class'} ({config.model_type}). This adapter "
            "opens models that look at single pictures. Open it yourself and pass the module."
        )
    if getattr(config, "mask_ratio", 0):
        config.mask_ratio = 0.0  # every forward would hide other patches
    with no_bar():
        model, report = loader.from_pretrained(
            where,
            config=config,
            local_files_only=local,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # no attention comes after it
    if missing:
        raise ModelError(
            f"{where} lacks {len(missing)} weights of {config.architectures[0]}, such as {missing[0]}. They would be "
            "random numbers, and so would the maps. Pass a complete model."
        )
    return model.eval(), _processor(where, local=local)


def _processor(where: str, *, local: bool) -> Any:
    """Return the processor that was saved with the model; None where none was, then its class has one.

    Raises
    ------
    OSError, ValueError
        One was saved in this folder and cannot be read: another would make other pixels.
    """
    from transformers import AutoImageProcessor

    auto: Any = AutoImageProcessor
    try:
        return auto.from_pretrained(where, local_files_only=local)
    except (OSError, ValueError):
        if any((Path(where) / name).exists() for name in ("preprocessor_config.json", "processor_config.json")):
            raise
        return None


def _of_video(config: Any) -> bool:
    return any(getattr(config, name, None) for name in _VIDEO)


def labels_of(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a classifier's classes, or None where nobody gave them any."""
    config: Any = model.config
    given = getattr(config, "id2label", None) if "Classification" in type(model).__name__ else None
    labels = tuple(str(given[index]) for index in sorted(given)) if given else ()
    unnamed = all(label == f"LABEL_{index}" for index, label in enumerate(labels))  # what configs are born with
    return None if unnamed else labels


def _unreadable(where: str, problem: Exception) -> InputError:
    return InputError(
        f"The folder {where} cannot be opened: {said(problem)}. It should hold config.json and model.safetensors of "
        "one model. Save the model there with save_pretrained."
    )


def _not_on_hub(where: str, problem: Exception) -> DownloadError:
    return DownloadError(
        f"hf:{where} could not be had from the Hugging Face hub: {said(problem)}. It is neither a folder nor in "
        "the hub's cache on this machine. Check the name and the network, pass a folder, or mmattn:dinov2-small, which "
        "needs no hub."
    )
