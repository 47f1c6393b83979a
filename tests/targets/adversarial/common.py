"""What the ten kernels share: the accumulator, the scale, who may look at whom, and both passes done right."""

import math

import torch


def claims(name):
    """LLA_TARGET of a kernel that promises strict arithmetic."""
    return {"name": name, "dtypes": ["fp32", "bf16"], "ops": {"attention": {"contract": "strict"}}}


def accumulator(t):
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def scale_of(q, scale):
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)


def live_keys(q, k, mask, is_causal):
    """(…, n, m) bool: mask AND bottom-right causal."""
    n, m = q.shape[-2], k.shape[-2]
    live = torch.ones(*q.shape[:-2], n, m, dtype=torch.bool, device=q.device)
    if mask is not None:
        live = live & mask
    if is_causal:
        live = live & torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    return live


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    acc = accumulator(q)
    live = live_keys(q, k, mask, is_causal)
    s = (q.to(acc) @ k.to(acc).mT) * scale_of(q, scale)
    s = s.masked_fill(~live, -math.inf)
    top = s.amax(-1, keepdim=True)
    p = torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    out = (p @ v.to(acc)) / total.masked_fill(total == 0, 1.0)
    return out.to(q.dtype)


def attention_vjp(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None):
    acc, sc = accumulator(q), scale_of(q, scale)
    live = live_keys(q, k, mask, is_causal)
    q_, k_, v_, do = (t.to(acc) for t in (q, k, v, grad_output))
    s = ((q_ @ k_.mT) * sc).masked_fill(~live, -math.inf)
    top = s.amax(-1, keepdim=True)
    p = torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    p = p / total.masked_fill(total == 0, 1.0)
    delta = (do * (p @ v_)).sum(-1, keepdim=True)
    ds = p * (do @ v_.mT - delta)
    dq, dk, dv = (ds @ k_) * sc, (ds.mT @ q_) * sc, p.mT @ do
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
