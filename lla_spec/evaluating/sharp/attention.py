"""Rounding-error bounds of scaled dot-product attention and its VJP.

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
from lla_spec.evaluating.sharp.roundings import (
    ORACLE_U,
    Arguments,
    Array,
    Roundings,
    array,
    finish,
    fold_to,
    join,
    optional_array,
)
from lla_spec.evaluating.sharp.softmax import _through_peak
from lla_spec.evaluating.sharp.weights import (
    Weights,
    apart,
    grown,
    log_sum_exp,
    may_overflow,
    probability_error,
    weight_cast,
    weights,
)

# Kernels may multiply the scale into q or k, where it overflows otherwise than in the scores.
ALONE = ("attention",)

Errors = Mapping[str, Array]

_PARTIAL = 32  # the shortest block over which a kernel keeps a partial gradient in io (contract grad_partials)
_CACHED = 1 << 15  # entries of a (rows, m, e) block that stay in the cache


@dataclass(frozen=True)
class _Scores:
    """The scores (..., n, m), -inf where the mask hides, their error and what softmax makes of them."""

    scale: float
    s: Array
    error: Array
    w: Weights


@dataclass(frozen=True)
class Forward:
    """What the forward pass leaves for the backward one: the scores, the output (..., n, e) and its error before the
    cast."""

    scores: _Scores
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
    scores, v = _scores(arguments, model, errors), _finite(arguments, "v")
    with np.errstate(all="ignore"):
        value, error = _output(scores, v, errors.get("v"), model)
        return Forward(scores, value, np.where(_lost(errors), np.inf, error))


def _lost(errors: Errors) -> Array:
    """Rows of which nothing is known, (..., n or 1, 1): their own query or cotangent may be infinite, or any key or
    value, a hidden one too, since 0 · inf and inf - inf are NaN."""
    lost = np.zeros((1, 1), bool)
    for name, e in errors.items():
        axes = (-2, -1) if name in ("k", "v") else (-1,)
        lost = lost | ~np.isfinite(e).all(axes, keepdims=True)
    return lost


def _finite(arguments: Arguments, name: str) -> Array:
    """NaN and infinities read as 0: the caller tells what depends on them (nonfinite.py), the rest is not moved."""
    given = array(arguments, name)
    return given if np.isfinite(given).all() else np.where(np.isfinite(given), given, 0.0)


def _added(error: Array | None, other: Array | None) -> Array | None:
    return other if error is None else error if other is None else error + other


def _scores(arguments: Arguments, model: Roundings, errors: Errors) -> _Scores:
    """E: the product's own error; the scale (a rounded number, multiplied in before or after), 3u; casts to io. +inf
    where the accumulator may overflow, before the scale, after it, or times log2(e)."""
    q, k, mask = _finite(arguments, "q"), _finite(arguments, "k"), optional_array(arguments, "mask")
    given = arguments.get("scale")
    scale = 1 / math.sqrt(max(q.shape[-1], 1)) if given is None else float(np.asarray(given))
    promise = model.contract
    with np.errstate(all="ignore"):
        kt = np.swapaxes(k, -1, -2)
        e_q, e_k = _scaled(q, scale, model, errors.get("q")), _scaled(k, scale, model, errors.get("k"))
        e_kt = None if e_k is None else np.swapaxes(e_k, -1, -2)
        product, error, magnitude = model.contraction(q, kt, e_q, e_kt, extra=_scale_casts(promise))
        s, before = scale * product, np.abs(product) + error
        error = abs(scale) * (error + model.few(3) * (magnitude + error)) + 2 * model.eta
        largest = np.maximum(before, (np.abs(s) + error) * (math.log2(math.e) if promise.kappa >= 2 else 1.0))
        error = np.where(largest >= promise.acc.overflow_threshold, np.inf, error)
        lost_q, lost_k = (_overflows(x, scale, promise).any(-1, keepdims=True) for x in (q, k))
        error = np.where(lost_q | np.swapaxes(lost_k, -1, -2), np.inf, error)
        for _ in range(promise.score_casts):
            error = _cast_at(s, error, before, abs(scale), promise)
        error = np.where(np.isnan(error), np.inf, error)  # an infinite error of q or k met a zero
    if mask is not None:
        s = np.where(mask != 0, s, -np.inf)
        error = np.where(mask != 0, error, 0.0)
    with np.errstate(all="ignore"):
        return _Scores(scale, s, error, weights(s, model, error))


def _overflows(operand: Array, scale: float, promise: Contract) -> Array:
    """Where an entry of q or k may be infinite once the scale, and log2(e) with it, is multiplied into it."""
    most = abs(scale) * (math.log2(math.e) if promise.kappa >= 2 else 1.0)
    return np.abs(operand) * max(most, 1.0) >= promise.acc.overflow_threshold


def _scale_casts(promise: Contract) -> float:
    """Relative error of a product of q and k when either was rounded to io after the scale went into it."""
    return join(*[promise.io.unit_roundoff] * promise.scale_casts) if promise.io != promise.acc else 0.0


def _scaled(operand: Array, scale: float, model: Roundings, given: Array | None = None) -> Array | None:
    """The absolute error of q or k, in its own units: `given`, read as zero, and subnormal once the scale is in it. A
    kernel may multiply by the scale or by its root."""
    flushed, promise = _flushed(operand, given, model), model.contract
    if not promise.scale_casts or promise.io == promise.acc or not scale:
        return _added(flushed, given)
    nonzero = operand != 0 if given is None else (operand != 0) | (given != 0)
    underflow = np.where(nonzero, promise.eta_out / min(abs(scale), 1.0), 0.0)
    return _added(underflow if flushed is None else np.maximum(underflow, flushed), given)


def _flushed(operand: Array, given: Array | None, model: Roundings) -> Array | None:
    """What reading subnormals as zero may cost: |operand| where it is one, η where it may be one within `given`."""
    flushed = model.flushed(operand)
    if given is None:
        return flushed
    near = np.where((given > 0) & (np.abs(operand) - given < model.eta), model.eta, 0.0)
    return near if flushed is None else np.maximum(near, flushed)


def _cast_at(value: Array, error: Array, other: Array, ratio: float, promise: Contract) -> Array:
    """The error after a cast to io of numbers within `error` of `value`, or of the same numbers divided by `ratio`,
    which are at most `other`; +inf where either may overflow."""
    if promise.io == promise.acc:
        return error
    moved = _moved_at(value, error, other, ratio, promise)
    return np.where(np.maximum(np.abs(value) + error, other) >= promise.io.overflow_threshold, np.inf, error + moved)


def _moved_at(value: Array, error: Array, other: Array, ratio: float, promise: Contract) -> Array:
    """How far that cast moves them: a kernel may round before it multiplies by the scale or after it, and spacing and
    underflow of the format are others there."""
    io = promise.io
    moved = np.maximum(io.half_spacing(np.abs(value) + error), ratio * io.half_spacing(other))
    moved = moved + promise.eta_out * max(1.0, ratio)
    if math.frexp(ratio)[0] != 0.5:
        return moved
    normal = (np.abs(value) - error >= ratio * io.smallest_normal) | (value == 0)
    return np.where(io.settles(value, error) & normal, 0.0, moved)  # the format has both numbers, or neither


def _output(scores: _Scores, v: Array, e_v: Array | None, model: Roundings) -> tuple[Array, Array]:
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


def _hull(scores: _Scores, v: Array, e_v: Array | None, value: Array, model: Roundings) -> Array:
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
    finite = np.isfinite(scores.error) | ~live
    reach = np.where(live, np.abs(scores.s) + scores.error, 0.0)
    safe = (finite & (reach < contract.acc.overflow_threshold)).all(-1, keepdims=True)
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


# ---- the VJP


def attention_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """Gradients of q, k, v. A kernel has P from the forward pass or recomputes exp(S - L) from a saved log-sum-exp L;
    it takes D from the saved, io-rounded output, Σ dO∘O, or from the weights, Σ P∘dP. Each bound covers both, and
    autograd through two passes, where one exponential is divided and another one summed (softmax_vjp).

        dV = Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - D)      dQ = scale · dS K      dK = scale · dSᵀ Q
    """
    found = gradients(arguments, Roundings(contract, oracle_u))
    return {name: _finished(array(arguments, name).shape, part, contract) for name, part in found.items()}


def gradients(
    arguments: Arguments,
    model: Roundings,
    errors: Errors | None = None,
    *,
    shared: int = 1,
    before: Forward | None = None,
) -> dict[str, tuple[Array, Array]]:
    """(gradient, error before the cast) of q, k, v, not summed over axes that broadcasting added.

    `shared`: so many query heads, an axis of their own, send their gradients to the same k and v. `before`: the forward
    pass at these arguments, where it is known.
    """
    errors, contract = errors or {}, model.contract
    before = before or forward(arguments, model, errors)
    scores = before.scores
    q, k, v, g = (_finite(arguments, name) for name in ("q", "k", "v", "grad_output"))
    with np.errstate(all="ignore"):
        looking = scores.w.live.any(-1, keepdims=True)
        g, e_g = np.where(looking, g, 0.0), errors.get("grad_output")
        if e_g is not None:
            e_g = np.where(looking, e_g, 0.0)
        p, e_p = scores.w.p, _weight_error(scores, model)
        ds, e_ds = _score_gradient(before, p, e_p, v, errors.get("v"), g, e_g, model)
        # A row of NaN is NaN in its hidden entries too, and so reaches every key.
        unknown = may_overflow(scores.w) | _lost(errors)
        e_p, e_ds = (np.where(unknown, np.inf, error) for error in (e_p, e_ds))
        # η as well: small weights are subnormal in fp16, where their cast is off by more than u_io.
        e_cast = e_p + np.where(scores.w.live, contract.eta_out if contract.weight_cast else 0.0, 0.0)
        e_cast = e_cast + weight_cast(scores.w, model) * (p + e_p)
        scale, dst, e_dst = scores.scale, np.swapaxes(ds, -1, -2), np.swapaxes(e_ds, -1, -2)
        pt, e_pt = np.swapaxes(p, -1, -2), np.swapaxes(e_cast, -1, -2)
        e_k, e_q = _scaled(k, scale, model, errors.get("k")), _scaled(q, scale, model, errors.get("q"))
        e_g = _added(_flushed(g, e_g, model), e_g)
        # 0 times an infinite entry is NaN: a hidden key, or a gradient of 0, does not keep it from the others.
        lost_k, lost_q = (_overflows(x, scale, contract).any(-2, keepdims=True) for x in (k, q))
        dq, e_dq = _gradient(ds, e_ds, k, e_k, scale, _scale_casts(contract), model)
        dk, e_dk = _gradient(dst, e_dst, q, e_q, scale, _scale_casts(contract), model, shared)
        return {
            "q": (dq, np.where(lost_k, np.inf, e_dq)),
            "k": (dk, np.where(lost_q, np.inf, e_dk)),
            "v": _gradient(pt, e_pt, g, e_g, 1.0, 0.0, model, shared),
        }


def _weight_error(scores: _Scores, model: Roundings) -> Array:
    """|P̂ - P| of the forward pass's weights, or of exp(Ŝ - L̂), e_S + e_L + κu(|S| + |L|) + ε_exp: the larger one."""
    w = scores.w
    log_sum, e_log = log_sum_exp(w, model)
    size = np.where(w.live, np.abs(scores.s), 0.0)
    moved = scores.error + e_log + model.exp_argument * (size + np.abs(log_sum) + scores.error + e_log) + model.exp_log
    recomputed = np.where(w.live, grown(w.p, w.log_p, moved) + model.eta, 0.0)
    recomputed = np.where(np.isfinite(moved) | ~w.live, recomputed, np.inf)
    error = np.maximum(recomputed, probability_error(w, model))
    if model.contract.weight_cast and model.contract.score_casts:
        error = np.where(
            w.live, model.contract.inner_cast(w.p, error), 0.0
        )  # whiteboard: only the cast weights are kept
    return error


def _score_gradient(
    before: Forward,
    p: Array,
    e_p: Array,
    v: Array,
    e_v: Array | None,
    g: Array,
    e_g: Array | None,
    model: Roundings,
) -> tuple[Array, Array]:
    """(dS, |dS^ - dS|), each (..., n, m). Where weights are rounded, either dS is as well, or what comes back to them:
    autograd gives the weights that were cast a gradient dP in io. Where scores are rounded, both are."""
    promise, scores = model.contract, before.scores
    off_v = _added(_flushed(v, e_v, model), e_v)
    off_vt = None if off_v is None else np.swapaxes(off_v, -1, -2)
    dp, e_dp, _ = model.contraction(g, np.swapaxes(v, -1, -2), _added(_flushed(g, e_g, model), e_g), off_vt)
    d = (p * dp).sum(-1, keepdims=True)
    ds = p * (dp - d)
    out, e_out = np.abs(before.out), promise.cast(before.out, before.error)
    saved = _dot_error(np.abs(g), np.zeros_like(g) if e_g is None else e_g, out, e_out, model)

    def error_of(e_dp: Array, casts: int) -> Array:
        e_d = np.maximum(saved, _dot_error(p, e_p, np.abs(dp), e_dp, model))
        both = np.abs(dp) + np.abs(d) + e_dp + e_d
        error = e_p * np.abs(dp - d) + (p + e_p) * (e_dp + e_d + model.few(4) * both) + 2 * model.eta
        error = error + ((p + e_p) * apart(scores.w) + 2 * model.eta) * (np.abs(d) + e_d)  # as in softmax_vjp
        error = _through_peak(error, ds, scores.w.live & (scores.w.d == 0), model)
        scale = abs(scores.scale)
        for _ in range(casts):
            error = _cast_at(ds, error, scale * (np.abs(ds) + error), 1 / scale if scale else 1.0, promise)
        return error

    if promise.score_casts:
        error = error_of(promise.inner_cast(dp, e_dp), promise.score_casts)
    elif promise.weight_cast and promise.u_out:
        error = np.maximum(error_of(e_dp, 1), error_of(promise.inner_cast(dp, e_dp), 0))
    else:
        error = error_of(e_dp, 0)
    return ds, np.where(scores.w.live, error, 0.0)


def _dot_error(a: Array, e_a: Array, b: Array, e_b: Array, model: Roundings) -> Array:
    """The error of Σ ab over the last axis, (..., 1), a and b given by their magnitudes."""
    reach = ((a + e_a) * (b + e_b)).sum(-1, keepdims=True)
    moved = (a * e_b + e_a * (b + e_b)).sum(-1, keepdims=True)
    return moved + model.gamma(a.shape[-1]) * reach + 2 * a.shape[-1] * model.eta


def _gradient(
    a: Array, e_a: Array, b: Array, e_b: Array | None, scale: float, cast: float, model: Roundings, shared: int = 1
) -> tuple[Array, Array]:
    """scale · a b, which ends in a gradient: a is computed, b is an argument. Partial sums may be kept in io, and where
    q and k hold the scale, the gradient is rounded to io before the scale's other part. The sum goes on over the heads
    that share an argument, in any order, and so do the blocks of its partial sums."""
    length = a.shape[-1]
    value, error, magnitude = model.contraction(a, b, e_a, e_b, extra=cast, terms=length * shared)
    reach = magnitude + error
    if model.contract.grad_partials == "io" and model.contract.io != model.contract.acc:
        blocks = math.ceil(length / _PARTIAL) * shared
        if blocks == 1:
            size, most = abs(scale), np.abs(value) + error
            error = error + _moved_at(value, error, size * most, 1 / size if size else 1.0, model.contract)
        else:
            error = error + blocks * (model.contract.u_out * reach + model.contract.eta_out)
        kept = np.abs(value) + error if blocks == 1 else reach.sum(-3, keepdims=True) if shared > 1 else reach
        error = np.where(kept >= model.contract.io.overflow_threshold, np.inf, error)
    if scale != 1.0:
        error = abs(scale) * (error + model.few(3) * reach) + 2 * model.eta
        if (
            cast and model.contract.scale_casts
        ):  # dq of the scaled q is rounded, then multiplied by the scale, or its root
            error = error + max(abs(scale), 1.0) * model.contract.eta_out
            error = error + model.contract.u_out * (np.abs(scale * value) + error)
    return scale * value, error


def _finished(shape: tuple[int, ...], found: tuple[Array, Array], contract: Contract) -> Bounded:
    value, error = (fold_to(shape, part) for part in found)
    return finish(value, error, contract)
