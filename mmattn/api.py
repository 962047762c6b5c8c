"""The doors: a few lines of dispatch each, on the axes of what is given.

Here the parts are composed: readers and adapters make maps, analysis makes relevance of maps,
renderers make drawings of relevance. A batch gives a list in the order of the inputs.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, Literal

from torch import Tensor, nn

from mmattn import analysis, asking, comparing, plugins, render
from mmattn.analysis.queries import Query
from mmattn.asking import each, need_maps
from mmattn.attending import lift, read_media, run_and_join
from mmattn.errors import InputError, ModelError
from mmattn.interception import Call, Recording
from mmattn.interception import capture as record
from mmattn.interception import intervene as write
from mmattn.interception.protocol import MediaGiven
from mmattn.opening import open_model
from mmattn.render.drawing import Drawing
from mmattn.schema.axes import Joined, PatchGrid, Tokens
from mmattn.schema.layers import Kind
from mmattn.schema.maps import AttentionMaps, keep, keep_weakly
from mmattn.schema.matches import Match
from mmattn.schema.results import Relevance

Edit = Callable[[Tensor, Call], Tensor | None]


def attend(
    model: nn.Module | str | Recording,
    *,
    image: Any = None,
    text: Any = None,
    audio: Any = None,
    video: Any = None,
    graph: Any = None,
    inputs: Any = None,
    processor: Any = None,
    generate: int | None = None,
    options: Any = None,
    pass_index: int | None = None,
) -> AttentionMaps:
    """Run a model on an input and return what it attended to.

    Parameters
    ----------
    model
        A module, a name such as `mmattn:dinov2-small` or `timm:vit_small_patch16_224`, or a
        recording of `mmattn.capture` that is to get its places.
    image, text, audio, video, graph
        What the model looked at: a path, a PIL image, an array or tensor; a text; a list for a batch.
    inputs
        The model's own prepared tensors, which are never normalized twice.
    processor
        The transform or processor to use instead of the model's own.
    generate
        Number of tokens that the model is to write behind its input, greedily, where it writes. The maps are of all of
        it; the written words are the part `answer` (`mmattn.between(maps)`: where it looked when it wrote each).
    options
        The adapter's own options, such as `mmattn.adapters.vit.timm.TimmOptions(size_px=518)`.
    pass_index
        Which forward pass of a recording that holds several.

    Raises
    ------
    ModelError
        When no adapter reads the model (`mmattn.capture` still does), or it has no attention.
    InputError
        When the input cannot be used, or is not what a recording saw.

    Examples
    --------
    >>> import mmattn, timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> maps = mmattn.attend(model, inputs=torch.rand(1, 3, 64, 64))
    >>> maps["blocks.0.attn"].weights().shape
    torch.Size([3, 17, 17])
    """
    media = read_media(
        MediaGiven(image=image, text=text, audio=audio, video=video, graph=graph, inputs=inputs, generate=generate)
    )
    if isinstance(model, Recording):
        return lift(model, media, processor=processor, options=options, pass_index=pass_index)
    if pass_index is not None:
        raise InputError("pass_index chooses a pass of a recording, and this is a model. Leave pass_index out.")
    if isinstance(model, str):
        name, adapter, opened = open_model(model)
        opened_model = opened.model
        processor = opened.processor if processor is None else processor
        maps = run_and_join(name, adapter, opened_model, media, processor=processor, options=options)
        return maps.named(weights=opened.weights or model, labels=opened.labels, model_ref=keep(opened_model))
    name, adapter = plugins.claiming(model)
    if model.training:
        warnings.warn(
            f"{type(model).__name__} is in training mode: dropout and stochastic depth make its maps random. "
            "Call model.eval() first.",
            stacklevel=2,
        )
    maps = run_and_join(name, adapter, model, media, processor=processor, options=options)
    return maps.named(model_ref=keep_weakly(model))


def capture(model: nn.Module) -> AbstractContextManager[Recording]:
    """Record the attention of any torch module while it runs: `with capture(model) as recording: model(x)`.

    The model runs as it is: fused kernels, any dtype, compiled or not. `recording.maps` then holds
    its layers over bare Positions; `attend(recording, image=...)` gives them places where an adapter
    knows the model.

    Raises
    ------
    NoAttentionError
        On leaving, when no attention was seen; the likely cause is named.

    Examples
    --------
    >>> import mmattn, torch
    >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    >>> x = torch.rand(1, 5, 8)
    >>> with mmattn.capture(layer) as recording:
    ...     _ = layer(x, x, x)
    >>> recording.maps[0].weights().shape
    torch.Size([2, 5, 5])
    """
    return record(model, taps=_taps(model))


def intervene(
    model: nn.Module, edit: Edit, *, layers: str | Sequence[str] | None = None
) -> AbstractContextManager[None]:
    """Change attention weights while a model runs: `with intervene(model, edit): model(x)`.

    Parameters
    ----------
    model
        Any torch module.
    edit
        `edit(weights, call)` gets the weights `[..., query, key]` at the point where they meet the
        values, and returns others or None to leave them (and the fused kernel) alone.
    layers
        Module paths to limit it to.

    Examples
    --------
    >>> import mmattn, torch
    >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    >>> x = torch.rand(1, 5, 8)
    >>> with mmattn.intervene(layer, lambda weights, call: torch.full_like(weights, 1 / 5)):
    ...     y, _ = layer(x, x, x)
    >>> bool(torch.allclose(y[0, 0], y[0, 1]))
    True
    """
    return write(model, edit, layers=layers, taps=_taps(model))


def look(
    maps: AttentionMaps,
    *,
    stream: str | None = None,
    kind: Kind | None = None,
    layer: int | str = -1,
    head: int | str | None = None,
    query: Query = None,
) -> Any:
    """Return the raw attention of one layer; for a batch a list. See `mmattn.analysis.look.look`.

    Examples
    --------
    >>> import mmattn, timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> maps = mmattn.attend(model, image=torch.rand(3, 64, 96))
    >>> mmattn.look(maps, layer=-1, head=0, query=(48, 32)).values.shape
    torch.Size([1, 17])
    """
    return each(maps, lambda one: analysis.look(one, stream=stream, kind=kind, layer=layer, head=head, query=query))


def rollout(
    maps: AttentionMaps,
    *,
    stream: str | None = None,
    query: Query = None,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    residual_weight: float = 0.5,
) -> Any:
    """Return attention followed through all layers; for a batch a list. See `mmattn.analysis.rollout.rollout`.

    Examples
    --------
    >>> import mmattn, timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> maps = mmattn.attend(model, image=torch.rand(3, 64, 96))
    >>> bool(torch.isclose(mmattn.rollout(maps).values.sum(), torch.tensor(1.0)))
    True
    """
    return each(
        maps,
        lambda one: analysis.rollout(
            one,
            stream=stream,
            query=query,
            head_fusion=head_fusion,
            discard_ratio=discard_ratio,
            start_layer=start_layer,
            residual_weight=residual_weight,
        ),
    )


def relevance(
    maps: AttentionMaps,
    *,
    method: str = "chefer",
    target: Any = None,
    stream: str | None = None,
    query: Query = None,
    layer: int | str | None = None,
    start_layer: int = 0,
) -> Any:
    """Return what raised the score of a target; for a batch a list. See `mmattn.analysis.relevance.relevance`.

    `method` is `"chefer"`, `"grad_rollout"` or `"attention_x_gradient"`; `target` a class by index or name, a list
    of one for each sample, or None for each sample's top class. The input runs once more, forward and backward.

    Examples
    --------
    >>> import mmattn, timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> maps = mmattn.attend(model, image=torch.rand(3, 64, 96))
    >>> mmattn.relevance(maps, method="chefer", target=281).target
    'class 281'
    """
    need_maps(maps)
    inner = plugins.unwrap(maps.model) if maps.rerun is not None and maps.model_ref is not None else None
    if inner is not None and inner.training:
        warnings.warn(
            f"{type(inner).__name__} is in training mode: the gradient belongs to another random pass than the maps. "
            "Call model.eval() and attend again.",
            stacklevel=2,
        )
    found = analysis.relevance(
        maps,
        method=method,
        target=target,
        stream=stream,
        query=query,
        layer=layer,
        start_layer=start_layer,
        model=inner,
    )
    return found[0] if maps.sample_count == 1 else list(found)


match = comparing.match
between = asking.between
overlay = render.overlay
links = render.links
word_grid = render.word_grid
side_by_side = render.side_by_side


def head_grid(
    maps: AttentionMaps,
    *,
    stream: str | None = None,
    kind: Kind | None = None,
    query: Query = None,
    layers: Sequence[int] | None = None,
    scale: Literal["shared", "panel"] = "shared",
) -> Drawing:
    """Draw every layer x head of one sample in one labelled sheet, on one scale.

    Parameters
    ----------
    maps
        Maps of a single sample.
    stream, kind, query
        As for `look`.
    layers
        Only these layers (indices within the stream).
    scale
        `"shared"`: all tiles compare; `"panel"`: each tile has its own, said in the picture.

    Examples
    --------
    >>> import mmattn, timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> maps = mmattn.attend(model, image=torch.rand(3, 64, 96))
    >>> mmattn.head_grid(maps, layers=[0, 11]).save("heads.png").name
    'heads.png'
    """
    need_maps(maps)
    given = None if layers is None else list(layers) if isinstance(layers, list | tuple | range) else ["?"]
    if given is not None and not all(isinstance(one, int) for one in given):
        raise InputError(f"layers={layers!r} are no layers. Pass indices within the stream, such as layers=[-1].")
    found = analysis.look_at_heads(maps, stream=stream, kind=kind, query=query, layers=layers)
    across = max(len(row.heads) for row in found)
    tiles = [head for row in found for head in (*row.heads, *(None,) * (across - len(row.heads)))]
    source = maps.source
    said = [
        "look, every layer and head",
        f"query: {found[0].heads[0].labels[0]}",
        f"{source.model}, {source.weights}",
        source.preprocessing,
        f"left out {maps.left_out_phrase()}" if maps.left_out else "",
        *(medium.name for medium in maps.media),
        f"scale: {scale}",
    ]
    return render.sheet(
        tiles,
        rows=len(found),
        cols=across,
        row_labels=[row.label for row in found],
        col_labels=[f"head {head}" for head in range(across)],
        scale=scale,
        caption=" · ".join(part for part in said if part),
    )


def draw(anything: Any) -> Any:
    """Return the drawing that fits: maps are rolled out and overlaid, a relevance is overlaid, a batch gives a list.

    A relevance between the words of a text and the patches of a picture is drawn as links, a match as a list of them.

    Examples
    --------
    >>> import mmattn, timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> mmattn.draw(mmattn.attend(model, image=torch.rand(3, 64, 96))).save("seen.png").name
    'seen.png'
    """
    if isinstance(anything, Drawing):
        return anything
    if isinstance(anything, Relevance):
        words = isinstance(anything.query_axis, Tokens) and isinstance(anything.axis, PatchGrid | Joined)
        return links(anything) if words else overlay(anything)
    if isinstance(anything, AttentionMaps):
        found = rollout(anything)
        return [overlay(one) for one in found] if isinstance(found, list) else overlay(found)
    if isinstance(anything, Match):
        return [links(one) for one in anything.relevances]
    if isinstance(anything, list | tuple):
        return [draw(one) for one in anything]
    raise InputError(
        f"A {type(anything).__name__} cannot be drawn. Maps, a relevance or a drawing can. Pass what mmattn returned."
    )


def load(path: "str | PathLike[str]") -> AttentionMaps:
    """Return maps that `maps.save(path)` wrote; tensors are read when they are first needed.

    Raises
    ------
    FormatError
        When the file is truncated, foreign, hostile or from a newer schema.

    Examples
    --------
    >>> import mmattn, timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> mmattn.attend(model, image=torch.rand(3, 64, 96)).save("maps.safetensors")
    >>> mmattn.load("maps.safetensors")["blocks.11.attn"].weights().shape
    torch.Size([3, 17, 17])
    """
    from mmattn.schema.store import load as read

    return read(path)


def _taps(model: nn.Module) -> tuple[Any, ...]:
    """Return the extra points of interception of the adapter that claims the model; none where none does."""
    try:
        _, adapter = plugins.claiming(model)
    except ModelError:
        return ()
    return (adapter.taps,)
