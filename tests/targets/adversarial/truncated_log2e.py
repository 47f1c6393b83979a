"""exp2 with log2(e) typed as 1.44269: weights off by 3.5e-6 of their logit's gap, seen in fp32 only."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention_vjp, claims, live_keys, scale_of

LLA_TARGET = claims("truncated_log2e")


LOG2E = {torch.float64: 1.4426950408889634, torch.float32: 1.44269}


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    acc = accumulator(q)
    live = live_keys(q, k, mask, is_causal)
    s = (q.to(acc) @ k.to(acc).mT) * scale_of(q, scale)
    s = s.masked_fill(~live, -math.inf)
    top = s.amax(-1, keepdim=True)
    p = torch.exp2((s - top.masked_fill(top == -math.inf, 0.0)) * LOG2E[acc])
    total = p.sum(-1, keepdim=True)
    out = (p @ v.to(acc)) / total.masked_fill(total == 0, 1.0)
    return out.to(q.dtype)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
