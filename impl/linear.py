# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""Products that are linear in each argument: matmul, linear and weighted_average, each with its VJP.

    C = A B            c_ij = Σ_k a_ik b_kj
    Y = X Wᵀ + b       y_io = Σ_k x_ik w_ok + b_o
    C = α V            c_ic = Σ_j α_ij v_jc

Sums run in at least float32 and are rounded once to the dtype of the arguments. The arguments, not their widened
copies, are kept for the backward pass. A sum over an axis of size 0 is 0.
"""

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from impl.arguments import check_axes, check_floating, check_grad_output, check_leading, check_size
from impl.autograd import KeepsArguments, arguments_of
from impl.precision import accumulator, product, summed_to, widened


def matmul(a: Float[Tensor, "*#batch n k"], b: Float[Tensor, "*#batch k m"]) -> Float[Tensor, "*batch n m"]:
    """The batched product a @ b; leading axes broadcast.

    Raises ValueError where the inner sizes, the leading axes, the dtypes or the devices disagree.

    >>> import torch
    >>> matmul(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    _check_matmul("matmul", a, b)
    return _Matmul.apply(a, b)


def matmul_vjp(
    a: Float[Tensor, "*#batch n k"], b: Float[Tensor, "*#batch k m"], *, grad_output: Float[Tensor, "*batch n m"]
) -> tuple[Float[Tensor, "*#batch n k"], Float[Tensor, "*#batch k m"]]:
    """(dA, dB) = (G Bᵀ, Aᵀ G), each summed over the leading axes that its argument was broadcast along.

    >>> import torch
    >>> matmul_vjp(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), grad_output=torch.ones(1, 1))
    (tensor([[3., 4.]]), tensor([[1.],
            [2.]]))
    """
    leading = _check_matmul("matmul_vjp", a, b)
    check_grad_output("matmul_vjp", grad_output, (*leading, a.shape[-2], b.shape[-1]), "a", a)
    return _grad_a(a, b, grad_output), _grad_b(a, b, grad_output)


def weighted_average(
    weights: Float[Tensor, "*#batch n m"], v: Float[Tensor, "*#batch m e"]
) -> Float[Tensor, "*batch n e"]:
    """c_i = Σ_j weights_ij v_j: row i of the result averages the rows of v with row i of the weights.

    The weights are taken as they are, normalised or not, and a weight of 0 is a number, no mask: 0·NaN is NaN.
    Leading axes broadcast. Raises ValueError as matmul does.

    >>> import torch
    >>> weighted_average(torch.tensor([[0.25, 0.75]]), torch.tensor([[0.0], [4.0]]))
    tensor([[3.]])
    """
    _check_weighted_average("weighted_average", weights, v)
    return _Matmul.apply(weights, v)


def weighted_average_vjp(
    weights: Float[Tensor, "*#batch n m"], v: Float[Tensor, "*#batch m e"], *, grad_output: Float[Tensor, "*batch n e"]
) -> tuple[Float[Tensor, "*#batch n m"], Float[Tensor, "*#batch m e"]]:
    """(dweights, dv) = (G Vᵀ, weightsᵀ G)."""
    leading = _check_weighted_average("weighted_average_vjp", weights, v)
    check_grad_output(
        "weighted_average_vjp", grad_output, (*leading, weights.shape[-2], v.shape[-1]), "weights", weights
    )
    return _grad_a(weights, v, grad_output), _grad_b(weights, v, grad_output)


def linear(
    x: Float[Tensor, "*batch in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """x Wᵀ + b over the last axis of x; the bias is added before the one rounding.

    Raises ValueError where weight is not (out, in), bias not (out,), or the dtypes or devices disagree.

    >>> import torch
    >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]))
    tensor([11.5000])
    """
    _check_linear("linear", x, weight, bias)
    return _Linear.apply(x, weight, bias)


def linear_vjp(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch out"],
) -> tuple[Float[Tensor, "*batch in"], Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """(dX, dW, db) = (G W, Gᵀ X, Σ_i g_i), db None where bias is None.

    >>> import torch
    >>> linear_vjp(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0]]), grad_output=torch.ones(1))
    (tensor([3., 4.]), tensor([[1., 2.]]), None)
    """
    _check_linear("linear_vjp", x, weight, bias)
    check_grad_output("linear_vjp", grad_output, (*x.shape[:-1], weight.shape[0]), "x", x)
    dbias = None if bias is None else _grad_bias(grad_output)
    return _grad_x(weight, grad_output), _grad_weight(x, grad_output), dbias


def _check_matmul(operation: str, a: Tensor, b: Tensor) -> tuple[int, ...]:
    check_floating(operation, a=a, b=b)
    check_axes(operation, "a", a, "n, k")
    check_axes(operation, "b", b, "k, m")
    check_size(operation, "inner size", "b", b, -2, "a", a, -1)
    return check_leading(operation, 2, a=a, b=b)


def _check_weighted_average(operation: str, weights: Tensor, v: Tensor) -> tuple[int, ...]:
    check_floating(operation, weights=weights, v=v)
    check_axes(operation, "weights", weights, "n, m")
    check_axes(operation, "v", v, "m, e")
    check_size(operation, "length", "v", v, -2, "weights", weights, -1)
    return check_leading(operation, 2, weights=weights, v=v)


def _check_linear(operation: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating(operation, x=x, weight=weight, bias=bias)
    check_axes(operation, "x", x, "in")
    check_axes(operation, "weight", weight, "out, in", exactly=True)
    check_size(operation, "in_features", "weight", weight, -1, "x", x, -1)
    if bias is not None:
        check_axes(operation, "bias", bias, "out", exactly=True)
        check_size(operation, "out_features", "bias", bias, 0, "weight", weight, 0)


class _Matmul(KeepsArguments):
    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return product(a, b).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = arguments_of(ctx)
        needs_a, needs_b = ctx.needs_input_grad
        return _grad_a(a, b, grad_output) if needs_a else None, _grad_b(a, b, grad_output) if needs_b else None


def _grad_a(a: Tensor, b: Tensor, grad_output: Tensor) -> Tensor:
    return summed_to(product(grad_output, b.mT), a)  # linear.matmul_gradient_a: ⟨G, dA B⟩ = ⟨G Bᵀ, dA⟩


def _grad_b(a: Tensor, b: Tensor, grad_output: Tensor) -> Tensor:
    return summed_to(product(a.mT, grad_output), b)  # linear.matmul_gradient_b: ⟨G, A dB⟩ = ⟨Aᵀ G, dB⟩


class _Linear(KeepsArguments):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = product(x, weight.mT)
        return (y if bias is None else y + widened(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight, _ = arguments_of(ctx)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _grad_x(weight, grad_output) if needs_x else None,
            _grad_weight(x, grad_output) if needs_weight else None,
            _grad_bias(grad_output) if needs_bias else None,
        )


def _grad_x(weight: Tensor, grad_output: Tensor) -> Tensor:
    return product(grad_output, weight).to(grad_output.dtype)  # linear.gradient_x


def _grad_weight(x: Tensor, grad_output: Tensor) -> Tensor:
    # linear.gradient_weight: every leading axis is a row, so one product sums over all rows before it is rounded
    return product(_as_rows(grad_output).mT, _as_rows(x)).to(x.dtype)


def _grad_bias(grad_output: Tensor) -> Tensor:
    total = _as_rows(grad_output).sum(0, dtype=accumulator(grad_output.dtype))  # linear.gradient_bias
    return total.to(grad_output.dtype)


def _as_rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # -1 cannot be inferred where the last axis has size 0
