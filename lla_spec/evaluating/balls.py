"""Rigorous balls (Arb, Johansson 2017, through python-flint): every result encloses the exact one.

Inputs are float64 and exact. They judge fp64 under test, and float64 itself. Numbers are object arrays of `arb`; masks
stay arrays of float64 zeros and ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import flint
import numpy as np
from flint import arb, arb_mat, fmpq

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.plan import Move, Plan

Array = np.ndarray
DEFAULT_BITS = 128


@dataclass(frozen=True)
class Enclosure:
    """The exact result lies within `radius` of `high + low`, entry by entry; `high` is the nearest float64.

    `rounded` is True where every number of the ball rounds to `high`: there `high` is the correctly rounded result.
    """

    high: Array
    low: Array
    radius: Array
    rounded: Array


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Balls are computed with `bits` bits of midpoint inside; the setting of flint is put back."""
    before = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        yield
    finally:
        flint.ctx.prec = before


def enclose(plan: Plan, inputs: Mapping[str, Any], bits: int = DEFAULT_BITS) -> dict[str, Enclosure]:
    """The results of a plan, enclosed. Entries whose ball is not finite (an exact infinity apart) have radius inf."""
    with precision(bits):
        return {name: enclosure(values) for name, values in plan.run(Balls(), inputs).items()}


def enclosure(values: Array) -> Enclosure:
    """Balls as float64 pairs, under the precision that they were computed with. NaN and inf balls have radius inf."""
    flat = [_pair(value) for value in np.asarray(values, dtype=object).ravel().tolist()]
    columns: list[Array] = [np.array([pair[k] for pair in flat], dtype=np.float64) for k in range(3)]
    shape = np.shape(values)
    rounded = np.array([pair[3] for pair in flat], dtype=bool)
    return Enclosure(*(column.reshape(shape) for column in columns), rounded=rounded.reshape(shape))


def _pair(value: Any) -> tuple[float, float, float, bool]:
    ball = value if isinstance(value, arb) else arb(float(value))
    high = float(ball.mid())
    if not ball.is_finite():  # an exact infinity, or a ball that knows nothing (NaN too)
        exact = ball.is_exact() and high == high
        return high, 0.0, 0.0 if exact else math.inf, exact
    rounded = float(ball.lower()) == float(ball.upper())
    if not math.isfinite(high):  # beyond float64 for certain, or a wide ball that may hold anything
        return high, 0.0, 0.0 if rounded else math.inf, rounded
    rest = ball - high
    low = float(rest.mid())
    return high, low, _above(rest - low), rounded


def _above(ball: arb) -> float:
    """A float64 that is no smaller than any |number| of the ball."""
    bound = ball.abs_upper()
    return 0.0 if bound.is_zero() else math.nextafter(float(bound), math.inf)


class Balls:
    """The domain of balls. Run it under `precision(bits)`."""

    def input(self, array: Array, kind: str) -> Array:
        return array.astype(np.float64) if kind == "mask" else _boxed(map(arb, array.ravel().tolist()), array.shape)

    def bounded(self, given: Bounded) -> Array:
        pairs = zip(given.value.ravel(), given.error.ravel(), strict=True)
        return _boxed([arb(value, error) for value, error in pairs], given.value.shape)

    def number(self, value: Fraction) -> Array:
        return _boxed([arb(fmpq(value.numerator, value.denominator))], ())

    def move(self, function: Move, *values: Array) -> Array:
        return function(*values)

    def add(self, a: Array, b: Array) -> Array:
        return _array(np.add(a, b))

    def negate(self, a: Array) -> Array:
        return _array(np.negative(a))

    def multiply(self, a: Array, b: Array) -> Array:
        return _array(np.multiply(a, b))

    def mask(self, a: Array, mask: Array) -> Array:
        product = _array(np.multiply(a, _balls(mask)))
        return np.where(_is_zero(mask), _boxed([arb(0)], ()), product)

    def keep(self, a: Array, mask: Array) -> Array:
        return np.where(_is_zero(mask), _boxed([arb("-inf")], ()), a)

    def power(self, a: Array, exponent: Fraction) -> Array:
        return _each(_power(exponent), a)

    def exp(self, a: Array, shifted: int) -> Array:
        return _each(arb.exp, a)

    def log(self, a: Array) -> Array:
        return _each(arb.log, a)

    def sum(self, a: Array, axes: int) -> Array:
        total = _balls(a)
        for _ in range(axes):
            total = _array(np.add.reduce(total, axis=-1, initial=arb(0)))
        return total

    def maximum(self, a: Array, axes: int) -> Array:
        cut = a.ndim - axes
        rows = a.reshape(*a.shape[:cut], int(np.prod(a.shape[cut:])))  # -1 is ambiguous where an axis is empty
        largest = [_largest(row) for row in rows.reshape(-1, rows.shape[-1]).tolist()] if rows.size else []
        return _boxed(largest or [arb("-inf")] * int(np.prod(rows.shape[:-1])), rows.shape[:-1])

    def matmul(self, a: Array, b: Array) -> Array:
        a, b = _balls(a), _balls(b)
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        (rows, inner), columns = a.shape[-2:], b.shape[-1]
        if not rows * inner * columns:
            return np.full((*lead, rows, columns), arb(0), dtype=object)
        left, right = _matrices(a, lead), _matrices(b, lead)
        entries = [entry for x, y in zip(left, right, strict=True) for entry in (x * y).entries()]
        return _boxed(entries, (*lead, rows, columns))

    def edge(self, a: Array, kind: str) -> Array:
        return a


def _matrices(array: Array, lead: tuple[int, ...]) -> list[arb_mat]:
    """A matrix for each place of `lead`; one that several places share is made once."""
    *own, rows, columns = array.shape
    flat, size = array.ravel().tolist(), rows * columns
    made = [arb_mat(rows, columns, flat[at : at + size]) for at in range(0, len(flat), size)]
    return [made[at] for at in np.broadcast_to(np.arange(len(made)).reshape(own), lead).ravel()]


def _boxed(values: Any, shape: Sequence[int]) -> Array:
    """Values as an object array. `fromiter` asks no ball whether it is a sequence, which takes longer than its sum."""
    return np.fromiter(values, dtype=object).reshape(shape)


def _array(value: Any) -> Array:
    """numpy gives a bare object back where the result has no axes."""
    return value if isinstance(value, np.ndarray) else _boxed([value], ())


def _balls(array: Array) -> Array:
    return array if array.dtype == object else _boxed(map(arb, array.ravel().tolist()), array.shape)


def _each(function: Callable[[Any], Any], array: Array) -> Array:
    return _boxed(map(function, _balls(array).ravel().tolist()), array.shape)


def _is_zero(mask: Array) -> Array:
    return np.equal(mask, 0).astype(bool)


def _largest(row: list[Any]) -> Any:
    largest = row[0]
    for value in row[1:]:
        largest = largest.max(value)
    return largest


def _power(exponent: Fraction) -> Callable[[Any], Any]:
    if exponent == Fraction(1, 2):
        return arb.sqrt
    if exponent == Fraction(-1, 2):
        return arb.rsqrt
    if exponent.denominator == 1:
        return lambda ball: ball ** int(exponent)
    return lambda ball: ball ** arb(fmpq(exponent.numerator, exponent.denominator))
