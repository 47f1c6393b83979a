"""A mask tile whose border is all True is not read inside: an isolated hole is ignored."""

import math

import torch

from tests.targets.adversarial.common import accumulator, attention_vjp, claims, live_keys, scale_of

LLA_TARGET = claims("tile_taken_as_full")


TILE = 16


def _tiled(live):
    """Tiles whose border is all visible are full: the mask is not loaded for them."""
    live = live.clone()
    n, m = live.shape[-2:]
    for i in range(0, n, TILE):
        for j in range(0, m, TILE):
            t = live[..., i : i + TILE, j : j + TILE]
            full = t[..., 0, :].all(-1) & t[..., -1, :].all(-1) & t[..., :, 0].all(-1) & t[..., :, -1].all(-1)
            live[..., i : i + TILE, j : j + TILE] = t | full[..., None, None]
    return live


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    acc = accumulator(q)
    live = _tiled(live_keys(q, k, mask, is_causal))
    s = (q.to(acc) @ k.to(acc).mT) * scale_of(q, scale)
    s = s.masked_fill(~live, -math.inf)
    top = s.amax(-1, keepdim=True)
    p = torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    out = (p @ v.to(acc)) / total.masked_fill(total == 0, 1.0)
    return out.to(q.dtype)


__all__ = ["LLA_TARGET", "attention", "attention_vjp"]
