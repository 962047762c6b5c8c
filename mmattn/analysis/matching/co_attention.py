"""Chefer's relevance where words ask patches: attention times gradient, followed through both sides and between them.

    own side      R_ss  <-  R_ss + A R_ss          R_sq  <-  R_sq + A R_sq
    other side    R_sq  <-  R_sq + N(R_ss)^T A N(R_qq)          R_ss  <-  R_ss + A R_qs

A is the mean over heads of (A * dS/dA)^+, R begins as I, and N brings the rows of R - I to one and adds I again.
Chefer, Gur & Wolf (2021), "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers". S is what the model says of the pair: the logit of a match, with a row for each word as it asks; or,
where the model writes, the logit of one word, with the row that wrote it, so that each word has a backward pass.

Where we depart: between sides that do not ask each other directly (words, slots, patches)

    R_sp  <-  R_sp + N(R_ss)^T A R_qp

hands on what slots gathered; a row of R - I that is nothing stays nothing (theirs is 0 / 0). Layers follow each other
as they ran, those of BridgeTower's bridges too, whose towers go on beside the layers between them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.matching.woven import Thread, Woven
from mmattn.schema import stream as rows
from mmattn.schema.layers import AttentionLayer


def co_attention(woven: Woven) -> Float[Tensor, "node node"]:
    """Return R - I over all nodes, of layers whose weights are the positive part of attention times gradient."""
    found = torch.zeros(woven.count, woven.count)
    before, number = found, None
    for thread in woven.threads:
        if thread.round is None or thread.round != number:
            before, number = found, thread.round
        found = _passed(thread, found, before if thread.round is not None else found)
    return found


def _passed(
    thread: Thread, found: Float[Tensor, "node node"], other: Float[Tensor, "node node"]
) -> Float[Tensor, "node node"]:
    """Return R - I after a layer; `other`: R - I of those asked, as it stood when they were."""
    asks, asked = thread.asks, thread.asked
    own = torch.isin(asked, asks)
    attention = _dense(thread.layer)
    added = torch.zeros(len(asks), found.shape[1])
    if bool(own.any()):
        inner = attention[:, own]
        added += inner @ found[asked[own]]
        added.index_add_(1, asked[own], inner)
    if not bool(own.all()):
        added += _between(attention[:, ~own], found, other, asks=asks, asked=asked[~own])
    passed = found.clone()
    passed[asks] += added
    return passed


def _between(
    attention: Float[Tensor, "query key"], found: Tensor, other: Tensor, *, asks: Tensor, asked: Tensor
) -> Float[Tensor, "query node"]:
    """Return what one side gains by asking another."""
    own, there = _normalized(found[asks][:, asks]), _normalized(other[asked][:, asked])
    added = own.T @ (attention @ other[asked])
    added[:, asks] = attention @ other[asked][:, asks]
    added[:, asked] = own.T @ attention @ there
    return added


def _normalized(excess: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return R with the rows of R - I brought to one."""
    sums = excess.sum(dim=1, keepdim=True)
    shares = torch.where(sums > 0, excess / sums.clamp(min=torch.finfo(excess.dtype).tiny), 0.0)
    return shares + torch.eye(len(excess))


def _dense(layer: AttentionLayer) -> Float[Tensor, "query key"]:
    """Return a layer's weights, heads averaged, on the CPU: each row is few numbers beside what heads hold."""
    return rows.rows_of(layer, range(len(layer.query_axis))).float().cpu()
