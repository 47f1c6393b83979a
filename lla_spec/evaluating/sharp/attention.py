"""Rounding-error bounds of scaled dot-product attention; its VJP is in attention_gradients.py.

S = scale·QKᵀ within E, P = softmax(S), O = PV. Write ŵ_j = w_j(1 + ε_j) for the unnormalised weights, |ε_j| <= R_j
= e^{x_j} - 1 (weights.py). Were all else exact, the quotient would be off by exactly

    Ô - O = Σ_j p_j ε_j (v_j - O) / (1 + Σ_j p_j ε_j),

since Σ p_j (v_j - O) = 0: what all weights share cancels, and equal values come back nearly free of error. Beside it:
the sum over the keys, γ_m Σ p|v|; the cast of the weights, u_io Σ p|v|; the rounding of P and V to tf32, where the
contract has it; each rescaling of an online kernel rounds the
numerator and the denominator apart, r_j u; sum and division, (γ_m + 3u)|O|; underflow, η for each weight.

`errors` (by name, as q): how far the kernel's own q, k, v, dO are from the arguments, where other operations computed
them. Products take both along; values within e of v move O by Σ p(1+R) e / (1 - Σ pR), beside |v| + e in the roundings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.sharp.operands import cast_at, finite, overflows, scale_casts, scaled
from lla_spec.evaluating.sharp.roundings import (
    ORACLE_U,
    Arguments,
    Array,
    Roundings,
    finish,
    join,
    optional_array,
)
from lla_spec.evaluating.sharp.weights import Weights, may_overflow, weight_cast, weights

# Kernels may multiply the scale into q or k, where it overflows otherwise than in the scores.
ALONE = ("attention",)

Errors = Mapping[str, Array]

_CACHED = 1 << 15  # entries of a (rows, m, e) block that stay in the cache


@dataclass(frozen=True)
class Scores:
    """The scores (..., n, m), -inf where the mask hides, their error and what softmax makes of them."""

    scale: float
    s: Array
    error: Array
    w: Weights


@dataclass(frozen=True)
class Forward:
    """What the forward pass leaves for the backward one: the scores, the output (..., n, e) and its error before the
    cast."""

    scores: Scores
    out: Array
    error: Array

    def bound(self, contract: Contract) -> Bounded:
        """A row without keys is exactly 0, unless what it does not see may be infinite."""
        empty = ~self.scores.w.live.any(-1, keepdims=True)
        exact = empty & np.isfinite(self.error) if empty.any() else None
        return finish(self.out, self.error, contract, exact=exact)


def attention(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """q (..., n, d), k (..., m, d), v (..., m, e), mask (..., n, m) bool or None. A row without keys is exactly 0."""
    return forward(arguments, Roundings(contract, oracle_u)).bound(contract)


def forward(arguments: Arguments, model: Roundings, errors: Errors | None = None) -> Forward:
    """Scores and output, `errors` by name as above."""
    errors = errors or {}
    scores, v = _scores(arguments, model, errors), finite(arguments, "v")
    with np.errstate(all="ignore"):
        value, error = _output(scores, v, errors.get("v"), model)
        return Forward(scores, value, np.where(lost(errors), np.inf, error))


def lost(errors: Errors) -> Array:
    """Rows of which nothing is known, (..., n or 1, 1): their own query or cotangent may be infinite, or any key or
    value, a hidden one too, since 0 · inf and inf - inf are NaN."""
    lost = np.zeros((1, 1), bool)
    for name, e in errors.items():
        axes = (-2, -1) if name in ("k", "v") else (-1,)
        lost = lost | ~np.isfinite(e).all(axes, keepdims=True)
    return lost


def _scores(arguments: Arguments, model: Roundings, errors: Errors) -> Scores:
    """E: the product's own error; the scale (a rounded number, multiplied in before or after), 3u; casts to io. +inf
    where the accumulator may overflow, before the scale, after it, or times log2(e)."""
    q, k, mask = finite(arguments, "q"), finite(arguments, "k"), optional_array(arguments, "mask")
    given = arguments.get("scale")
    scale = 1 / math.sqrt(max(q.shape[-1], 1)) if given is None else float(np.asarray(given))
    promise = model.contract
    with np.errstate(all="ignore"):
        kt = np.swapaxes(k, -1, -2)
        e_q, e_k = scaled(q, scale, model, errors.get("q")), scaled(k, scale, model, errors.get("k"))
        e_kt = None if e_k is None else np.swapaxes(e_k, -1, -2)
        product, error, magnitude = model.contraction(q, kt, e_q, e_kt, extra=scale_casts(promise))
        s, before = scale * product, np.abs(product) + error
        error = abs(scale) * (error + model.few(3) * (magnitude + error)) + 2 * model.eta
        largest = np.maximum(before, (np.abs(s) + error) * (math.log2(math.e) if promise.kappa >= 2 else 1.0))
        error = np.where(largest >= promise.acc.overflow_threshold, np.inf, error)
        lost_q, lost_k = (overflows(x, scale, promise).any(-1, keepdims=True) for x in (q, k))
        error = np.where(lost_q | np.swapaxes(lost_k, -1, -2), np.inf, error)
        for _ in range(promise.score_casts):
            error = cast_at(s, error, before, abs(scale), promise)
        error = np.where(np.isnan(error), np.inf, error)  # an infinite error of q or k met a zero
    if mask is not None:
        s = np.where(mask != 0, s, -np.inf)
        error = np.where(mask != 0, error, 0.0)
    with np.errstate(all="ignore"):
        return Scores(scale, s, error, weights(s, model, error))


def _output(scores: Scores, v: Array, e_v: Array | None, model: Roundings) -> tuple[Array, Array]:
    """(O, |Ô - O| before the cast), each (..., n, e)."""
    w, m = scores.w, v.shape[-2]
    value, size = w.p @ v, np.abs(v) if e_v is None else np.abs(v) + e_v
    slack = 1 - w.up.sum(-1, keepdims=True)
    most = w.p + w.up
    cast = weight_cast(w, model)
    per_weight = join(model.gamma(m), model.operands, cast) + model.few(1) * w.rises
    moved = _spread(w.up, v, value) + (most * per_weight) @ size
    if e_v is not None:
        moved = moved + most @ e_v
    quotient = join(model.gamma(m), model.few(3)) + model.few(1) * (most * w.rises).sum(-1, keepdims=True) / slack
    underflow = model.eta + (model.contract.eta_out if model.contract.weight_cast else 0.0)
    live = w.live.astype(np.float64)
    error = moved / slack + underflow * (live @ size) + 2 * m * model.eta * (1 + np.abs(value))
    error = error + quotient * (np.abs(value) + error)
    if not (slack > 0).all():
        error = np.where(slack > 0, error, _hull(scores, v, e_v, value, model))
    return value, np.where(may_overflow(w), np.inf, error)


def _hull(scores: Scores, v: Array, e_v: Array | None, value: Array, model: Roundings) -> Array:
    """Where the weights' errors say nothing any more: weights that are >= 0 and sum to 1 stay in the hull of the
    values, so |Ô - O| <= max_j |v_j - O| beside the roundings; +inf where a score itself may overflow."""
    live, m, contract = scores.w.live, v.shape[-2], model.contract
    cast, underflow = (contract.u_out, contract.eta_out) if contract.weight_cast else (0.0, 0.0)
    farthest, largest = np.zeros(value.shape), np.zeros(value.shape)
    for j in range(m):
        row = v[..., j : j + 1, :]
        off = 0.0 if e_v is None else e_v[..., j : j + 1, :]
        seen = live[..., j : j + 1]
        farthest = np.maximum(farthest, np.where(seen, np.abs(row - value) + off, 0.0))
        largest = np.maximum(largest, np.where(seen, np.abs(row) + off, 0.0))
    relative = join(model.gamma(m), model.gamma(m), model.operands, cast, model.few(3), model.few(2 * m))
    known = np.isfinite(scores.error) | ~live
    reach = np.where(live, np.abs(scores.s) + scores.error, 0.0)
    safe = (known & (reach < contract.acc.overflow_threshold)).all(-1, keepdims=True)
    underflow = (model.eta + underflow) * 2 * m * (1 + largest)
    return np.where(safe, farthest + relative * (largest + farthest) + underflow, np.inf)


def _spread(relative: Array, v: Array, value: Array) -> Array:
    """Σ_j relative_ij |v_jc - O_ic|, (..., n, e), a few rows at a time so that the differences stay in the cache."""
    lead = np.broadcast_shapes(relative.shape[:-2], v.shape[:-2])
    n, (m, e) = relative.shape[-2], v.shape[-2:]
    flat = [
        np.broadcast_to(part, (*lead, *part.shape[-2:])).reshape(math.prod(lead), *part.shape[-2:])
        for part in (relative, v, value)
    ]
    total = np.empty((len(flat[0]), n, e))
    rows = max(1, _CACHED // max(m * e, 1))
    for out, weight, values, mean in zip(total, *flat, strict=True):
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            difference = values - mean[part, None, :]
            np.abs(difference, out=difference)
            out[part] = (weight[part, None, :] @ difference)[:, 0, :]
    return total.reshape(*lead, n, e)
