"""Rounding-error bounds of softmax, log_softmax, logsumexp and their VJPs, over the last axis.

What may be wrong with the weights themselves, and with log Σ exp, is derived in weights.py.
"""

from __future__ import annotations

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.sharp.maxima import through_maxima
from lla_spec.evaluating.sharp.roundings import ORACLE_U, Arguments, Array, Roundings, array, finish
from lla_spec.evaluating.sharp.weights import (
    Weights,
    _log,
    apart,
    grown,
    log_sum_exp,
    probability_error,
    weights,
)

# ---- forward


def softmax(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """softmax of x (..., n). A logit of -inf gives exactly 0; a row of nothing else is 0/0 and not judged."""
    x, nan, unjudged = _logits(arguments)
    model = Roundings(contract, oracle_u)
    w = weights(x, model)
    dead_row = ~w.live.any(-1, keepdims=True)
    return finish(w.p, probability_error(w, model), contract, exact=~w.live, nan=nan, unjudged=unjudged | dead_row)


def log_softmax(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """log_softmax of x (..., n); exactly -inf at a logit of -inf.

    A kernel computes (x - m) - log Σ exp(x - m), where x - m is one rounding, u|d|; or x - L with L = m + log s, as
    the declaration has it and fused cross-entropies do, where L is one rounding, u|L|. The logarithm is as in `_log`,
    and the last subtraction u(|y| + both). The bound covers both kernels, so it takes the larger.
    """
    x, nan, unjudged = _logits(arguments)
    model = Roundings(contract, oracle_u)
    w = weights(x, model)
    value, error = _log_probability(w, model)
    value = np.where(w.live, value, -np.inf)
    dead_row = ~w.live.any(-1, keepdims=True)
    return finish(value, error, contract, exact=~w.live, nan=nan, unjudged=unjudged | dead_row)


def _log_probability(w: Weights, model: Roundings) -> tuple[Array, Array]:
    value = w.d - w.log_sum
    shifted = model.few(1) * np.abs(w.d) + _log(w, model)
    _, whole = log_sum_exp(w, model)
    error = np.maximum(shifted, whole)
    return value, error + model.few(1) * (np.abs(value) + error) + model.eta


def logsumexp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """log Σ exp(x) of x (..., n), result (...); exactly -inf for a row of -inf."""
    x, nan, unjudged = _logits(arguments)
    model = Roundings(contract, oracle_u)
    w = weights(x, model)
    dead = np.asarray(~w.live.any(-1))
    value, error = (part[..., 0] for part in log_sum_exp(w, model))
    value = np.where(dead, -np.inf, value)
    error = error + model.eta
    return finish(value, error, contract, exact=dead, nan=nan[..., 0], unjudged=unjudged[..., 0])


# ---- VJPs


def softmax_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """dx_j = p_j (g_j - t), t = Σ p g, for x and grad_output (..., n).

    A kernel starts from p̂ saved in io (|p̂ - p| <= Δp with the cast) or recomputes it (without). Then

        e_t = Σ Δp|g| + γ_n Σ (p+Δp)|g|,    e = Δp|g-t| + (p+Δp)(e_t + 4u(|g|+|t|+e_t)),

    4u since a kernel may form p∘g - p∘t, or differentiate e/s, where g/s is rounded first. Autograd through two passes
    (the sum over blocks, then exp(x - m)/s) sends g through one exponential and t through the other. It computes
    p(g - t) + (p - p')t, and (p+Δp) `apart` (|t|+e_t) more: most of the error of a tail where g hardly varies. Autograd
    through the subtraction of the maxima adds what is in maxima.py, with f = p(|g|+|t|): one pass over blocks scales
    the weights and their sum, and adds up what comes from each apart.
    """
    x, nan, unjudged = _logits(arguments)
    g = array(arguments, "grad_output")
    model = Roundings(contract, oracle_u)
    w = weights(x, model)
    t = (w.p * g).sum(-1, keepdims=True)
    value = w.p * (g - t)
    recomputed = probability_error(w, model)
    saved = np.where(w.live, contract.cast(w.p, recomputed), 0.0)
    error = np.maximum(
        _softmax_pullback(w.p, saved, g, t, model),
        through_maxima(
            _softmax_pullback(w.p, recomputed, g, t, model, apart(w)), w.p * (np.abs(g) + np.abs(t)), w, model
        ),
    )
    dead_row = ~w.live.any(-1, keepdims=True)
    return {"x": finish(value, error, contract, exact=~w.live & np.isfinite(g), nan=nan, unjudged=unjudged | dead_row)}


def _softmax_pullback(p: Array, dp: Array, g: Array, t: Array, model: Roundings, twice: Array | None = None) -> Array:
    """`twice`: how far apart the weights may be that g and t are multiplied by, where a kernel computes two."""
    size = np.abs(g)
    gamma = model.gamma(p.shape[-1])
    e_t = (dp * size).sum(-1, keepdims=True) + gamma * ((p + dp) * size).sum(-1, keepdims=True) + _sum_eta(p, model)
    reach = np.abs(t) + e_t
    error = dp * np.abs(g - t) + (p + dp) * (e_t + model.few(4) * (size + reach)) + 2 * model.eta * (1 + size)
    return error if twice is None else error + ((p + dp) * twice + 2 * model.eta) * reach


def log_softmax_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """dx_j = g_j - p_j G, G = Σ g, for x and grad_output (..., n).

    p̂ = exp(ŷ) of the saved, io-rounded ŷ: relative error ρ = expm1(e_y + κu(|y|+e_y) + ε_exp); or recomputed:
    ρ of the softmax. Both are covered by the larger: e = p ρ|G| + p(1+ρ)(γ_n Σ|g| + 3u|G|) + 2u(|g|+|pG|).
    """
    x, nan, unjudged = _logits(arguments)
    g = array(arguments, "grad_output")
    model = Roundings(contract, oracle_u)
    w = weights(x, model)
    total = g.sum(-1, keepdims=True)
    value = g - w.p * total
    y, e_y = _log_probability(w, model)
    saved = _exp_error(w.p, y, contract.cast(y, e_y), model)
    recomputed = probability_error(w, model)
    error = np.maximum(
        _log_softmax_pullback(w.p, np.maximum(saved, recomputed), g, total, model),
        through_maxima(_log_softmax_pullback(w.p, recomputed, g, total, model), np.abs(value), w, model),
    )
    error = np.where(w.live, error, 0.0)
    dead_row = ~w.live.any(-1, keepdims=True)
    value = np.where(w.live, value, g)
    return {"x": finish(value, error, contract, nan=nan, unjudged=unjudged | dead_row)}


def _log_softmax_pullback(p: Array, dp: Array, g: Array, total: Array, model: Roundings) -> Array:
    size, wide = np.abs(g), np.abs(total)
    e_total = model.gamma(p.shape[-1]) * size.sum(-1, keepdims=True) + _sum_eta(p, model)
    product = dp * wide + (p + dp) * (e_total + model.few(3) * (wide + e_total))
    return product + model.few(2) * (size + p * wide + product) + 2 * model.eta


def logsumexp_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """dx_j = p_j g for x (..., n), grad_output (...). p̂ = exp(x - L̂) of the saved, io-rounded L̂, or recomputed."""
    x, nan, unjudged = _logits(arguments)
    g = array(arguments, "grad_output")[..., None]
    model = Roundings(contract, oracle_u)
    w = weights(x, model)
    value = w.p * g
    log_sum, e_log = log_sum_exp(w, model)
    saved = _exp_error(w.p, w.log_p, contract.cast(log_sum, e_log), model)
    recomputed = probability_error(w, model)

    def pullback(dp: Array) -> Array:
        return (dp + model.few(2) * (w.p + dp)) * np.abs(g) + model.eta * (1 + np.abs(g))

    # Autograd through m + log Σ exp(x - m): the maximum receives g - Σ dx̂ = 0 but for rounding.
    through = pullback(recomputed)
    at_peak = w.live & (w.d == 0)
    error = np.maximum(pullback(np.maximum(saved, recomputed)), through_maxima(through, np.abs(value), w, model))
    error = np.where(at_peak, error + model.few(2) * np.abs(g), error)
    dead_row = ~w.live.any(-1, keepdims=True)
    return {"x": finish(value, error, contract, exact=~w.live & np.isfinite(g), nan=nan, unjudged=unjudged | dead_row)}


def _exp_error(p: Array, log_p: Array, error: Array, model: Roundings) -> Array:
    """|exp(ẑ) - p| for |ẑ - log p| <= error."""
    size = np.where(np.isfinite(log_p), np.abs(log_p), 0.0)
    with np.errstate(all="ignore"):
        moved = grown(p, log_p, error + model.exp_argument * (size + error) + model.exp_log)
    return np.where(np.isfinite(error), moved, np.inf) + model.eta


def _sum_eta(p: Array, model: Roundings) -> float:
    return 2 * p.shape[-1] * model.eta


def _logits(arguments: Arguments) -> tuple[Array, Array, Array]:
    """(x with NaN and +inf replaced by 0, rows that hold a NaN or whose grad_output does, rows that hold +inf or whose
    grad_output holds an infinity), the last two broadcast over the axis."""
    x = array(arguments, "x")
    nan, unjudged = np.isnan(x).any(-1, keepdims=True), np.isposinf(x).any(-1, keepdims=True)
    if arguments.get("grad_output") is not None:
        g = array(arguments, "grad_output")
        g = g if g.ndim == x.ndim else g[..., None]
        nan = nan | np.isnan(g).any(-1, keepdims=True)
        unjudged = unjudged | np.isinf(g).any(-1, keepdims=True)
    x = np.where(np.isnan(x) | np.isposinf(x), 0.0, x)
    return x, np.asarray(nan), np.asarray(unjudged)
