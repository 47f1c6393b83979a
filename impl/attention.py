# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""Scaled dot-product attention (Vaswani et al. 2017, §3.2.1) and its VJP.

    Attention(Q, K, V) = softmax(scale · Q Kᵀ) V        Q (…, n, d)    K (…, m, d)    V (…, m, e)

Two paths give it. The clear one is the formula in torch: every sum in at least float32, one rounding at the end, any
input, n × m scores in memory. The fused one is torch's flash kernel; `impl.attention_paths` says when it is taken.

Who may look: `mask` is bool, True = may look; causal is bottom-right, so the last query sees every key. A query that
may look at no key gets exactly zeros, and sends zeros backward. A masked slot counts for nothing, whatever it holds
(attention.masked_is_deleted): NaN and inf there reach no result and no gradient. A NaN that is looked at reaches every
result that depends on it.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from impl.arguments import (
    check_axes,
    check_floating,
    check_grad_output,
    check_leading,
    check_mask,
    check_scale,
    check_size,
)
from impl.attention_paths import attention_path, fused_attention
from impl.autograd import KeepsArguments, arguments_of
from impl.masks import looks
from impl.precision import largest_magnitude, product, summed_to, values_can_be_read, widened


def attention(
    q: Float[Tensor, "*#batch n d"],
    k: Float[Tensor, "*#batch m d"],
    v: Float[Tensor, "*#batch m e"],
    mask: Bool[Tensor, "*#batch #n #m"] | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "*batch n e"]:
    """softmax(scale · q kᵀ) v, over the keys that each query may look at.

    Leading axes broadcast as in matmul. `mask` has at least two axes and broadcasts to (…, n, m); with `is_causal` a
    key must pass both. `scale` is any finite float, 1/√d where None. With no keys (m = 0) the result is zeros.
    Raises ValueError where shapes, dtypes or devices disagree, or scale is not finite.

    >>> q, k, v = torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([[0.0], [3.0], [6.0]])
    >>> attention(q, k, v)
    tensor([[3.]])
    >>> attention(q, k, v, torch.tensor([[True, True, False]]))
    tensor([[1.5000]])
    """
    scale = _check("attention", q, k, v, mask, scale)
    if attention_path(q, k, v, mask, is_causal=is_causal, scale=scale) == "fused":
        return fused_attention(q, k, v, mask, is_causal=is_causal, scale=scale)
    return _Attention.apply(q, k, v, mask, is_causal, scale)


def attention_vjp(
    q: Float[Tensor, "*#batch n d"],
    k: Float[Tensor, "*#batch m d"],
    v: Float[Tensor, "*#batch m e"],
    mask: Bool[Tensor, "*#batch #n #m"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch n e"],
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*#batch n d"], Float[Tensor, "*#batch m d"], Float[Tensor, "*#batch m e"]]:
    """(dq, dk, dv), each summed over the leading axes that its argument was broadcast along.

    >>> q, k, v = torch.zeros(1, 2), torch.zeros(2, 2), torch.tensor([[0.0], [3.0]])
    >>> attention_vjp(q, k, v, grad_output=torch.ones(1, 1))[2]
    tensor([[0.5000],
            [0.5000]])
    """
    scale = _check("attention_vjp", q, k, v, mask, scale)
    shape = (*check_leading("attention_vjp", 2, q=q, k=k, v=v), q.shape[-2], v.shape[-1])
    check_grad_output("attention_vjp", grad_output, shape, "q", q)
    path = attention_path(q, k, v, mask, is_causal=is_causal, scale=scale)
    if path == "fused" and _autograd_can_record(q, k, v):  # the way to the kernel's own backward
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
            out = fused_attention(q, k, v, mask, is_causal=is_causal, scale=scale)
            dq, dk, dv = torch.autograd.grad(out, (q, k, v), grad_output)
        return dq, dk, dv
    return _attention_backward(q, k, v, mask, is_causal, scale, grad_output)


def _autograd_can_record(*tensors: Tensor) -> bool:
    return not torch.is_inference_mode_enabled() and not any(x.is_inference() for x in tensors)


def _check(operation: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> float:
    """The scale as a float, once every argument has been checked."""
    check_floating(operation, q=q, k=k, v=v)
    check_axes(operation, "q", q, "n, d")
    check_axes(operation, "k", k, "m, d")
    check_axes(operation, "v", v, "m, e")
    check_size(operation, "head_dim", "k", k, -1, "q", q, -1)
    check_size(operation, "length", "v", v, -2, "k", k, -2)
    leading = check_leading(operation, 2, q=q, k=k, v=v)
    check_mask(operation, mask, (*leading, q.shape[-2], k.shape[-2]), q)
    return check_scale(operation, scale, q.shape[-1])


class _Attention(KeepsArguments):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
        may_look = looks(q, k, mask, is_causal)
        return _looking_sum(_weights(q, k, may_look, scale), v, may_look).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, is_causal, scale = arguments_of(ctx)
        return (*_attention_backward(q, k, v, mask, is_causal, scale, grad_output), None, None, None)


def _attention_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dS = P∘(dP - D), then dQ = scale·dS K and dK = scale·dSᵀ Q; dV = Pᵀ dO.

    These are attention.gradient_query, .gradient_key and .gradient_value. P and O are recomputed, so D = rowsum(dO∘O)
    comes from an O that was never rounded to the arguments' dtype.
    """
    may_look = looks(q, k, mask, is_causal)
    seen_by = None if may_look is None else may_look.mT
    p = _weights(q, k, may_look, scale)
    dp = product(grad_output, v.mT)
    d = (widened(grad_output) * _looking_sum(p, v, may_look)).sum(-1, keepdim=True)
    ds = p * (dp - d)
    if may_look is not None:
        ds = ds.masked_fill(~may_look, 0.0)  # p is 0 there, but dp may be NaN
    dq = _looking_sum(ds, k, may_look) * scale
    dk = _looking_sum(ds.mT, q, seen_by) * scale
    dv = _looking_sum(p.mT, grad_output, seen_by)
    return summed_to(dq, q), summed_to(dk, k), summed_to(dv, v)


def _weights(q: Tensor, k: Tensor, may_look: Tensor | None, scale: float) -> Tensor:
    """P (…, n, m) in the accumulator's dtype: rows sum to 1, or are zeros where no key may be looked at."""
    scores = product(q, k.mT) * scale
    if may_look is None:
        return torch.softmax(scores, -1)
    scores = scores.masked_fill(~may_look, -torch.inf)  # attention.log_mask: a factor 0 is a score of -inf
    # An empty row is 0/0 = NaN in all its entries, and all of them are masked: zeros, forward and backward.
    return torch.softmax(scores, -1).masked_fill(~may_look, 0.0)


def _looking_sum(weights: Tensor, values: Tensor, may_look: Tensor | None) -> Tensor:
    """Σ_j weights_ij values_jc over the pairs that look, in the accumulator's dtype; other weights are 0 already.

    0·NaN is NaN, so a plain product would let a masked slot leak. Values that are not finite are therefore taken out
    of the product, and put back in the entries that look at one: NaN, or inf of the value's sign (weights ≥ 0).
    """
    if may_look is None or (values_can_be_read(values) and largest_magnitude(values) < torch.inf):
        return product(weights, values)
    finite_part = product(weights, values.masked_fill(~values.isfinite(), 0.0))
    # A NaN counts as +inf and as -inf, and their sum is NaN again.
    infinite = torch.cat([~(values < torch.inf), ~(values > -torch.inf)], -1)
    up, down = (product(may_look.to(weights.dtype), infinite.to(weights.dtype)) > 0).chunk(2, -1)
    return finite_part + torch.where(up, torch.inf, 0.0) + torch.where(down, -torch.inf, 0.0)
