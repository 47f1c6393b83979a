"""Rounding-error bounds of grouped-query and multi-head attention, and of their VJPs.

Grouped queries are attention with an axis more, (..., g, r, n, d) beside (..., g, 1, m, d), and what k and v receive is
summed over r. Multi-head attention is a chain: linear, attention, linear. At each edge between two of them, and at each
accumulation of a cotangent, a kernel may round to io or not; so the error that goes on is the one after the cast, which
is the larger, and +inf where the cast may overflow.

    Q = X W_qᵀ + b_q …   within e_q = cast(γ_{K+1} (|X||W_q|ᵀ + |b_q|)) …
    O = attention(Q, K, V), its arguments within e_q, e_k, e_v (attention.py)
    Y = O W_oᵀ + b_o     |Ŷ - Y| <= e_O |W_o|ᵀ + γ_{K+1} ((|O| + e_O)|W_o|ᵀ + |b_o|)

and backwards dO = G W_o, (dQ, dK, dV) of attention within e_dO beside the others, dX = dQ W_q + dK W_k + dV W_v.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract, hard_gamma
from lla_spec.evaluating.sharp import attention as single
from lla_spec.evaluating.sharp.attention_gradients import gradients
from lla_spec.evaluating.sharp.operands import added, finite, flushed
from lla_spec.evaluating.sharp.roundings import (
    ORACLE_U,
    SAFETY,
    Arguments,
    Array,
    Roundings,
    array,
    finish,
    fold_to,
    optional_array,
)

# One as attention is; the other for the roundings between its operations, which the generic rule does not know.
ALONE = ("grouped_query_attention", "multi_head_attention")

Within = tuple[Array, Array]
"""A value and the bound on how far the kernel's is from it."""


def grouped_query_attention(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """q (..., h, n, d), k (..., g, m, d), v (..., g, m, e), mask (..., h, n, m) bool or None; head p has k[p // r]."""
    bound = single.attention(_grouped(arguments), contract, oracle_u=oracle_u)
    return _joined(bound)


def grouped_query_attention_vjp(
    arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U
) -> dict[str, Bounded]:
    """Gradients of q, k, v. A kernel sums dk and dv over all r·n queries of a group, or rounds each head's part to io
    and adds those."""
    model = Roundings(contract, oracle_u)
    found = _head_gradients(arguments, model)
    shapes = {name: array(arguments, name).shape for name in found}
    with np.errstate(all="ignore"):
        folded = {k: (fold_to(shapes[k], value), fold_to(shapes[k], error)) for k, (value, error) in found.items()}
    return {name: finish(value, error, contract) for name, (value, error) in folded.items()}


def multi_head_attention(arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U) -> Bounded:
    """x (..., n, d_model), w_q (h·a, d_model), w_k (g·a, d_model), w_v (g·b, d_model), w_o (d_out, h·b), biases or
    None, num_heads h, num_kv_heads g or None, mask (..., n, n) bool or None."""
    model = Roundings(contract, oracle_u)
    with np.errstate(all="ignore"):
        value, error = _linear(_forward(arguments, model).out, arguments, "o", model)
    return finish(value, error, contract)


def multi_head_attention_vjp(
    arguments: Arguments, contract: Contract, *, oracle_u: float = ORACLE_U
) -> dict[str, Bounded]:
    """Gradients of x, the weights and the biases that are given. The parts of dx may be rounded to io and then added,
    or be one product."""
    model = Roundings(contract, oracle_u)
    with np.errstate(all="ignore"):
        found = _multi_head_gradients(arguments, model)
    return {name: finish(value, error, contract) for name, (value, error) in found.items()}


# ---- grouped queries


def _grouped(arguments: Arguments) -> Arguments:
    """The arguments, errors included, as attention with one axis more: q (..., g, r, n, d), k (..., g, 1, m, d)."""
    groups = array(arguments, "k").shape[-3]
    grouped = {**arguments, "q": _by_group(array(arguments, "q"), groups)}
    grouped |= {name: array(arguments, name)[..., None, :, :] for name in ("k", "v")}
    if arguments.get("grad_output") is not None:
        grouped["grad_output"] = _by_group(array(arguments, "grad_output"), groups)
    mask = optional_array(arguments, "mask")
    if mask is not None and mask.ndim > 2:
        grouped["mask"] = mask[..., None, :, :] if mask.shape[-3] == 1 else _by_group(mask, groups)
    return grouped


def _by_group(x: Array, groups: int) -> Array:
    """(..., g·r, n, c) as (..., g, r, n, c): neighbours share a key-value head."""
    *lead, heads, rows, columns = x.shape
    return x.reshape(*lead, groups, heads // groups, rows, columns)


def _joined(bound: Bounded) -> Bounded:
    *lead, groups, shared, rows, columns = bound.value.shape
    shape = (*lead, groups * shared, rows, columns)
    return Bounded(bound.value.reshape(shape), bound.error.reshape(shape), bound.pre_cast_error.reshape(shape))


def _head_gradients(
    arguments: Arguments,
    model: Roundings,
    errors: single.Errors | None = None,
    before: single.Forward | None = None,
) -> dict[str, Within]:
    """What q (..., h, n, d), k and v (..., g, m, ·) receive, within an error before the last cast."""
    q, k = array(arguments, "q"), array(arguments, "k")
    moved, shared = _grouped_errors(errors or {}, k.shape[-3]), q.shape[-3] // k.shape[-3]
    found = gradients(_grouped(arguments), model, moved, shared=shared, before=before)
    value, error = found["q"]
    shape = (*value.shape[:-4], q.shape[-3], *value.shape[-2:])
    with np.errstate(all="ignore"):
        return {
            "q": (value.reshape(shape), error.reshape(shape)),
            "k": _accumulated(*found["k"], model),
            "v": _accumulated(*found["v"], model),
        }


def _grouped_errors(errors: single.Errors, groups: int) -> single.Errors:
    return {name: e[..., None, :, :] if name in ("k", "v") else _by_group(e, groups) for name, e in errors.items()}


def _accumulated(parts: Array, errors: Array, model: Roundings) -> Within:
    """Σ over axis -3 of r cotangents. The errors hold its roundings in the accumulator (a declared depth is that of one
    product, and this sum comes on top); in io each part may be cast, and each of the r - 1 sums. +inf where a part or a
    sum may overflow and the result need not."""
    count, contract = parts.shape[-3], model.contract
    value, error, reach = parts.sum(-3), errors.sum(-3), (np.abs(parts) + errors).sum(-3)
    if count > 1 and contract.depth is not None:
        error = error + contract.gamma(count) * reach
    if count > 1 and contract.io != contract.acc:
        error = error + hard_gamma(count, contract.u_out) * reach + 2 * count * contract.eta_out
    cancels = np.abs(value) < reach * (1 - 2.0**-40)
    overflow = ~(reach + error < contract.io.overflow_threshold) & cancels & (count > 1)
    return value, np.where(overflow, np.inf, error)


# ---- multi-head attention


@dataclass(frozen=True)
class _Heads:
    """The arguments of attention and their errors, what its forward pass leaves by groups, and its output
    (..., n, h·b), as a kernel may hold them."""

    arguments: dict[str, Array | None]
    errors: dict[str, Array]
    grouped: single.Forward
    out: Within


def _forward(arguments: Arguments, model: Roundings) -> _Heads:
    heads, groups = _head_counts(arguments)
    x = finite(arguments, "x")
    given: dict[str, Array | None] = {}
    errors: dict[str, Array] = {}
    for name, count in (("q", heads), ("k", groups), ("v", groups)):
        value, error = _edge(_linear((x, np.zeros_like(x)), arguments, name, model), model)
        given[name], errors[name] = _split(value, count), _split(error, count)
    mask = optional_array(arguments, "mask")
    given["mask"] = None if mask is None else mask[..., None, :, :]
    grouped = single.forward(_grouped(given), model, _grouped_errors(errors, groups))
    bound = _joined(grouped.bound(model.contract))
    overflow = np.abs(bound.value) + bound.pre_cast_error >= model.contract.io.overflow_threshold
    return _Heads(given, errors, grouped, (_merged(bound.value), _merged(np.where(overflow, np.inf, bound.error))))


def _multi_head_gradients(arguments: Arguments, model: Roundings) -> dict[str, Within]:
    heads, _ = _head_counts(arguments)
    x, g = finite(arguments, "x"), finite(arguments, "grad_output")
    forward, w_o = _forward(arguments, model), finite(arguments, "w_o")
    exact = np.zeros_like(g)
    dout, e_dout = _edge(_product((g, exact), w_o, model), model)
    upstream = {**forward.arguments, "grad_output": _split(dout, heads)}
    errors = {**forward.errors, "grad_output": _split(e_dout, heads)}
    cotangents = {
        name: _edge((_merged(value), _merged(error)), model)
        for name, (value, error) in _head_gradients(upstream, model, errors, forward.grouped).items()
    }
    weights = {name: finite(arguments, f"w_{name}") for name in cotangents}
    terms = sum(len(weight) for weight in weights.values())
    parts = [_product(cotangents[name], weights[name], model, terms=terms) for name in weights]
    values, moved = (np.stack(those, -3) for those in zip(*parts, strict=True))
    found = {"x": _accumulated(values, moved, model)}
    pairs = {
        **{name: (part, (x, np.zeros_like(x))) for name, part in cotangents.items()},
        "o": ((g, exact), forward.out),
    }
    for name, (cotangent, argument) in pairs.items():
        found[f"w_{name}"] = _weight_gradient(cotangent, argument, model)
    for name, (cotangent, _) in pairs.items():
        if arguments.get(f"b_{name}") is not None:
            ones = np.ones((*cotangent[0].shape[:-1], 1))
            value, error = _weight_gradient((ones, np.zeros_like(ones)), cotangent, model)
            found[f"b_{name}"] = value[0], error[0]
    return found


def _head_counts(arguments: Arguments) -> tuple[int, int]:
    heads, groups = arguments["num_heads"], arguments.get("num_kv_heads")
    count = int(np.asarray(heads))
    return count, count if groups is None else int(np.asarray(groups))


def _linear(x: Within, arguments: Arguments, name: str, model: Roundings) -> Within:
    """x w_nameᵀ + b_name; the bias is one more term of the sum."""
    weight = finite(arguments, f"w_{name}")
    if arguments.get(f"b_{name}") is None:
        return _product(x, weight.T, model)
    bias, terms = finite(arguments, f"b_{name}"), weight.shape[-1] + 1
    value, error = _product(x, weight.T, model, terms=terms)
    return value + bias, error + model.gamma(terms - 1) * np.abs(bias)


def _product(x: Within, weight: Array, model: Roundings, *, terms: int | None = None) -> Within:
    """x (..., K) weight (K, c)."""
    value, error, _ = model.contraction(x[0], weight, _off(x, model), model.flushed(weight), terms=terms)
    return value, error


def _weight_gradient(cotangent: Within, x: Within, model: Roundings) -> Within:
    """cotangentᵀ x (out, in), summed over the rows of all batch axes."""
    a, e_a, b, e_b = (part.reshape(-1, part.shape[-1]) for part in (*_moved(cotangent, model), *_moved(x, model)))
    value, error, _ = model.contraction(a.T, b, e_a.T, e_b)
    return value, error


def _moved(x: Within, model: Roundings) -> Within:
    off = _off(x, model)
    return x[0], np.zeros_like(x[0]) if off is None else off


def _off(x: Within, model: Roundings) -> Array | None:
    """The error of an operand, and what reading its subnormals as zero adds."""
    value, error = x
    return added(flushed(value, error, model), error)


def _edge(x: Within, model: Roundings) -> Within:
    """Between two named operations: rounded to io or not, +inf where rounding may overflow."""
    value, contract = x[0], model.contract
    error = SAFETY * np.where(np.isnan(x[1]), np.inf, x[1])
    overflow = ~(np.abs(value) + error < contract.io.overflow_threshold)
    return value, np.where(overflow, np.inf, contract.cast(np.where(overflow, 0.0, value), error))


def _split(x: Array, heads: int) -> Array:
    """(..., n, heads·a) as (..., heads, n, a)."""
    return np.swapaxes(x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads), -2, -3)


def _merged(x: Array) -> Array:
    """(..., heads, n, a) as (..., n, heads·a)."""
    *lead, heads, rows, columns = x.shape
    return np.swapaxes(x, -2, -3).reshape(*lead, rows, heads * columns)
