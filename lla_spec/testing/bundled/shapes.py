"""Shapes as libraries want them: one batch axis instead of any number, heads as an axis, one mask for all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def visible(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """Who may look at whom, bool (..., n, m): the mask and, where causal, the bottom-right triangle; None: everybody.

    >>> visible(torch.zeros(2, 1), torch.zeros(3, 1), None, True).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    if not is_causal:
        return mask
    n, m = q.shape[-2], k.shape[-2]
    triangle = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    return triangle if mask is None else mask & triangle


def with_heads(x: Tensor) -> Tensor:
    """(..., n, d) as (b, 1, n, d)."""
    return x.reshape(-1, 1, *x.shape[-2:])


def one_batch(x: Tensor) -> Tensor:
    """(..., h, n, d) as (b, h, n, d)."""
    return x.reshape(-1, *x.shape[-3:])


def mask_of_heads(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask that broadcasts to (..., h, n, m), spread over the batch of q (..., h, n, d): (b, h, n, m)."""
    if mask is None:
        return None
    return one_batch(mask.expand(*q.shape[:-1], mask.shape[-1]))


def mask_of_rows(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask that broadcasts to (..., n, m), spread over the batch of q (..., n, d): (b, 1, n, m)."""
    if mask is None:
        return None
    return with_heads(mask.expand(*q.shape[:-1], mask.shape[-1]))


def loss_of_no_rows(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """The cross-entropy of an empty batch, for kernels that cannot be launched on one: NaN, 0 or nothing."""
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction=reduction)
    return loss.reshape(targets.shape) if reduction == "none" else loss
