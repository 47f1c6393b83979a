"""Straightforward torch kernels of each operation, for tests of bounds: accumulation in float32, io in any dtype.

Each takes torch tensors of the io dtype and keyword options of the operation, and returns a result of the io dtype.
They differ in the freedoms that a contract gives: order of summation, online or two-pass softmax, weights cast or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TORCH = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def wide(*tensors: Tensor) -> list[Tensor]:
    return [x.to(accumulator(x)) for x in tensors]


def in_io(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The kernel that computes in the accumulator's dtype and casts once at the end."""

    def kernel(*tensors: Tensor, **options: Any) -> Tensor:
        return compute(*wide(*tensors), **options).to(tensors[0].dtype)

    return kernel


def softmax_by_hand(x: Tensor) -> Tensor:
    w = torch.exp(x - x.amax(-1, keepdim=True))
    return w * (1 / w.sum(-1, keepdim=True))


def softmax_by_exp2(x: Tensor) -> Tensor:
    w = torch.exp2((x - x.amax(-1, keepdim=True)) * math.log2(math.e))
    return w / w.sum(-1, keepdim=True)


def softmax_online(x: Tensor) -> Tensor:
    """One logit after the other; the running sum is rescaled whenever the maximum rises."""
    peak = torch.full_like(x[..., 0], -math.inf)
    total = torch.zeros_like(peak)
    weights = torch.zeros_like(x)
    for j in range(x.shape[-1]):
        new = torch.maximum(peak, x[..., j])
        factor = torch.exp(peak - new)
        weights = weights * factor[..., None]
        weights[..., j] = torch.exp(x[..., j] - new)
        total = total * factor + weights[..., j]
        peak = new
    return weights / total[..., None]


def logsumexp_by_hand(x: Tensor) -> Tensor:
    peak = x.amax(-1, keepdim=True)
    return (torch.exp(x - peak).sum(-1).log() + peak[..., 0]).to(x.dtype)


def log_softmax_shifted(x: Tensor) -> Tensor:
    d = x - x.amax(-1, keepdim=True)
    return d - d.exp().sum(-1, keepdim=True).log()


def sequential_matmul(a: Tensor, b: Tensor) -> Tensor:
    out = a[..., :, :1] * b[..., :1, :]
    for k in range(1, a.shape[-1]):
        out = out + a[..., :, k : k + 1] * b[..., k : k + 1, :]
    return out


def scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None, causal: bool) -> Tensor:
    s = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        n, m = s.shape[-2:]
        lower = torch.ones(n, m, dtype=torch.bool).tril(m - n)
        mask = lower if mask is None else mask & lower
    return s if mask is None else s.masked_fill(~mask, -math.inf)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    cast: torch.dtype | None = None,
    late: bool = False,
) -> Tensor:
    """Weights first, or (`late`) the division after the product with v; weights cast to `cast`."""
    s = scores(q, k, mask, scale, is_causal)
    peak = s.amax(-1, keepdim=True)
    w = torch.exp(s - torch.where(peak == -math.inf, torch.zeros_like(peak), peak))
    total = w.sum(-1, keepdim=True)
    w, total = (w, total) if late else (w / torch.where(total > 0, total, 1), torch.ones_like(total))
    rounded = w if cast is None else w.to(cast).to(w.dtype)
    return (rounded @ v) / torch.where(total > 0, total, 1)


Kernel = Callable[..., Any]
FORWARD: Mapping[str, Mapping[str, Kernel]] = {
    "softmax": {
        "torch": in_io(lambda x: torch.softmax(x, -1)),
        "by hand": in_io(softmax_by_hand),
        "exp2": in_io(softmax_by_exp2),
        "online": in_io(softmax_online),
    },
    "logsumexp": {"torch": in_io(lambda x: torch.logsumexp(x, -1)), "by hand": in_io(logsumexp_by_hand)},
    "log_softmax": {
        "torch": in_io(lambda x: torch.log_softmax(x, -1)),
        "shifted": in_io(log_softmax_shifted),
        "x - logsumexp": in_io(lambda x: x - torch.logsumexp(x, -1, keepdim=True)),
    },
    "matmul": {"torch": in_io(torch.matmul), "sequential": in_io(sequential_matmul)},
    "linear": {"torch": in_io(torch.nn.functional.linear)},
    "weighted_average": {"torch": in_io(torch.matmul)},
    "attention": {
        "weights first": in_io(attention),
        "division last": in_io(lambda *t, **o: attention(*t, late=True, **o)),
        "cast weights": lambda q, k, v, **o: attention(*wide(q, k, v), cast=q.dtype, **o).to(q.dtype),
        "cast, division last": lambda q, k, v, **o: attention(*wide(q, k, v), cast=q.dtype, late=True, **o).to(q.dtype),
    },
}


def autograd(kernel: Kernel) -> Kernel:
    """The VJP that autograd makes of a kernel in the accumulator's dtype, gradients cast to io."""

    def backward(*tensors: Tensor, grad_output: Tensor, **options: Any) -> tuple[Tensor, ...]:
        leaves = [x.requires_grad_() for x in wide(*(x.detach().clone() for x in tensors))]
        out = kernel(*leaves, **options)
        found = torch.autograd.grad(out, leaves, grad_output.to(out.dtype))
        return tuple(g.to(x.dtype) for g, x in zip(found, tensors, strict=True))

    return backward


SCALES = (1.0, 1.0, 1e-3, 30.0)
MULTILINEAR = ("matmul", "linear", "weighted_average")


def random_arguments(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Small float64 arguments by torch name: random sizes (primes among them), batch axes, masks and magnitudes."""
    n, m, d, e = (int(rng.choice([1, 2, 3, 5, 8, 13, 31])) for _ in range(4))
    batch = [(), (2,), (2, 3)][rng.integers(3)]
    size = SCALES[rng.integers(len(SCALES))]

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) * size

    if name in ("softmax", "log_softmax", "logsumexp"):
        return {"x": normal(*batch, n, m) + float(rng.choice([0.0, 10.0 * size]))}
    if name == "matmul":
        return {"a": normal(*batch, n, d), "b": normal(*batch, d, m)}
    if name == "weighted_average":
        return {"weights": normal(*batch, n, m), "v": normal(*batch, m, e)}
    if name == "linear":
        return {"x": normal(*batch, n, d), "weight": normal(e, d), "bias": normal(e)}
    mask = rng.random((n, m)) < 0.7
    extra: dict[str, Any] = [{}, {"mask": mask}, {"is_causal": True}, {"scale": -0.3}][rng.integers(4)]
    return {"q": normal(*batch, n, d), "k": normal(*batch, m, d), "v": normal(*batch, m, e), **extra}


def rounded_to(arguments: Mapping[str, Any], dtype: str) -> tuple[dict[str, Any], list[Tensor], dict[str, Any]]:
    """The arguments exactly as a kernel of that dtype sees them: float64 arrays; its tensors; its options."""
    tensors = {
        key: torch.from_numpy(value).to(TORCH[dtype])
        for key, value in arguments.items()
        if isinstance(value, np.ndarray) and value.dtype != bool
    }
    options = {key: value for key, value in arguments.items() if key not in tensors}
    exact = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    given = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    return {**exact, **options}, list(tensors.values()), given
