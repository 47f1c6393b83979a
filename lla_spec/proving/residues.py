"""Residues modulo a prime: a false equation of rational functions is refused here in microseconds.

A difference that is not 0 at residues that obey every relation is no zero polynomial, so the exact field cannot prove
it. This only ever refuses; what has roots, exponentials, logarithms or maxima is left to the exact field.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from flint import nmod

from lla_spec.proving import orthonormal
from lla_spec.proving.entries import Entries, Unreadable, Where, positions
from lla_spec.proving.generators import PRIME
from lla_spec.tensors import Tensor

Residue = Any  # flint.nmod, whose stubs do not know its operators


class ResidueField:
    """The operations that `entries.Field` asks for, as far as they are rational."""

    def rational(self, value: Fraction) -> Residue:
        return nmod(value.numerator, PRIME) / nmod(value.denominator, PRIME)

    def power(self, base: Residue, exponent: Fraction) -> Residue:
        if exponent.denominator != 1:
            raise Unreadable("a root has no residue here")
        return base**exponent.numerator if exponent > 0 else (1 / base) ** -exponent.numerator

    def exp(self, value: Residue) -> Residue:
        raise Unreadable("exp has no residue")

    def log(self, value: Residue) -> Residue:
        raise Unreadable("log has no residue")

    def maximum(self, entries: list[tuple[Residue, Residue]]) -> Residue:
        raise Unreadable("a maximum has no residue")

    def function(self, name: str, arguments: list[Residue]) -> Residue:
        raise Unreadable(f"{name} has no residue")


class Residues:
    """Random residues for every input at one shape, each drawn when it is first asked for."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes, self.random = sizes, random.Random(0)
        self.values: dict[Tensor, Mapping[Where, Any]] = {}
        self.scalars = orthonormal.Scalars(ResidueField().rational, lambda name: self._residue(), lambda x: 1 / x)
        self.entries = Entries(ResidueField(), sizes, self._leaf)

    def refute(self, left: Tensor, right: Tensor) -> bool:
        """Whether left = right fails at these residues; False says nothing."""
        at = self.entries.at
        try:
            return any(at(left, where) != at(right, where) for where in positions(left, self.sizes))
        except (Unreadable, ZeroDivisionError, orthonormal.Infeasible):
            return False

    def _residue(self) -> Residue:
        return nmod(self.random.randrange(1, PRIME), PRIME)

    def _leaf(self, tensor: Tensor, where: Where) -> Any:
        if tensor not in self.values:
            places = list(positions(tensor, self.sizes))
            if tensor.permutation:
                drawn: list[Any] = self.random.sample(range(len(places)), len(places))
            elif orthonormal.is_constrained(tensor):
                drawn = [entry for row in orthonormal.entries(tensor, self.sizes, self.scalars) for entry in row]
            else:
                drawn = [self._residue() for _ in places]
            self.values[tensor] = dict(zip(places, drawn, strict=True))
        return self.values[tensor][where]
