"""match(): a picture held against texts. The model is found, the picture read, and the method chosen here.

How words and patches meet in a model decides what can be read:

    way       the model                                            methods, the first is the default
    towers    two towers whose features are compared at the end    `interaction`, `chefer`, `gradeclip`, ...
    cross     words ask patches, or slots that asked them          `chefer`, `cross_rollout`, `cross`
    stream    words and patches stand in one sequence              `chefer`, `relative`, `heads`, `raw`

A model may be of several ways: CoCa is two towers with a decoder beside them, whose words ask.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from mmattn import plugins
from mmattn.analysis.matching import Pair, crossing, streaming
from mmattn.analysis.matching import match as of_towers
from mmattn.analysis.matching.match import Method as OfTowers
from mmattn.analysis.matching.meeting import Kind, Meeting, kinds_of, meet
from mmattn.errors import InputError, ModelError, NotFoundError, nearest
from mmattn.interception.protocol import Adapter, ScoresPairs, TwoTowers
from mmattn.interception.refuse import refuse_unreadable
from mmattn.opening import open_model
from mmattn.readers import read_photo
from mmattn.schema.matches import Match
from mmattn.schema.media import Words
from mmattn.schema.source import Source, versions_of


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way in which words and patches meet, and what reads it.

    Parameters
    ----------
    what
        Such a model, in a phrase for errors.
    methods
        By name; the first is the default.
    options
        Which methods take an option; options that are not here go with none.
    read
        Returns the match of a pair, of its meeting (none of two towers, which meet in features alone), by a method,
        with the options that were given.
    """

    what: str
    methods: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    read: Callable[..., Match]


def _towers(pair: Pair, meeting: Meeting | None, *, method: str, **options: Any) -> Match:
    return of_towers(pair, method=method, **options)


WAYS: Mapping[Kind, Way] = {
    "towers": Way(
        what="two towers",
        methods=get_args(OfTowers),
        options={"steps": ("interaction",), "blocks": ("interaction", "legrad")},
        read=_towers,
    ),
    "cross": Way(
        what="a model whose words ask patches",
        methods=get_args(crossing.Method),
        options={"stream": get_args(crossing.Method), "layer": ("cross",), "head": ("cross",)},
        read=crossing.match,
    ),
    "stream": Way(
        what="a model with words and patches in one sequence",
        methods=get_args(streaming.Method),
        options={"layer": ("raw", "relative"), "head": ("raw",)},
        read=streaming.match,
    ),
}


def match(
    model: nn.Module | str,
    image: Any,
    *,
    texts: str | Words | Sequence[str | Words],
    method: str | None = None,
    stream: str | None = None,
    layer: int | str | None = None,
    head: int | None = None,
    steps: int | None = None,
    blocks: int | None = None,
    processor: Any = None,
    options: Any = None,
) -> Any:
    """Return what a model makes of a picture and some texts; for a list of pictures a list.

    Two towers share no attention: what links a word to a patch is a construction, and there are several. In a model
    whose words ask patches, or stand in one sequence with them, it is attention. The picture is looked at once for
    all texts (as often as there are texts where its tower takes it in parts: BridgeTower, Qwen-VL, tiles, ViLT).

    Parameters
    ----------
    model
        A CLIP, SigLIP or one of their kin, BLIP, CoCa, ViLT, Llava, ..., as a module or a name.
    image
        A path, a PIL image, an array or tensor; or a list of them.
    texts
        What to hold it against: a text, or several.
    method
        Of two towers `"interaction"` (the default): how much a word and a patch add to the cosine together, for and
        against, from the derivatives of both towers (Moeller et al. 2025). Or one map for each prompt, where a word's
        map is that word as a prompt of its own: `"chefer"` (attention x gradient, last layer), `"gradeclip"` (Zhao et
        al. 2024), `"naclip"` (cosine of patches that look at keys like theirs and at neighbors in the last block,
        Hajimiri et al. 2025; dense, no gradient), `"legrad"` (gradient of what each layer forms by its attention,
        Bousselham et al. 2025; of an attention pool by the pool's), `"similarity"` (raw cosine of patches, which
        prefers the background). A picture tower of convolutions (ConvNeXt) has no attention: there
        `"interaction"`, `"similarity"` and `"gradcam"` (Selvaraju et al. 2017) read its last feature map.
        Where words ask patches `"chefer"` (the default): attention x gradient through both sides and between them,
        toward the logit of a match or of each word that the model writes (Chefer et al. 2021, with the co-attention
        rules); `"cross_rollout"`: attention alone through all layers; `"cross"`: one layer as it is. Where the model
        writes the text, a word's map is the one that wrote it; where words ask slots it is led on to patches, and
        says so.
        In one sequence `"chefer"` (the default), toward the logit of a match or of each word; `"relative"`: one layer
        over that of a general question (Zhang et al. 2025); `"heads"`: the three heads that look at one place (Kang
        et al. 2025); `"raw"`: attention as it is, with the share of sinks, patches at which every word looks.
    stream
        Whose words ask, where there is a choice: `"decoder"` for CoCa's, which is read as two towers without it.
    layer, head
        For `"cross"`: a layer, by number among those in which words ask patches (-1: the last, the default) or by
        module path; a head, by default their mean. For `"relative"` a layer (by default the one at 14/32 of the
        depth), for `"raw"` a layer and a head (by default the mean of all).
    steps
        For `"interaction"`: points on the way from a black picture and a blank text, 4 by default; from some 20 on the
        matrix sums to what the pair scores more than these, closely. 1 is the input alone: fast, and points worse.
    blocks
        How many blocks of the image tower, from its end: for `"interaction"` those that the way leads through, 1 by
        default (more point better and take as much longer); for `"legrad"` those that are summed, all by default.
    processor
        The processor (or transform and tokenizer) to use instead of the model's own.
    options
        The adapter's own options, for the picture.

    Raises
    ------
    ModelError
        A model in which words and patches do not meet, or that the method cannot read.
    InputError
        No text, an empty text, an input that cannot be used, an option that does not go with the method.
    NotFoundError
        A method that does not fit the model (those that do are listed), a layer or head that is not there.

    Examples
    --------
    >>> import mmattn, open_clip, torch
    >>> towers = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}, {"width": 64, "heads": 2, "layers": 1}
    >>> model = open_clip.CLIP(embed_dim=16, vision_cfg=towers[0], text_cfg=towers[1]).eval()
    >>> m = mmattn.match(model, torch.rand(3, 64, 96), texts=["a dog", "a cat on a mat"])
    >>> m.relevances[1].values.shape, m.word("cat", text=1).values.shape, m.contrast(0, 1).unit
    (torch.Size([77, 17]), torch.Size([1, 17]), 'signed relevance')
    >>> mmattn.links(m.relevances[0], focus="dog").save("links.png").name
    'links.png'
    """
    said = _texts(texts)
    name, adapter, inner, weights, processor = _found(model, processor)
    library = name.partition(".")[0]
    source = Source(
        model=f"{library} {type(inner).__name__}",
        adapter=name,
        versions=versions_of("mmattn", "torch", library),
        **({"weights": weights} if weights else {}),
    )
    several = isinstance(image, list | tuple)
    if several and not image:
        raise InputError("The list of images is empty. There is at least one to compare. Pass one image or several.")
    given = {"stream": stream, "layer": layer, "head": head, "steps": steps, "blocks": blocks}
    kept: dict[object, Any] = {}
    found = [
        _matched(
            Pair(
                adapter=adapter,
                model=inner,
                photo=read_photo(one),
                texts=said,
                processor=processor,
                options=options,
                source=source,
                kept=kept,
            ),
            method=method,
            options={option: value for option, value in given.items() if value is not None},
        )
        for one in (image if several else [image])
    ]
    return found if several else found[0]


def _matched(pair: Pair, *, method: str | None, options: Mapping[str, Any]) -> Match:
    """Find how words and patches meet in the model, and let the method that was asked for read it."""
    apart = isinstance(pair.adapter, TwoTowers) and pair.adapter.has_two_towers(pair.model)
    if not apart and not isinstance(pair.adapter, ScoresPairs):
        raise _unfit(pair, method, {})
    meeting: Meeting | None = None
    ways: dict[Kind, Way] = {"towers": WAYS["towers"]} if apart else {}
    if not apart or "stream" in options or method not in (None, *WAYS["towers"].methods):
        with torch.inference_mode(False):  # whose tensors could have no gradient later
            meeting = meet(pair)
        met = {kind: WAYS[kind] for kind in kinds_of(meeting.maps.samples[0].layers) if kind in WAYS}
        ways = {**met, **ways} if "stream" in options else {**ways, **met}
    way = next((one for one in ways.values() if method in (None, *one.methods)), None)
    if way is None:
        raise _unfit(pair, method, ways)
    chosen = way.methods[0] if method is None else method
    for option, value in options.items():
        takers = way.options.get(option, ())
        if chosen not in takers:
            others = [one for other in WAYS.values() for one in other.options.get(option, ())]
            raise InputError(
                f'{option}={value!r} and method="{chosen}" do not go together: {option}= is for '
                f"{', '.join(dict.fromkeys(others))}. Leave one of the two out."
            )
    with torch.inference_mode(False):
        return way.read(pair, meeting, method=chosen, **options)


def _unfit(pair: Pair, method: str | None, ways: Mapping[Kind, Way]) -> ModelError | NotFoundError:
    name = type(pair.model).__name__
    if not ways:
        return ModelError(
            f"{name} has not two towers, of pictures and of texts, that compare features at the end, and no words "
            "in it ask patches. mmattn.match links words and patches through one or the other. Pass a CLIP, SigLIP, "
            "BLIP, CoCa, ViLT or Llava, or read this one with mmattn.attend."
        )
    there = [one for way in ways.values() for one in way.methods]
    return NotFoundError(
        f'There is no method "{method}" to link words and patches of {name}, '
        f"{' and '.join(way.what for way in ways.values())}. Methods that fit it are: {nearest(str(method), there)}. "
        "Pass one of those."
    )


def _texts(given: Any) -> tuple[Words, ...]:
    listed = [given] if isinstance(given, str | Words) else list(given) if isinstance(given, Sequence) else [given]
    if not listed or not all(isinstance(one, str | Words) for one in listed):
        raise InputError(
            f"texts={given!r} holds no texts. It is a text or several to hold the picture against. "
            'Pass texts=["a dog", "a cat"].'
        )
    words = tuple(one if isinstance(one, Words) else Words(text=one) for one in listed)
    for number, one in enumerate(words):
        if not one.text.strip():
            raise InputError(f"Text {number} is empty. It should hold at least one letter. Pass another text.")
    return words


def _found(model: nn.Module | str, processor: Any) -> tuple[str, Adapter, nn.Module, str, Any]:
    """Return the adapter's name, the adapter, the model inside of its wrappers, its weights' name and the processor."""
    if isinstance(model, str):
        name, adapter, opened = open_model(model)
        chosen = opened.processor if processor is None else processor
        return name, adapter, plugins.unwrap(opened.model), opened.weights or model, chosen
    refuse_unreadable(model)
    try:
        name, adapter = plugins.claiming(model)
    except ModelError as problem:
        raise ModelError(
            f"{problem} mmattn.match reads models of pictures and texts of open_clip and transformers: two towers "
            "(CLIP, SigLIP and their kin), and words that ask patches (BLIP, CoCa, ...)."
        ) from problem
    if model.training:
        warnings.warn(
            f"{type(model).__name__} is in training mode: dropout and stochastic depth make its result random. "
            "Call model.eval() first.",
            stacklevel=3,
        )
    return name, adapter, plugins.unwrap(model), "", processor
