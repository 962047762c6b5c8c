"""What every adapter of pictures does alike: check what was given, bring it to the model, run, score a class.

An adapter says how one photo becomes a tensor (`Make`) and how the model is called (`CallModel`).
What is checked, compared with the user's own tensors, batched, run and scored is the same for all.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.errors import GoneError, InputError, MmattnError, ModelError
from mmattn.interception.protocol import MediaGiven
from mmattn.schema.media import Photo

from ..pixels import Geometry, Size

#: How a photo becomes the model's tensor [channel, row, col], and where that lies in the photo.
Make = Callable[[Photo], tuple[Tensor, Geometry]]

#: How a model is called with pixels [sample, channel, row, col].
CallModel = Callable[[nn.Module, Tensor], Any]

#: Makes an error of ours of one that a forward pass raised; None: that error goes on as it is.
Explain = Callable[[nn.Module, Exception], MmattnError | None]


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """How a picture is brought to the model's size; each adapter has a class of its own that begins with these.

    Parameters
    ----------
    size_px
        Side of the model's square input, or (width, height); None: the model's own size. With
        `keep_aspect`, the shorter side.
    keep_aspect
        The whole picture at its own aspect, each side rounded to what the model can divide.
    crop
        False: the whole picture, squeezed to the input's shape, instead of a center crop.

    """

    size_px: int | tuple[int, int] | None = None
    keep_aspect: bool = False
    crop: bool = True

    def __post_init__(self) -> None:
        sides = () if self.size_px is None else (self.size_px,) if isinstance(self.size_px, int) else self.size_px
        whole = isinstance(sides, tuple) and all(isinstance(side, int) and side >= 1 for side in sides)
        if not whole or len(sides) > 2 or (self.keep_aspect and len(sides) > 1):
            raise InputError(
                f"size_px={self.size_px} with keep_aspect={self.keep_aspect} is no size. It is a side, at least 1 px, "
                "or (width, height) without keep_aspect. Pass one of those."
            )

    @property
    def whole(self) -> bool:
        """Whether the whole picture is to be seen, whatever a transform would cut."""
        return self.keep_aspect or not self.crop

    @property
    def asked_px(self) -> Size | None:
        """Width and height that were named, as they were; with `keep_aspect` both are the shorter side."""
        return (self.size_px, self.size_px) if isinstance(self.size_px, int) else self.size_px


_Options = TypeVar("_Options", bound=SizeOptions)


@dataclass(frozen=True, kw_only=True)
class Features:
    """The output of a model without a classifier, marked as such so that no one takes it for logits."""

    values: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Brought:
    """Pictures, or the user's tensors, as the model gets them.

    Parameters
    ----------
    inputs
        The pixels, on the model's device and in its dtype.
    photos
        One a sample; empty where only tensors were given.
    geometries
        One a sample, or one for all.

    """

    inputs: Float[Tensor, "sample channel row col"]
    photos: tuple[Photo, ...]
    geometries: tuple[Geometry, ...]

    @property
    def size_px(self) -> Size:
        """Width and height of the model's input."""
        return int(self.inputs.shape[3]), int(self.inputs.shape[2])


def checked_options(media: MediaGiven, options: Any, *, kind: type[_Options]) -> _Options:
    """Return the options (those of `kind`, or its defaults), after a look at what was given.

    Raises
    ------
    InputError
        No picture, another modality, options of another adapter.

    """
    others = [name for name in ("text", "audio", "video", "graph") if getattr(media, name) is not None]
    if others or (media.image is None and media.inputs is None):
        raise InputError(
            f"A vision model got {', '.join(others) or 'no picture'}. It looks at pictures. "
            "Pass image=, or inputs= for prepared tensors."
        )
    if media.generate is not None:
        raise InputError(
            f"generate={media.generate} was asked of a vision model, which writes nothing. Generation needs a "
            "model with a decoder. Leave generate= out."
        )
    if options is not None and not isinstance(options, kind):
        raise InputError(
            f"options= is a {type(options).__name__}. This adapter takes {kind.__name__}(size_px=, keep_aspect=, "
            f"crop=) from {kind.__module__}. Pass one of those."
        )
    return options or kind()


def photos_of(image: Any) -> tuple[Photo, ...]:
    """Return the pictures that `image` holds: none, one or several.

    Raises
    ------
    InputError
        Something that is no Photo, or an empty list.

    """
    photos = () if image is None else tuple(image) if isinstance(image, list | tuple) else (image,)
    wrong = [type(photo).__name__ for photo in photos if not isinstance(photo, Photo)]
    if wrong or (image is not None and not photos):
        raise InputError(
            f"image= holds {', '.join(wrong) or 'no picture'}. An adapter takes a Photo or several. "
            "Read pictures with mmattn.readers.read_photo, or call mmattn.attend, which does."
        )
    return photos


def bring(
    media: MediaGiven, *, model: nn.Module, make: Make, channels: int | None, maker: str = "transform"
) -> Brought:
    """Bring the pictures to the model by `make`, or the user's tensors as they are.

    Parameters
    ----------
    channels
        Of the model's input; None: not known.
    maker
        What `make` runs, as errors name it: a transform, a processor.

    Raises
    ------
    InputError
        Pictures of several sizes, tensors that do not fit the model or the pictures.

    """
    photos = photos_of(media.image)
    if media.inputs is None:
        made = [make(photo) for photo in photos]
        inputs = to_model(stacked([tensor for tensor, _ in made]), model)
        return Brought(inputs=inputs, photos=photos, geometries=tuple(geometry for _, geometry in made))
    inputs = to_model(pixels_of(media.inputs, channels=channels), model)
    geometries = given_geometries(inputs, photos, model=model, make=make, maker=maker)
    return Brought(inputs=inputs, photos=photos, geometries=geometries)


def given_transform(processor: Any, options: SizeOptions) -> Any:
    """Return the user's transform, or None where there is none.

    Raises
    ------
    InputError
        It cannot be called, or options ask for a size that it cannot be told.

    """
    if processor is not None and not callable(processor):
        raise InputError(
            f"processor= is a {type(processor).__name__}. It would be a transform of torchvision or timm, from a "
            "PIL image to a tensor. Leave it out for the model's own."
        )
    if processor is not None and options != type(options)():
        raise InputError(
            f"{options} asks for a size that {type(processor).__name__} cannot be told. A transform of one's own makes "
            "its own size. Pass a transform that makes the size, or options without processor=."
        )
    return processor


def input_size(size_px: Size, *, native_px: Size, unit_px: int, options: SizeOptions) -> Size:
    """Return (width, height) of the input for a picture of `size_px`; whether a model takes it is not checked.

    Parameters
    ----------
    native_px
        The size that is had without options.
    unit_px
        What sides are multiples of where the picture keeps its aspect.

    Examples
    --------
    >>> input_size((600, 400), native_px=(224, 224), unit_px=32, options=SizeOptions(keep_aspect=True))
    (352, 224)

    """
    if not options.keep_aspect:
        return options.asked_px or native_px
    scale = min(options.asked_px or native_px) / min(size_px)
    width, height = (max(1, round(side * scale / unit_px)) * unit_px for side in size_px)
    return width, height


def pixels_of(inputs: Any, *, channels: int | None) -> Float[Tensor, "sample channel row col"]:
    """Return the user's tensor if it is one of pixels.

    Raises
    ------
    InputError
        It is not, or has other channels.

    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
        found = f"{inputs.dtype} {list(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InputError(
            f"inputs= is {found}. It would be a float tensor [sample, 3, row, col], resized and normalized already. "
            "For a picture that is not, pass image=."
        )
    if 0 in inputs.shape or inputs.shape[1] != (channels or inputs.shape[1]):
        raise InputError(
            f"inputs= has shape {list(inputs.shape)}. This model takes [sample, {channels or 3}, row, col], at least "
            "one sample. Pass such a tensor, or image= for a picture."
        )
    return inputs


def given_geometries(
    inputs: Float[Tensor, "sample channel row col"],
    photos: tuple[Photo, ...],
    *,
    model: nn.Module,
    make: Make,
    maker: str = "transform",
) -> tuple[Geometry, ...]:
    """Say where the pixels of the user's tensors lie in the user's pictures; never a guess.

    Raises
    ------
    InputError
        Tensors and pictures are not equally many, or a tensor is not what `make` makes of its picture.

    """
    size = (int(inputs.shape[3]), int(inputs.shape[2]))
    if not photos:
        return (Geometry(size_px=size),)
    if len(photos) != len(inputs):
        raise InputError(
            f"inputs= has {len(inputs)} samples and image= {len(photos)} pictures. Each sample has its picture. "
            "Pass as many of both, or inputs= alone."
        )
    found = []
    for photo, given in zip(photos, inputs, strict=True):
        made, geometry = make(photo)
        made = to_model(made, model)
        same = made.shape == given.shape and bool((made - given).abs().max() <= 1e-3 * (made.max() - made.min()))
        if not same and photo.size_px != size:
            raise InputError(
                f"inputs= ({size[0]} x {size[1]} px) is not what the {maker} makes of the picture '{photo.name}' "
                f"({geometry}), so its places in the picture are not known. Pass processor= with the one that made "
                "it, or the picture at the tensor's size, or one of image= and inputs= alone."
            )
        found.append(geometry if same else Geometry(size_px=size))
    return tuple(found)


def stacked(tensors: list[Float[Tensor, "channel _row _col"]]) -> Float[Tensor, "sample ..."]:
    """Return pictures as one batch.

    Raises
    ------
    InputError
        They have several sizes.

    """
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise InputError(
            f"The pictures reach the model in {len(shapes)} sizes: {sorted(shape[:0:-1] for shape in shapes)}. "
            "A batch has one size. Attend them one by one, or leave keep_aspect out."
        )
    return torch.stack(tensors)


def to_model(tensor: Float[Tensor, "..."], model: nn.Module) -> Float[Tensor, "..."]:
    """Return the tensor on the model's device and in its dtype."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return tensor.to(device=parameter.device, dtype=parameter.dtype)
    return tensor


def runner(
    model: nn.Module,
    inputs: Float[Tensor, "..."],
    *,
    call: CallModel,
    explain: Explain | None = None,
) -> Callable[[], Any]:
    """Return a call of the model that does not keep it alive.

    Parameters
    ----------
    explain
        See `Explain`.

    """
    reference = weakref.ref(model)

    def run() -> Any:
        alive = reference()
        if alive is None:
            raise GoneError(
                "The model was deleted, so it cannot run again. Maps keep a weak reference to a model that you passed. "
                "Keep the model alive, or attend again."
            )
        try:
            return call(alive, inputs)
        except MmattnError:
            raise
        except Exception as problem:  # whatever a forward raises over a size
            ours = explain(alive, problem) if explain else None
            if ours is None:
                raise
            raise ours from problem

    return run


def phrase(geometries: tuple[Geometry, ...]) -> str:
    """Return what was done to the pictures, for captions."""
    phrases = dict.fromkeys(map(str, geometries))
    width, height = geometries[0].model_px
    return next(iter(phrases)) if len(phrases) == 1 else f"each resized and cropped to {width} x {height} px"


def class_logits(output: Any) -> Float[Tensor, "sample cls"]:
    """Return the output if it is logits.

    Raises
    ------
    ModelError
        It is not: the model has no classifier.

    """
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ModelError(
            "This model gives features, not class logits, so a class target has nothing to point at. A model with "
            "a classifier has logits [sample, class]. Use a method without a target (look, rollout)."
        )
    return output


def class_score(output: Any, target: Any) -> Float[Tensor, ""]:
    """Return the logit of a class, summed over the samples; None: each sample's own top class.

    Raises
    ------
    ModelError
        The output is no logits [sample, class]: the model has no classifier.
    InputError
        The target is no class index.

    """
    logits = class_logits(output)
    classes = logits.shape[1]
    if target is None:
        return logits.max(dim=1).values.sum()
    if not isinstance(target, int) or isinstance(target, bool) or not -classes <= target < classes:
        raise InputError(
            f"There is no class {target!r}: this model has {classes} classes, 0 to {classes - 1}. "
            "Pass an index, or None for the top class."
        )
    return logits[:, target].sum()
