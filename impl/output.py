# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""The output layer: P = softmax(W_out h + b), the distribution over the vocabulary, with its VJP.

The logits stay in at least float32 between the product and the softmax: rounded to bfloat16, a logit of 20 would be
off by 1/16 and its probability by 6 percent. The one rounding is that of P. Backward, P is recomputed from h.
For a loss alone P is never needed: `impl.linear_cross_entropy` goes without these N × V numbers.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from impl.arguments import check_axes, check_floating, check_grad_output, check_size
from impl.autograd import KeepsArguments, arguments_of
from impl.linear import _grad_bias, _grad_weight
from impl.precision import product, widened


def output_softmax(
    h: Float[Tensor, "*batch d"], w_out: Float[Tensor, "V d"], bias: Float[Tensor, " V"] | None = None
) -> Float[Tensor, "*batch V"]:
    """softmax(h w_outᵀ + bias) over the vocabulary.

    A bias of -inf gives its word a probability of exactly 0; a row of nothing else is NaN, as in `impl.softmax`.
    Raises ValueError where w_out is not (V, d), bias not (V,), or the dtypes or devices disagree.

    >>> output_softmax(torch.tensor([1.0]), torch.zeros(2, 1), torch.tensor([0.0, float("-inf")]))
    tensor([1., 0.])
    """
    check_output_layer("output_softmax", h, w_out, bias)
    return _OutputSoftmax.apply(h, w_out, bias)


def output_softmax_vjp(
    h: Float[Tensor, "*batch d"],
    w_out: Float[Tensor, "V d"],
    bias: Float[Tensor, " V"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch V"],
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "V d"], Float[Tensor, " V"] | None]:
    """(dh, dW, db) with dz = P∘(g - Σ_v P_v g_v): dh = dz W, dW = dzᵀ h and db = Σ_i dz_i, None where bias is None.

    >>> output_softmax_vjp(torch.ones(1), torch.zeros(2, 1), grad_output=torch.tensor([1.0, 0.0]))
    (tensor([0.]), tensor([[ 0.2500],
            [-0.2500]]), None)
    """
    check_output_layer("output_softmax_vjp", h, w_out, bias)
    check_grad_output("output_softmax_vjp", grad_output, (*h.shape[:-1], w_out.shape[0]), "h", h)
    dz = _grad_logits(h, w_out, bias, grad_output)
    return _grad_h(w_out, dz, h), _grad_weight(h, dz), None if bias is None else _grad_bias(dz).to(h.dtype)


def check_output_layer(operation: str, h: Tensor, w_out: Tensor, bias: Tensor | None) -> None:
    check_floating(operation, h=h, w_out=w_out, bias=bias)
    check_axes(operation, "h", h, "d")
    check_axes(operation, "w_out", w_out, "V, d", exactly=True)
    check_size(operation, "d", "w_out", w_out, -1, "h", h, -1)
    if bias is not None:
        check_axes(operation, "bias", bias, "V", exactly=True)
        check_size(operation, "V", "bias", bias, 0, "w_out", w_out, 0)


def logits_of(h: Tensor, w_out: Tensor, bias: Tensor | None) -> Tensor:
    """h w_outᵀ + bias, left in the accumulator's dtype."""
    logits = product(h, w_out.mT)
    return logits if bias is None else logits + widened(bias)


class _OutputSoftmax(KeepsArguments):
    @staticmethod
    def forward(h: Tensor, w_out: Tensor, bias: Tensor | None) -> Tensor:
        return torch.softmax(logits_of(h, w_out, bias), -1).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        h, w_out, bias = arguments_of(ctx)
        needs_h, needs_w_out, needs_bias = ctx.needs_input_grad
        dz = _grad_logits(h, w_out, bias, grad_output)
        return (
            _grad_h(w_out, dz, h) if needs_h else None,
            _grad_weight(h, dz) if needs_w_out else None,
            _grad_bias(dz).to(h.dtype) if needs_bias else None,
        )


def _grad_logits(h: Tensor, w_out: Tensor, bias: Tensor | None, grad_output: Tensor) -> Tensor:
    """In the accumulator's dtype, since it is no result but a step towards three."""
    p, g = torch.softmax(logits_of(h, w_out, bias), -1), widened(grad_output)
    return torch.ops.aten._softmax_backward_data(g, p, -1, g.dtype)  # softmax.softmax_gradient


def _grad_h(w_out: Tensor, dz: Tensor, h: Tensor) -> Tensor:
    return product(dz, w_out).to(h.dtype)  # linear.gradient_x
