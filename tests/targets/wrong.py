"""Wrong attentions, each with one mistake that people make: `lla-spec verify tests/targets/wrong.py:no_maximum`."""

import math
from types import SimpleNamespace

import torch


def _kernel(
    *,
    scale_of=lambda q, v: 1 / math.sqrt(q.shape[-1]),
    alignment="bottom_right",
    empty_row="zeros",
    subtract_maximum=True,
    weights_dtype=None,
):
    """The correct attention, float32 inside, with knobs for the mistakes."""

    def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
        acc = torch.promote_types(q.dtype, torch.float32)
        n, m = q.shape[-2], k.shape[-2]
        visible = torch.ones(n, m, dtype=torch.bool) if mask is None else mask
        if is_causal:
            visible = visible & torch.ones(n, m, dtype=torch.bool).tril(m - n if alignment == "bottom_right" else 0)
        scores = q.to(acc) @ k.to(acc).mT * (scale_of(q, v) if scale is None else scale)
        hidden = torch.finfo(acc).min if empty_row == "mean" else float("-inf")
        scores = scores.masked_fill(~visible, hidden)
        peak = scores.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(acc).min) if subtract_maximum else 0
        weights = torch.exp(scores - peak)
        if empty_row == "zeros":
            weights = weights.masked_fill(~visible, 0)
        total = weights.sum(-1, keepdim=True)
        weights = weights / (total.masked_fill(total == 0, 1) if subtract_maximum else total)
        if weights_dtype is not None:
            weights = weights.to(weights_dtype).to(acc)
        return (weights @ v.to(acc)).to(q.dtype)

    return attention


def _target(name, attention, **extra):
    return SimpleNamespace(attention=attention, LLA_TARGET={"name": name}, **extra)


scale_by_value_dim = _target("scale by d_v", _kernel(scale_of=lambda q, v: 1 / math.sqrt(v.shape[-1])))
causal_top_left = _target("causal top-left", _kernel(alignment="top_left"))
empty_row_is_mean = _target("empty row = mean of V", _kernel(empty_row="mean"))
no_maximum = _target("no maximum", _kernel(subtract_maximum=False))
weights_in_bf16 = _target("P in bf16", _kernel(weights_dtype=torch.bfloat16))


def _unscaled_query_gradient(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None):
    """Autograd's gradients, dQ without its factor `scale`."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    leaves = [
        t.detach().float().requires_grad_() if t.dtype != torch.float64 else t.detach().requires_grad_()
        for t in (q, k, v)
    ]
    out = _kernel()(*leaves, mask, is_causal=is_causal, scale=scale)
    dq, dk, dv = torch.autograd.grad(out, leaves, grad_output.to(out.dtype))
    return (dq / factor).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


query_gradient_unscaled = _target("dQ without scale", _kernel(), attention_vjp=_unscaled_query_gradient)
