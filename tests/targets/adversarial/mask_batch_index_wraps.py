"""Leading axes folded to (batch, heads); the mask's batch index wraps around for three leading axes."""

import math

import torch

from tests.targets.adversarial import common
from tests.targets.adversarial.common import attention_vjp, claims

LLA_TARGET = claims("mask_batch_index_wraps")


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    # grid (batch, heads): all axes before the last leading one are one batch axis
    lead = q.shape[:-2]
    if mask is None or len(lead) < 2 or mask.dim() <= 3:
        return common.attention(q, k, v, mask, is_causal=is_causal, scale=scale)
    n, m = q.shape[-2], k.shape[-2]
    batch, heads = math.prod(lead[:-1]), lead[-1]
    q3, k3, v3 = (t.reshape(batch, heads, *t.shape[-2:]) for t in (q, k, v))
    mask_batch = math.prod(mask.shape[:-3])
    mask3 = mask.reshape(mask_batch, *mask.shape[-3:]).expand(mask_batch, heads, n, m)
    pid = torch.arange(batch, device=q.device)
    mask3 = mask3[pid % mask_batch] if batch else mask3[:0]
    out = common.attention(q3, k3, v3, mask3, is_causal=is_causal, scale=scale)
    return out.reshape(*lead, n, v.shape[-1])


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
