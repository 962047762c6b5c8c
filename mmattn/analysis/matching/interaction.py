"""Second-order interactions: how much a word and a patch add to a score together, signed.

    A[word, patch] = (J_text dword) . (J_image dpatch),     d = token - its reference

J are the Jacobians of the two features, of length one: of the picture's with respect to the tokens that enter the last
block of its tower (or the last few, `blocks=`), of the text's with respect to those that enter the first block of its
own, so that a word is what stands there, before others have read it. The reference of a picture is a black one,
that of a text padding in place of its pieces. Both Jacobians are averaged along the straight path from the
references, so that the whole matrix sums to about

    s(a, b) - s(black, b) - s(a, blank) + s(black, blank),     s the cosine

(each tower continued from those tokens). Moeller, Tilli, Vu & Pado (2025), "Explaining Caption-Image
Interactions in CLIP Models with Second-Order Attributions", TMLR.

No Jacobian of a text is built. For a word, u = J_text dword is one vector of the features' length: the derivative of
J_text^T v with respect to v, which attention's plain formula lets torch take. Its row over all patches is then
(J_image^T u) . dpatch: one backward pass through the last block of the image tower for each token, or for each of the
feature's numbers where those are fewer, so that many texts cost no more there.

Where we depart: they open both towers at one and the same depth. With a text's words taken at the last block, most of
it has gone into the end token already, which is no word. Points of the path are midpoints of its parts; `steps=1` is
the input alone, which sums to nothing in particular and points badly where the cosine is saturated.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmattn.analysis.matching.cut import Cut, Opened, entering, find_cut, opened
from mmattn.analysis.matching.towers import Run, Tower
from mmattn.errors import ModelError

_PROBE_SEED = 0


def interaction(
    model: nn.Module,
    *,
    image: Tower,
    pushed: Sequence[Float[Tensor, "_ feature"]],
    black: Run,
    steps: int = 4,
    blocks: int = 1,
) -> list[Float[Tensor, "_ patch"]]:
    """Return for each text how much each of its tokens and each token of the picture add to the cosine together.

    Parameters
    ----------
    image
        One picture.
    pushed
        How each token of each text moves the text's feature, as `pushed_by` returns it.
    black
        Runs the image tower on its reference.
    steps
        Points of the path from the references; 1: the input alone.
    blocks
        Blocks of the image tower, from its end, that the path leads through.

    Raises
    ------
    NotFoundError
        The image tower has not so many blocks.
    ModelError
        The block of the tower cannot be told.
    """
    picture = find_cut(model, image, block=-blocks)
    return _rows(picture, image, entering(picture, black), steps, pushed)


def pushed_by(model: nn.Module, *, text: Tower, blank: Run, steps: int = 4) -> Float[Tensor, "text token feature"]:
    """Return J_text d for each token of some texts, up to the last that is no padding; no graph is kept.

    Parameters
    ----------
    text
        Several texts.
    blank
        Runs the text tower on its reference.
    steps
        As for `interaction`.

    Raises
    ------
    ModelError
        The block of the tower cannot be told, or has no second derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):  # no fused kernel has a second derivative
        words = find_cut(model, text, block=0)
        return _pushed(words, text, entering(words, blank), steps)


def _along(cut: Cut, run: Run, reference: Tensor, steps: int) -> Iterator[Opened]:
    """Yield a run at each point of the straight path."""
    if steps == 1:
        yield cut.run
        return
    for step in range(steps):
        share = (step + 0.5) / steps
        yield opened(cut, run, tokens=reference + share * (cut.tokens - reference))


def _pushed(
    cut: Cut, tower: Tower, reference: Float[Tensor, "text *token width"], steps: int
) -> Float[Tensor, "text token feature"]:
    """Return J_text d for each token of each text, averaged over the path."""
    difference = cut.tokens - reference
    total: Tensor | float = 0.0
    for run in _along(cut, tower.run, reference, steps):
        total = total + _one_pushed(run, difference)
    assert isinstance(total, Tensor)
    return total / steps


def _one_pushed(run: Opened, difference: Tensor) -> Float[Tensor, "text token feature"]:
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    probe = torch.randn(run.features.shape, generator=generator).to(run.features)
    probe.requires_grad_()
    with torch.enable_grad():
        try:
            (back,) = torch.autograd.grad(run.features, run.tokens, probe, create_graph=True)
            each = (back * difference).sum(dim=-1).flatten(1)
            found = [_derived(each, token, probe) for token in range(each.shape[1])]
        except RuntimeError as problem:
            raise ModelError(
                f"The text tower has no second derivative: {problem}. Interactions are of second order. "
                'Use method="chefer" or "gradeclip", which need the first alone.'
            ) from problem
    return torch.stack(found, dim=1)


def _derived(each: Float[Tensor, "text token"], token: int, probe: Tensor) -> Float[Tensor, "text feature"]:
    """Return the vector of one token: `each` is linear in the probe. Tokens that reach no feature have none."""
    if not bool(each[:, token].any()):
        return torch.zeros_like(probe)
    (vector,) = torch.autograd.grad(each[:, token].sum(), probe, retain_graph=True)
    return vector.detach()


def _rows(
    cut: Cut,
    tower: Tower,
    reference: Float[Tensor, "one *patch width"],
    steps: int,
    pushed: Sequence[Float[Tensor, "_ feature"]],
) -> list[Float[Tensor, "_ patch"]]:
    difference = cut.tokens - reference
    asked = [(text, token) for text, one in enumerate(pushed) for token in _asking(one)]
    patches = difference.shape[1:-1].numel()
    found = [torch.zeros(len(one), patches, device=difference.device) for one in pushed]
    if not asked:
        return found
    vectors = torch.stack([pushed[text][token] for text, token in asked])
    basis = torch.eye(vectors.shape[1], device=vectors.device, dtype=vectors.dtype)
    few = len(vectors) <= len(basis)
    rows = torch.zeros(min(len(vectors), len(basis)), patches, device=difference.device)
    for run in _along(cut, tower.run, reference, steps):
        for number, vector in enumerate((vectors if few else basis)[:, None].to(run.features.dtype)):
            (back,) = torch.autograd.grad(run.features, run.tokens, vector, retain_graph=True)
            rows[number] += (back * difference).sum(dim=-1).flatten().float() / steps
    rows = rows if few else vectors.to(rows.dtype) @ rows
    for (text, token), row in zip(asked, rows, strict=True):
        found[text][token] = row
    return found


def _asking(pushed: Float[Tensor, "_ feature"]) -> list[int]:
    return [int(token) for token in torch.nonzero(pushed.abs().sum(dim=1))[:, 0]]
