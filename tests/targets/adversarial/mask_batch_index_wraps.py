"""Leading axes folded to (batch, heads); the mask's batch index wraps around for three leading axes."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention_vjp, live_keys, scale_of

LLA_TARGET = {
    "name": "mask_batch_index_wraps",
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


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    # grid (batch, heads): all axes before the last leading one are one batch axis
    lead = q.shape[:-2]
    if mask is None or len(lead) < 2 or mask.dim() <= 3:
        return _kernel(q, k, v, mask, is_causal=is_causal, scale=scale)
    n, m = q.shape[-2], k.shape[-2]
    batch, heads = math.prod(lead[:-1]), lead[-1]
    q3, k3, v3 = (t.reshape(batch, heads, *t.shape[-2:]) for t in (q, k, v))
    mask_batch = math.prod(mask.shape[:-3])
    mask3 = mask.reshape(mask_batch, *mask.shape[-3:]).expand(mask_batch, heads, n, m)
    pid = torch.arange(batch, device=q.device)
    mask3 = mask3[pid % mask_batch] if batch else mask3[:0]
    out = _kernel(q3, k3, v3, mask3, is_causal=is_causal, scale=scale)
    return out.reshape(*lead, n, v.shape[-1])


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
