"""Values of the keys' shape are loaded with the keys' strides."""

import torch

from tests.targets.adversarial import common
from tests.targets.adversarial.common import attention_vjp, claims

LLA_TARGET = claims("values_with_keys_strides")


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
    return common.attention(q, k, v, mask, is_causal=is_causal, scale=scale)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
