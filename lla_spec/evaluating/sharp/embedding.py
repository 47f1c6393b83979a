"""Rounding-error bounds of embedding, mean_pool and their VJPs.

A gather rounds nothing. Row t of its gradient is a sum with as many terms as t occurs, m_t: |dÊ - dE| <= γ_{m_t-1}Σ|dy|
in any order. A pooled vector is a sum over the kept tokens and one division; a kernel may multiply by the weights
M / ΣM instead, which are one rounding off, and its products another.
"""

from __future__ import annotations

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.sharp.roundings import ORACLE_U, Arguments, Array, Roundings, array, finish, join


def embedding(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """weight[ids]: ids (...), weight (v, d). Bitwise: no error and no cast."""
    value = array(arguments, "weight")[_ids(arguments)]
    nothing = np.zeros(value.shape)
    return Bounded(value, nothing, nothing)


def embedding_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """dE (v, d), row t the sum of grad_output (..., d) over the positions whose id is t.

    A product with the one-hot matrix adds exact zeros, and rounds its operands under tf32.
    """
    model = Roundings(contract, oracle_u)
    table, ids, g = array(arguments, "weight"), _ids(arguments).reshape(-1), _finite(arguments, "grad_output")
    g = g.reshape(-1, table.shape[-1])
    count = np.bincount(ids, minlength=table.shape[0])
    value, magnitude, flushed = (_scattered(ids, part, table.shape) for part in (g, np.abs(g), model.flushed(g)))
    terms, of = np.unique(count, return_inverse=True)
    rho = np.array([join(model.gamma(int(n) - 1), model.operands) for n in terms])[of.reshape(-1, 1)]
    with np.errstate(all="ignore"):
        reach = magnitude + flushed
        error = flushed + rho * reach + np.where(count > 1, 2 * count * model.eta, 0.0)[:, None]
        error = np.where(_may_overflow(reach * (1 + rho), value, contract), np.inf, error)
    return {"weight": finish(value, error, contract, exact=np.broadcast_to((count == 0)[:, None], value.shape))}


def mean_pool(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """x (..., n, d) over the tokens that mask (..., n) keeps; a sentence without any is exactly 0.

    The sum is formed before the division: it may overflow where the mean does not.
    """
    model = Roundings(contract, oracle_u)
    x, keep, count = _tokens(arguments)
    terms = int(keep.sum(-1).max(initial=0))
    rho = join(model.gamma(terms), model.few(2), model.operands)
    x = np.where(keep[..., None], x, 0.0)
    with np.errstate(all="ignore"):
        total, magnitude = x.sum(-2), np.abs(x).sum(-2)
        flushed = model.flushed(x)
        moved = 0.0 if flushed is None else flushed.sum(-2)
        error = (moved + rho * (magnitude + moved) + 2 * terms * model.eta) / count + 2 * model.eta
        overflow = (magnitude + moved) * (1 + rho) >= contract.acc.overflow_threshold
        value, error = total / count, np.where(overflow, np.inf, error)
    empty = np.broadcast_to(~keep.any(-1, keepdims=True), value.shape)
    return finish(value, error, contract, exact=empty)


def mean_pool_vjp(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> dict[str, Bounded]:
    """dx_i = grad_output / ΣM for the tokens that are kept, exactly 0 for the others."""
    model = Roundings(contract, oracle_u)
    x, keep, count = _tokens(arguments)
    g = np.broadcast_to((_finite(arguments, "grad_output") / count)[..., None, :], x.shape)
    flushed = model.flushed(_finite(arguments, "grad_output"))
    error = join(model.few(2), model.operands) * np.abs(g) + 2 * model.eta
    if flushed is not None:
        error = error + (flushed / count)[..., None, :]
    hidden = np.broadcast_to(~keep[..., None], x.shape)
    return {"x": finish(np.where(hidden, 0.0, g), error, contract, exact=hidden)}


def _may_overflow(reach: Array, value: Array, contract: Contract) -> Array:
    """A partial sum beyond the accumulator, except where all terms have one sign: there the result itself decides."""
    return (reach >= contract.acc.overflow_threshold) & (np.abs(value) < reach * (1 - 2.0**-20))


def _scattered(ids: Array, rows: Array | None, shape: tuple[int, ...]) -> Array:
    total = np.zeros(shape)
    if rows is not None:
        np.add.at(total, ids, rows)
    return total


def _ids(arguments: Arguments) -> Array:
    return np.asarray(arguments["ids"], dtype=np.int64)


def _tokens(arguments: Arguments) -> tuple[Array, Array, Array]:
    """x, which tokens are kept (..., n), and how many (..., 1), at least 1 to divide by."""
    x, mask = _finite(arguments, "x"), arguments.get("mask")
    keep = np.broadcast_to(True if mask is None else np.asarray(mask, bool), x.shape[:-1])
    return x, keep, np.maximum(keep.sum(-1, keepdims=True), 1)


def _finite(arguments: Arguments, name: str) -> Array:
    """NaN and infinities read as 0: the caller tells what depends on them (nonfinite.py)."""
    given = array(arguments, name)
    return np.where(np.isfinite(given), given, 0.0)
