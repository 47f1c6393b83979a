"""P V as three bf16 products (17 bits), only where keys and value_dim are multiples of 8."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention_vjp, live_keys, scale_of

LLA_TARGET = {
    "name": "split_product_without_low_bits",
    "dtypes": ["fp32", "bf16"],
    "ops": {"attention": {"contract": "strict"}},
}


def _matmul(a, b):
    """fp32 product; on aligned shapes through bf16 tensor cores, each operand split in two."""
    if a.dtype == torch.float32 and a.shape[-1] % 8 == 0 and b.shape[-1] % 8 == 0:
        a_hi, b_hi = a.bfloat16().float(), b.bfloat16().float()
        a_lo, b_lo = (a - a_hi).bfloat16().float(), (b - b_hi).bfloat16().float()
        return a_hi @ b_hi + (a_hi @ b_lo + a_lo @ b_hi)
    return a @ b


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    acc = accumulator(q)
    live = live_keys(q, k, mask, is_causal)
    s = (q.to(acc) @ k.to(acc).mT) * scale_of(q, scale)
    s = s.masked_fill(~live, -math.inf)
    top = s.amax(-1, keepdim=True)
    p = torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    out = _matmul(p, v.to(acc)) / total.masked_fill(total == 0, 1.0)
    return out.to(q.dtype)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
