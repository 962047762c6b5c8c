"""What a tower makes of other tokens than its own: its last norm, pool and projection, run on sequences of ours.

The tower runs as it is; what leaves its last block (or its feature map) is replaced by a batch of sequences, and the
rest of the tower gives a feature for each. A sequence in which every token is the same says what one token gives:
the class token's way, the mean's, or an attention pool that finds the same value everywhere.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.matching.cut import Cut
from mmattn.analysis.matching.spots import Spot, changed_at
from mmattn.analysis.matching.towers import Run
from mmattn.errors import ModelError

# Numbers that a pass over sequences may hold at once in one tensor.
_NUMBERS = 1 << 25

# How far a feature of length one may be off in a shorter sequence: what another shape of product changes.
_SAME = 2e-6


def features_behind(
    cut: Cut, run: Run, sequences: Float[Tensor, "sequence *token width"]
) -> Float[Tensor, "sequence feature"]:
    """Return what a tower gives when these sequences leave its last block.

    Raises
    ------
    ModelError
        What leaves the block is no sequence like the one that enters it.
    """

    def replaced(tokens: Tensor) -> Tensor:
        _check_alike(cut, tokens)
        return sequences

    with changed_at(behind(cut), replaced):
        return run()


def features_alone(
    cut: Cut, run: Run, tokens: Float[Tensor, "one width"], *, special: int
) -> Float[Tensor, "one feature"]:
    """Return what a tower gives when every token leaves its last block as this one, for each of several.

    Many of them run in sequences of a special token each and one more, where that gives the same.

    Parameters
    ----------
    special
        How many tokens of the sequence are no patches.
    """
    like = cut.tokens
    if len(tokens) > _at_once(like):
        shorter = like[:, : special + 1] if like.dim() == 3 else like[:, :1, :1]
        like = shorter if _gives_the_same(cut, run, tokens[:1], shorter) else like
    parts = torch.split(tokens, _at_once(like))
    return torch.cat([features_behind(cut, run, everywhere(part, like=like)) for part in parts])


def _at_once(like: Tensor) -> int:
    return max(1, _NUMBERS // like[0].numel())


def _gives_the_same(cut: Cut, run: Run, token: Float[Tensor, "1 width"], shorter: Tensor) -> bool:
    """Whether the rest of the tower takes a shorter sequence, and gives the feature of the whole one."""
    whole = features_behind(cut, run, everywhere(token, like=cut.tokens))
    try:
        found = features_behind(cut, run, everywhere(token, like=shorter))
    except (RuntimeError, ValueError, IndexError, AssertionError):  # it counts its tokens
        return False
    return found.shape == whole.shape and torch.allclose(found, whole, atol=_SAME)


def everywhere(tokens: Float[Tensor, "one width"], *, like: Tensor) -> Float[Tensor, "one *token width"]:
    """Return a sequence for each token in which it stands everywhere, shaped as others are."""
    shape = [len(tokens), *[1] * (like.dim() - 2), tokens.shape[-1]]
    return tokens.reshape(shape).expand(-1, *like.shape[1:-1], -1).contiguous()


def leaving(cut: Cut, run: Run) -> Float[Tensor, "token width"]:
    """Return the tokens of one picture as they leave the last block."""
    seen: list[Tensor] = []
    with torch.no_grad(), changed_at(behind(cut), seen.append):
        run()
    _check_alike(cut, seen[0])
    return seen[0].reshape(-1, seen[0].shape[-1])


def behind(cut: Cut) -> Spot:
    """Return the spot at what leaves the block of a cut."""
    return Spot(path=cut.spot.path, module=cut.spot.module, behind=True, channels=cut.spot.channels)


def _check_alike(cut: Cut, tokens: Tensor) -> None:
    if tokens.shape != cut.tokens.shape:
        raise ModelError(
            f"What leaves the last block {cut.spot.path} is no sequence like the one that enters it. "
            'Features of patches need one. Use method="chefer".'
        )
