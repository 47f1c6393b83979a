"""Plain float64: the oracle for everything that accumulates in fp32 or less."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.plan import Move

Array = np.ndarray


def numpy_power(base: Array, exponent: Fraction) -> Array:
    """base**exponent, by the correctly rounded operations where there are some."""
    if exponent == -1:
        return 1.0 / base
    if exponent == 2:
        return base * base
    if exponent == Fraction(1, 2):
        return np.sqrt(base)
    if exponent == Fraction(-1, 2):
        return 1.0 / np.sqrt(base)
    return base ** float(exponent)


class Float64:
    """Numbers are float64 arrays."""

    def input(self, array: Array, kind: str) -> Array:
        return array if array.dtype == np.float64 else array.astype(np.float64)

    def bounded(self, given: Bounded) -> Array:
        return given.value

    def number(self, value: Fraction) -> Array:
        return np.float64(value.numerator / value.denominator)  # pyright: ignore[reportReturnType]

    def move(self, function: Move, *values: Array) -> Array:
        return function(*values)

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def negate(self, a: Array) -> Array:
        return -a

    def multiply(self, a: Array, b: Array) -> Array:
        return a * b

    def mask(self, a: Array, mask: Array) -> Array:
        return np.where(mask == 0, 0.0, a * mask)

    def keep(self, a: Array, mask: Array) -> Array:
        return np.where(mask == 0, -np.inf, a)

    def power(self, a: Array, exponent: Fraction) -> Array:
        return numpy_power(a, exponent)

    def exp(self, a: Array, shifted: int) -> Array:
        return np.exp(a)

    def log(self, a: Array) -> Array:
        return np.log(a)

    def sum(self, a: Array, axes: int) -> Array:
        return a.sum(axis=tuple(range(-axes, 0)))

    def maximum(self, a: Array, axes: int) -> Array:
        return a.max(axis=tuple(range(-axes, 0)), initial=-np.inf)

    def matmul(self, a: Array, b: Array) -> Array:
        return matrix_product(a, b)

    def edge(self, a: Array, kind: str) -> Array:
        return a


def matrix_product(a: Array, b: Array) -> Array:
    """a @ b; a stack of dot products without the cost of one BLAS call each."""
    if a.shape[-2] == 1 and b.shape[-1] == 1:
        return np.einsum("...ik,...kj->...ij", a, b)
    return a @ b
