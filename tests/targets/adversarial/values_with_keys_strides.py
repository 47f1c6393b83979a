"""Values of the keys' shape are loaded with the keys' strides."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention_vjp, live_keys, scale_of

LLA_TARGET = {
    "name": "values_with_keys_strides",
    "dtypes": ["fp32", "bf16"],
    "ops": {"attention": {"contract": "strict"}},
}


def _kernel(q, k, v, mask=None, *, is_causal=False, scale=None):
    acc = accumulator(q)
    live = live_keys(q, k, mask, is_causal)
    s = (q.to(acc) @ k.to(acc).mT) * scale_of(q, scale)
    s = s.masked_fill(~live, -math.inf)
    top = s.amax(-1, keepdim=True)
    p = torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    out = (p @ v.to(acc)) / total.masked_fill(total == 0, 1.0)
    return out.to(q.dtype)


def _load(t, stride):
    """Load the tensor from its base pointer with the strides that the launcher passes."""
    flat = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    at = torch.full((), t.storage_offset(), dtype=torch.int64)
    for size, step in zip(t.shape, stride, strict=True):
        at = at[..., None] + torch.arange(size) * step
    return flat[at.clamp(max=max(flat.numel() - 1, 0))]


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    q, k, v = q.detach(), k.detach(), v.detach()
    if k.shape == v.shape and k.stride(-1) == 1 and v.stride(-1) == 1 and v.numel():
        stride_kv = k.stride()
        k, v = _load(k, stride_kv), _load(v, stride_kv)
    else:
        k, v = k.contiguous(), v.contiguous()
    return _kernel(q, k, v, mask, is_causal=is_causal, scale=scale)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
