"""Balls (Arb, through python-flint) as a field for `entries`: every operation encloses the exact result.

So a difference whose ball excludes 0 proves that two sides differ at that point; one that contains 0 proves nothing.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from flint import arb, ctx, fmpq

from lla_spec.proving.entries import Unreadable

Ball = Any  # flint.arb, whose stubs do not know its operators

PRECISION = 128  # bits

_FUNCTIONS = {"Abs": abs, "sign": lambda x: x.sgn()}
_NAMES = ("sin", "cos", "tan", "sinh", "cosh", "tanh", "erf")
_FUNCTIONS |= {name: (lambda x, n=name: getattr(x, n)()) for name in _NAMES}


class BallField:
    """The operations that `entries.Field` asks for, on balls of the precision in force."""

    def rational(self, value: Fraction) -> Ball:
        return ball(value)

    def power(self, base: Ball, exponent: Fraction) -> Ball:
        if exponent.denominator == 2:
            base, exponent = base.sqrt(), 2 * exponent
        if exponent.denominator > 1:
            return base ** ball(exponent)
        power = base ** abs(int(exponent))
        return power if exponent > 0 else 1 / power

    def exp(self, value: Ball) -> Ball:
        return value.exp()

    def log(self, value: Ball) -> Ball:
        return value.log()

    def maximum(self, entries: list[tuple[Ball, Ball]]) -> Ball:
        kept = [entry for entry, mask in entries if mask != 0]  # true only where the ball excludes 0
        if not kept or any(not (mask != 0 or mask == 0) for _, mask in entries):
            return arb.nan()
        largest = kept[0]
        for entry in kept[1:]:
            largest = largest.max(entry)
        return largest

    def function(self, name: str, arguments: list[Ball]) -> Ball:
        if name not in _FUNCTIONS or len(arguments) != 1:
            raise Unreadable(f"{name} has no ball arithmetic here; add it to ball_field._FUNCTIONS")
        return _FUNCTIONS[name](arguments[0])


def ball(value: Fraction | int) -> Ball:
    """The ball around a rational number, exact where it is dyadic."""
    value = Fraction(value)
    return arb(fmpq(value.numerator, value.denominator))


def precision(bits: int = PRECISION) -> Any:
    """A context in which balls have `bits` bits."""
    return ctx.workprec(bits)
