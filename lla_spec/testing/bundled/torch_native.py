"""torch's own functions as a target: `lla-spec verify torch_native`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LLA_TARGET = {
    "name": "torch",
    "version": torch.__version__,
    "devices": ["cpu", "cuda"],
    "dtypes": ["fp64", "fp32", "bf16", "fp16"],
    "ops": {
        "attention": {"policies": {"nan_in_masked": "propagates", "fully_masked_row": "zeros"}},
        "grouped_query_attention": {"policies": {"nan_in_masked": "propagates", "fully_masked_row": "zeros"}},
        "cross_entropy": {"policies": {"all_ignored": "nan"}},
        "truncated_svd": {"dtypes": ["fp64", "fp32"]},  # LAPACK has no 16 bits
    },
}


def softmax(x: Tensor) -> Tensor:
    return F.softmax(x, dim=-1)


def log_softmax(x: Tensor) -> Tensor:
    return F.log_softmax(x, dim=-1)


def logsumexp(x: Tensor) -> Tensor:
    return torch.logsumexp(x, dim=-1)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def weighted_average(weights: Tensor, v: Tensor) -> Tensor:
    return weights @ v


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    return _attention(q, k, v, mask, is_causal, scale)


def grouped_query_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    return _attention(q, k, v, mask, is_causal, scale, enable_gqa=True)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, **options: Any
) -> Tensor:
    """scaled_dot_product_attention; its own is_causal is top-left and excludes a mask, so the mask is made here."""
    n, m = q.shape[-2], k.shape[-2]
    if is_causal and (mask is not None or n != m):
        visible = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        mask, is_causal = visible if mask is None else mask & visible, False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, **options)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(ids, weight)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """torch wants the classes on axis 1 of at most one batch axis: the rows are flattened."""
    rows = logits.reshape(-1, logits.shape[-1])
    loss = F.cross_entropy(rows, targets.reshape(-1), ignore_index=ignore_index, reduction=reduction)
    return loss.reshape(targets.shape) if reduction == "none" else loss


def truncated_svd(w: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u[..., :k], s[..., :k], vh[..., :k, :]
