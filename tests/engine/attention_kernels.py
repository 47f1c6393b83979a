"""Attention in the styles of real kernels, and its backward pass as flash attention has it.

Each computes in the dtype of its arguments; `cast` is the dtype that weights are rounded to before they meet v.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.engine.plain_kernels import LOG2E, Kernel, softmax_in_two_passes, wide


def scores(
    q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None, causal: bool, *, fold: str = "", factor: float = 1.0
) -> Tensor:
    """-inf where nobody looks. `fold`: the scale goes into "q" or "k" before the product; `factor` is part of it."""
    scale = factor * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    product = (q * scale if fold == "q" else q) @ (k * scale if fold == "k" else k).mT
    s = product if fold else product * scale
    keep = visible(q, k, mask, causal)
    return s if keep is None else s.masked_fill(~keep, -math.inf)


def visible(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    if not causal:
        return mask
    n, m = q.shape[-2], k.shape[-2]
    lower = torch.ones(n, m, dtype=torch.bool).tril(m - n)
    return lower if mask is None else mask & lower


def finite(peak: Tensor) -> Tensor:
    """The maximum, 0 for a row without keys."""
    return peak.masked_fill(peak == -math.inf, 0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    *,
    cast: torch.dtype | None = None,
    late: bool = False,
    fold: str = "",
    base2: bool = False,
) -> Tensor:
    """Weights first, or (`late`) the division after the product with v; weights cast to `cast`."""
    s = scores(q, k, mask, scale, is_causal, fold=fold, factor=LOG2E if base2 else 1.0)
    d = s - finite(s.amax(-1, keepdim=True))
    w = torch.exp2(d) if base2 else torch.exp(d)
    total = w.sum(-1, keepdim=True)
    total = torch.where(total > 0, total, 1)
    w = w if late else w / total
    out = (w if cast is None else w.to(cast).to(w.dtype)) @ v
    return out / total if late else out


def attention_online(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    *,
    block: int,
    cast: torch.dtype | None = None,
) -> Tensor:
    """One pass over blocks of keys (Dao et al. 2022, algorithm 1); the maximum is a constant to autograd."""
    s = scores(q, k, mask, scale, is_causal)
    peak, total = torch.full_like(s[..., :1], -math.inf), torch.zeros_like(s[..., :1])
    out = torch.zeros(*s.shape[:-1], v.shape[-1], dtype=s.dtype)
    for part, values in zip(s.split(block, -1), v.split(block, -2), strict=True):
        higher = torch.maximum(peak, part.detach().amax(-1, keepdim=True))
        factor, w = torch.exp(peak - finite(higher)), torch.exp(part - finite(higher))
        total = total * factor + w.sum(-1, keepdim=True)
        out = out * factor + (w if cast is None else w.to(cast).to(w.dtype)) @ values
        peak = higher
    return out / torch.where(total > 0, total, 1)


def attention_in_two_passes(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None, is_causal: bool = False
) -> Tensor:
    return softmax_in_two_passes(scores(q, k, mask, scale, is_causal)) @ v


def casting(compute: Kernel, **fixed: Any) -> Kernel:
    """`compute` in the accumulator, its weights cast to io."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        return compute(*wide(q, k, v), mask, cast=q.dtype, **fixed, **options).to(q.dtype)

    return kernel


def torch_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None, is_causal: bool = False
) -> Tensor:
    """torch's scaled_dot_product_attention, with the causal triangle and the empty rows made by hand."""
    keep = visible(q, k, mask, is_causal)
    if keep is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    empty = ~keep.any(-1, keepdim=True)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep | empty, scale=scale)
    return out.masked_fill(empty, 0)


def matmul_in_io(a: Tensor, b: Tensor) -> Tensor:
    """One product, rounded to io. In bf16 torch's own reads beyond its rows (docs/findings.md, 23), so that what
    overflows in one comes out in another: the contract is tried, not that."""
    wide_a, wide_b = wide(a, b)
    return (wide_a @ wide_b).to(a.dtype)


def whiteboard_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    *,
    fold: str = "",
    product: Kernel = matmul_in_io,
) -> Tensor:
    """As on a whiteboard: every product and the softmax round to io. The scale may be in "q", or its root in "both"."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if fold == "q":
        q, factor = q * factor, 1.0
    elif fold == "both":
        root = math.sqrt(abs(factor))
        q, k, factor = q * root, k * math.copysign(root, factor), 1.0
    s, keep = product(q, k.mT) * factor, visible(q, k, mask, is_causal)
    if keep is None:
        return product(torch.softmax(s, -1), v)
    empty = ~keep.any(-1, keepdim=True)
    s = s.masked_fill(~keep, -math.inf).masked_fill(empty, 0)  # a score that overflowed must not reach 0 · NaN
    return product(torch.softmax(s, -1).masked_fill(empty, 0), v)


def torch_attention_by_steps(*tensors: Any, **options: Any) -> Tensor:
    """torch's math backend: the scale's root goes into q and into k."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch_attention(*tensors, **options)


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    grad_output: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    casts: bool = False,
    block: int = 0,
    from_output: bool = True,
) -> tuple[Tensor, ...]:
    """Dao et al. 2022, algorithm 4: weights from a saved log-sum-exp, D from the rounded output (or Σ P∘dP).

    `casts`: P and dS rounded to io before they enter a product; `block`: partial gradients, each of so many terms, are
    kept in io.
    """
    io, factor = q.dtype, 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    qf, kf, vf, g = wide(q, k, v, grad_output)
    s = scores(qf, kf, mask, scale, is_causal)
    log_sum = torch.logsumexp(s, -1, keepdim=True)
    empty = log_sum == -math.inf
    p = torch.exp(s - log_sum.masked_fill(empty, 0)).masked_fill(empty, 0)
    g = g.masked_fill(empty, 0)
    rounded = p.to(io).to(p.dtype) if casts else p
    dp = g @ vf.mT
    out = (rounded @ vf).to(io).to(p.dtype)
    d = ((g * out) if from_output else (p * dp)).sum(-1, keepdim=True)
    ds = p * (dp - d)
    ds = ds.to(io).to(p.dtype) if casts else ds

    def by_blocks(a: Tensor, b: Tensor) -> Tensor:
        if not block:
            return a @ b
        total = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=io)
        for start in range(0, a.shape[-1], block):
            part = slice(start, start + block)
            total = (total.to(a.dtype) + a[..., part] @ b[..., part, :]).to(io)
        return total.to(a.dtype)

    return (factor * by_blocks(ds, kf)).to(io), (factor * by_blocks(ds.mT, qf)).to(io), by_blocks(rounded.mT, g).to(io)
