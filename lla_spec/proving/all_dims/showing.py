"""A normal form in the notation of the specification, for the author of a law that was refused."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from lla_spec.proving.all_dims.terms import (
    Atom,
    Base,
    Delta,
    Entry,
    Exp,
    Frozen,
    Leaf,
    Log,
    Monomial,
    Peak,
    Poly,
    Prime,
    Root,
    Size,
    Total,
    freeze,
)

LONGEST = 300


def show(poly: Poly, display: Mapping[str, str]) -> str:
    """At most 300 characters. `display` says what an index over each dimension is called."""
    text = _Printer(display).poly(freeze(poly), {})
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]}… ({len(poly)} terms)"


class _Printer:
    def __init__(self, display: Mapping[str, str]) -> None:
        self.display = display

    def poly(self, poly: Frozen, bound: Mapping[Base, str]) -> str:
        text = ""
        for monomial, coefficient in poly:
            sign = "-" if coefficient < 0 else "+"
            text += f" {sign} " if text else "-" if sign == "-" else ""
            text += self._term(monomial, abs(coefficient), bound)
        return text or "0"

    def _term(self, monomial: Monomial, coefficient: Fraction, bound: Mapping[Base, str]) -> str:
        above = [self._power(a, e, bound) for a, e in monomial if e > 0]
        below = [self._power(a, -e, bound) for a, e in monomial if e < 0]
        if coefficient.numerator != 1 or not above:
            above.insert(0, str(coefficient.numerator))
        if coefficient.denominator != 1:
            below.insert(0, str(coefficient.denominator))
        text = "·".join(above)
        return text if not below else f"{text}/{below[0]}" if len(below) == 1 else f"{text}/({'·'.join(below)})"

    def _power(self, atom: Atom, exponent: Fraction, bound: Mapping[Base, str]) -> str:
        if isinstance(atom, Exp):
            return f"exp({self.poly(((atom.monomial, exponent),), bound)})"
        text = self._atom(atom, bound)
        if exponent == Fraction(1, 2):
            return f"√{text}"
        return text if exponent == 1 else f"{text}^{exponent}" if exponent.denominator == 1 else f"{text}^({exponent})"

    def _atom(self, atom: Atom, bound: Mapping[Base, str]) -> str:
        if isinstance(atom, Entry):
            where = ",".join(self._leaf(leaf, bound) for leaf in atom.leaves)
            return f"{atom.tensor}[{where}]" if where else atom.tensor
        if isinstance(atom, Size):
            return atom.dim
        if isinstance(atom, Prime):
            return str(atom.value)
        if isinstance(atom, Delta):
            return f"δ({self._leaf(atom.first, bound)},{self._leaf(atom.second, bound)})"
        if isinstance(atom, Log):
            return f"log({self.poly(atom.poly, bound)})"
        if isinstance(atom, Root):
            return f"({self.poly(atom.poly, bound)})"
        if isinstance(atom, Peak):
            inner, names = self._bind(atom.dims, atom.height, atom.leaves, bound)
            return f"max{_subscript(names)}({'; '.join(self.poly(p, inner) for p in atom.contents)})"
        if isinstance(atom, Total):
            inner, names = self._bind(atom.dims, atom.height, atom.leaves, bound)
            return f"(Σ{_subscript(names)} {self._term(atom.monomial, Fraction(1), inner)})"
        raise AssertionError(atom)

    def _leaf(self, leaf: Leaf, bound: Mapping[Base, str]) -> str:
        text = bound.get(leaf.base, leaf.name)
        for permutation in leaf.through:
            text = f"{permutation}[{text}]"
        return text

    def _bind(
        self, dims: tuple[str, ...], height: int, leaves: tuple[Leaf, ...], bound: Mapping[Base, str]
    ) -> tuple[dict[Base, str], list[str]]:
        inner, names = dict(bound), []
        taken = {*bound.values(), *(leaf.name for leaf in leaves if not leaf.height)}
        for position, dim in enumerate(dims):
            name = self.display.get(dim, dim)
            while name in taken:
                name += "'"
            taken.add(name)
            names.append(name)
            inner[Base(str(position), dim, height)] = name
        return inner, names


def _subscript(names: list[str]) -> str:
    return f"_{','.join(names)}" if names else ""
