"""Rounding-error bounds of the VJP of scaled dot-product attention (attention.py has the forward pass).

    dV = Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - D)      dQ = scale · dS K      dK = scale · dSᵀ Q

A kernel has P from the forward pass or recomputes exp(S - L) from a saved log-sum-exp L; it takes D from the saved,
io-rounded output, Σ dO∘O, or from the weights, Σ P∘dP. Each bound covers both, and autograd through two passes, where
one exponential is divided and another one summed (softmax_vjp). Where weights are rounded to io before their product,
either dS is as well, or dP, which is what autograd gives the weights that were cast; where scores are, both.
"""

from __future__ import annotations

import math

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.sharp.attention import Errors, Forward, Scores, forward, lost
from lla_spec.evaluating.sharp.maxima import through_maxima
from lla_spec.evaluating.sharp.operands import (
    added,
    cast_at,
    finite,
    flushed,
    moved_at,
    overflows,
    scale_casts,
    scaled,
)
from lla_spec.evaluating.sharp.roundings import ORACLE_U, Arguments, Array, Roundings, array, finish, fold_to
from lla_spec.evaluating.sharp.weights import apart, grown, log_sum_exp, may_overflow, probability_error, weight_cast

_PARTIAL = 32  # the shortest block over which a kernel keeps a partial gradient in io (contract grad_partials)


def attention_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """Gradients of q (..., n, d), k (..., m, d), v (..., m, e)."""
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
    q, k, v, g = (finite(arguments, name) for name in ("q", "k", "v", "grad_output"))
    with np.errstate(all="ignore"):
        looking = scores.w.live.any(-1, keepdims=True)
        g, e_g = np.where(looking, g, 0.0), errors.get("grad_output")
        if e_g is not None:
            e_g = np.where(looking, e_g, 0.0)
        p, e_p = scores.w.p, _weight_error(scores, model)
        ds, e_ds = _score_gradient(before, p, e_p, v, errors.get("v"), g, e_g, model)
        # A row of NaN is NaN in its hidden entries too, and so reaches every key.
        unknown = may_overflow(scores.w) | lost(errors)
        e_p, e_ds = (np.where(unknown, np.inf, error) for error in (e_p, e_ds))
        # η as well: small weights are subnormal in fp16, where their cast is off by more than u_io.
        e_cast = e_p + np.where(scores.w.live, contract.eta_out if contract.weight_cast else 0.0, 0.0)
        e_cast = e_cast + weight_cast(scores.w, model) * (p + e_p)
        scale, dst, e_dst = scores.scale, np.swapaxes(ds, -1, -2), np.swapaxes(e_ds, -1, -2)
        pt, e_pt = np.swapaxes(p, -1, -2), np.swapaxes(e_cast, -1, -2)
        e_k, e_q = scaled(k, scale, model, errors.get("k")), scaled(q, scale, model, errors.get("q"))
        e_g = added(flushed(g, e_g, model), e_g)
        # 0 times an infinite entry is NaN: a hidden key, or a gradient of 0, does not keep it from the others.
        lost_k, lost_q = (overflows(x, scale, contract).any(-2, keepdims=True) for x in (k, q))
        dq, e_dq = _gradient(ds, e_ds, k, e_k, scale, scale_casts(contract), model)
        dk, e_dk = _gradient(dst, e_dst, q, e_q, scale, scale_casts(contract), model, shared)
        return {
            "q": (dq, np.where(lost_k, np.inf, e_dq)),
            "k": (dk, np.where(lost_q, np.inf, e_dk)),
            "v": _gradient(pt, e_pt, g, e_g, 1.0, 0.0, model, shared),
        }


def _weight_error(scores: Scores, model: Roundings) -> Array:
    """|P̂ - P| of the forward pass's weights, or of exp(Ŝ - L̂), e_S + e_L + κu(|S| + |L|) + ε_exp: the larger one."""
    w = scores.w
    log_sum, e_log = log_sum_exp(w, model)
    size = np.where(w.live, np.abs(scores.s), 0.0)
    moved = scores.error + e_log + model.exp_argument * (size + np.abs(log_sum) + scores.error + e_log) + model.exp_log
    recomputed = np.where(w.live, grown(w.p, w.log_p, moved) + model.eta, 0.0)
    recomputed = np.where(np.isfinite(moved) | ~w.live, recomputed, np.inf)
    error = np.maximum(recomputed, probability_error(w, model))
    if model.contract.weight_cast and model.contract.score_casts:
        # Whiteboard: only the cast weights are kept.
        error = np.where(w.live, model.contract.inner_cast(w.p, error), 0.0)
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
    """(dS, |dS^ - dS|), each (..., n, m)."""
    promise, scores = model.contract, before.scores
    off_v = added(flushed(v, e_v, model), e_v)
    off_vt = None if off_v is None else np.swapaxes(off_v, -1, -2)
    dp, e_dp, _ = model.contraction(g, np.swapaxes(v, -1, -2), added(flushed(g, e_g, model), e_g), off_vt)
    d = (p * dp).sum(-1, keepdims=True)
    ds = p * (dp - d)
    out, e_out = np.abs(before.out), promise.cast(before.out, before.error)
    moved = np.where(np.isfinite(scores.w.x), scores.w.x - scores.w.own, np.inf)
    saved = _dot_error(np.abs(g), np.zeros_like(g) if e_g is None else e_g, out, e_out, model)

    def error_of(e_dp: Array, casts: int) -> Array:
        e_d = np.maximum(saved, _dot_error(p, e_p, np.abs(dp), e_dp, model))
        both = np.abs(dp) + np.abs(d) + e_dp + e_d
        error = e_p * np.abs(dp - d) + (p + e_p) * (e_dp + e_d + model.few(4) * both) + 2 * model.eta
        error = error + ((p + e_p) * apart(scores.w) + 2 * model.eta) * (np.abs(d) + e_d)  # as in softmax_vjp
        error = through_maxima(error, p * (np.abs(dp) + np.abs(d)), scores.w, model, logit_error=moved)
        scale = abs(scores.scale)
        for _ in range(casts):
            error = cast_at(ds, error, scale * (np.abs(ds) + error), 1 / scale if scale else 1.0, promise)
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
            error = error + moved_at(value, error, size * most, 1 / size if size else 1.0, model.contract)
        else:
            error = error + blocks * (model.contract.u_out * reach + model.contract.eta_out)
        kept = np.abs(value) + error if blocks == 1 else reach.sum(-3, keepdims=True) if shared > 1 else reach
        error = np.where(kept >= model.contract.io.overflow_threshold, np.inf, error)
    if scale != 1.0:
        error = abs(scale) * (error + model.few(3) * reach) + 2 * model.eta
        if cast and model.contract.scale_casts:
            # dq of the scaled q is rounded, then multiplied by the scale, or its root.
            error = error + max(abs(scale), 1.0) * model.contract.eta_out
            error = error + model.contract.u_out * (np.abs(scale * value) + error)
    return scale * value, error


def _finished(shape: tuple[int, ...], found: tuple[Array, Array], contract: Contract) -> Bounded:
    value, error = (fold_to(shape, part) for part in found)
    return finish(value, error, contract)
