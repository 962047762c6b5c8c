"""match(): a picture held against texts by a model of two towers. The model is found and the picture read here."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from mmattn import plugins
from mmattn.analysis.matching import Pair
from mmattn.analysis.matching import match as matched
from mmattn.errors import InputError, ModelError
from mmattn.interception.protocol import Adapter
from mmattn.interception.refuse import refuse_unreadable
from mmattn.opening import open_model
from mmattn.readers import read_photo
from mmattn.schema.media import Words
from mmattn.schema.source import Source, versions_of


def match(
    model: nn.Module | str,
    image: Any,
    *,
    texts: str | Words | Sequence[str | Words],
    method: str | None = None,
    steps: int | None = None,
    blocks: int | None = None,
    processor: Any = None,
    options: Any = None,
) -> Any:
    """Return what a model of two towers makes of a picture and some texts; for a list of pictures a list.

    Two towers share no attention: what links a word to a patch is a construction, and there are several. The
    picture is looked at once for all texts.

    Parameters
    ----------
    model
        A CLIP, SigLIP or one of their kin, as a module or a name.
    image
        A path, a PIL image, an array or tensor; or a list of them.
    texts
        What to hold it against: a text, or several.
    method
        `"interaction"` (the default): how much a word and a patch add to the cosine together, for and against, from
        the derivatives of both towers (Moeller et al. 2025). Or one map for each prompt, where a word's map is that
        word as a prompt of its own: `"chefer"` (attention x gradient, last layer), `"gradeclip"` (Zhao et al. 2024),
        `"similarity"` (raw cosine of patches, which prefers the background).
    steps
        For `"interaction"`: points on the way from a black picture and a blank text, 4 by default; from some 20 on the
        matrix sums to what the pair scores more than these, closely. 1 is the input alone: fast, and points worse.
    blocks
        For `"interaction"`: how many blocks of the image tower, from its end, the way leads through, 1 by default.
        More point better and take as much longer.
    processor
        The processor (or transform and tokenizer) to use instead of the model's own.
    options
        The adapter's own options, for the picture.

    Raises
    ------
    ModelError
        A model that has not two towers, or that the method cannot read.
    InputError
        No text, an empty text, an input that cannot be used.
    NotFoundError
        An unknown method.

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
    found = [
        matched(
            Pair(
                adapter=adapter,
                model=inner,
                photo=read_photo(one),
                texts=said,
                processor=processor,
                options=options,
                source=source,
            ),
            method=method,
            steps=steps,
            blocks=blocks,
        )
        for one in (image if several else [image])
    ]
    return found if several else found[0]


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
            f"{problem} mmattn.match reads models of two towers (CLIP, SigLIP and their kin of open_clip and "
            "transformers); models with one stream or cross-attention between words and patches (BLIP, ViLT, "
            "LLaVA, ...) cannot be matched yet."
        ) from problem
    if model.training:
        warnings.warn(
            f"{type(model).__name__} is in training mode: dropout and stochastic depth make its result random. "
            "Call model.eval() first.",
            stacklevel=3,
        )
    return name, adapter, plugins.unwrap(model), "", processor
