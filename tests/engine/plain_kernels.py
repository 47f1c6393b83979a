"""Straightforward torch kernels of products and of softmax, and their backward passes, written out.

The plain functions compute in whatever dtype they are given; `in_io` makes a kernel that accumulates in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LOG2E = math.log2(math.e)
Kernel = Callable[..., Any]


def accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def wide(*tensors: Tensor) -> list[Tensor]:
    return [x.to(accumulator(x)) for x in tensors]


def in_io(compute: Kernel) -> Kernel:
    """The kernel that computes in the accumulator's dtype and casts once at the end."""

    def kernel(*tensors: Tensor, **options: Any) -> Tensor:
        return compute(*wide(*tensors), **options).to(tensors[0].dtype)

    return kernel


# ---- sums and products


def in_turn(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def backwards(terms: list[Tensor]) -> Tensor:
    return in_turn(terms[::-1])


def pairwise(terms: list[Tensor]) -> Tensor:
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return pairwise(terms[:middle]) + pairwise(terms[middle:])


def product_by(add: Callable[[list[Tensor]], Tensor]) -> Kernel:
    """a @ b (+ bias, the first of the terms), the products rounded and added as `add` does."""

    def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        terms = [a[..., :, k : k + 1] * b[..., k : k + 1, :] for k in range(a.shape[-1])]
        return add(terms if bias is None else [bias, *terms])

    return product


def linear_by(add: Callable[[list[Tensor]], Tensor]) -> Kernel:
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = product_by(add)(x.reshape(-1, x.shape[-1]), weight.mT, bias)
        return rows.reshape(*x.shape[:-1], weight.shape[0])

    return linear


def contiguous(kernel: Kernel) -> Kernel:
    """torch's own kernel in the io dtype; on other layouts its linear rounds twice (docs/findings.md)."""
    return lambda *tensors, **options: kernel(*(x if x is None else x.contiguous() for x in tensors), **options)


class ProductOfRounded(torch.autograd.Function):
    """a @ b in float32 of operands rounded to tf32 (11 bits of significand), in the gradients too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return to_tf32(a) @ to_tf32(b)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        (a, b), g = ctx.saved_tensors, to_tf32(slopes[0])
        return g @ to_tf32(b).mT, to_tf32(a).mT @ g


def to_tf32(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp(torch.round(mantissa * 2**11) / 2**11, exponent).float()


def matmul_tf32(a: Tensor, b: Tensor) -> Tensor:
    return ProductOfRounded.apply(a, b)


def linear_tf32(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = matmul_tf32(x.reshape(-1, x.shape[-1]), weight.mT).reshape(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias


# ---- softmax and its logarithms


def softmax_by_hand(x: Tensor) -> Tensor:
    w = torch.exp(x - x.amax(-1, keepdim=True))
    return w * (1 / w.sum(-1, keepdim=True))


def softmax_by_exp2(x: Tensor) -> Tensor:
    w = torch.exp2((x - x.amax(-1, keepdim=True)) * LOG2E)
    return w / w.sum(-1, keepdim=True)


def softmax_in_turn(x: Tensor) -> Tensor:
    w = torch.exp(x - x.amax(-1, keepdim=True))
    return w / in_turn(list(w.unbind(-1)))[..., None]


def online_sums(x: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, their sum, the maximum) after one pass over blocks, all rescaled whenever the maximum rises."""
    peak, total = torch.full_like(x[..., :1], -math.inf), torch.zeros_like(x[..., :1])
    weights: list[Tensor] = []
    for part in x.split(block, -1):
        higher = torch.maximum(peak, part.amax(-1, keepdim=True))
        factor = torch.exp(peak - higher)
        weights = [w * factor for w in weights] + [torch.exp(part - higher)]
        total = total * factor + weights[-1].sum(-1, keepdim=True)
        peak = higher
    return torch.cat(weights, -1), total, peak


def softmax_online(x: Tensor, block: int = 1) -> Tensor:
    weights, total, _ = online_sums(x, block)
    return weights / total


def sums_in_blocks(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(maximum, Σ exp(x - maximum)) over blocks, (..., 1); the maximum is 0, the sum too, where all is -inf. Autograd
    does not see the maxima: they are a gauge (softmax.safe), and what they would receive is 0 but for rounding."""
    peak, total = torch.full_like(x[..., :1], -math.inf), torch.zeros_like(x[..., :1])
    for part in x.split(block, -1):
        higher = torch.maximum(peak, part.detach().amax(-1, keepdim=True))
        shift = torch.where(higher > -math.inf, higher, 0.0)
        total = total * torch.exp(peak - shift) + torch.exp(part - shift).sum(-1, keepdim=True)
        peak = higher
    return torch.where(peak > -math.inf, peak, 0.0), total


def softmax_in_two_passes(x: Tensor, block: int = 8) -> Tensor:
    """The maximum and the sum, then the weights (Milakov & Gimelshein 2018, algorithm 3); zeros where all is -inf."""
    peak, total = sums_in_blocks(x, block)
    return torch.exp(x - peak) / torch.where(total > 0, total, 1.0)


def logsumexp_by_hand(x: Tensor) -> Tensor:
    peak = x.amax(-1, keepdim=True)
    return torch.exp(x - peak).sum(-1).log() + peak[..., 0]


def logsumexp_by_exp2(x: Tensor) -> Tensor:
    peak = x.amax(-1, keepdim=True)
    return torch.exp2((x - peak) * LOG2E).sum(-1).log() + peak[..., 0]


def logsumexp_online(x: Tensor, block: int = 4) -> Tensor:
    _, total, peak = online_sums(x, block)
    return (peak + total.log())[..., 0]


def log_softmax_shifted(x: Tensor) -> Tensor:
    d = x - x.amax(-1, keepdim=True)
    return d - d.exp().sum(-1, keepdim=True).log()


def log_softmax_of(logsumexp: Kernel) -> Kernel:
    """x - logsumexp(x), as the declaration has it."""
    return lambda x: x - logsumexp(x)[..., None]


# ---- backward passes


def softmax_from_saved(x: Tensor, *, grad_output: Tensor) -> tuple[Tensor]:
    """From the saved weights, rounded to io."""
    p, g = wide(torch.softmax(x.to(accumulator(x)), -1).to(x.dtype), grad_output)
    return ((p * (g - (p * g).sum(-1, keepdim=True))).to(x.dtype),)


def log_softmax_from_saved(x: Tensor, *, grad_output: Tensor) -> tuple[Tensor]:
    y, g = wide(torch.log_softmax(x.to(accumulator(x)), -1).to(x.dtype), grad_output)
    return ((g - y.exp() * g.sum(-1, keepdim=True)).to(x.dtype),)


def logsumexp_from_saved(x: Tensor, *, grad_output: Tensor) -> tuple[Tensor]:
    logits, g = wide(x, grad_output)
    saved = torch.logsumexp(logits, -1).to(x.dtype).to(logits.dtype)
    return (((logits - saved[..., None]).exp() * g[..., None]).to(x.dtype),)


def matmul_backward(product: Kernel) -> Kernel:
    def backward(a: Tensor, b: Tensor, *, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        left, right, g = wide(a, b, grad_output)
        return product(g, right.mT).to(a.dtype), product(left.mT, g).to(b.dtype)

    return backward


def linear_backward(add: Callable[[list[Tensor]], Tensor]) -> Kernel:
    def backward(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, grad_output: Tensor) -> tuple[Any, ...]:
        io, (xf, wf, g) = x.dtype, wide(x, weight, grad_output)
        rows, columns = g.reshape(-1, g.shape[-1]), xf.reshape(-1, xf.shape[-1])
        product = product_by(add)
        found = (product(rows, wf).reshape(x.shape).to(io), product(rows.mT, columns).to(io))
        return found if bias is None else (*found, add(list(rows.unbind(0))).to(io))

    return backward
