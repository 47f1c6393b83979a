"""The row maximum is taken on the raw scores, before a negative scale: exp overflows where scale < 0."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention_vjp, live_keys, scale_of

LLA_TARGET = {
    "name": "maximum_before_negative_scale",
    "dtypes": ["fp32", "bf16"],
    "ops": {"attention": {"contract": "strict"}},
}


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    # the row maximum is taken on the raw scores, so that scale and subtraction fuse into one fma
    acc, sc = accumulator(q), scale_of(q, scale)
    live = live_keys(q, k, mask, is_causal)
    raw = q.to(acc) @ k.to(acc).mT
    top = raw.masked_fill(~live, -math.inf).amax(-1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0.0)
    p = torch.exp(raw * sc - top * sc).masked_fill(~live, 0.0)
    total = p.sum(-1, keepdim=True)
    out = (p @ v.to(acc)) / total.masked_fill(total == 0, 1.0)
    return out.to(q.dtype)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
