"""torchvision's classifiers with token attention: ViT, Swin v1 and v2, MaxViT.

Other classifiers of torchvision are claimed too, to say in one line that they have no attention.
Video models, detectors and segmenters are left to other parts.
"""

import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, Prepared
from mmattn.schema.media import Photo

from ..pixels import Geometry
from .layouts import PictureFacts, Traced
from .pictures import Features, bring, checked_options, class_logits, class_score, phrase, runner
from .rehearsal import built_for, check_attends, check_size, explaining
from .torchvision_input import TorchvisionOptions, native_px, photo_tensor, unit_px
from .torchvision_names import families
from .torchvision_open import open_model

__all__ = ["TorchvisionOptions", "TorchvisionVit", "adapter"]

_ELSEWHERE = ("video", "detection", "segmentation", "optical_flow", "quantization")


class TorchvisionVit(Traced):
    """The adapter `torchvision.vit`; see `mmattn.interception.protocol.Adapter` for what each method answers."""

    name = "torchvision.vit"

    def claims(self, model: nn.Module) -> bool:
        """Whether the model is a classifier of torchvision, or derived from one."""
        return self.claimed_class(model) is not None

    def claimed_class(self, model: nn.Module) -> type | None:
        """Return the class of torchvision that the model is of."""
        parts = ((cls, cls.__module__.split(".")) for cls in type(model).__mro__)
        own = (cls for cls, path in parts if path[:2] == ["torchvision", "models"] and path[2] not in _ELSEWHERE)
        return next(own, None)

    def opens(self, config: Mapping[str, Any]) -> bool:
        """No: torchvision saves no config.json."""
        return False

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open a model by torchvision's name, `NAME.WEIGHTS`, or `NAME@FILE` for a local checkpoint."""
        return open_model(name, weights=weights)

    def models(self) -> Iterable[ModelFamily]:
        """What torchvision has of these, by family."""
        return families()

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Bring pictures to the model by its weights' transform, or take the user's own tensors.

        Raises
        ------
        InputError
            No picture, another modality, a transform that cannot be inverted, a size that the
            model cannot take (the message says which it can), tensors that do not fit the pictures.
        NoAttentionError
            The model has no attention.

        """
        options = checked_options(media, options, kind=TorchvisionOptions)
        native = built_for(model, native_px(model), channels=3, call=call_torchvision)

        def make(photo: Photo) -> tuple[Tensor, Geometry]:
            return photo_tensor(photo, model=model, processor=processor, options=options, native_px=native)

        brought = bring(media, model=model, make=make, channels=3)
        found = check_size(
            model,
            brought.size_px,
            native_px=native,
            unit_px=unit_px(model),
            channels=3,
            call=call_torchvision,
            advice=lambda: "",
        )
        if found is not None:
            check_attends(found, named=type(model).__name__)
        facts = PictureFacts(
            model=weakref.ref(model),
            geometries=brought.geometries,
            shape=tuple(brought.inputs.shape),
            call=call_torchvision,
        )
        explain = explaining(brought.size_px, native_px=native, advice=lambda: "")
        return Prepared(
            run=runner(model, brought.inputs, call=call_torchvision, explain=explain),
            inputs=(brought.inputs,),
            media=brought.photos,
            facts=facts,
            preprocessing=phrase(brought.geometries),
            readout="cls" if hasattr(model, "class_token") else "mean",
        )

    def image_options(self, *, size_px: int | None, keep_aspect: bool) -> TorchvisionOptions:
        """Return options for the sizes that a command line names; see `protocol.TakesSizes`."""
        return TorchvisionOptions(size_px=size_px, keep_aspect=keep_aspect)

    def score(self, output: Any, target: Any) -> Float[Tensor, ""]:
        """Return the logit of a class, summed over the samples; see `pictures.class_score`."""
        return class_score(output, target)

    def logits(self, output: Any) -> Float[Tensor, "sample cls"]:
        """Return the class logits; see `protocol.Classifies`."""
        return class_logits(output)


def call_torchvision(model: nn.Module, pixels: Float[Tensor, "sample channel row col"]) -> Any:
    """Run a classifier; the output of one whose last layer was taken away is marked as features."""
    output = model(pixels)
    heads = (getattr(model, name, None) for name in ("heads", "head", "classifier", "fc"))
    parts = [list(head.modules())[-1] for head in heads if isinstance(head, nn.Module)]
    return Features(values=output) if parts and all(isinstance(part, nn.Identity) for part in parts) else output


adapter = TorchvisionVit()
