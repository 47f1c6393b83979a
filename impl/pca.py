# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""Principal components: the directions along which centred data vary most (Pearson 1901, Hotelling 1933).

    μ = (1/n) Σ_i x_i        x_i - μ = Σ_r z_ir v_r + rest        λ_r = σ_r² / (n - 1)

v_r and σ_r are right singular vectors and singular values of the centred data. They are taken from the data, not from
the covariance matrix: that squares the singular values, so that in float32 those below √u·σ₁ (about σ₁/4000) drown in
rounding, and a variance may come out negative.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, linalg

from impl.arguments import check_axes, check_floating, check_grad_output, check_leading, check_size
from impl.autograd import KeepsArguments, arguments_of
from impl.low_rank import check_rank
from impl.precision import product, summed_to, widened


def pca(
    x: Float[Tensor, "*batch n d"], k: int
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch k d"], Float[Tensor, "*batch k"]]:
    """(mean, components, explained_variance) of n observations: the k directions of largest variance, as rows.

    The divisor is n - 1. Everything is computed in at least float32 and rounded once; the mean is subtracted before
    anything is squared. Signs are free, as in truncated_svd. Raises ValueError where n < 2 or k does not lie in
    1 … min(n, d), and torch's LinAlgError where x is not finite.

    >>> import torch
    >>> mean, components, explained_variance = pca(torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]]), 1)
    >>> mean, components.abs().round(decimals=6), explained_variance.round(decimals=6)
    (tensor([3., 7.]), tensor([[1., 0.]]), tensor([4.]))
    """
    check_floating("pca", x=x)
    check_axes("pca", "x", x, "n, d")
    n, d = x.shape[-2:]
    if n < 2:
        raise ValueError(f"pca: x has n {n} (axis -2), it must have at least 2 observations")
    check_rank("pca", k, "n", n, "d", d)
    mean = widened(x).mean(-2)
    _, S, Vh = linalg.svd(widened(x) - mean[..., None, :], full_matrices=False)
    explained_variance = S[..., :k] ** 2 / (n - 1)
    return mean.to(x.dtype), Vh[..., :k, :].to(x.dtype), explained_variance.to(x.dtype)


def pca_transform(
    x: Float[Tensor, "*#batch d"], mean: Float[Tensor, "*#batch d"], components: Float[Tensor, "*#batch k d"]
) -> Float[Tensor, "*batch k"]:
    """z_ir = Σ_c (x_ic - μ_c) v_rc: the scores (..., n, k) of observations (..., n, d), or (k,) of a single one (d,).

    mean (..., d) and components (..., k, d) have the leading axes before n, or broadcast against them. Raises
    ValueError where d, the leading axes, the dtypes or the devices disagree.

    >>> import torch
    >>> pca_transform(torch.tensor([[5.0, 7.0]]), torch.tensor([3.0, 7.0]), torch.tensor([[1.0, 0.0]]))
    tensor([[2.]])
    """
    _check_transform("pca_transform", x, mean, components)
    return _like(x, _Transform.apply(_as_rows(x), mean, components))


def pca_transform_vjp(
    x: Float[Tensor, "*#batch d"],
    mean: Float[Tensor, "*#batch d"],
    components: Float[Tensor, "*#batch k d"],
    *,
    grad_output: Float[Tensor, "*batch k"],
) -> tuple[Float[Tensor, "*#batch d"], Float[Tensor, "*#batch d"], Float[Tensor, "*#batch k d"]]:
    """(dx, dmean, dcomponents) = (G V, -Σ_i (G V)_i, Gᵀ (x - μ)), each summed over its broadcast axes."""
    shape = _check_transform("pca_transform_vjp", x, mean, components)
    check_grad_output("pca_transform_vjp", grad_output, shape, "x", x)
    return _vjp(_TRANSFORM_GRADS, x, mean, components, grad_output)


def pca_inverse(
    z: Float[Tensor, "*#batch k"], mean: Float[Tensor, "*#batch d"], components: Float[Tensor, "*#batch k d"]
) -> Float[Tensor, "*batch d"]:
    """x_ic = μ_c + Σ_r z_ir v_rc: observations from their scores. Shapes and refusals as in pca_transform.

    >>> import torch
    >>> pca_inverse(torch.tensor([[2.0]]), torch.tensor([3.0, 7.0]), torch.tensor([[1.0, 0.0]]))
    tensor([[5., 7.]])
    """
    _check_inverse("pca_inverse", z, mean, components)
    return _like(z, _Inverse.apply(_as_rows(z), mean, components))


def pca_inverse_vjp(
    z: Float[Tensor, "*#batch k"],
    mean: Float[Tensor, "*#batch d"],
    components: Float[Tensor, "*#batch k d"],
    *,
    grad_output: Float[Tensor, "*batch d"],
) -> tuple[Float[Tensor, "*#batch k"], Float[Tensor, "*#batch d"], Float[Tensor, "*#batch k d"]]:
    """(dz, dmean, dcomponents) = (G Vᵀ, Σ_i G_i, zᵀ G), each summed over its broadcast axes."""
    shape = _check_inverse("pca_inverse_vjp", z, mean, components)
    check_grad_output("pca_inverse_vjp", grad_output, shape, "z", z)
    return _vjp(_INVERSE_GRADS, z, mean, components, grad_output)


def _as_rows(x: Tensor) -> Tensor:
    """One observation is a matrix of one row."""
    return x if x.ndim > 1 else x[None]


def _like(x: Tensor, result: Tensor) -> Tensor:
    """Without the axis that `_as_rows(x)` put in."""
    return result if x.ndim > 1 else result[..., 0, :]


def _check_transform(operation: str, x: Tensor, mean: Tensor, components: Tensor) -> tuple[int, ...]:
    """The shape of the scores."""
    check_floating(operation, x=x, mean=mean, components=components)
    check_axes(operation, "x", x, "d")
    check_axes(operation, "mean", mean, "d")
    check_axes(operation, "components", components, "k, d")
    check_size(operation, "d", "mean", mean, -1, "x", x, -1)
    check_size(operation, "d", "components", components, -1, "x", x, -1)
    leading = check_leading(operation, 2, x=_as_rows(x), mean=mean[..., None, :], components=components)
    return (*leading, *x.shape[-2:-1], components.shape[-2])


def _check_inverse(operation: str, z: Tensor, mean: Tensor, components: Tensor) -> tuple[int, ...]:
    """The shape of the observations."""
    check_floating(operation, z=z, mean=mean, components=components)
    check_axes(operation, "z", z, "k")
    check_axes(operation, "mean", mean, "d")
    check_axes(operation, "components", components, "k, d")
    check_size(operation, "k", "components", components, -2, "z", z, -1)
    check_size(operation, "d", "mean", mean, -1, "components", components, -1)
    leading = check_leading(operation, 2, z=_as_rows(z), mean=mean[..., None, :], components=components)
    return (*leading, *z.shape[-2:-1], components.shape[-1])


_Gradient = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The gradient of one argument, from the rows x or z, the mean, the components and the cotangent."""


def _vjp(
    gradients: tuple[_Gradient, _Gradient, _Gradient], x: Tensor, mean: Tensor, components: Tensor, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, grad = _as_rows(x), grad_output if x.ndim > 1 else grad_output[..., None, :]
    dx, dmean, dcomponents = (gradient(rows, mean, components, grad) for gradient in gradients)
    return _like(x, dx), dmean, dcomponents


def _needed(gradients: tuple[_Gradient, _Gradient, _Gradient], ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    """Autograd's answer: the gradients that are asked for."""
    x, mean, components = arguments_of(ctx)
    return tuple(
        gradient(x, mean, components, grad_output) if needs else None
        for gradient, needs in zip(gradients, ctx.needs_input_grad, strict=True)
    )


class _Transform(KeepsArguments):
    @staticmethod
    def forward(x: Tensor, mean: Tensor, components: Tensor) -> Tensor:
        return product(widened(x) - widened(mean)[..., None, :], components.mT).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return _needed(_TRANSFORM_GRADS, ctx, grad_output)


def _transform_grad_x(x: Tensor, mean: Tensor, components: Tensor, grad_output: Tensor) -> Tensor:
    return summed_to(product(grad_output, components), x)


def _transform_grad_mean(x: Tensor, mean: Tensor, components: Tensor, grad_output: Tensor) -> Tensor:
    # Σ_i (G V)_i = (Σ_i G_i) V: the observations are summed first, at k numbers a row instead of d.
    total = product(widened(grad_output).sum(-2, keepdim=True), components)
    return -summed_to(total, mean[..., None, :])[..., 0, :]


def _transform_grad_components(x: Tensor, mean: Tensor, components: Tensor, grad_output: Tensor) -> Tensor:
    return summed_to(product(grad_output.mT, widened(x) - widened(mean)[..., None, :]), components)


_TRANSFORM_GRADS = (_transform_grad_x, _transform_grad_mean, _transform_grad_components)


class _Inverse(KeepsArguments):
    @staticmethod
    def forward(z: Tensor, mean: Tensor, components: Tensor) -> Tensor:
        return (product(z, components) + widened(mean)[..., None, :]).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return _needed(_INVERSE_GRADS, ctx, grad_output)


def _inverse_grad_z(z: Tensor, mean: Tensor, components: Tensor, grad_output: Tensor) -> Tensor:
    return summed_to(product(grad_output, components.mT), z)


def _inverse_grad_mean(z: Tensor, mean: Tensor, components: Tensor, grad_output: Tensor) -> Tensor:
    return summed_to(widened(grad_output).sum(-2, keepdim=True), mean[..., None, :])[..., 0, :]


def _inverse_grad_components(z: Tensor, mean: Tensor, components: Tensor, grad_output: Tensor) -> Tensor:
    return summed_to(product(z.mT, grad_output), components)


_INVERSE_GRADS = (_inverse_grad_z, _inverse_grad_mean, _inverse_grad_components)
