"""Correct attentions in five styles: each must pass, forward and backward, in each dtype that it declares."""

import math
from types import SimpleNamespace

import numpy as np
import torch


def visible_keys(q, k, mask, is_causal):
    n, m = q.shape[-2], k.shape[-2]
    visible = torch.ones(n, m, dtype=torch.bool) if mask is None else mask
    return visible & torch.ones(n, m, dtype=torch.bool).tril(m - n) if is_causal else visible


def _whiteboard_in(accumulator):
    def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
        acc = accumulator(q.dtype)
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        visible = visible_keys(q, k, mask, is_causal)
        scores = (q.to(acc) @ k.to(acc).mT * scale).masked_fill(~visible, float("-inf"))
        peak = scores.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(acc).min)
        weights = torch.exp(scores - peak).masked_fill(~visible, 0)
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1)
        return (weights @ v.to(acc)).to(q.dtype)

    return attention


def _promoted(dtype):
    return torch.promote_types(dtype, torch.float32)


CLAIMS = {"dtypes": ["fp32", "bf16", "fp16"], "ops": {"attention": {"contract": "strict"}}}

plain = SimpleNamespace(
    attention=_whiteboard_in(_promoted),
    LLA_TARGET={**CLAIMS, "name": "plain", "dtypes": ["fp64", "fp32", "bf16", "fp16"]},
)
in_float64 = SimpleNamespace(
    attention=_whiteboard_in(lambda dtype: torch.float64), LLA_TARGET={**CLAIMS, "name": "float64"}
)


def _online(q, k, v, mask=None, *, is_causal=False, scale=None, block=4):
    """Blocks of keys, the running maximum and sum rescaled (Dao et al. 2022, algorithm 1)."""
    acc = _promoted(q.dtype)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    visible = visible_keys(q, k, mask, is_causal).expand(*q.shape[:-1], k.shape[-2])
    qf, kf, vf = q.to(acc), k.to(acc), v.to(acc)
    low = torch.finfo(acc).min
    peak = torch.full(q.shape[:-1], low, dtype=acc)
    total = torch.zeros(q.shape[:-1], dtype=acc)
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=acc)
    for start in range(0, k.shape[-2], block):
        part = slice(start, start + block)
        scores = (qf @ kf[..., part, :].mT * scale).masked_fill(~visible[..., part], float("-inf"))
        higher = torch.maximum(peak, scores.detach().amax(-1).clamp_min(low))
        weights = torch.exp(scores - higher[..., None]).masked_fill(~visible[..., part], 0)
        keep = torch.exp(peak - higher)
        total = total * keep + weights.sum(-1)
        out = out * keep[..., None] + weights @ vf[..., part, :]
        peak = higher
    return (out / total.masked_fill(total == 0, 1)[..., None]).to(q.dtype)


online = SimpleNamespace(attention=_online, LLA_TARGET={**CLAIMS, "name": "online softmax"})


def _in_numpy(q, k, v, mask=None, *, is_causal=False, scale=None):
    acc = np.float64 if q.dtype == torch.float64 else np.float32
    qf, kf, vf = (t.to(_promoted(t.dtype)).numpy().astype(acc) for t in (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    visible = visible_keys(q, k, mask, is_causal).numpy()
    scores = np.where(visible, qf @ np.swapaxes(kf, -1, -2) * acc(scale), -np.inf)
    with np.errstate(all="ignore"):
        peak = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), np.finfo(acc).min)
        weights = np.where(visible, np.exp(scores - peak), acc(0))
        total = weights.sum(-1, keepdims=True)
        out = (weights / np.where(total == 0, acc(1), total)) @ vf
    return torch.from_numpy(np.ascontiguousarray(out)).to(q.dtype)


in_numpy = SimpleNamespace(
    attention=_in_numpy,
    LLA_TARGET={**CLAIMS, "name": "numpy", "dtypes": ["fp64", "fp32", "bf16"], "differentiable": False},
)
