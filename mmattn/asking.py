"""Doors that read maps without drawing: for maps of one sample they give one result, for a batch a list."""

from collections.abc import Callable
from typing import Any, TypeVar

from mmattn import analysis
from mmattn.errors import InputError
from mmattn.schema.layers import Kind
from mmattn.schema.maps import AttentionMaps

Result = TypeVar("Result")


def between(
    maps: AttentionMaps,
    *,
    asking: str | int | None = None,
    asked: str | int | None = None,
    stream: str | None = None,
    kind: Kind | None = None,
    layer: int | str = -1,
    head: int | str | None = None,
    writing: bool | None = None,
) -> Any:
    """Return what each word of a text gave to each patch; for a batch a list. See `mmattn.analysis.between.between`.

    For models in which words look at patches: across (BLIP, CoCa) or in one sequence with them (ViLT, decoders).
    `asking` and `asked` are parts of the sequence, by default its text and its picture.

    Examples
    --------
    >>> import mmattn, open_clip, torch
    >>> tower = {"width": 64, "layers": 1, "output_tokens": True}
    >>> vision, words = {**tower, "image_size": 32, "patch_size": 16}, {"heads": 2, "context_length": 76}
    >>> text = {**tower, **words, "embed_cls": True}
    >>> decoder = {"width": 64, "layers": 1, **words}
    >>> model = open_clip.CoCa(embed_dim=64, vision_cfg=vision, text_cfg=text, multimodal_cfg=decoder).eval()
    >>> maps = mmattn.attend(model, image=torch.rand(3, 64, 96), text="a dog on a mat")
    >>> found = mmattn.between(maps, stream="decoder", kind="cross", writing=True)
    >>> mmattn.links(found).save("between.png").name
    'between.png'
    """
    return each(
        maps,
        lambda one: analysis.between(
            one,
            asking=asking,
            asked=asked,
            stream=stream,
            kind=kind,
            layer=layer,
            head=head,
            writing=writing,
        ),
    )


def each(maps: AttentionMaps, job: Callable[[AttentionMaps], Result]) -> Result | list[Result]:
    """Return what a job gives for the only sample, or a list for several."""
    need_maps(maps)
    return job(maps) if maps.sample_count == 1 else [job(one) for one in maps.samples]


def need_maps(maps: AttentionMaps) -> None:
    """Raise for what are no maps.

    Raises
    ------
    InputError
        Something else was given.
    """
    if not isinstance(maps, AttentionMaps):
        raise InputError(
            f"A {type(maps).__name__} was given where maps are needed. Maps hold attention by layer. "
            "Pass what mmattn.attend, mmattn.load or recording.maps gave."
        )
