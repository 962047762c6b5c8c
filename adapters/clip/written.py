"""How likely a decoder is to write a text, and the logit of each of its tokens.

    log p(text) per token = mean over tokens of  log softmax(logits of row i)[token i + 1]

Row i, and the attention that made it, were asked for the token at i + 1. The mean, so that texts of different lengths
compare.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmattn.interception.protocol import PairScores


def written(
    logits: Float[Tensor, "pair row piece"], *, ids: Int[Tensor, "pair token"], real: Bool[Tensor, "pair token"]
) -> PairScores:
    """Return the scores of texts that a decoder was given.

    Parameters
    ----------
    logits
        As many rows as tokens, or one fewer: what follows the last is not asked.
    ids, real
        The texts, and which of their tokens are no padding.

    Examples
    --------
    >>> logits = torch.tensor([[[0.0, 0.0], [9.0, 9.0]]])
    >>> found = written(logits, ids=torch.tensor([[0, 1]]), real=torch.ones(1, 2).bool())
    >>> found.unit, round(float(found.values), 4), found.words.tolist()
    ('log-likelihood per token', -0.6931, [[0.0, 0.0]])
    """
    rows = logits[:, : ids.shape[1] - 1].float()
    asked = ids[:, 1:, None].to(rows.device)
    own = rows.gather(2, asked)[..., 0]
    counted = real[:, 1:].to(rows.device)
    likely = torch.where(counted, own - rows.logsumexp(dim=2), 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    start = torch.zeros_like(own[:, :1])
    words = torch.cat([start, torch.where(counted, own, 0.0)], dim=1)
    return PairScores(values=likely, unit="log-likelihood per token", words=words)
