"""Rounding-error bounds of output_softmax and its VJP: softmax of logits within E of W h + b.

    E = γ_{d+1}(|W||h| + |b|), then one rounding to io: the edge between linear and softmax, where a composite may cast

Backward, dz = P ∘ (g - Σ P g) is an edge as well: e_z of the softmax VJP, plus u_o|dz|; then dh = dz W, dW = dzᵀ h and
db = Σ dz are sums of products with an operand that is e_z off.
"""

from __future__ import annotations

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.sharp.linear import linear
from lla_spec.evaluating.sharp.maxima import through_maxima
from lla_spec.evaluating.sharp.roundings import (
    ORACLE_U,
    Arguments,
    Array,
    Roundings,
    array,
    finish,
    optional_array,
)
from lla_spec.evaluating.sharp.softmax import _softmax_pullback
from lla_spec.evaluating.sharp.weights import (
    Weights,
    apart,
    probability_error,
    weights,
)

ALONE = ("output_softmax",)
"""The generic rule follows the declaration's steps and knows no cast of the logits: the smaller one may be wrong."""


def output_softmax(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """h (..., d), w_out (v, d), bias (v,) or None."""
    model = Roundings(contract, oracle_u)
    w, _ = output_weights(arguments, model)
    with np.errstate(all="ignore"):
        error = probability_error(w, model)
    return finish(w.p, error, contract)


def output_softmax_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """Gradients of h, w_out and bias. P̂ is recomputed, or saved in io."""
    model = Roundings(contract, oracle_u)
    w, logit_error = output_weights(arguments, model)
    g = finite(arguments, "grad_output")
    with np.errstate(all="ignore"):
        t = (w.p * g).sum(-1, keepdims=True)
        dz = w.p * (g - t)
        recomputed = probability_error(w, model)
        saved = contract.cast(w.p, recomputed)
        error = np.maximum(
            _softmax_pullback(w.p, saved, g, t, model),
            through_maxima(
                _softmax_pullback(w.p, recomputed, g, t, model, apart(w)),
                w.p * (np.abs(g) + np.abs(t)),
                w,
                model,
                logit_error=logit_error,
            ),
        )
    return through_linear(dz, error, arguments, model)


def output_weights(arguments: Arguments, model: Roundings) -> tuple[Weights, Array]:
    """Softmax of the logits (..., v), and how far a kernel's logits may be from them."""
    bias = optional_array(arguments, "bias")
    given = {
        "x": finite(arguments, "h"),
        "weight": finite(arguments, "w_out"),
        "bias": None if bias is None else finite(arguments, "bias"),
    }
    found = linear(given, model.contract, oracle_u=model.oracle_u)
    with np.errstate(all="ignore"):
        error = model.contract.inner_cast(found.value, found.pre_cast_error)
        # Beyond the accumulator's range an unrounded logit is infinite too.
        beyond = np.abs(found.value) + error >= model.contract.acc.overflow_threshold
        error = np.where(beyond | np.isnan(error), np.inf, error)
        return weights(found.value, model, error), error


def through_linear(
    dz: Array, error: Array, arguments: Arguments, model: Roundings, *, scale: float = 0.0
) -> dict[str, Bounded]:
    """dh, dW and db of logit gradients (..., v) that a kernel has within `error`, and may round to io on their edge.

    `scale`: |G/N|, by which a kernel may multiply dz, or dh, dW and db after the cast and the products. So the cast is
    u_o|dz| and not half a spacing, and what underflows in it or in them is multiplied too, if that is more.
    """
    contract, more = model.contract, max(scale, 1.0)
    h, weight = finite(arguments, "h"), finite(arguments, "w_out")
    rows = h.reshape(-1, h.shape[-1])
    dz, error = dz.reshape(-1, dz.shape[-1]), error.reshape(-1, dz.shape[-1])
    with np.errstate(all="ignore"):
        reach = np.abs(dz) + error
        error = error + contract.u_out * reach + more * contract.eta_out
        error = np.where((reach >= contract.io.overflow_threshold) | np.isnan(error), np.inf, error)
        dh, e_h, _ = model.contraction(dz, weight, error, model.flushed(weight), underflow=more)
        dw, e_w, _ = model.contraction(dz.T, rows, error.T, model.flushed(rows), underflow=more)
        found = {
            "h": finish(dh.reshape(h.shape), e_h.reshape(h.shape), contract),
            "w_out": finish(dw, e_w, contract),
        }
        if arguments.get("bias") is not None:
            db, e_b, _ = model.contraction(np.ones((1, len(dz))), dz, None, error, underflow=more)
            found["bias"] = finish(db[0], e_b[0], contract)
    return found


def finite(arguments: Arguments, name: str) -> Array:
    """NaN and infinities read as 0: the caller tells what depends on them (nonfinite.py)."""
    given = array(arguments, name)
    return given if np.isfinite(given).all() else np.where(np.isfinite(given), given, 0.0)
