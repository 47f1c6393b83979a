"""D = rowsum(dO ∘ O) accumulated in the io dtype."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention, claims, live_keys, scale_of

LLA_TARGET = claims("delta_in_io_dtype")


def _delta(do, out):
    """Preprocess kernel: D = rowsum(dO * O), eight columns at a time."""
    delta = torch.zeros_like(do[..., :1])
    for c in range(0, do.shape[-1], 8):
        delta += (do[..., c : c + 8] * out[..., c : c + 8]).sum(-1, keepdim=True)
    return delta


def attention_vjp(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None):
    acc, sc = accumulator(q), scale_of(q, scale)
    live = live_keys(q, k, mask, is_causal)
    q_, k_, v_, do = (t.to(acc) for t in (q, k, v, grad_output))
    s = ((q_ @ k_.mT) * sc).masked_fill(~live, -math.inf)
    top = s.amax(-1, keepdim=True)
    p = torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    p = p / total.masked_fill(total == 0, 1.0)
    out = (p @ v_).to(q.dtype)
    delta = _delta(grad_output.contiguous(), out).to(acc)
    ds = p * (do @ v_.mT - delta)
    dq, dk, dv = (ds @ k_) * sc, (ds.mT @ q_) * sc, p.mT @ do
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
