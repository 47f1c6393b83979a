"""Wrong softmaxes and linear maps, each with one mistake that people make.

`lla-spec verify tests/targets/wrong_maps.py:softmax_over_rows`
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F


def wide(x: Any) -> Any:
    return None if x is None else x.to(torch.promote_types(x.dtype, torch.float32))


def _target(name, **functions):
    return SimpleNamespace(LLA_TARGET={"name": name}, **functions)


def softmax(x):
    return torch.softmax(wide(x), -1).to(x.dtype)


def log_softmax(x):
    return torch.log_softmax(wide(x), -1).to(x.dtype)


def logsumexp(x):
    return torch.logsumexp(wide(x), -1).to(x.dtype)


def matmul(a, b):
    return (wide(a) @ wide(b)).to(a.dtype)


def linear(x, weight, bias=None):
    return F.linear(wide(x), wide(weight), wide(bias)).to(x.dtype)


def weighted_average(weights, v):
    return (wide(weights) @ wide(v)).to(v.dtype)


# ---- softmax, its logarithm, the log-sum-exp


def _over_rows(x):
    return torch.softmax(wide(x), -2 if x.dim() > 1 else -1).to(x.dtype)


def _uncentred(x, *, grad_output):
    """P ∘ dP, without - P Σ P dP."""
    return ((torch.softmax(wide(x), -1) * wide(grad_output)).to(x.dtype),)


def _log_of_softmax(x):
    """log(softmax(x)): the probability underflows before its logarithm is taken."""
    return torch.softmax(wide(x), -1).log().to(x.dtype)


def _own_cotangent_alone(x, *, grad_output):
    """dy - P ∘ dy, for dy - P Σ dy."""
    g = wide(grad_output)
    return ((g - torch.softmax(wide(x), -1) * g).to(x.dtype),)


def _without_maximum(x):
    return wide(x).exp().sum(-1).log().to(x.dtype)


def _unnormalised(x, *, grad_output):
    """exp(x - maximum) for exp(x - logsumexp)."""
    z = wide(x)
    return (((z - z.amax(-1, keepdim=True)).exp() * wide(grad_output)[..., None]).to(x.dtype),)


softmax_over_rows = _target("softmax over rows", softmax=_over_rows)
softmax_gradient_uncentred = _target("dx = P dP", softmax=softmax, softmax_vjp=_uncentred)
log_of_softmax = _target("log(softmax(x))", log_softmax=_log_of_softmax)
log_softmax_gradient_own = _target("dx = dy - P dy", log_softmax=log_softmax, log_softmax_vjp=_own_cotangent_alone)
logsumexp_without_maximum = _target("log Σ exp", logsumexp=_without_maximum)
logsumexp_gradient_unnormalised = _target("exp(x - max)", logsumexp=logsumexp, logsumexp_vjp=_unnormalised)


# ---- products


def _sums_in_bf16(a, b):
    """Products rounded to bf16 one after the other into a bf16 sum, whatever was promised."""
    terms = [a[..., :, k : k + 1].bfloat16() * b[..., k : k + 1, :].bfloat16() for k in range(a.shape[-1])]
    total = torch.zeros((*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))
    total = total.bfloat16()
    for term in terms:
        total = total + term
    return total.to(a.dtype)


def _reshaped_for_transposed(a, b, *, grad_output):
    """dA reads B in its own order with the shape of Bᵀ."""
    g, db = wide(grad_output), wide(a).mT @ wide(grad_output)
    return (g @ wide(b).reshape(b.mT.shape)).to(a.dtype), db.to(b.dtype)


def _last_tile_alone(a, b, *, grad_output, tile=4):
    """dB = Aᵀ dC over tiles of rows: each overwrites the one before."""
    left, g = wide(a), wide(grad_output)
    db = torch.zeros_like(wide(b))
    for start in range(0, a.shape[-2], tile):
        db = left[..., start : start + tile, :].mT @ g[..., start : start + tile, :]
    return (g @ wide(b).mT).to(a.dtype), db.to(b.dtype)


def _bias_in_each_block(x, weight, bias=None, *, block=4):
    """A reduction split in blocks, each of which adds the bias."""
    total = torch.zeros((*x.shape[:-1], len(weight)), dtype=wide(x).dtype)
    for start in range(0, max(x.shape[-1], 1), block):
        part = slice(start, start + block)
        total = total + F.linear(wide(x)[..., part], wide(weight)[:, part], wide(bias))
    return total.to(x.dtype)


def _linear_gradients(x, weight, bias, grad_output):
    rows, g = wide(x).reshape(-1, x.shape[-1]), wide(grad_output).reshape(-1, len(weight))
    return wide(grad_output) @ wide(weight), g.mT @ rows, None if bias is None else g.sum(0)


def _mean_for_bias(x, weight, bias=None, *, grad_output):
    dx, dw, _ = _linear_gradients(x, weight, bias, grad_output)
    db = None if bias is None else wide(grad_output).reshape(-1, len(weight)).mean(0).to(x.dtype)
    return dx.to(x.dtype), dw.to(x.dtype), db


def _last_batch_alone(x, weight, bias=None, *, grad_output):
    """dW of the last of the batch."""
    dx, dw, db = _linear_gradients(x, weight, bias, grad_output)
    if x.dim() > 2 and x.shape[0]:
        dw = _linear_gradients(x[-1], weight, bias, grad_output[-1])[1]
    return dx.to(x.dtype), dw.to(x.dtype), None if db is None else db.to(x.dtype)


def _normalised_again(weights, v):
    w = wide(weights)
    return ((w / w.sum(-1, keepdim=True)) @ wide(v)).to(v.dtype)


def _centred_weights(weights, v, *, grad_output):
    """dα as though the weights came from a softmax: α ∘ (dα - Σ α dα)."""
    w, g = wide(weights), wide(grad_output)
    dw = g @ wide(v).mT
    return (w * (dw - (w * dw).sum(-1, keepdim=True))).to(v.dtype), (w.mT @ g).to(v.dtype)


matmul_sums_in_bf16 = _target("sums in bf16", matmul=_sums_in_bf16)
matmul_gradient_reshaped = _target("dA = dC B reshaped", matmul=matmul, matmul_vjp=_reshaped_for_transposed)
matmul_gradient_last_tile = _target("dB of the last tile", matmul=matmul, matmul_vjp=_last_tile_alone)
linear_bias_in_each_block = _target("bias in each block", linear=_bias_in_each_block)
linear_bias_gradient_mean = _target("db is a mean", linear=linear, linear_vjp=_mean_for_bias)
linear_weight_gradient_last = _target("dW of the last batch", linear=linear, linear_vjp=_last_batch_alone)
average_normalised_again = _target("weights normalised again", weighted_average=_normalised_again)
average_gradient_centred = _target(
    "dα of a softmax", weighted_average=weighted_average, weighted_average_vjp=_centred_weights
)
