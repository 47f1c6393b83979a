"""Backward tiles whose weights are all below 2^-12 are skipped."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention, live_keys, scale_of

LLA_TARGET = {
    "name": "negligible_tiles_skipped",
    "dtypes": ["fp32", "bf16"],
    "ops": {"attention": {"contract": "strict"}},
}


TILE = 16
SKIP = 2.0**-12


def _drop_negligible(p):
    """Tiles in which no weight matters are not visited by the backward."""
    p = p.clone()
    for i in range(0, p.shape[-2], TILE):
        for j in range(0, p.shape[-1], TILE):
            t = p[..., i : i + TILE, j : j + TILE]
            p[..., i : i + TILE, j : j + TILE] = t * (t.amax((-2, -1), keepdim=True) >= SKIP)
    return p


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
    p = _drop_negligible(p)
    ds = p * (do @ v_.mT - delta)
    dq, dk, dv = (ds @ k_) * sc, (ds.mT @ q_) * sc, p.mT @ do
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
