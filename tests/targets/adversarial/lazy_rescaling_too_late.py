"""Online softmax keeps the old maximum up to 88 below the new one: sums overflow."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention_vjp, live_keys, scale_of

LLA_TARGET = {
    "name": "lazy_rescaling_too_late",
    "dtypes": ["fp32", "bf16"],
    "ops": {"attention": {"contract": "strict"}},
}


BLOCK = 32
LAZY = 88.0  # exp(88) is finite in float32: below that the old maximum still serves


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    acc = accumulator(q)
    live = live_keys(q, k, mask, is_causal)
    s = (q.to(acc) @ k.to(acc).mT) * scale_of(q, scale)
    s = s.masked_fill(~live, -math.inf)
    v_ = v.to(acc)
    lead, n, m = s.shape[:-2], s.shape[-2], s.shape[-1]
    top = torch.full((*lead, n, 1), -math.inf, dtype=acc)
    total = torch.zeros(*lead, n, 1, dtype=acc)
    out = torch.zeros(*lead, n, v.shape[-1], dtype=acc)
    for j in range(0, m, BLOCK):
        st = s[..., j : j + BLOCK]
        peak = torch.maximum(top, st.amax(-1, keepdim=True))
        keep = (peak == top) | (peak - top <= LAZY)  # conditional rescaling
        new = torch.where(keep, top, peak)
        base = new.masked_fill(new == -math.inf, 0.0)
        alpha = torch.where(keep, torch.ones_like(top), torch.exp(top - base))
        p = torch.exp(st - base)
        total = total * alpha + p.sum(-1, keepdim=True)
        out = out * alpha + p @ v_[..., j : j + BLOCK, :]
        top = new
    return (out / total.masked_fill(total == 0, 1.0)).to(q.dtype)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
