"""The steps of `attend`: read what was given, run under interception, let the adapter join calls to axes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.interception import Call, Recording, capture
from mmattn.interception.protocol import Adapter, Classifies, LeavesOut, MediaGiven, NamesClasses, Prepared
from mmattn.interception.steps import Steps
from mmattn.interception.writing import Way, Writes
from mmattn.plugins import claiming, unwrap
from mmattn.readers import read_photo
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps, keep_weakly
from mmattn.schema.source import Source, versions_of

# Largest difference, as a share of the range, at which two inputs count as the same.
SAME_INPUT = 1e-3


def read_media(given: MediaGiven) -> MediaGiven:
    """Return what was given with pictures read into Photos.

    Raises
    ------
    InputError
        When nothing was given.
    """
    if all(value is None for value in (given.image, given.text, given.audio, given.video, given.graph, given.inputs)):
        raise InputError(
            "There is nothing to look at. Pass image=, text=, audio=, video= or graph=, or prepared tensors as inputs=."
        )
    if given.image is None:
        return given
    photos: Any = _photos(given.image)
    if isinstance(photos, list) and not photos:
        raise InputError("The list of images is empty. A batch holds at least one. Pass one image or several.")
    return MediaGiven(
        image=photos,
        text=given.text,
        audio=given.audio,
        video=given.video,
        graph=given.graph,
        inputs=given.inputs,
        generate=given.generate,
    )


def _photos(image: Any) -> Any:
    """Return pictures read, in lists as they were given: a list in a list is the pictures of one prompt."""
    return [_photos(one) for one in image] if isinstance(image, list | tuple) else read_photo(image)


def run_and_join(
    name: str,
    adapter: Adapter,
    model: nn.Module,
    media: MediaGiven,
    *,
    processor: Any = None,
    options: Any = None,
    prepared: Prepared | None = None,
    recording: Recording | None = None,
    pass_index: int = 0,
) -> AttentionMaps:
    """Prepare, run under interception (unless a recording is there already), and join the calls to axes."""
    inner = unwrap(model)
    if media.generate is not None and recording is None and isinstance(adapter, Writes):
        way = adapter.writes(inner)
        if way is not None:
            before = adapter.prepare(inner, replace(media, generate=None), processor, options)
            calls, prepared = _written(adapter, inner, before, count=media.generate, way=way)
            return _joined(name, adapter, inner, calls, prepared)
    if prepared is None:
        prepared = adapter.prepare(inner, media, processor, options)
    seen, classifies = recording, False
    if seen is None:
        with torch.no_grad(), capture(inner, taps=(adapter.taps,)) as seen:
            output = prepared.run()
        classifies = _classifies(adapter, output)
    calls = [call for call in seen.calls if call.pass_index == pass_index]
    return _joined(name, adapter, inner, calls, prepared, classifies=classifies)


def _written(
    adapter: Adapter, model: nn.Module, prepared: Prepared, *, count: int, way: Way
) -> tuple[list[Call], Prepared]:
    """Let a model write, and return its calls as those of one pass over all, with that input."""
    assert isinstance(adapter, Writes)
    steps = Steps()
    with torch.no_grad():
        if way == "steps":
            with capture(model, taps=(adapter.taps,), reduce=steps.reduce) as seen:
                words = adapter.write(model, prepared, count)
        else:
            words = adapter.write(model, prepared, count)
        if not words.shape[1]:
            raise InputError(
                f"{type(model).__name__} wrote nothing behind this input: its first token ends the text. A word that "
                "is asked where it looked has to be written. Leave generate= out, or ask otherwise."
            )
        whole = adapter.continued(model, prepared, words)
        if way == "steps":
            return steps.joined(seen.calls), whole
        with capture(model, taps=(adapter.taps,)) as seen:
            whole.run()
    return seen.calls, whole


def _joined(
    name: str,
    adapter: Adapter,
    inner: nn.Module,
    calls: Sequence[Call],
    prepared: Prepared,
    *,
    classifies: bool = False,
) -> AttentionMaps:
    """Join calls to axes."""
    library = name.partition(".")[0]
    layers = tuple(adapter.layers(calls, prepared))
    left_out = adapter.left_out(calls, prepared) if isinstance(adapter, LeavesOut) else ()
    if not layers:
        example = f" (such as {left_out[0]})" if left_out else ""
        raise ModelError(
            f"{type(inner).__name__} made {len(calls)} attention calls and none is over tokens with a place{example}. "
            "Token attention is needed for a picture. See them with mmattn.capture, or use a gradient method."
        )
    return AttentionMaps(
        layers=layers,
        media=prepared.media,
        source=Source(
            model=f"{library} {type(inner).__name__}",
            adapter=name,
            versions=versions_of("mmattn", "torch", library),
            preprocessing=prepared.preprocessing,
        ),
        default_stream=_default_stream(adapter, layers),
        readout=prepared.readout,
        classifies=classifies,
        labels=adapter.labels(inner) if isinstance(adapter, NamesClasses) else None,
        left_out=left_out,
        rerun=prepared.run,
        adapter=adapter,
        prepared=prepared,
    )


def _default_stream(adapter: Adapter, layers: Sequence[AttentionLayer]) -> str:
    """Return the adapter's own stream where it ran, else the first that did: a text alone has no stream of pictures."""
    own = adapter.default_stream
    there = any(layer.stream == own or layer.stream.startswith(f"{own}.") for layer in layers)
    return own if there else layers[0].stream


def _classifies(adapter: Adapter, output: Any) -> bool:
    """Whether an output is class logits."""
    if not isinstance(adapter, Classifies):
        return False
    try:
        adapter.logits(output)
    except ModelError:
        return False
    return True


def lift(
    recording: Recording, media: MediaGiven, *, processor: Any, options: Any, pass_index: int | None
) -> AttentionMaps:
    """Give places to a recording: prepare the same input, see that it is the same, then join.

    Raises
    ------
    InputError
        The recording holds no pass of the whole model, or another input.
    NotFoundError
        It has no such pass.
    """
    count = recording.passes
    if not count:
        raise InputError(
            "This recording holds no forward pass of the model itself, only of parts of it. Places need the whole "
            "model's input. Call the model that was given to capture, or use recording.maps without places."
        )
    if pass_index is None and count != 1:
        raise InputError(
            f"This recording holds {count} forward passes. One image belongs to one pass. "
            f"Pass pass_index=0 to {count - 1}."
        )
    index = pass_index or 0
    if not 0 <= index < count:
        raise NotFoundError(
            f"There is no pass {index}: the recording has {count}, 0 to {count - 1}. Pass one of those."
        )
    if media.generate is not None:
        raise InputError(
            f"generate={media.generate} makes a model write, and this is a recording of one. Leave generate= out, or "
            "pass the model."
        )
    model = recording.model
    name, adapter = claiming(model)
    prepared = adapter.prepare(unwrap(model), media, processor, options)
    tensors_alike(prepared.inputs, recording.inputs[index])
    maps = run_and_join(name, adapter, model, media, prepared=prepared, recording=recording, pass_index=index)
    return maps.named(model_ref=keep_weakly(model))


def tensors_alike(prepared: Sequence[Tensor], recorded: Sequence[Tensor]) -> None:
    """Raise unless the prepared tensors are those that a recording saw.

    Raises
    ------
    InputError
        When one differs by more than a thousandth of its range.
    """
    if len(recorded) < len(prepared):
        raise InputError(
            f"The recording saw {len(recorded)} tensors and this input gives {len(prepared)}. "
            "They must be the same input. Pass what the model was run on."
        )
    for ours, theirs in zip(prepared, recorded, strict=False):
        if ours.shape != theirs.shape:
            raise InputError(
                f"The recording saw a tensor of shape {list(theirs.shape)} and this input gives {list(ours.shape)}. "
                "They must be the same input. Pass the image that was run, and its transform as processor=."
            )
        mine, seen = ours.detach().float().cpu(), theirs.detach().float().cpu()
        span = float(seen.max() - seen.min()) or 1.0
        apart = float((mine - seen).abs().max()) / span
        if apart > SAME_INPUT:
            raise InputError(
                f"The recording saw another input: it differs by {apart:.1%} of its range from this one prepared. "
                "They must be the same. Pass the image that was run, and its transform as processor=."
            )
