"""Wrong normalisations, each with one mistake that people make.

`lla-spec verify tests/targets/wrong_norms.py:unbiased_variance`
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F


def wide(x: Any) -> Any:
    return None if x is None else x.to(torch.promote_types(x.dtype, torch.float32))


def _target(name, contract="fused", **functions):
    ops = {operation: {"contract": contract} for operation in functions if not operation.endswith("_vjp")}
    return SimpleNamespace(LLA_TARGET={"name": name, "ops": ops}, **functions)


def _affine(y, weight, bias, dtype):
    y = y if weight is None else y * wide(weight)
    return (y if bias is None else y + wide(bias)).to(dtype)


def _kernel(*, divisor=lambda n: n, eps_in_root=True, two_passes=True):
    """The correct layer_norm, with knobs for the mistakes."""

    def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
        xf = wide(x)
        centred = xf - xf.mean(-1, keepdim=True)
        if two_passes:
            variance = centred.square().sum(-1, keepdim=True) / divisor(x.shape[-1])
        else:
            variance = xf.square().mean(-1, keepdim=True) - xf.mean(-1, keepdim=True).square()
        root = torch.sqrt(variance + eps) if eps_in_root else torch.sqrt(variance) + eps
        return _affine(centred / root, weight, bias, x.dtype)

    return layer_norm


layer_norm = _kernel()


def rms_norm(x, weight=None, *, eps=1e-6):
    return F.rms_norm(wide(x), x.shape[-1:], wide(weight), eps).to(x.dtype)


def residual_layer_norm(h, sublayer, weight=None, bias=None, *, eps=1e-5):
    return layer_norm(wide(h) + wide(sublayer), weight, bias, eps=eps).to(h.dtype)


# ---- forward


def _sum_for_mean(x, weight=None, *, eps=1e-6):
    return _affine(wide(x) * torch.rsqrt(wide(x).square().sum(-1, keepdim=True) + eps), weight, None, x.dtype)


def _stream_alone(h, sublayer, weight=None, bias=None, *, eps=1e-5):
    """LayerNorm(h) + sublayer."""
    return (layer_norm(wide(h), weight, bias, eps=eps) + wide(sublayer)).to(h.dtype)


unbiased_variance = _target("divisor n - 1", layer_norm=_kernel(divisor=lambda n: max(n - 1, 1)))
eps_outside_the_root = _target("ε outside the root", layer_norm=_kernel(eps_in_root=False))
variance_in_one_pass = _target("E[x²] - μ²", layer_norm=_kernel(two_passes=False))
sum_for_mean_square = _target("Σ x² for its mean", rms_norm=_sum_for_mean)
stream_alone_normalised = _target("LN(h) + sublayer", residual_layer_norm=_stream_alone)


# ---- backward


def _over_rows(terms):
    return terms.reshape(-1, terms.shape[-1]).sum(0)


def _gradients(*, m1=True, m2=True, normalised=True, weight_sum=_over_rows):
    """dx = (ĝ - m₁ - x̂ m₂) / √(v + ε) and those of weight and bias, with knobs for the mistakes."""

    def layer_norm_vjp(x, weight=None, bias=None, *, grad_output, eps=1e-5):
        xf, g = wide(x), wide(grad_output)
        centred = xf - xf.mean(-1, keepdim=True)
        root = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
        x_hat = centred * root
        slope = g if weight is None else g * wide(weight)
        dx = slope - (slope.mean(-1, keepdim=True) if m1 else 0)
        dx = root * (dx - (x_hat * (slope * x_hat).mean(-1, keepdim=True) if m2 else 0))
        dweight = None if weight is None else weight_sum(g * (x_hat if normalised else xf)).to(x.dtype)
        return dx.to(x.dtype), dweight, None if bias is None else _over_rows(g).to(x.dtype)

    return layer_norm_vjp


def _stagnating(terms):
    """The sum over the rows kept in bf16."""
    total = torch.zeros(terms.shape[-1], dtype=torch.bfloat16)
    for term in terms.reshape(-1, terms.shape[-1]):
        total = total + term.bfloat16()
    return total


def _of_layer_norm(x, weight=None, *, grad_output, eps=1e-6):
    """RMSNorm's dx with LayerNorm's m₁."""
    xf, g = wide(x), wide(grad_output)
    root = torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
    slope, x_hat = g if weight is None else g * wide(weight), xf * root
    dx = root * (slope - slope.mean(-1, keepdim=True) - x_hat * (slope * x_hat).mean(-1, keepdim=True))
    return dx.to(x.dtype), None if weight is None else _over_rows(g * x_hat).to(x.dtype)


def _cast_twice(x, weight=None, *, eps=1e-6):
    """Each cast of x sends its own gradient: they are rounded and added in x's dtype, where they cancel."""
    root = torch.rsqrt(wide(x).square().mean(-1, keepdim=True) + eps)
    return _affine(wide(x) * root, weight, None, x.dtype)


def _to_one_side(h, sublayer, weight=None, bias=None, *, grad_output, eps=1e-5):
    dx, dweight, dbias = _gradients()(wide(h) + wide(sublayer), weight, bias, grad_output=grad_output, eps=eps)
    found = (dx, torch.zeros_like(dx), dweight, dbias)
    return tuple(None if t is None else t.to(h.dtype) for t in found)


def _backward(name, vjp, contract="fused"):
    return _target(name, contract, layer_norm=layer_norm, layer_norm_vjp=vjp)


without_m1 = _backward("dx without m₁", _gradients(m1=False))
without_m2 = _backward("dx without m₂", _gradients(m2=False))
weight_gradient_of_raw_rows = _backward("dγ = Σ g x", _gradients(normalised=False))
weight_gradient_stagnates = _backward("dγ summed in bf16", _gradients(weight_sum=_stagnating), "strict")
rms_gradient_of_layer_norm = _target("RMSNorm's dx with m₁", rms_norm=rms_norm, rms_norm_vjp=_of_layer_norm)
rms_gradient_of_two_casts = _target("x cast twice", rms_norm=_cast_twice)
residual_gradient_to_one_side = _target(
    "ds = 0", residual_layer_norm=residual_layer_norm, residual_layer_norm_vjp=_to_one_side
)
