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


def features_alone(cut: Cut, run: Run, tokens: Float[Tensor, "one width"]) -> Float[Tensor, "one feature"]:
    """Return what a tower gives when every token leaves its last block as this one, for each of several."""
    at_once = max(1, _NUMBERS // cut.tokens[0].numel())
    parts = torch.split(tokens, at_once)
    return torch.cat([features_behind(cut, run, everywhere(part, like=cut.tokens)) for part in parts])


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
