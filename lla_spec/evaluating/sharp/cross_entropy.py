"""Rounding-error bounds of cross_entropy, linear_cross_entropy and their VJPs, over the last axis of the logits.

ℓ = log Σ_j exp(z_j) - z_t. A kernel has logits within E of z and forms ŵ_j = exp(ẑ_j - m̂) within x_j (weights.py,
E included). Seen from the target, log ŝ - (ẑ_t - m̂) = log Σ_j exp(ẑ_j - ẑ_t): the target's own logit does not move,
and the others move by E_j + E_t. With y_j = x_j + E_t for j ≠ t and y_t = x_t - E_t

    |log Σ_j p_j e^±y_j| + γ_{n-1}      is all that logits, exp and the sum put into ℓ

and vanishes as p_t -> 1. Then come the logarithm, the difference z_t - m (or the sum m + log s, which some kernels
round instead), and the last subtraction. The mean adds γ_N + 3u of the mean of |ℓ| (the division may be a reciprocal).

Backward, dz = G_i (P - onehot) / N. P is recomputed, or exp(z - L̂) with a saved L̂ that is not rounded to io; a kernel
may form G P - G onehot, so near p = 1 the roundings are relative to p and not to 1 - p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.sharp.maxima import through_maxima
from lla_spec.evaluating.sharp.output import finite, output_weights, through_linear
from lla_spec.evaluating.sharp.roundings import ORACLE_U, Arguments, Array, Roundings, array, finish
from lla_spec.evaluating.sharp.softmax import _exp_error
from lla_spec.evaluating.sharp.weights import (
    _LOG_ULPS,
    Weights,
    grown,
    log_sum_exp,
    may_overflow,
    probability_error,
    spread,
    weights,
)
from lla_spec.interface import IGNORE_INDEX

ALONE = ("cross_entropy", "cross_entropy_sum", "cross_entropy_none", "linear_cross_entropy")
"""The generic rule follows the declaration's steps, and knows no cast of the logits and no other order: it may not be
taken where it is smaller."""


@dataclass(frozen=True)
class _Rows:
    """Softmax of every row, its target's place (0 without one), and which rows have a target."""

    w: Weights
    logit_error: Array  # (..., v), E
    place: Array  # (..., 1)
    kept: Array  # (..., 1)

    @property
    def count(self) -> int:
        return max(int(self.kept.sum()), 1)

    def at_target(self, entries: Array) -> Array:
        return np.take_along_axis(np.broadcast_to(entries, self.w.p.shape), self.place, -1)


# ---- forward


def cross_entropy(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """The mean over the rows that have a target: logits (..., v), targets (...) int64, ignore_index."""
    model = Roundings(contract, oracle_u)
    return _mean(_rows_of_logits(arguments, model), model)


def cross_entropy_sum(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    model = Roundings(contract, oracle_u)
    value, error = _total(_rows_of_logits(arguments, model), model)
    return finish(value, error, contract)


def cross_entropy_none(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """The loss of every row; exactly 0 where it has no target, exactly inf where its target's logit is -inf."""
    model = Roundings(contract, oracle_u)
    rows = _rows_of_logits(arguments, model)
    value, error = _losses(rows, model)
    return finish(value, error, contract, exact=~rows.kept[..., 0] | np.isinf(value))


def linear_cross_entropy(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """The mean of the losses of h (..., d) w_outᵀ + bias, whose logits may be rounded to io."""
    model = Roundings(contract, oracle_u)
    return _mean(_rows_of_hidden(arguments, model), model)


def _mean(rows: _Rows, model: Roundings) -> Bounded:
    value, error = _total(rows, model)
    with np.errstate(all="ignore"):
        value, error = value / rows.count, error / rows.count
        error = error + model.few(2) * (np.abs(value) + error) + model.eta
    return finish(value, error, model.contract)


def _total(rows: _Rows, model: Roundings) -> tuple[Array, Array]:
    """Σ ℓ and its error, each term of which may have been multiplied by 1/N. Losses are >= 0: where a partial sum
    overflows, so does the sum; a mean is then unknown."""
    losses, errors = _losses(rows, model)
    with np.errstate(all="ignore"):
        value, reach = losses.sum(), (np.abs(losses) + errors).sum()
        error = errors.sum() + (model.gamma(rows.count) + model.few(1)) * reach + rows.count * model.eta
        beyond = reach + error >= model.contract.acc.overflow_threshold
    return np.asarray(value), np.asarray(np.where(beyond | np.isnan(error), np.inf, error))


def _losses(rows: _Rows, model: Roundings) -> tuple[Array, Array]:
    """ℓ (...) and |ℓ̂ - ℓ|; both 0 where a row has no target."""
    w = rows.w
    d_t, e_t, live = rows.at_target(w.d), rows.at_target(rows.logit_error), rows.at_target(w.live)
    value = w.log_sum - d_t
    with np.errstate(all="ignore"):
        moved = _log_error(rows, e_t, model)
        reach = np.abs(w.log_sum) + w.peak_error + moved
        logarithm = 2 * _LOG_ULPS * model.u * reach
        shifted = model.few(1) * (np.abs(d_t) + e_t + w.peak_error)
        whole = model.few(1) * (np.abs(w.peak + w.log_sum) + reach + logarithm)
        error = moved + logarithm + np.maximum(shifted, whole)
        error = error + model.few(1) * (np.abs(value) + error) + model.eta
        error = np.where(may_overflow(w) | np.isnan(error) | ~w.live.any(-1, keepdims=True), np.inf, error)
    value, error = np.where(live, value, np.inf), np.where(live | np.isinf(error), error, 0.0)
    return np.where(rows.kept, value, 0.0)[..., 0], np.where(rows.kept, error, 0.0)[..., 0]


def _log_error(rows: _Rows, e_t: Array, model: Roundings) -> Array:
    """What logits, exp and the sum put into log Σ exp(ẑ_j - ẑ_t), (..., 1)."""
    w, n = rows.w, rows.w.p.shape[-1]
    y = w.x + e_t
    np.put_along_axis(y, rows.place, np.maximum(rows.at_target(w.x) - e_t, 0.0), -1)
    gamma = model.gamma(n - 1)
    y = np.where(w.live, y, 0.0)
    moved = spread(w.log_p, y, grown(w.p, w.log_p, y), -w.p * np.expm1(-y))
    return moved + (-np.log1p(-gamma) if gamma < 1 else np.inf) + n * model.eta


# ---- VJPs


def cross_entropy_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """dlogits (..., v) of grad_output ()."""
    model = Roundings(contract, oracle_u)
    rows = _rows_of_logits(arguments, model)
    return _gradient(rows, finite(arguments, "grad_output") / rows.count, model)


def cross_entropy_sum_vjp(
    arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U
) -> dict[str, Bounded]:
    model = Roundings(contract, oracle_u)
    return _gradient(_rows_of_logits(arguments, model), finite(arguments, "grad_output"), model)


def cross_entropy_none_vjp(
    arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U
) -> dict[str, Bounded]:
    """dlogits (..., v) of grad_output (...)."""
    model = Roundings(contract, oracle_u)
    return _gradient(_rows_of_logits(arguments, model), finite(arguments, "grad_output")[..., None], model)


def linear_cross_entropy_vjp(
    arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U
) -> dict[str, Bounded]:
    """Gradients of h, w_out and bias; dz may be rounded to io on its edge, scaled or not."""
    model = Roundings(contract, oracle_u)
    rows = _rows_of_hidden(arguments, model)
    cotangent = finite(arguments, "grad_output") / rows.count
    dz, error = _logit_gradient(rows, cotangent, model)
    return through_linear(dz, error, arguments, model, scale=float(np.abs(cotangent)))


def _gradient(rows: _Rows, cotangent: Array, model: Roundings) -> dict[str, Bounded]:
    dz, error = _logit_gradient(rows, cotangent, model)
    return {"logits": finish(dz, error, model.contract, exact=error == 0)}


def _logit_gradient(rows: _Rows, cotangent: Array, model: Roundings) -> tuple[Array, Array]:
    """dz = G (P - onehot) and its error, both 0 without a target; G is two roundings off, N's division among them."""
    w, size = rows.w, np.abs(cotangent)
    onehot = np.zeros(w.p.shape)
    np.put_along_axis(onehot, rows.place, 1.0, -1)
    value = (w.p - onehot) * cotangent
    with np.errstate(all="ignore"):
        recomputed = probability_error(w, model)
        saved = _exp_error(w.p, w.log_p, log_sum_exp(w, model)[1] + rows.logit_error, model)
        dp = np.maximum(recomputed, np.where(w.live, np.where(may_overflow(w), np.inf, saved), 0.0))
        error = size * (dp + model.few(5) * (w.p + onehot + dp)) + 3 * model.eta * (1 + size)
        error = through_maxima(error, np.abs(value), w, model, logit_error=rows.logit_error)
    error = np.where(w.live | (onehot > 0), error, 0.0)  # exp(-inf) is 0, exactly
    kept = np.broadcast_to(rows.kept, value.shape)
    return np.where(kept, value, 0.0), np.where(kept, error, 0.0)


# ---- rows


def _rows_of_logits(arguments: Arguments, model: Roundings) -> _Rows:
    """NaN and +inf are read as 0, and rows without a target too: the caller tells what depends on them."""
    logits = array(arguments, "logits")
    place, kept = _targets(arguments)
    logits = np.where(np.isnan(logits) | np.isposinf(logits) | ~kept, 0.0, logits)
    return _Rows(weights(logits, model), np.zeros(logits.shape), place, kept)


def _rows_of_hidden(arguments: Arguments, model: Roundings) -> _Rows:
    return _Rows(*output_weights(arguments, model), *_targets(arguments))


def _targets(arguments: Arguments) -> tuple[Array, Array]:
    """Each row's class, 0 where it is ignored, and which rows are kept, (..., 1)."""
    classes: Any = np.asarray(arguments["targets"], dtype=np.int64)[..., None]
    given = arguments.get("ignore_index")
    kept = classes != (IGNORE_INDEX if given is None else given)
    return np.where(kept, classes, 0), kept
