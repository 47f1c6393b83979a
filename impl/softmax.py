# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""softmax, log_softmax and logsumexp over the last axis, each with its VJP.

    logsumexp(x) = log Σ_j exp x_j      softmax(x)_i = exp x_i / Σ_j exp x_j      log_softmax(x)_i = x_i - logsumexp(x)

x is widened to at least float32 first and torch's kernel runs on that: it subtracts the row's maximum, which changes
nothing (softmax.shift, softmax.lse_shift) and keeps exp in range. The one rounding to the dtype of x comes last.
torch's own 16-bit log_softmax on a CPU rounds the sum before its log: [7, 0] gives 0 where log p_0 = -9.1e-4.

A row that is all -inf has no largest entry: softmax and log_softmax give NaN (0/0), as torch does, and logsumexp gives
log 0 = -inf with gradient 0. In any other row -inf is a probability of exactly 0. An empty row gives an empty row,
and -inf from logsumexp. A NaN makes its whole row NaN.

Backward, x is kept and the probabilities are recomputed from it in the accumulator's dtype: keeping the rounded ones
would put a cast inside the operation, and keeping them unrounded would cost twice the memory in 16 bits.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from impl.arguments import check_axes, check_floating, check_grad_output
from impl.autograd import KeepsArguments, arguments_of
from impl.precision import widened


def softmax(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """exp x_i / Σ_j exp x_j over the last axis.

    >>> softmax(torch.tensor([0.0, float("-inf"), 0.0]))
    tensor([0.5000, 0.0000, 0.5000])
    """
    _check("softmax", x)
    return _Softmax.apply(x)


def softmax_vjp(x: Float[Tensor, "*batch n"], *, grad_output: Float[Tensor, "*batch n"]) -> tuple[Tensor]:
    """(dx,) with dx = p∘(g - Σ_j p_j g_j), p = softmax(x).

    >>> softmax_vjp(torch.zeros(2), grad_output=torch.tensor([1.0, 0.0]))
    (tensor([ 0.2500, -0.2500]),)
    """
    _check("softmax_vjp", x)
    check_grad_output("softmax_vjp", grad_output, x.shape, "x", x)
    return (_softmax_backward(x, grad_output),)


def log_softmax(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """x_i - logsumexp(x) over the last axis.

    >>> log_softmax(torch.tensor([7.0, 0.0], dtype=torch.bfloat16))
    tensor([-9.1171e-04, -7.0000e+00], dtype=torch.bfloat16)
    """
    _check("log_softmax", x)
    return _LogSoftmax.apply(x)


def log_softmax_vjp(x: Float[Tensor, "*batch n"], *, grad_output: Float[Tensor, "*batch n"]) -> tuple[Tensor]:
    """(dx,) with dx = g - p·Σ_j g_j, p = softmax(x).

    >>> log_softmax_vjp(torch.zeros(2), grad_output=torch.tensor([1.0, 0.0]))
    (tensor([ 0.5000, -0.5000]),)
    """
    _check("log_softmax_vjp", x)
    check_grad_output("log_softmax_vjp", grad_output, x.shape, "x", x)
    return (_log_softmax_backward(x, grad_output),)


def logsumexp(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """log Σ_j exp x_j; the last axis is removed.

    >>> logsumexp(torch.tensor([1000.0, 1000.0], dtype=torch.float64)) - 1000
    tensor(0.6931, dtype=torch.float64)
    """
    _check("logsumexp", x)
    return _LogSumExp.apply(x)


def logsumexp_vjp(x: Float[Tensor, "*batch n"], *, grad_output: Float[Tensor, "*batch"]) -> tuple[Tensor]:
    """(dx,) with dx = g·p, p = softmax(x); 0 where the row is all -inf.

    >>> logsumexp_vjp(torch.zeros(2), grad_output=torch.tensor(1.0))
    (tensor([0.5000, 0.5000]),)
    """
    _check("logsumexp_vjp", x)
    check_grad_output("logsumexp_vjp", grad_output, x.shape[:-1], "x", x)
    return (_logsumexp_backward(x, grad_output),)


def _check(operation: str, x: Tensor) -> None:
    check_floating(operation, x=x)
    check_axes(operation, "x", x, "n")


class _Softmax(KeepsArguments):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.softmax(widened(x), -1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = arguments_of(ctx)
        return _softmax_backward(x, grad_output)


def _softmax_backward(x: Tensor, grad_output: Tensor) -> Tensor:
    p, g = torch.softmax(widened(x), -1), widened(grad_output)
    # softmax.softmax_gradient: p∘(g - Σ_j p_j g_j), by the kernel behind torch.softmax's own backward, in one pass
    return torch.ops.aten._softmax_backward_data(g, p, -1, g.dtype).to(x.dtype)


class _LogSoftmax(KeepsArguments):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.log_softmax(widened(x), -1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = arguments_of(ctx)
        return _log_softmax_backward(x, grad_output)


def _log_softmax_backward(x: Tensor, grad_output: Tensor) -> Tensor:
    p, g = torch.softmax(widened(x), -1), widened(grad_output)
    # softmax.log_softmax_gradient: g - p·Σ_j g_j
    return torch.addcmul(g, p, g.sum(-1, keepdim=True), value=-1).to(x.dtype)


class _LogSumExp(KeepsArguments):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.logsumexp(widened(x), -1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = arguments_of(ctx)
        return _logsumexp_backward(x, grad_output)


def _logsumexp_backward(x: Tensor, grad_output: Tensor) -> Tensor:
    p = torch.softmax(widened(x), -1)
    p = p.masked_fill((x == -torch.inf).all(-1, keepdim=True), 0.0)  # a row of no terms has nothing to pull on
    return (p * widened(grad_output).unsqueeze(-1)).to(x.dtype)  # softmax.lse_gradient
