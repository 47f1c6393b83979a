"""Rounding-error bounds of layer_norm, rms_norm, residual_layer_norm and their VJPs, over the last axis.

    y = γ x̂ + β,    x̂ = c ρ,    c = x - μ,    ρ = (v + ε)^-½

**Mean.** |μ̂ - μ| <= e_μ = (γ_n ∘ 2u) mean|x|, any order of summation. A running mean rounds each m_k = m_{k-1} +
(x_k - m_{k-1})/k; with E_k = (1 - 1/k)E_{k-1} + η_k its error is nE_n = Σ kη_k <= (n + 2 + 3H_n) u Σ|x|.

**Variance.** Two passes: mean (x - μ̂)² = v + (μ̂ - μ)² exactly, since Σc = 0, so only e_μ² and the relative γ_n ∘ 6u are
added. Welford: the terms a_k b_k, a_k = x_k - m_{k-1}, b_k = x_k - m_k, sum to nv and Σ a_k² <= 2nv, so by
Cauchy-Schwarz the errors E_k <= (k + L)u mean_{j<=k}|x_j|, L = 2 + 3H_n, move v by at most

    A = 2q√(v(v + μ²)) + q²(v + μ²),    q = u(2Σ_k (k + L)²/k)^½ = γ_n and some u    (n u for large n).

Merging two blocks (Chan) is within it. Naive E[x²] - μ²: the two sums' own errors, which are relative to E[x²].

**Root.** t = v + ε is off by δt = δv + 2ut. Both variances are sums of squares, hence >= 0 and t̂ >= ε(1 - 2u): that
keeps the bound finite on constant rows far from 0. The factor by which ρ may grow: (t/max(t - δt, ε))^½, then 4u for
the root and the division.

**Result.** (x - μ̂)ρ̂, or xρ̂ - μ̂ρ̂, which rounds relative to |x| + |μ|; then γ and β. Where x itself is off by at most e
(a sum of two, rounded to io or not, and what either makes of it is known): c by e + mean e, v by 2 mean|c|e + mean e².

**VJP.** ĝ = γ∘g, m₁ = mean ĝ, m₂ = mean ĝ∘x̂, dx = ρ(ĝ - m₁ - x̂ m₂), dγ = Σ g∘x̂, dβ = Σ g. A kernel has ρ and μ from the
forward pass in the accumulator's dtype. Some take Σĝx - μΣĝ for Σĝc, so that m₂ is off by γ_n relative to |x| + |μ|;
autograd takes the mean of ρ(ĝ - x̂ m₂) where mean x̂ = 0 has been dropped above; both may form ρ³, which underflows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.exactness import rounded
from lla_spec.evaluating.sharp.roundings import (
    ORACLE_U,
    Arguments,
    Array,
    Roundings,
    array,
    finish,
    join,
    optional_array,
)

ALONE = ("layer_norm", "rms_norm", "residual_layer_norm")
"""Kernels of the contract need not take the declaration's steps (a running variance, γρ formed first, h + sublayer
rounded at the edge), which the generic rule follows: it may not be taken where it is the smaller one."""

_EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6}


@dataclass(frozen=True)
class _Rows:
    """Rows (..., n): what is normalised, and how far a kernel's may be from it before γ and β."""

    c: Array  # x - μ, or x for rms_norm
    size: Array  # |x| + |μ|, to which the terms of a difference are rounded
    root: Array  # ρ, (..., 1)
    off: Array  # |ρ̂ - ρ| <= off ρ, (..., 1)
    error: Array  # |x̂^ - x̂|
    centred: bool

    @property
    def normalised(self) -> Array:
        return self.c * self.root


def layer_norm(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """x (..., n), weight (n,) or None, bias (n,) or None, eps."""
    model = Roundings(contract, oracle_u)
    x = _finite(arguments, "x")
    return _affine(_layer_rows(x, model.flushed(x), arguments, model), arguments, model)


def rms_norm(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """x (..., n), weight (n,) or None, eps."""
    model = Roundings(contract, oracle_u)
    return _affine(_rms_rows(_finite(arguments, "x"), arguments, model), arguments, model)


def residual_layer_norm(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """h and sublayer (..., n); their sum is an edge of the composite, and may be rounded to io."""
    model = Roundings(contract, oracle_u)
    return _affine(_layer_rows(*_sum(arguments, model), arguments, model), arguments, model)


def layer_norm_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """Gradients of x, weight and bias, the last two summed over all rows."""
    model = Roundings(contract, oracle_u)
    x = _finite(arguments, "x")
    rows = _layer_rows(x, model.flushed(x), arguments, model)
    return {"x": _gradient(rows, arguments, model), **_parameters(rows, arguments, model)}


def rms_norm_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    model = Roundings(contract, oracle_u)
    rows = _rms_rows(_finite(arguments, "x"), arguments, model)
    return {"x": _gradient(rows, arguments, model), **_parameters(rows, arguments, model)}


def residual_layer_norm_vjp(
    arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U
) -> dict[str, Bounded]:
    """Gradients of h and sublayer, which are one, and of weight and bias."""
    model = Roundings(contract, oracle_u)
    rows = _layer_rows(*_sum(arguments, model), arguments, model)
    through = _gradient(rows, arguments, model)
    return {"h": through, "sublayer": through, **_parameters(rows, arguments, model)}


# ---- arguments


def _finite(arguments: Arguments, name: str) -> Array:
    """NaN and infinities read as 0: the caller tells what depends on them (nonfinite.py)."""
    given = array(arguments, name)
    return given if np.isfinite(given).all() else np.where(np.isfinite(given), given, 0.0)


def _optional(arguments: Arguments, name: str) -> Array | None:
    return None if optional_array(arguments, name) is None else _finite(arguments, name)


def _sum(arguments: Arguments, model: Roundings) -> tuple[Array, Array]:
    """(h + s, its error): read as zero, one addition, a cast to io at the edge."""
    h, s = _finite(arguments, "h"), _finite(arguments, "sublayer")
    with np.errstate(all="ignore"):
        value = h + s
        error = model.few(1) * np.abs(value) + model.eta * (value != 0)
        for operand in (h, s):
            flushed = model.flushed(operand)
            error = error if flushed is None else error + flushed
        return value, np.minimum(model.contract.inner_cast(value, error), _sum_rounded(h, s, value, model.contract))


def _sum_rounded(h: Array, s: Array, value: Array, contract: Contract) -> Array:
    """How far value = h + s is from what it is rounded to: to io, to acc, or to acc and then to io. One addition gives
    nothing else, rounded to nearest; +inf where it may be flushed, or where value is no exact sum."""
    if contract.rounding != "nearest" or contract.acc.name == "fp64":
        return np.full(value.shape, np.inf)
    part = value - h
    known = ((h - (value - part)) + (s - part) == 0) & (np.abs(value) < contract.io.largest)  # Knuth's TwoSum
    for number in (h, s, value):
        known &= (number == 0) | (np.abs(number) >= contract.acc.smallest_normal)
    accumulated = rounded(value, contract.acc)
    results = (accumulated, rounded(value, contract.io), rounded(accumulated, contract.io))
    return np.where(known, np.maximum.reduce([np.abs(result - value) for result in results]), np.inf)


def _eps(arguments: Arguments, default: float) -> float:
    given = arguments.get("eps")
    return default if given is None else float(np.asarray(given))


# ---- rows


def _layer_rows(x: Array, e: Array | None, arguments: Arguments, model: Roundings) -> _Rows:
    with np.errstate(all="ignore"):
        n, moved = x.shape[-1], np.zeros(x.shape) if e is None else e
        size = np.abs(x) + moved
        mu = _mean(x)
        c = x - mu
        v, average = _mean(c * c), _mean(size)
        # What the error of x itself does to c and to v.
        e_c = moved + _mean(moved) if n > 1 else np.zeros(x.shape)
        e_v = 2 * _mean(np.abs(c) * e_c) + _mean(e_c * e_c)
        square = v + e_v + (np.abs(mu) + _mean(moved)) ** 2
        e_mu, extra = _statistics(n, v + e_v, square, average, model)
        e_c = e_c + e_mu + model.eta
        t, e_t = _root_argument(v, e_v, extra, square, n, arguments, model)
        root, off = _root(t, e_t, _floor(arguments, "layer_norm", model), model)
        spread = size + np.abs(mu) + e_mu
        rounded = model.few(3) * spread + model.few(1) * (np.abs(c) + e_c)
        error = root * ((e_c + rounded) * (1 + off) + np.abs(c) * off) + 2 * model.eta
        error = np.where(_beyond(spread, v + e_v, root * (1 + off), n, model), np.inf, error)
        return _Rows(c, spread, root, off, error, centred=True)


def _rms_rows(x: Array, arguments: Arguments, model: Roundings) -> _Rows:
    with np.errstate(all="ignore"):
        n, flushed = x.shape[-1], model.flushed(x)
        moved = np.zeros(x.shape) if flushed is None else flushed
        r, size = _mean(x * x), np.abs(x) + moved
        e_r = 2 * _mean(np.abs(x) * moved) + _mean(moved * moved)
        e_r = e_r + join(model.gamma(n), model.few(3)) * (r + e_r) + 4 * model.eta
        eps = _eps(arguments, _EPS["rms_norm"])
        t = r + eps
        e_t = e_r + model.few(2) * (t + e_r) + 2 * model.eta
        root, off = _root(t, e_t, _floor(arguments, "rms_norm", model), model)
        error = root * ((moved + model.few(2) * size) * (1 + off) + np.abs(x) * off) + 2 * model.eta
        error = np.where(_beyond(size, r, root * (1 + off), n, model), np.inf, error)
        return _Rows(x, size, root, off, error, centred=False)


def _mean(x: Array) -> Array:
    return x.sum(-1, keepdims=True) / max(x.shape[-1], 1)


def _statistics(n: int, v: Array, square: Array, average: Array, model: Roundings) -> tuple[Array, Array]:
    """(e_μ, A): the error of the mean, and by how much it moves the variance, each (..., 1). `square`: μ² + v."""
    if n <= 1:  # a sum of one term: the mean is the entry itself
        zero = np.zeros(v.shape)
        return zero, model.few(4) * square if model.contract.variance == "naive" else zero
    harmonic = float(np.sum(1 / np.arange(1, n + 1)))
    lag = 2 + 3 * harmonic
    running = model.contract.variance == "welford"
    e_mu = join(model.gamma(n), model.few(lag if running else 2)) * average + 3 * model.eta
    if running:
        q = join(model.gamma(n), model.few(max((2 * _weight(n, lag, harmonic)) ** 0.5 - n, 2.0)))
        rms = np.sqrt(square)
        extra = 2 * q * np.sqrt(v) * rms + (q * rms) ** 2
    elif model.contract.variance == "two_pass":
        extra = e_mu**2
    else:
        mu = np.sqrt(np.maximum(square - v, 0.0)) + e_mu
        extra = join(model.gamma(n), model.few(4)) * square + 2 * mu * e_mu + model.few(3) * mu**2
    return e_mu, extra + 2 * np.sqrt(v) * model.eta + model.eta**2


def _weight(n: int, lag: float, harmonic: float) -> float:
    """Σ_k (k + L)²/k."""
    return n * (n + 1) / 2 + 2 * lag * n + lag * lag * harmonic


def _root_argument(
    v: Array, e_v: Array, extra: Array, square: Array, n: int, arguments: Arguments, model: Roundings
) -> tuple[Array, Array]:
    """(v + ε, its error): the moved mean, the sum of the squares, ε as a rounded number, and the addition."""
    moved = e_v + extra
    relative = join(model.gamma(n), model.few(6)) * (n > 1)
    e_v = moved + relative * (v + moved) + 4 * model.eta
    t = v + _eps(arguments, _EPS["layer_norm"])
    return t, e_v + model.few(2) * (t + e_v) + 2 * model.eta


def _floor(arguments: Arguments, operation: str, model: Roundings) -> float:
    """The least that a computed v + ε can be: v is a sum of squares, but not the naive one."""
    if operation == "layer_norm" and model.contract.variance == "naive":
        return 0.0
    return max(_eps(arguments, _EPS[operation]) * (1 - model.few(3)) - 2 * model.eta, 0.0)


def _root(t: Array, e_t: Array, floor: float, model: Roundings) -> tuple[Array, Array]:
    """(ρ, its relative error): t^-½ at both ends of the interval, then 4u (2 ulps) of the root and the division."""
    least = np.maximum(t - e_t, floor)
    # √(t/least) - 1 and 1 - √(t/(t + e_t)), without cancellation.
    grows = np.where(least > 0, np.expm1(0.5 * np.log1p((t - least) / np.where(least > 0, least, 1.0))), np.inf)
    shrinks = -np.expm1(-0.5 * np.log1p(e_t / t))
    off = np.maximum(grows, shrinks)
    return 1 / np.sqrt(t), np.where(np.isnan(off), np.inf, off + model.few(4) * (1 + off))


def _beyond(size: Array, v: Array, root: Array, n: int, model: Roundings) -> Array:
    """(..., 1): a partial sum, a square or a product with the root may overflow on its way."""
    threshold = model.contract.acc.overflow_threshold * (1 - join(model.gamma(n), model.few(8)))
    sums = np.maximum(size.sum(-1, keepdims=True), n * v)
    if model.contract.variance == "naive":
        sums = np.maximum(sums, (size * size).sum(-1, keepdims=True))
    largest = size.max(-1, keepdims=True, initial=0.0)
    # A centred entry, squared, is one term of the sum; a running variance squares a distance of two entries.
    squared = (2 * largest) ** 2 if model.contract.variance == "welford" else 0.0
    return (np.maximum(np.maximum(sums, squared), largest * root) >= threshold) | ~np.isfinite(root)


# ---- forward


def _affine(rows: _Rows, arguments: Arguments, model: Roundings) -> Bounded:
    weight, bias = _optional(arguments, "weight"), _optional(arguments, "bias")
    with np.errstate(all="ignore"):
        value, error, reach = rows.normalised, rows.error, rows.root * (1 + rows.off) * (1 + rows.size)
        if weight is not None:
            size = np.abs(weight)
            flushed = model.flushed(weight)
            lost = 0.0 if flushed is None else flushed * (np.abs(value) + error)
            error = size * error + lost + model.few(2) * size * (np.abs(value) + error) + 2 * model.eta
            error = error + 2 * model.eta * rows.size  # γρ formed first, and subnormal
            # γρ formed first rounds x and μ times γρ once more each
            error = error + model.few(1) * size * rows.root * (1 + rows.off) * rows.size * rows.centred
            value, reach = weight * value, reach * np.maximum(size, 1.0)
        if bias is not None:
            # β may meet -μγρ before the row does.
            error = error + model.few(3) * (np.abs(bias) + np.abs(value) + error) + 2 * model.eta
            value, reach = value + bias, reach + np.abs(bias)
        error = np.where(reach >= model.contract.acc.overflow_threshold * (1 - model.few(8)), np.inf, error)
    return finish(value, error, model.contract)


# ---- VJPs


def _gradient(rows: _Rows, arguments: Arguments, model: Roundings) -> Bounded:
    """dx = ρ(ĝ - m₁ - x̂ m₂); m₁ is 0 for rms_norm."""
    g, weight = _finite(arguments, "grad_output"), _optional(arguments, "weight")
    n = g.shape[-1]
    with np.errstate(all="ignore"):
        e_g = np.zeros(g.shape)
        for operand, other in ((g, weight), (weight, g)):
            flushed = None if operand is None else model.flushed(operand)
            e_g = e_g if flushed is None else e_g + flushed * (1.0 if other is None else np.abs(other))
        ĝ = g if weight is None else g * weight
        size, x̂, e_x = np.abs(ĝ) + e_g, rows.normalised, rows.error
        if weight is not None:
            e_g = e_g + model.few(1) * size + model.eta
            size = np.abs(ĝ) + e_g
        gamma, high = join(model.gamma(n), model.few(4)), rows.root * (1 + rows.off)
        m1, e_m1 = np.zeros(rows.root.shape), np.zeros(rows.root.shape)
        if rows.centred:
            m1, e_m1 = _mean(ĝ), _mean(e_g) + gamma * _mean(size) + 3 * model.eta
        m2 = _mean(ĝ * x̂)
        products = size * (np.abs(x̂) + e_x)
        e_m2 = _mean(size * e_x + e_g * np.abs(x̂)) + gamma * _mean(products) + 4 * model.eta
        if rows.centred:
            e_m2 = e_m2 + gamma * _mean(size * rows.size) * high  # Σĝx - μΣĝ
        s = ĝ - m1 - x̂ * m2
        wide1, wide2 = np.abs(m1) + e_m1, np.abs(m2) + e_m2
        error = e_g + e_m1 + e_x * wide2 + np.abs(x̂) * e_m2
        error = error + model.few(5) * (size + wide1 + (np.abs(x̂) + e_x + high * rows.size * rows.centred) * wide2)
        if rows.centred:  # autograd's mean of x̂ m₂
            error = error + _mean(e_x) * wide2 + gamma * _mean(size + (np.abs(x̂) + e_x) * wide2)
        # ρ³/n formed first, and subnormal: it is multiplied by c and Σĝc = n m₂/ρ; or ρ² m₂, which is multiplied by c.
        error = error + model.eta * (4 + (2 + np.abs(x̂)) * (n * wide2 / rows.root**3 + 1 / rows.root**2))
        value = rows.root * s
        total = high * error + rows.root * rows.off * np.abs(s)
        total = total + model.few(4) * (np.abs(value) + total) + 2 * model.eta
        total = np.where(_gradient_beyond(rows, size, high, model), np.inf, total)
    return finish(value, total, model.contract)


def _gradient_beyond(rows: _Rows, size: Array, high: Array, model: Roundings) -> Array:
    """(..., 1): where the forward pass or one of the backward's sums may overflow."""
    n = size.shape[-1]
    products = (size * np.maximum(rows.size, 1.0)).sum(-1, keepdims=True)
    largest = products * np.maximum(np.maximum(high, 1.0) ** 3, 1.0)
    safe = model.contract.acc.overflow_threshold * (1 - join(model.gamma(n), model.few(16))) / 4
    return (largest >= safe) | ~np.isfinite(rows.error).all(-1, keepdims=True)


def _parameters(rows: _Rows, arguments: Arguments, model: Roundings) -> dict[str, Bounded]:
    """dγ = Σ g∘x̂ and dβ = Σ g over all N rows."""
    g = _finite(arguments, "grad_output")
    flat, wide = _as_rows(g), np.abs(_as_rows(g))
    found: dict[str, Bounded] = {}
    count, flushed = len(flat), model.flushed(flat)
    e_g = np.zeros(flat.shape) if flushed is None else flushed
    with np.errstate(all="ignore"):
        if arguments.get("weight") is not None:
            x̂, e_x = _as_rows(rows.normalised), _as_rows(rows.error)
            reach = wide * (np.abs(x̂) + e_x)
            error = wide * e_x + e_g * np.abs(x̂) + 2 * model.eta * (1 + wide)
            found["weight"] = _column_sums(flat * x̂, error, reach, count, model)
        if arguments.get("bias") is not None:
            found["bias"] = _column_sums(flat, e_g, wide, count, model)
    return found


def _column_sums(terms: Array, error: Array, reach: Array, count: int, model: Roundings) -> Bounded:
    total, reached = terms.sum(0), np.where(np.isfinite(reach), reach, np.inf).sum(0)
    gamma = join(model.gamma(count), model.few(2))
    bound = error.sum(0) + gamma * (reached + error.sum(0)) + count * model.eta
    beyond = (reached + error.sum(0)) * (1 + gamma) >= model.contract.acc.overflow_threshold
    return finish(total, np.where(beyond, np.inf, bound), model.contract)


def _as_rows(x: Array) -> Array:
    return x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
