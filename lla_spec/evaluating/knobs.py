"""The formula evaluated as a wrong kernel would: what is compared with a failing output to name its cause."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from lla_spec.evaluating.arguments import operation, prepare
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.compiling import compile_results
from lla_spec.evaluating.contracts import PRECISIONS, Contract, Precision
from lla_spec.evaluating.exactness import rounded
from lla_spec.evaluating.float64 import Float64
from lla_spec.evaluating.operations import bound
from lla_spec.evaluating.plan import Plan
from lla_spec.evaluating.prepared import Prepared
from lla_spec.interface import torch_parameters
from lla_spec.language import Formula
from lla_spec.substituting import expand
from lla_spec.tensors import Tensor

Array = np.ndarray


class SumsInIo(Float64):
    """Float64, but every sum is rounded to the io dtype: once at its end, or (`each`) after every term."""

    def __init__(self, io: Precision, each: bool) -> None:
        self.io, self.each = io, each

    def sum(self, a: Array, axes: int) -> Array:
        if not self.each:
            return rounded(super().sum(a, axes), self.io)
        terms = a.reshape(*a.shape[: a.ndim - axes], int(np.prod(a.shape[a.ndim - axes :])))
        total = np.zeros(terms.shape[:-1])
        for position in range(terms.shape[-1]):
            total = rounded(total + rounded(terms[..., position], self.io), self.io)
        return total


class EveryStepIn(Float64):
    """Float64, but the result of each step is rounded: a composite of functions of a low-precision library.

    `divides`: a/b is one step, for 1/b and a product.
    """

    def __init__(self, precision: Precision, divides: bool) -> None:
        self.precision, self.divides = precision, divides

    def add(self, a: Array, b: Array) -> Array:
        return rounded(super().add(a, b), self.precision)

    def multiply(self, a: Array, b: Array) -> Array:
        return rounded(super().multiply(a, b), self.precision)

    def power(self, a: Array, exponent: Fraction) -> Array:
        found = super().power(a, exponent)
        return found if self.divides and exponent == -1 else rounded(found, self.precision)

    def exp(self, a: Array, shifted: int) -> Array:
        return rounded(super().exp(a, shifted), self.precision)

    def log(self, a: Array) -> Array:
        return rounded(super().log(a), self.precision)

    def sum(self, a: Array, axes: int) -> Array:
        return rounded(super().sum(a, axes), self.precision)

    def matmul(self, a: Array, b: Array) -> Array:
        return rounded(super().matmul(a, b), self.precision)


class Float32(Float64):
    """Single precision without any care for its range."""

    def input(self, array: Array, kind: str) -> Array:
        return array.astype(np.float32)

    def number(self, value: Fraction) -> Array:
        return np.asarray(value.numerator / value.denominator, np.float32)


class EdgesIn(Float64):
    """Float64, but what a formula inside gets ("argument") or gives ("result") is rounded to a lower precision."""

    def __init__(self, kind: str, precision: Precision) -> None:
        self.kind, self.precision = kind, precision

    def edge(self, a: Array, kind: str) -> Array:
        return rounded(a, self.precision) if kind == self.kind else a


class HiddenBy(Float64):
    """Float64, but what a mask hides gets a finite score, and counts where all that is kept is far below it."""

    def __init__(self, score: float) -> None:
        self.score, self.used = score, False

    def input(self, array: Array, kind: str) -> Array:
        """A mask hides nothing by a product: one ulp below 1 marks what it hides for `keep`."""
        return np.where(array == 0, np.nextafter(1.0, 0.0), 1.0) if kind == "mask" else super().input(array, kind)

    def keep(self, a: Array, mask: Array) -> Array:
        """In place: a plan takes the maximum of this result, and exponentiates what it was given."""
        self.used = True
        np.copyto(a, self.score, where=mask < 1)
        return a


def hidden_by(name: str, arguments: Mapping[str, Any], contract: Contract, score: float) -> Any:
    """The operation, forward, where a mask hides by that score, and what the roundings may do to it. ValueError where
    there are no scores (a mean hides by a product)."""
    prepared, domain = prepare(operation(name), arguments), HiddenBy(score)
    values = prepared.run(domain)
    if not domain.used:
        raise ValueError("nothing is hidden by a score here")
    return _around(prepared, values, name, arguments, contract, vjp=False)


def sums_in_io(name: str, arguments: Mapping[str, Any], contract: Contract, *, vjp: bool, each: bool) -> Any:
    """The operation with its sums rounded to io on their way, and what the remaining roundings may do to that."""
    prepared = prepare(operation(name), arguments, vjp=vjp)
    return _around(prepared, prepared.run(SumsInIo(contract.io, each)), name, arguments, contract, vjp)


def steps_in_io(
    name: str, arguments: Mapping[str, Any], contract: Contract, *, vjp: bool, divides: bool, declared: bool
) -> Any:
    """The operation with every step rounded to io, and what the remaining roundings may do to that.

    `declared`: the steps of the formula as it stands, forward, without a maximum that is subtracted first.
    """
    prepared = prepare(operation(name), arguments, vjp=vjp)
    run = _with_declared_plan(prepared, name) if declared else prepared
    with np.errstate(all="ignore"):
        values = run.run(EveryStepIn(contract.io, divides))
    return _around(prepared, values, name, arguments, contract, vjp)


def edges_in(
    name: str, arguments: Mapping[str, Any], contract: Contract, *, vjp: bool, kind: str, precision: str
) -> Any:
    """The operation with what its inner call gets or gives (attention's scores, its weights) in a lower precision."""
    prepared = prepare(operation(name), arguments, vjp=vjp)
    return _around(prepared, prepared.run(EdgesIn(kind, PRECISIONS[precision])), name, arguments, contract, vjp)


def float32_without_maximum(name: str, arguments: Mapping[str, Any], contract: Contract, *, vjp: bool) -> Any:
    """The declared formula as it stands, exp of the raw scores, in the accumulator: non-finite where that fails.

    An entry that fails must be non-finite in the output as well; every other one is judged as usual.
    """
    if vjp:
        raise ValueError("the gradient of a kernel without maximum is not modelled")
    prepared = prepare(operation(name), arguments)
    raw = _with_declared_plan(prepared, name)
    domain = Float32() if contract.acc.name == "fp32" else Float64()
    values = {key: np.asarray(value, np.float64) for key, value in raw.run(domain).items()}
    if all(np.isfinite(value).all() for value in values.values()):
        raise ValueError("nothing over- or underflows here")
    return _around(prepared, values, name, arguments, contract, vjp)


def _with_declared_plan(prepared: Prepared, name: str) -> Prepared:
    formula = operation(name)
    plan = _as_declared(formula, frozenset(set(formula.parameters) - set(prepared.inputs)))
    return Prepared(**{**prepared.__dict__, "plan": plan})


@cache
def _as_declared(formula: Formula, omitted: frozenset[str]) -> Plan:
    """The formula's body written out, so that no law rewrites a call in it."""
    given: dict[str, Any] = {name: None if name in omitted else p for name, p in formula.parameters.items()}
    called = formula(**given)
    return compile_results({called.name: Tensor(called.name, called.axes, expand(called.entry))}, formula.parameters)


def _around(
    prepared: Prepared,
    values: Mapping[str, Array],
    name: str,
    arguments: Mapping[str, Any],
    contract: Contract,
    vjp: bool,
) -> Any:
    """These values with the bound of the right ones, cast anew: what differs is the knob, not the roundings."""
    right = bound(name, arguments, contract, vjp=vjp)
    named = {role_name: key for role_name, (key, _) in torch_parameters(operation(name)).items()}
    found = {}
    for key, bounded in right.items() if vjp else [("", right)]:
        value = values[named[key]] if vjp else next(iter(values.values()))
        empty = prepared.empty_in(named[key]) if vjp else None
        error = contract.cast(np.where(np.isfinite(value), value, 0.0), bounded.pre_cast_error)
        error = np.where(np.isfinite(value), error, 0.0)
        found[key] = Bounded(np.asarray(value if empty is None else np.where(empty, 0.0, value)), error)
    return found if vjp else found[""]
