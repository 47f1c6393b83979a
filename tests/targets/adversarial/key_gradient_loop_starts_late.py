"""Under causal, the dK and dV loop starts at a truncated block offset: rows are dropped."""

import math

import torch

from tests.targets.adversarial.common import accumulator, live_keys, scale_of

LLA_TARGET = {
    "name": "key_gradient_loop_starts_late",
    "dtypes": ["fp32", "bf16"],
    "ops": {"attention": {"contract": "strict"}},
}


BLOCK = 64


def _weights(q, k, live, sc):
    s = ((q @ k.mT) * sc).masked_fill(~live, -math.inf)
    top = s.amax(-1, keepdim=True)
    p = torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
    return p, p.sum(-1, keepdim=True)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask, is_causal, sc):
        acc = accumulator(q)
        live = live_keys(q, k, mask, is_causal)
        p, total = _weights(q.to(acc), k.to(acc), live, sc)
        out = (p @ v.to(acc)) / total.masked_fill(total == 0, 1.0)
        ctx.save_for_backward(q, k, v, live)
        ctx.is_causal, ctx.sc = is_causal, sc
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        q, k, v, live = ctx.saved_tensors
        sc, acc = ctx.sc, accumulator(q)
        q_, k_, v_, do = (t.to(acc) for t in (q, k, v, grad_output))
        n, m = q.shape[-2], k.shape[-2]
        p, total = _weights(q_, k_, live, sc)
        p = p / total.masked_fill(total == 0, 1.0)
        delta = (do * (p @ v_)).sum(-1, keepdim=True)
        dq = ((p * (do @ v_.mT - delta)) @ k_) * sc
        dk, dv = torch.zeros_like(k_), torch.zeros_like(v_)
        for block in range((m + BLOCK - 1) // BLOCK):  # dK, dV: one key block, all query blocks that see it
            j = slice(block * BLOCK, min(m, (block + 1) * BLOCK))
            first = max(0, block - int((m - n) / BLOCK)) if ctx.is_causal else 0
            for start in range(first * BLOCK, n, BLOCK):
                i = slice(start, min(n, start + BLOCK))
                pt = p[..., i, j]
                ds = pt * (do[..., i, :] @ v_[..., j, :].mT - delta[..., i, :])
                dv[..., j, :] += pt.mT @ do[..., i, :]
                dk[..., j, :] += (ds.mT @ q_[..., i, :]) * sc
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    return _Attention.apply(q, k, v, mask, is_causal, scale_of(q, scale))


__all__ = ["LLA_TARGET", "attention"]
