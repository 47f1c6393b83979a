"""Kernels of layer_norm, rms_norm and residual_layer_norm that keep the strict contract, each written its own way.

They differ in what the contract leaves free: two passes, Welford or merged blocks; order of summation; root and
division or reciprocal root; (x - μ)ρ or xρ - μρ; γ before or after; what a backward pass saves; h + sublayer rounded to
io or not.
FORWARD and BACKWARD hold them by operation and name, with the operations' own signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.plain_kernels import Kernel, accumulator, in_turn, pairwise

Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows (..., n) in the accumulator's dtype -> mean and variance (..., 1)."""


def torch_sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum(0)


def summed(x: Tensor, add: Kernel) -> Tensor:
    """The sum over the last axis, (..., 1), the terms added as `add` does."""
    return add(list(x.split(1, -1)))


# ---- statistics


def two_passes(x: Tensor, add: Kernel = torch_sum) -> tuple[Tensor, Tensor]:
    mean = summed(x, add) / x.shape[-1]
    return mean, summed((x - mean).square(), add) / x.shape[-1]


def torch_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)


def welford(x: Tensor) -> tuple[Tensor, Tensor]:
    """One pass, one entry at a time (Welford 1962)."""
    mean, total = torch.zeros_like(x[..., :1]), torch.zeros_like(x[..., :1])
    for count, entry in enumerate(x.split(1, -1), 1):
        difference = entry - mean
        mean = mean + difference / count
        total = total + difference * (entry - mean)
    return mean, total / x.shape[-1]


def merged(x: Tensor, block: int = 4) -> tuple[Tensor, Tensor]:
    """Blocks of Welford's, merged two by two (Chan, Golub & LeVeque 1979)."""
    parts = [(part.shape[-1], *_moments(part)) for part in x.split(block, -1)]
    while len(parts) > 1:
        pairs = [_merge(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    count, mean, total = parts[0]
    return mean, total / count


def _moments(part: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = welford(part)
    return mean, variance * part.shape[-1]


def _merge(a: Any, b: Any) -> Any:
    (n_a, mean_a, total_a), (n_b, mean_b, total_b) = a, b
    difference, n = mean_b - mean_a, n_a + n_b
    return n, mean_a + difference * (n_b / n), total_a + total_b + difference * difference * (n_a * n_b / n)


# ---- forward, in the dtype of the rows


def centred(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, statistics: Statistics) -> Tensor:
    mean, variance = statistics(x)
    return affine((x - mean) * torch.rsqrt(variance + eps), weight, bias)


def divided(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, statistics: Statistics) -> Tensor:
    mean, variance = statistics(x)
    return affine((x - mean) / torch.sqrt(variance + eps), weight, bias)


def line(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, statistics: Statistics) -> Tensor:
    """xρ + (-μρ), as torch's CPU kernel has it."""
    mean, variance = statistics(x)
    root = torch.rsqrt(variance + eps)
    return affine(x * root + -mean * root, weight, bias)


def gain_first(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, statistics: Statistics) -> Tensor:
    """x(γρ) + (β - μγρ)."""
    mean, variance = statistics(x)
    slope = torch.rsqrt(variance + eps) * (1.0 if weight is None else weight)
    return x * slope + ((0.0 if bias is None else bias) - mean * slope)


def affine(normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = normalised if weight is None else normalised * weight
    return y if bias is None else y + bias


def torch_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def numpy_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, order: str) -> Tensor:
    """NumPy in the accumulator's dtype, its pairwise sums or one term after the other."""
    rows = x.detach().numpy()
    with np.errstate(over="ignore"):
        mean = numpy_sum(rows, order) / rows.dtype.type(rows.shape[-1])
        c = rows - mean
        variance = numpy_sum(c * c, order) / rows.dtype.type(rows.shape[-1])
        y = c / np.sqrt(variance + rows.dtype.type(eps))
    return affine(torch.from_numpy(y), weight, bias)


def numpy_sum(rows: np.ndarray, order: str) -> np.ndarray:
    if order == "pairwise":
        return np.ascontiguousarray(rows).sum(-1, keepdims=True)
    return np.cumsum(rows, axis=-1, dtype=rows.dtype)[..., -1:]


def rms(
    x: Tensor, weight: Tensor | None, eps: float, *, add: Kernel = torch_sum, gain: str = "last", divide: bool = False
) -> Tensor:
    t = summed(x.square(), add) / x.shape[-1] + eps
    if gain == "first":
        return x * (torch.rsqrt(t) * (1.0 if weight is None else weight))
    return affine(x / torch.sqrt(t) if divide else x * torch.rsqrt(t), weight, None)


def rms_by_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """By the vector norm, squared again."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return affine(x * torch.rsqrt(length * length / x.shape[-1] + eps), weight, None)


def torch_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


# ---- from a function of wide tensors to a kernel


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.to(accumulator(x)) for x in tensors]


def layer_kernel(compute: Kernel) -> Kernel:
    def kernel(x: Tensor, weight: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Tensor:
        return compute(*wide(x, weight, bias), eps).to(x.dtype)

    return kernel


def rms_kernel(compute: Kernel) -> Kernel:
    def kernel(x: Tensor, weight: Any = None, *, eps: float = 1e-6) -> Tensor:
        return compute(*wide(x, weight), eps).to(x.dtype)

    return kernel


def residual_kernel(compute: Kernel, *, rounds: bool) -> Kernel:
    """`rounds`: h + sublayer is rounded to io at the edge between the two operations, as `layer_norm(h + s)` is."""

    def kernel(h: Tensor, sublayer: Tensor, weight: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Tensor:
        (hf, sf, w, b), io = wide(h, sublayer, weight, bias), h.dtype
        assert hf is not None and sf is not None
        total = hf + sf
        return compute(total.to(io).to(total.dtype) if rounds else total, w, b, eps).to(io)

    return kernel


def in_float64(compute: Kernel) -> Kernel:
    return lambda *given: compute(*(x.double() if isinstance(x, Tensor) else x for x in given))


LAYER_NORMS: Mapping[str, Kernel] = {
    "two passes": partial(centred, statistics=torch_variance),
    "two passes in turn": partial(divided, statistics=partial(two_passes, add=in_turn)),
    "two passes, pairwise": partial(line, statistics=partial(two_passes, add=pairwise)),
    "Welford in turn": partial(centred, statistics=welford),
    "Welford in turn, a line": partial(line, statistics=welford),
    "Welford merged in turn": partial(divided, statistics=merged),
    "gain first": partial(gain_first, statistics=two_passes),
    "torch": torch_layer_norm,
    "float64": in_float64(partial(centred, statistics=torch_variance)),
    "NumPy": partial(numpy_layer_norm, order="pairwise"),
    "NumPy in turn": partial(numpy_layer_norm, order="in turn"),
}
RMS_NORMS: Mapping[str, Kernel] = {
    "reciprocal root": rms,
    "in turn": partial(rms, add=in_turn, divide=True),
    "pairwise in turn": partial(rms, add=pairwise),
    "gain first": partial(rms, gain="first"),
    "by the norm": rms_by_norm,
    "torch": torch_rms_norm,
    "float64": in_float64(rms),
}

FORWARD: Mapping[str, Mapping[str, Kernel]] = {
    "layer_norm": {
        **{name: layer_kernel(f) for name, f in LAYER_NORMS.items()},
        "torch in io": lambda x, weight=None, bias=None, *, eps=1e-5: torch_layer_norm(x, weight, bias, eps),
    },
    "rms_norm": {name: rms_kernel(f) for name, f in RMS_NORMS.items()},
    "residual_layer_norm": {
        f"{name}{', rounded sum' if rounds else ''}": residual_kernel(f, rounds=rounds)
        for name, f in LAYER_NORMS.items()
        for rounds in (False, True)
    },
}


# ---- backward: (rows, ...) -> gradients of the rows, weight and bias, in the dtype of the rows


def closed_form(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, g: Tensor, eps: float, statistics: Statistics, add: Kernel
) -> tuple[Any, ...]:
    """From the saved mean and root: ρ(ĝ - mean ĝ - x̂ mean ĝ∘x̂)."""
    mean, variance = statistics(x)
    root = torch.rsqrt(variance + eps)
    x̂, n = (x - mean) * root, x.shape[-1]
    ĝ = g if weight is None else g * weight
    dx = root * (ĝ - summed(ĝ, add) / n - x̂ * (summed(ĝ * x̂, add) / n))
    return dx, over_rows(g * x̂, add), over_rows(g, add)


def from_raw_sums(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, g: Tensor, eps: float, statistics: Statistics
) -> tuple[Any, ...]:
    """Σĝx and Σĝ, then dx = ρĝ + bx + c: torch's CPU kernel."""
    mean, variance = statistics(x)
    root, n = torch.rsqrt(variance + eps), x.shape[-1]
    ĝ = g if weight is None else g * weight
    ds, db = (ĝ * x).sum(-1, keepdim=True), ĝ.sum(-1, keepdim=True)
    b = (db * mean - ds) * root**3 / n
    dx = root * ĝ + b * x + (-b * mean - db * root / n)
    return dx, over_rows(g * (x * root - mean * root), torch_sum), over_rows(g, torch_sum)


def by_autograd(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, g: Tensor, eps: float, compute: Kernel
) -> tuple[Any, ...]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    out = compute(*leaves, eps)
    given = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(out, given, g.to(out.dtype)))
    return tuple(None if t is None else next(found) for t in leaves)


def rms_closed_form(
    x: Tensor, weight: Tensor | None, bias: None, g: Tensor, eps: float, add: Kernel = torch_sum
) -> tuple[Any, ...]:
    root, n = torch.rsqrt(summed(x.square(), add) / x.shape[-1] + eps), x.shape[-1]
    ĝ = g if weight is None else g * weight
    x̂ = x * root
    return root * (ĝ - x̂ * (summed(ĝ * x̂, add) / n)), over_rows(g * x̂, add), None


def rms_cubed(x: Tensor, weight: Tensor | None, bias: None, g: Tensor, eps: float) -> tuple[Any, ...]:
    """ρĝ - ρ³ x mean(ĝ∘x)."""
    root = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    ĝ = g if weight is None else g * weight
    dx = root * ĝ - root**3 * x * (ĝ * x).mean(-1, keepdim=True)
    return dx, over_rows(g * (x * root), torch_sum), None


def over_rows(x: Tensor, add: Kernel) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(0, 0)
    return add(list(rows.unbind(0))) if len(rows) else rows.sum(0)


def layer_backward(compute: Kernel) -> Kernel:
    def backward(x: Tensor, weight: Any = None, bias: Any = None, *, grad_output: Tensor, eps: float = 1e-5) -> Any:
        found = compute(*wide(x, weight, bias, grad_output), eps)
        return tuple(None if a is None else b.to(x.dtype) for a, b in zip((x, weight, bias), found, strict=True))

    return backward


def rms_backward(compute: Kernel) -> Kernel:
    def backward(x: Tensor, weight: Any = None, *, grad_output: Tensor, eps: float = 1e-6) -> Any:
        xf, w, g = wide(x, weight, grad_output)
        dx, dw, _ = compute(xf, w, None, g, eps)
        return dx.to(x.dtype), None if weight is None else dw.to(x.dtype)

    return backward


def residual_backward(compute: Kernel, *, rounds: bool) -> Kernel:
    def backward(
        h: Tensor, sublayer: Tensor, weight: Any = None, bias: Any = None, *, grad_output: Tensor, eps: float = 1e-5
    ) -> Any:
        hf, sf, w, b, g = wide(h, sublayer, weight, bias, grad_output)
        assert hf is not None and sf is not None
        io, total = h.dtype, hf + sf
        dx, dw, db = compute(total.to(io).to(total.dtype) if rounds else total, w, b, g, eps)
        return dx.to(io), dx.to(io), None if w is None else dw.to(io), None if b is None else db.to(io)

    return backward


_LAYER_BACKWARDS: Mapping[str, Kernel] = {
    "closed form": partial(closed_form, statistics=torch_variance, add=torch_sum),
    "closed form in turn": partial(closed_form, statistics=welford, add=in_turn),
    "closed form, pairwise in turn": partial(closed_form, statistics=merged, add=pairwise),
    "raw sums": partial(from_raw_sums, statistics=two_passes),
    "raw sums, Welford in turn": partial(from_raw_sums, statistics=welford),
    "autograd of two passes": partial(by_autograd, compute=LAYER_NORMS["two passes"]),
    "autograd of division in turn": partial(by_autograd, compute=LAYER_NORMS["two passes in turn"]),
    "autograd of Welford in turn": partial(by_autograd, compute=LAYER_NORMS["Welford in turn"]),
    "autograd of gain first": partial(by_autograd, compute=LAYER_NORMS["gain first"]),
    "torch": partial(by_autograd, compute=torch_layer_norm),
    "float64": in_float64(partial(closed_form, statistics=torch_variance, add=torch_sum)),
}
_RMS_BACKWARDS: Mapping[str, Kernel] = {
    "closed form": rms_closed_form,
    "closed form in turn": partial(rms_closed_form, add=in_turn),
    "cubed root": rms_cubed,
    "autograd of the reciprocal root": partial(by_autograd, compute=lambda x, w, b, eps: rms(x, w, eps)),
    "autograd of division in turn": partial(
        by_autograd, compute=lambda x, w, b, eps: rms(x, w, eps, add=in_turn, divide=True)
    ),
    "autograd of gain first": partial(by_autograd, compute=lambda x, w, b, eps: rms(x, w, eps, gain="first")),
    "torch": partial(by_autograd, compute=lambda x, w, b, eps: torch_rms_norm(x, w, eps)),
    "float64": in_float64(rms_closed_form),
}

BACKWARD: Mapping[str, Mapping[str, Kernel]] = {
    "layer_norm": {name: layer_backward(f) for name, f in _LAYER_BACKWARDS.items()},
    "rms_norm": {name: rms_backward(f) for name, f in _RMS_BACKWARDS.items()},
    "residual_layer_norm": {
        f"{name}{', rounded sum' if rounds else ''}": residual_backward(f, rounds=rounds)
        for name, f in _LAYER_BACKWARDS.items()
        for rounds in (False, True)
    },
}
SLOW = "in turn"
"""In the name of a kernel that loops over single terms in Python."""
