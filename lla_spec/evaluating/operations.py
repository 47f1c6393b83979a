"""Values and bounds of an operation at torch-style arguments: what every check compares with.

    oracle("softmax", {"x": x})                           the exact result, float64
    bound("softmax", {"x": x}, contract("fused", "bf16")) the same, and how far a kernel's may be from it

Arguments are float64 arrays that hold exactly what the kernel was given, by torch name; masks are bool arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lla_spec.evaluating import balls
from lla_spec.evaluating.arguments import operation, prepare
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.exactness import results_are_exact, rounded
from lla_spec.evaluating.float64 import Float64
from lla_spec.evaluating.nonfinite import Special, special
from lla_spec.evaluating.prepared import Prepared
from lla_spec.evaluating.rounding import Approximate, Rounding
from lla_spec.evaluating.sharp import rule_for, stands_alone
from lla_spec.evaluating.sharp.roundings import ORACLE_U, finish
from lla_spec.interface import torch_shape

Array = np.ndarray
Arguments = Mapping[str, Any]
Results = dict[str, Any]

BALL_BITS = (128, 512, 2560)
"""Precisions that are tried in turn until every entry is known well enough (`_settled`). Products of scores near the
largest float64 need the last one before exp."""

NEGLIGIBLE = 2.0**-300  # of the largest result: the exact 0 of a key bias's gradient has no first digit to be found
UNSEEN = 2.0**-20  # of a bound: what a ball leaves open is added to it, and this much changes no verdict

GENERIC_ENTRIES = 1 << 12
"""The generic rule is evaluated beside a sharp one up to this many entries of the largest array on the way, since it
costs milliseconds beyond. It was the smaller one in none of 566,772 entries of six operations at sizes above (logits
64 x 257, products 67 x 257 x 71, six magnitudes, fp32 and bf16); attention was not measured."""


def oracle(
    name: str,
    arguments: Arguments,
    *,
    vjp: bool = False,
    exact: bool = False,
    causal_alignment: str = "bottom_right",
) -> Any:
    """The result of an operation, float64 (...); with `vjp`, the gradients as a dict by torch argument name.

    `exact`: computed in balls and correctly rounded (what cancels to less than 2^-300 of the largest result is that
    small, and no digit of it is promised), else in float64. NaN where the result depends on a NaN or, -∞
    logits apart, on an infinity. Rows that a mask leaves without a key are 0.
    Raises ArgumentError for arguments that do not fit.

    >>> oracle("softmax", {"x": np.zeros((1, 2))})
    array([[0.5, 0.5]])
    """
    prepared = prepare(operation(name), arguments, vjp=vjp, causal_alignment=causal_alignment)
    values, _ = _values(prepared, special(prepared), exact)
    return _named(name, values, vjp)


def bound(
    name: str,
    arguments: Arguments,
    contract: Contract,
    *,
    vjp: bool = False,
    exact: bool = False,
    causal_alignment: str = "bottom_right",
) -> Any:
    """The result and, entry by entry, the most that a kernel of that contract may differ: Bounded, or a dict of them.

    As `bounds` for one contract.
    """
    (found,) = bounds(name, arguments, (contract,), vjp=vjp, exact=exact, causal_alignment=causal_alignment)
    return found


def bounds(
    name: str,
    arguments: Arguments,
    contracts: Sequence[Contract],
    *,
    vjp: bool = False,
    exact: bool = False,
    causal_alignment: str = "bottom_right",
) -> list[Any]:
    """Around the result, which is evaluated once, the most that a kernel of each contract may differ: Bounded, or a
    dict of them by torch argument name with `vjp`.

    On integers whose sums fit the accumulator the error is 0, and the value is the exact result rounded once
    (exactness). Elsewhere the value is float64's; with `exact`, the float64 nearest to a ball that is narrower than
    2^-20 of the error, or one unit away where the exact number lies half way. The error allows for all of this.

    The error is the smaller one of the sharp rule's and the generic rule's, forward (unless scores are cast) and for
    multilinear gradients: there both hold for every kernel of the contract (tests/engine/test_generic_bounds.py). The
    generic rule follows the declaration's steps, and other backward passes need not: attention's takes Σ dO·O, of saved
    and rounded O, for Σ P·dP. So their gradients have the sharp rule alone; where there is none, the generic one, which
    allows for weights recomputed from a saved log-sum-exp or saved weights, and for nothing else.
    """
    formula = operation(name)
    prepared = prepare(formula, arguments, vjp=vjp, causal_alignment=causal_alignment)
    found, explicit = special(prepared), _explicit(name, prepared, arguments)
    oracle_u = 0.0 if exact else ORACLE_U
    around = [
        None
        if found is None and results_are_exact(prepared, contract)
        else _smaller_bounds(name, prepared, found, explicit, contract, oracle_u)
        for contract in contracts
    ]
    known = _values(prepared, found, exact, _smallest(around))
    results = [
        _rounded_once(known[0], contract) if these is None else _around(prepared, found, known, these)
        for contract, these in zip(contracts, around, strict=True)
    ]
    return [_named(name, result, vjp) for result in results]


def generic_bound(
    name: str,
    arguments: Arguments,
    contract: Contract,
    *,
    vjp: bool = False,
    exact: bool = False,
    causal_alignment: str = "bottom_right",
) -> Any:
    """As `bound`, by the generic rule alone."""
    prepared = prepare(operation(name), arguments, vjp=vjp, causal_alignment=causal_alignment)
    found = special(prepared)
    around = _generic(prepared, found, contract, 0.0 if exact else ORACLE_U, vjp)
    return _named(name, _around(prepared, found, _values(prepared, found, exact, around), around), vjp)


def sharp_bound(
    name: str, arguments: Arguments, contract: Contract, *, vjp: bool = False, causal_alignment: str = "bottom_right"
) -> Any:
    """The sharp rule alone, around the value that it has found itself; None where the operation has none."""
    prepared = prepare(operation(name), arguments, vjp=vjp, causal_alignment=causal_alignment)
    return _sharp(name, _explicit(name, prepared, arguments), contract, vjp, ORACLE_U)


# ---- values


def _values(
    prepared: Prepared, found: Special | None, exact: bool, bounds: Mapping[str, Bounded] | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The values by result name, and how far the exact ones are from these where balls were used."""
    if exact:
        high, residuals = _exact(prepared, found, bounds or {})
    else:
        high, residuals = _evaluated(prepared, found, Float64()), {}
    return {name: _conventions(prepared, found, name, value) for name, value in high.items()}, residuals


def _evaluated(prepared: Prepared, found: Special | None, domain: Any) -> dict[str, Any]:
    if found is None:
        return prepared.run(domain)
    return found.choose(lambda inputs: prepared.run(domain, inputs), lambda a, b, where: np.where(where, b, a))


def _exact(
    prepared: Prepared, found: Special | None, bounds: Mapping[str, Bounded]
) -> tuple[dict[str, Array], dict[str, Array]]:
    enclosures: dict[str, balls.Enclosure] = {}
    for bits in BALL_BITS:
        with balls.precision(bits):
            values = _evaluated(prepared, found, balls.Balls())
            enclosures = {name: balls.enclosure(value) for name, value in values.items()}
        if _settled(enclosures, bounds):
            break
    # A ball around 0 that did not settle is as good as 0, and no better than its far end.
    unknown = {name: ~e.rounded & (np.abs(e.high + e.low) <= e.radius) for name, e in enclosures.items()}
    high = {name: np.where(unknown[name], 0.0, e.high) for name, e in enclosures.items()}
    far = {name: np.where(unknown[name], np.abs(e.high), 0.0) for name, e in enclosures.items()}
    return high, {name: far[name] + np.abs(e.low) + e.radius for name, e in enclosures.items()}


def _settled(enclosures: Mapping[str, balls.Enclosure], bounds: Mapping[str, Bounded]) -> bool:
    """Whether every ball rounds to one float64, or leaves so little open that it hides nothing: beside the largest
    result, or beside the bound that the value is wanted for. What stays open is added to the bound.
    """
    known = [np.abs(e.high[e.rounded & np.isfinite(e.high)]) for e in enclosures.values()]
    largest = max((values.max(initial=0.0) for values in known), default=0.0)
    for name, e in enclosures.items():
        settled = e.rounded | (np.abs(e.low) + e.radius <= NEGLIGIBLE * largest)
        if name in bounds:
            settled |= np.isfinite(e.radius) & (e.radius <= UNSEEN * bounds[name].error)
        if not settled.all():
            return False
    return True


def _conventions(prepared: Prepared, found: Special | None, name: str, value: Array) -> Array:
    empty = prepared.empty_in(name)
    if empty is not None:
        value = np.where(empty, 0.0, value)
    if found is not None:
        value = np.where(found.nan[name] | found.infinite[name], np.nan, value)
    if prepared.void:  # the mean over nothing is NaN, and nothing pulls on its gradients
        value = np.full(value.shape, 0.0 if prepared.vjp else np.nan)
    return value


# ---- bounds


def _smaller_bounds(
    name: str, prepared: Prepared, found: Special | None, arguments: Arguments, contract: Contract, oracle_u: float
) -> dict[str, Bounded]:
    """The sharp rule's bounds by result name, or the generic rule's, or where both hold the smaller ones."""
    vjp = prepared.vjp
    sharp = _sharp(name, arguments, contract, vjp, oracle_u)
    around = {} if sharp is None else {key: _renamed(sharp, name, key, vjp) for key in prepared.axes}
    if sharp is None or (_generic_holds(name, prepared, contract, vjp) and prepared.entries <= GENERIC_ENTRIES):
        for key, generic in _generic(prepared, found, contract, oracle_u, vjp).items():
            around[key] = generic.minimum(around[key]) if key in around else generic
    return around


def _smallest(around: Sequence[Mapping[str, Bounded] | None]) -> dict[str, Bounded]:
    """What the values have to be known for: the smallest of several bounds, none where one of them is 0."""
    if any(these is None for these in around):
        return {}
    smallest = dict(around[0] or {})
    for these in around[1:]:
        smallest = {key: smallest[key].minimum(bounded) for key, bounded in (these or {}).items()}
    return smallest


def _rounded_once(values: Mapping[str, Array], contract: Contract) -> dict[str, Bounded]:
    cast = {key: rounded(value, contract.io) for key, value in values.items()}
    return {key: Bounded(value, np.zeros(value.shape)) for key, value in cast.items()}


def _generic_holds(name: str, prepared: Prepared, contract: Contract, vjp: bool) -> bool:
    """Whether the generic rule holds for every kernel of the contract, and not for the declaration's own steps alone.
    It casts scores where the declaration has them, after the scale; before it they may overflow, or underflow, earlier.
    It knows neither roundings between the operations of a composite nor other algorithms: a sharp rule that allows for
    them stands alone.
    """
    return not stands_alone(name) and (prepared.plan.is_multilinear or not (vjp or contract.score_casts))


def _generic(
    prepared: Prepared, found: Special | None, contract: Contract, oracle_u: float, vjp: bool
) -> dict[str, Bounded]:
    def put(a: Approximate, b: Approximate, where: Array) -> Approximate:
        return Approximate(np.where(where, b.value, a.value), np.where(where, b.deviation, a.deviation))

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return prepared.run(Rounding(contract, oracle_u, backward=vjp), inputs)

    results = run(prepared.inputs) if found is None else found.choose(run, put)
    bounds = {}
    for name, result in results.items():
        value, error = np.asarray(result.value), np.array(result.deviation)
        exact = (value == 0) & (error == 0)
        bounds[name] = finish(value, error, contract, exact=exact if exact.any() else None)
    return bounds


def _explicit(name: str, prepared: Prepared, arguments: Arguments) -> Arguments:
    """The arguments for a sharp rule, which knows no alignment of the causal triangle: it gets a mask that holds it."""
    if not arguments.get("is_causal"):
        return arguments
    masks = {_torch_name(name, key): _torch_mask(name, key, prepared) for key in prepared.masks}
    return {**arguments, **masks, "is_causal": False}


def _torch_mask(name: str, key: str, prepared: Prepared) -> Array:
    formula, keep = operation(name), prepared.masks[key]
    lead = keep.shape[: keep.ndim - len(formula.parameters[key].axes)]
    return keep.reshape(*lead, *torch_shape(formula, formula.parameters[key], prepared.sizes))


def _sharp(name: str, arguments: Arguments, contract: Contract, vjp: bool, oracle_u: float) -> Any:
    rule = rule_for(f"{name}_vjp" if vjp else name)
    return None if rule is None else rule(arguments, contract, oracle_u=oracle_u)


def _around(
    prepared: Prepared, found: Special | None, known: tuple[dict[str, Array], dict[str, Array]], these: Results
) -> dict[str, Bounded]:
    """Bounds by result name around the values that `_values` found."""
    values, residuals = known
    return {key: _judged(prepared, found, key, values[key], these[key], residuals.get(key)) for key in values}


def _judged(
    prepared: Prepared, found: Special | None, name: str, value: Array, bounds: Bounded, residual: Array | None
) -> Bounded:
    """The bound around this value, with the conventions on NaN, infinity and empty rows."""
    error, before = bounds.error, bounds.pre_cast_error
    if residual is not None:
        error, before = error + residual, before + residual
    empty = prepared.empty_in(name)
    if empty is not None:
        # An infinite bound stays: the row's zeros meet a key that the scale may have made infinite.
        error, before = (np.where(empty & np.isfinite(e), 0.0, e) for e in (error, before))
    if found is not None:
        for where, known in ((found.infinite[name], np.inf), (found.nan[name], 0.0)):
            error, before = np.where(where, known, error), np.where(where, known, before)
    if prepared.void:
        error, before = np.zeros(error.shape), np.zeros(before.shape)
    return Bounded(value, error, before)


# ---- names


def _renamed(sharp: Any, name: str, key: str, vjp: bool) -> Bounded:
    return sharp[_torch_name(name, key)] if vjp else sharp


def _named(name: str, results: Results, vjp: bool) -> Any:
    if vjp:
        return {_torch_name(name, key): value for key, value in results.items()}
    (result,) = results.values()
    return result


def _torch_name(name: str, parameter: str) -> str:
    role = operation(name).parameters[parameter].role
    assert role is not None
    return role.argument
