# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""layer_norm, rms_norm and residual_layer_norm over the last axis, each with its VJP.

    LayerNorm(x)_k = γ_k (x_k - μ)/√(v + ε) + β_k        μ, v the mean and the biased variance of the row
    RMSNorm(x)_k   = γ_k x_k/√(r + ε)                    r its mean square

The row is widened to at least float32; then the variance is the mean square of the centred row, in two passes
(normalization.rms_of_the_centred_row): E[x²] - μ² loses all its digits where μ² is large against v. The one rounding to
the dtype of x comes last, and h + sublayer is not rounded before it is normalised.

A row of large entries is multiplied by a power of two first, and ε by its square (normalization.affine_invariance):
squares of 1e20 overflow float32, where torch's layer_norm and rms_norm give zeros or NaN.

Backward, the statistics are recomputed from the arguments in the accumulator's dtype. torch keeps those of a bfloat16
row in bfloat16, and sums dγ and dβ there: 4096 rows of ones add up to 256 (normalization.layer_norm_gradient_weight).

A row of equal entries gives β, one of a single entry too. A NaN makes its whole row NaN.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from impl.arguments import check_axes, check_floating, check_grad_output, check_size
from impl.autograd import KeepsArguments, arguments_of
from impl.precision import widened


def layer_norm(
    x: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch d"]:
    """weight · (x - mean)/√(variance + eps) + bias over the last axis; the variance is the biased one.

    Raises ValueError where weight or bias is not (d,), the dtypes or devices disagree, or eps is not positive.
    Source: Ba, Kiros & Hinton 2016, "Layer normalization".

    >>> import torch
    >>> layer_norm(torch.tensor([1.0, 3.0]), bias=torch.tensor([0.0, 10.0]))
    tensor([-1.0000, 11.0000])
    """
    _check("layer_norm", eps, weight, bias, x=x)
    return _LayerNorm.apply(x, weight, bias, eps)


def layer_norm_vjp(
    x: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch d"],
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, " d"] | None, Float[Tensor, " d"] | None]:
    """(dx, dweight, dbias), the last two summed over all rows, None where their argument is None.

    >>> import torch
    >>> x, one = torch.tensor([[1.0, 3.0], [3.0, 1.0]]), torch.ones(2)
    >>> layer_norm_vjp(x, one, one, grad_output=x)[1:]
    (tensor([2.0000, 2.0000]), tensor([4., 4.]))
    """
    _check("layer_norm_vjp", eps, weight, bias, x=x)
    check_grad_output("layer_norm_vjp", grad_output, x.shape, "x", x)
    normalised, scale = _normalised(_centred, widened(x), eps)
    dx = _pulled_back(normalised, scale, weight, grad_output, centred=True)
    return dx, _grad_weight(normalised, weight, grad_output), _grad_bias(bias, grad_output)


def rms_norm(
    x: Float[Tensor, "*batch d"], weight: Float[Tensor, " d"] | None = None, *, eps: float = 1e-6
) -> Float[Tensor, "*batch d"]:
    """weight · x/√(mean(x²) + eps) over the last axis.

    Raises ValueError as layer_norm does. Source: Zhang & Sennrich 2019, "Root mean square layer normalization".

    >>> import torch
    >>> rms_norm(torch.tensor([3.0, -3.0]))
    tensor([ 1.0000, -1.0000])
    """
    _check("rms_norm", eps, weight, None, x=x)
    return _RMSNorm.apply(x, weight, eps)


def rms_norm_vjp(
    x: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch d"],
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, " d"] | None]:
    """(dx, dweight), dweight summed over all rows, None where weight is None.

    >>> import torch
    >>> rms_norm_vjp(torch.tensor([3.0, -3.0]), torch.ones(2), grad_output=torch.tensor([1.0, 2.0]))[1]
    tensor([ 1.0000, -2.0000])
    """
    _check("rms_norm_vjp", eps, weight, None, x=x)
    check_grad_output("rms_norm_vjp", grad_output, x.shape, "x", x)
    normalised, scale = _normalised(_as_it_is, widened(x), eps)
    dx = _pulled_back(normalised, scale, weight, grad_output, centred=False)
    return dx, _grad_weight(normalised, weight, grad_output)


def residual_layer_norm(
    h: Float[Tensor, "*batch d"],
    sublayer: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch d"]:
    """layer_norm(h + sublayer), the sum kept in the accumulator's dtype (Vaswani et al. 2017, §3.1).

    h and sublayer have one shape. Raises ValueError where they do not, and as layer_norm does.

    >>> import torch
    >>> residual_layer_norm(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
    tensor([-1.0000,  1.0000])
    """
    _check("residual_layer_norm", eps, weight, bias, h=h, sublayer=sublayer)
    return _ResidualLayerNorm.apply(h, sublayer, weight, bias, eps)


def residual_layer_norm_vjp(
    h: Float[Tensor, "*batch d"],
    sublayer: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch d"],
    eps: float = 1e-5,
) -> tuple[
    Float[Tensor, "*batch d"], Float[Tensor, "*batch d"], Float[Tensor, " d"] | None, Float[Tensor, " d"] | None
]:
    """(dh, dsublayer, dweight, dbias); dh and dsublayer are equal (normalization.residual_gradient_splits).

    >>> import torch
    >>> zero, g = torch.zeros(2), torch.tensor([1.0, 0.0])
    >>> residual_layer_norm_vjp(torch.tensor([0.0, 2.0]), zero, zero, zero, grad_output=g)[3]
    tensor([1., 0.])
    """
    _check("residual_layer_norm_vjp", eps, weight, bias, h=h, sublayer=sublayer)
    check_grad_output("residual_layer_norm_vjp", grad_output, h.shape, "h", h)
    normalised, scale = _normalised(_centred, widened(h) + widened(sublayer), eps)
    dh = _pulled_back(normalised, scale, weight, grad_output, centred=True)
    return dh, dh.clone(), _grad_weight(normalised, weight, grad_output), _grad_bias(bias, grad_output)


def _check(operation: str, eps: float, weight: Tensor | None, bias: Tensor | None, **rows: Tensor) -> None:
    check_floating(operation, **rows, weight=weight, bias=bias)
    (name, x), *others = rows.items()
    check_axes(operation, name, x, "d")
    for other, y in others:
        if y.shape != x.shape:
            raise ValueError(f"{operation}: {other} has shape {tuple(y.shape)} but {name} has {tuple(x.shape)}")
    for other, y in (("weight", weight), ("bias", bias)):
        if y is not None:
            check_axes(operation, other, y, "d", exactly=True)
            check_size(operation, "features", other, y, -1, name, x, -1)
    # Compared, not math.isfinite: under torch.compile with dynamic shapes a float is symbolic and only compares.
    if isinstance(eps, bool) or not isinstance(eps, float | int) or not 0 < eps < math.inf:
        raise ValueError(f"{operation}: eps must be a positive finite float, got {eps!r}")


class _LayerNorm(KeepsArguments):
    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return _affine(_normalised(_centred, widened(x), eps)[0], weight, bias).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, eps = arguments_of(ctx)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        normalised, scale = _normalised(_centred, widened(x), eps)
        return (
            _pulled_back(normalised, scale, weight, grad_output, centred=True) if needs_x else None,
            _grad_weight(normalised, weight, grad_output) if needs_weight else None,
            _grad_bias(bias, grad_output) if needs_bias else None,
            None,
        )


class _RMSNorm(KeepsArguments):
    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return _affine(_normalised(_as_it_is, widened(x), eps)[0], weight, None).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, eps = arguments_of(ctx)
        needs_x, needs_weight, _ = ctx.needs_input_grad
        normalised, scale = _normalised(_as_it_is, widened(x), eps)
        return (
            _pulled_back(normalised, scale, weight, grad_output, centred=False) if needs_x else None,
            _grad_weight(normalised, weight, grad_output) if needs_weight else None,
            None,
        )


class _ResidualLayerNorm(KeepsArguments):
    @staticmethod
    def forward(h: Tensor, sublayer: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return _affine(_normalised(_centred, widened(h) + widened(sublayer), eps)[0], weight, bias).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        h, sublayer, weight, bias, eps = arguments_of(ctx)
        needs_h, needs_sublayer, needs_weight, needs_bias, _ = ctx.needs_input_grad
        normalised, scale = _normalised(_centred, widened(h) + widened(sublayer), eps)
        dh = None
        if needs_h or needs_sublayer:
            dh = _pulled_back(normalised, scale, weight, grad_output, centred=True)
        return (
            dh if needs_h else None,
            dh if needs_sublayer else None,  # normalization.residual_gradient_splits
            _grad_weight(normalised, weight, grad_output) if needs_weight else None,
            _grad_bias(bias, grad_output) if needs_bias else None,
            None,
        )


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _normalised(shifted: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(c/√(mean c² + ε), 1/√(mean c² + ε)) with c = shifted(x), in the dtype of x: (..., d) and (..., 1)."""
    factor = _into_range(x)
    c = shifted(x * factor)
    # At least the smallest normal number: ε·factor² may underflow, and 0/0 is no β.
    floor = (factor.square() * eps).clamp_min(torch.finfo(x.dtype).tiny)
    inverse = torch.rsqrt(c.square().mean(-1, keepdim=True) + floor)
    return c * inverse, inverse * factor


def _into_range(x: Tensor) -> Tensor:
    """For each row the power of two, mostly 1, by which its squares may be summed: (..., 1)."""
    if x.shape[-1] == 0:
        return x.new_ones(*x.shape[:-1], 1)
    exponent = torch.frexp(x.detach().abs().amax(-1, keepdim=True)).exponent
    largest = 400 if x.dtype == torch.float64 else 40
    return torch.ldexp(torch.ones_like(exponent, dtype=x.dtype), (largest - exponent).clamp_max(0))


def _affine(normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = normalised if weight is None else normalised * widened(weight)  # normalization.gain_and_bias
    return y if bias is None else y + widened(bias)


def _pulled_back(
    normalised: Tensor, scale: Tensor, weight: Tensor | None, grad_output: Tensor, *, centred: bool
) -> Tensor:
    """dx = (ĝ - m₁ - x̂ m₂)·scale (normalization.layer_norm_gradient); m₁ = 0 in normalization.rms_norm_gradient."""
    g = widened(grad_output)
    if weight is not None:
        g = g * widened(weight)
    dx = g - normalised * (g * normalised).mean(-1, keepdim=True)
    if centred:
        dx = dx - g.mean(-1, keepdim=True)
    return (dx * scale).to(grad_output.dtype)


def _grad_weight(normalised: Tensor, weight: Tensor | None, grad_output: Tensor) -> Tensor | None:
    """Σ g∘x̂ over every row, in the accumulator's dtype: normalization.layer_norm_gradient_weight."""
    if weight is None:
        return None
    return _over_rows(widened(grad_output) * normalised).to(weight.dtype)


def _grad_bias(bias: Tensor | None, grad_output: Tensor) -> Tensor | None:
    return None if bias is None else _over_rows(widened(grad_output)).to(bias.dtype)


def _over_rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).sum(0)  # normalization.layer_norm_gradient_bias
