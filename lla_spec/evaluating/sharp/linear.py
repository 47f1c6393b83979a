"""Rounding-error bounds of matmul, linear, weighted_average and their VJPs: every one is a sum of products.

    |ĉ - ab| <= γ_K |a||b|      (Higham, (3.13)), any order of summation

All are contractions of exact io values, so nothing but the summation, the operand rounding (tf32), underflow and the
last cast can be off. The bias is one more term of the sum, since a kernel may start its accumulator from it.
"""

from __future__ import annotations

import math

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
    optional_array,
)


def matmul(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """a (..., n, k) @ b (..., k, m)."""
    return _product(array(arguments, "a"), array(arguments, "b"), contract, oracle_u)


def matmul_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """da = g bᵀ, db = aᵀ g; axes that broadcasting added are part of the sum."""
    a, b, g = (array(arguments, name) for name in ("a", "b", "grad_output"))
    return {
        "a": _product(g, np.swapaxes(b, -1, -2), contract, oracle_u, shape=a.shape),
        "b": _product(np.swapaxes(a, -1, -2), g, contract, oracle_u, shape=b.shape),
    }


def weighted_average(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """c_i = Σ_j weights_ij v_j: weights (..., n, m), v (..., m, e)."""
    return matmul({"a": arguments["weights"], "b": arguments["v"]}, contract, oracle_u=oracle_u)


def weighted_average_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    renamed = {"a": arguments["weights"], "b": arguments["v"], "grad_output": arguments["grad_output"]}
    gradients = matmul_vjp(renamed, contract, oracle_u=oracle_u)
    return {"weights": gradients["a"], "v": gradients["b"]}


def linear(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """x (..., in) weightᵀ + bias, weight (out, in), bias (out,)."""
    x, weight, bias = array(arguments, "x"), array(arguments, "weight"), optional_array(arguments, "bias")
    rows = _product(x.reshape(-1, x.shape[-1]), weight.T, contract, oracle_u, bias=bias)
    return _reshape(rows, (*x.shape[:-1], weight.shape[0]))


def linear_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """dx = g W, dW = gᵀ x, db = Σ g: the last two sum over all N rows of all batch axes."""
    x, weight, g = (array(arguments, name) for name in ("x", "weight", "grad_output"))
    rows, columns = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    gradients = {
        "x": _reshape(_product(rows, weight, contract, oracle_u), x.shape),
        "weight": _product(rows.T, columns, contract, oracle_u),
    }
    if arguments.get("bias") is not None:
        gradients["bias"] = _column_sum(rows, contract, oracle_u)
    return gradients


def _product(
    a: Array,
    b: Array,
    contract: Contract,
    oracle_u: float,
    *,
    bias: Array | None = None,
    shape: tuple[int, ...] | None = None,
) -> Bounded:
    """a @ b (+ bias), summed down to `shape` where batch axes were broadcast."""
    nan, unjudged = _dependence(a, b, bias)
    if nan is not None:
        a, b = _finite(a), _finite(b)
        bias = None if bias is None else _finite(bias)
    model = Roundings(contract, oracle_u)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    copies = 1 if shape is None else max(math.prod(lead) // max(math.prod(shape[:-2]), 1), 1)
    terms = a.shape[-1] * copies + (bias is not None)
    with np.errstate(all="ignore"):
        value, error, _ = model.contraction(a, b, model.flushed(a), model.flushed(b), terms=terms)
        if bias is not None:
            value, error = value + bias, error + model.gamma(terms - 1) * np.abs(bias)
    if shape is not None:
        value, error = fold_to(shape, value), fold_to(shape, error)
        nan, unjudged = (None if mask is None else fold_to(shape, mask) > 0 for mask in (nan, unjudged))
    return finish(value, error, contract, nan=nan, unjudged=unjudged)


def _column_sum(rows: Array, contract: Contract, oracle_u: float) -> Bounded:
    """Σ over the first axis: n-1 additions, so γ_{n-1}; a depth counts a product that is not there. A kernel may
    as well multiply by a vector of ones, where tf32 rounds the terms."""
    ones = np.ones((1, rows.shape[0]))
    bound = _product(ones, rows, contract, oracle_u)
    return _reshape(bound, (rows.shape[1],))


def _reshape(bounded: Bounded, shape: tuple[int, ...]) -> Bounded:
    return Bounded(bounded.value.reshape(shape), bounded.error.reshape(shape), bounded.pre_cast_error.reshape(shape))


def _finite(operand: Array) -> Array:
    return np.where(np.isfinite(operand), operand, 0.0)


def _dependence(a: Array, b: Array, bias: Array | None) -> tuple[Array | None, Array | None]:
    """Which entries of a @ b + bias depend on a NaN, which on an infinity; (None, None) where all is finite."""
    operands = [a, b] if bias is None else [a, b, bias]
    if all(np.isfinite(operand).all() for operand in operands):
        return None, None

    def reached(test: np.ufunc) -> Array:
        hit = test(a).any(-1)[..., :, None] | test(b).any(-2)[..., None, :]
        return hit if bias is None else hit | test(bias)

    return reached(np.isnan), reached(np.isinf)
