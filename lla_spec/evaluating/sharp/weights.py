"""The weights of a softmax, and how far a kernel's may be from them: what attention, losses and output layers share.

Let S be the exact logits, computed within E; m their maximum, d = S - m, p = softmax(S), s = Σ exp(d).

**Weights.** A kernel forms ŵ_j = exp(Ŝ_j - m̂). The shift m̂ = max Ŝ is common to all j and cancels; what is left is
|log(ŵ_j / w_j)| <= x_j with

    x_j = E_j + κ u (|d_j| + E_j + |m̂ - m|) + ε_exp + r_j (ε_exp + u)

(the argument passes kappa roundings relative to |Ŝ_j - m̂|; ε_exp = -log(1 - 2 exp_ulp u)). The last term is the
online form. There w_j meets the running maximum m_t of its block and is later multiplied by exp(m_t - m_{t+1}) once per
block. The arguments telescope, |Ŝ_j - m_t| + Σ (m_{t+1} - m_t) = m̂ - Ŝ_j, so κu|d_j| covers all of them together.
Every factor adds ε_exp + u, but only when the running maximum rises (else it is exp(0) = 1, exact), and each rise is
caused by a logit above Ŝ_j: r_j <= min(blocks - 1, #{i : Ŝ_i > Ŝ_j}), in any order and any tree of blocks.

**Interval.** With A_j = p_j (e^x_j - 1), B_j = p_j (1 - e^-x_j) the exact quotient ŵ_j/Σŵ lies in [p⁻_j, p⁺_j], where
(own weight up, the others down, and conversely; written without cancellation, Q_j = 1 - p_j)

    p⁺ - p = (Q_j A_j + p_j Σ_{k≠j} B_k) / (1 + A_j - Σ_{k≠j} B_k)
    p - p⁻ = (Q_j B_j + p_j Σ_{k≠j} A_k) / (1 - B_j + Σ_{k≠j} A_k).

It captures saturation: as p_j -> 1 the numerators vanish, unless some other weight may grow as much. Where an x_j is
above 1 both ends are taken from log p_k ± x_k instead, which know of a logit that is 400 below the largest and may be
off by 500. The sum and the division add γ_{n-1} + 3u relatively (the division may be a reciprocal and a product). Where
exp underflows, ŵ_j is off by η.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.sharp.roundings import ORACLE_U, Array, Roundings, join

# Beyond e^600 an interval says no more than 0 <= p <= 1; the clip keeps inf - inf out of the formulas.
_WIDEST = 600.0
_LOG_ULPS = 2
_PAIRS = 1 << 14  # of logits, up to which comparing each with each is faster than sorting a row


@dataclass(frozen=True)
class Weights:
    """Softmax of logits (..., n) and what may be wrong with a computed one. Dead entries (-inf) have p = x = 0.

    `sum_error` is |log ŝ - log s| before the logarithm is taken, relative to the shift that the kernel used.
    """

    live: Array
    d: Array  # S - max S, <= 0
    p: Array
    log_p: Array
    peak: Array  # (..., 1)
    log_sum: Array  # (..., 1), log Σ exp(d)
    x: Array  # bound on |log ŵ/w|
    own: Array  # what exp, its argument and the rescalings put into x; the logits' own error is the rest
    rises: Array  # r_j, bound on the number of rescalings
    up: Array  # A_j = p (e^x - 1)
    down: Array  # B_j = p (1 - e^-x)
    peak_error: Array  # (..., 1), |m̂ - m|
    sum_error: Array  # (..., 1)


def weights(logits: Array, model: Roundings, error: Array | None = None) -> Weights:
    """Propagate |Ŝ - S| <= error (..., n) through exp and the sum; logits (..., n), -inf where nobody looks. Where the
    error is infinite, -inf (or NaN) is a sum that overflowed here as well: it is looked at, whatever it is."""
    if error is not None:
        logits = np.where(np.isinf(error), 0.0, logits)
    live = logits > -np.inf
    peak = logits.max(-1, keepdims=True, initial=-np.inf)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    d = np.where(live, logits, peak) - peak
    w = np.where(live, np.exp(d), 0.0)
    total = w.sum(-1, keepdims=True)
    p = w / np.where(total > 0, total, 1.0)
    if error is None:
        own, peak_error = model.exp_argument * -d, np.zeros_like(peak)
        lower = upper = logits
    else:
        lower, upper = logits - error, logits + error
        # max(S - E) <= m̂ <= max(S + E)
        rise = np.where(live, upper, -np.inf).max(-1, keepdims=True, initial=-np.inf) - peak
        fall = peak - np.where(live, lower, -np.inf).max(-1, keepdims=True, initial=-np.inf)
        peak_error = np.where(live.any(-1, keepdims=True), np.maximum(rise, fall), 0.0)
        own = model.exp_argument * (-d + error + peak_error)
    rises = _rises(lower, upper, live, model.contract)
    own = own + model.exp_log + rises * (model.exp_log + model.few(1))
    both = (own if error is None else own + error, own)
    x, own = (np.where(live, np.where(np.isnan(part), np.inf, part), 0.0) for part in both)
    log_sum = np.log(np.where(total > 0, total, 1.0))
    log_p = np.where(live, d - log_sum, -np.inf)
    # Σŵ(1+θ), |θ| <= γ_{n-1}: the weighted mean of e^±x, then 1-γ; η for each underflow, beside a sum >= 1.
    gamma = model.gamma(logits.shape[-1] - 1)
    rounding = (-np.log1p(-gamma) if gamma < 1 else np.inf) + logits.shape[-1] * model.eta
    up, down = grown(p, log_p, x), -p * np.expm1(-x)
    sum_error = spread(log_p, x, up, down) + rounding
    return Weights(live, d, p, log_p, peak, log_sum, x, own, rises, up, down, peak_error, sum_error)


def grown(p: Array, log_p: Array, x: Array) -> Array:
    """p (e^x - 1), also where e^x overflows and p underflows; e^600 stands for whatever is more."""
    if x.max(initial=0.0) <= 1:
        return p * np.expm1(x)
    return np.where(x <= 1, p * np.expm1(np.minimum(x, 1)), np.exp(np.minimum(log_p + x, _WIDEST)) - p)


def spread(log_p: Array, x: Array, up: Array, down: Array) -> Array:
    """The most that |log Σ p e^ε| may be for |ε| <= x, where p grows by `up` or falls by `down`: (..., 1).
    A weighted mean of e^±x lies between the smallest and the largest."""
    fallen = down.sum(-1, keepdims=True)
    upward, downward = np.log1p(up.sum(-1, keepdims=True)), -np.log1p(-np.minimum(fallen, 1 - 1e-16))
    widest = x.max(-1, keepdims=True, initial=0.0)
    if widest.max(initial=0.0) <= 1:
        return np.maximum(upward, downward)
    with np.errstate(divide="ignore"):  # 1 - fallen has no digit left where this sum is small
        rest = -np.log(np.exp(log_p - x).sum(-1, keepdims=True))
    found = np.maximum(upward, np.where(fallen < 0.5, downward, rest))
    found = np.where((log_p + x > _WIDEST).any(-1, keepdims=True), widest, found)
    return np.minimum(found, widest)


def _rises(lower: Array, upper: Array, live: Array, contract: Contract) -> Array:
    """r_j <= min(blocks - 1, number of other logits that may lie above the j-th)."""
    n = lower.shape[-1]
    limit = n - 1 if contract.blocks == "n_k" else min(int(contract.blocks), n) - 1
    if limit <= 0:
        return np.zeros(lower.shape)
    highest = np.where(live, upper, -np.inf)
    if lower.size * n <= _PAIRS:
        counts = np.count_nonzero(highest[..., None, :] > lower[..., :, None], axis=-1)
    else:
        counts = n - _not_above(highest.reshape(-1, n), lower.reshape(-1, n)).reshape(lower.shape)
    counts = counts - (highest > lower)  # its own upper end may lie above its lower end
    return np.clip(counts, 0, limit) * live


def _not_above(highest: Array, lower: Array) -> Array:
    """How many of a row's `highest` are not above each of its `lower`, (rows, n). Ends that are looked for in ascending
    order are found in half the time."""
    order = np.argsort(lower, axis=-1)
    ascending, ends = np.sort(highest, axis=-1), np.take_along_axis(lower, order, axis=-1)
    found = [row.searchsorted(sought, "right") for row, sought in zip(ascending, ends, strict=True)]
    counts = np.empty(lower.shape, np.int64)
    np.put_along_axis(counts, order, np.reshape(found, lower.shape), axis=-1)
    return counts


def interval(w: Weights) -> Array:
    """max(p⁺ - p, p - p⁻), (..., n), never above 1."""
    # The plain quotient bound p(e^x/(1-ΣB) - 1) never beats it, so nothing else is compared here.
    others, others_up, others_down = (np.maximum(a.sum(-1, keepdims=True) - a, 0.0) for a in (w.p, w.up, w.down))
    higher = (others * w.up + w.p * others_down) / np.maximum(1 + w.up - others_down, 1e-300)
    lower = (others * w.down + w.p * others_up) / np.maximum(1 - w.down + others_up, 1e-300)
    moved = np.maximum(higher, np.minimum(lower, w.p))
    wide = (w.x > 1).any(-1, keepdims=True)
    if wide.any():
        moved = np.where(wide, _wide_interval(w), moved)
    return np.where(w.live, np.minimum(moved, np.maximum(w.p, 1 - w.p)), 0.0)


def _wide_interval(w: Weights) -> Array:
    """The same where weights may change by factors of any size: p⁺ = 1/(1 + e^(L - log p - x)), L the logarithm of the
    sum of the others' least weights, and p⁻ conversely."""
    with np.errstate(all="ignore"):
        least, most = w.log_p - w.x, w.log_p + w.x
        upper, lower = 1 / (1 + np.exp(_log_others(least) - most)), 1 / (1 + np.exp(_log_others(most) - least))
        moved = np.maximum(upper - w.p, w.p - lower) + 4 * ORACLE_U
    return np.where(np.isnan(moved), 1.0, moved)


def _log_others(logs: Array) -> Array:
    """log Σ_{k≠j} e^{l_k}, (..., n): of all but the largest as seen from the largest, however far below it they are."""
    top = logs.argmax(-1)[..., None]
    peak, rest = np.take_along_axis(logs, top, -1), logs.copy()
    np.put_along_axis(rest, top, -np.inf, -1)
    second = rest.max(-1, keepdims=True, initial=-np.inf)
    without_top = np.where(second > -np.inf, second + np.log(np.exp(rest - second).sum(-1, keepdims=True)), -np.inf)
    weights_of_rest = np.exp(rest - peak)
    found = peak + np.log1p(np.maximum(weights_of_rest.sum(-1, keepdims=True) - weights_of_rest, 0.0))
    np.put_along_axis(found, top, without_top, -1)
    return found


def probability_error(w: Weights, model: Roundings) -> Array:
    """|p̂ - p| before any cast: the interval, then sum and division, then underflow of ŵ_j, of ŝ and of the quotient."""
    n = w.p.shape[-1]
    theta = _quotient(model, n)
    moved = interval(w)
    error = moved + theta * (w.p + moved) + model.eta * (2 + n * w.p)
    return np.where(w.live, np.where(may_overflow(w), np.inf, error), 0.0)


def weight_cast(w: Weights, model: Roundings) -> Array | float:
    """What rounding weights to io moves each by, relatively, (..., n, 1): u; nothing in rows where all are equal and a
    power of two, whether a kernel rounds the exponentials (1 each) or their quotients."""
    io = model.contract.io
    if not model.contract.weight_cast or not model.contract.u_out:
        return 0.0
    equal = ((w.d == 0) & (w.x < 1) | ~w.live).all(-1, keepdims=True)
    if equal.any():
        moved = np.where(equal, probability_error(w, model) + w.p * np.expm1(np.minimum(w.x, 1)), 0.0)
        equal = equal & (io.settles(w.p, moved) | ~w.live).all(-1, keepdims=True)
    return np.where(equal, 0.0, model.contract.u_out)


def apart(w: Weights) -> Array:
    """|ŵ/ŵ' - 1| of two weights that a kernel computes of one logit: one pass over blocks sums ŵ', a second one divides
    ŵ by the sum. Logits and shift are the same for both."""
    return np.expm1(np.minimum(2 * w.own, _WIDEST))


def may_overflow(w: Weights) -> Array:
    """(..., 1): a logit of the row may overflow on its way (its error is infinite), and nothing is known of the row:
    inf - inf is NaN for its neighbours as well."""
    return np.asarray((w.live & ~np.isfinite(w.x)).any(-1, keepdims=True))


def _quotient(model: Roundings, n: int) -> float:
    """ŵ/ŝ against the exact quotient: 1/(1-γ_{n-1}), and division or reciprocal with product."""
    gamma = model.gamma(n - 1)
    return join(gamma / (1 - gamma), model.few(3)) if gamma < 1 else np.inf


def log_sum_exp(w: Weights, model: Roundings) -> tuple[Array, Array]:
    """(L, |L̂ - L|), each (..., 1), before a cast: m̂ + log ŝ with 2 ulps of log and one addition."""
    value = w.peak + w.log_sum
    error = _log(w, model)
    return value, error + model.few(1) * (np.abs(value) + error)


def _log(w: Weights, model: Roundings) -> Array:
    """|log ŝ + m̂ - (log s + m)|: the sum's own error and the logarithm's, relative to |log ŝ| <= |log s| + both."""
    return w.sum_error + 2 * _LOG_ULPS * model.u * (np.abs(w.log_sum) + w.peak_error + w.sum_error)
