"""What the terms of a polynomial share: common factors, content, the leading term."""

from __future__ import annotations

from fractions import Fraction

import sympy as sp

from lla_spec.proving.all_dims.terms import (
    Atom,
    Exp,
    Frozen,
    Monomial,
    Poly,
    Prime,
    Refused,
    Size,
    monomial_key,
    order_factors,
)

LARGEST_FACTORED = 10**12


def common_factors(poly: Poly) -> Monomial:
    """The greatest monomial that divides every term (the least exponents; negative ones too)."""
    monomials = [dict(m) for m in poly]
    atoms: dict[Atom, None] = {atom: None for m in monomials for atom in m}
    return order_factors({atom: min(m.get(atom, Fraction(0)) for m in monomials) for atom in atoms})


def positive_factors(poly: Poly) -> tuple[Monomial, list[tuple[Atom, Fraction]]]:
    """Of a polynomial that is known to be > 0: its common factors that are > 0, and (atom, half) for each (atom²)^half.

    A factor of unknown sign is > 0 where it stands alone, to an odd power, beside positive ones.
    """
    positive: list[tuple[Atom, Fraction]] = []
    unknown: list[tuple[Atom, Fraction]] = []
    for atom, exponent in common_factors(poly):
        known = atom.nonnegative or exponent.denominator != 1
        (positive if known else unknown).append((atom, exponent))
    odd = [(atom, exponent) for atom, exponent in unknown if exponent.numerator % 2]
    if len(poly) == 1 and len(odd) == 1 and _only(poly) > 0:
        positive += odd
        unknown = [factor for factor in unknown if factor not in odd]
    squares = [(atom, Fraction(exponent.numerator // 2)) for atom, exponent in unknown if exponent.numerator // 2]
    return tuple(positive), squares


def primitive(poly: Poly, signed: bool = False) -> tuple[Poly, Fraction]:
    """(poly / content, content): coefficients become whole numbers without a common divisor.

    With `signed` the sign is taken out as well: that of the sum of the coefficients, or of the first term.
    """
    numerator = sp.igcd(*(abs(c.numerator) for c in poly.values())) if len(poly) > 1 else abs(_only(poly).numerator)
    denominator = sp.ilcm(1, *(c.denominator for c in poly.values()))
    content = Fraction(int(numerator), int(denominator))
    if signed:
        balance = sum(poly.values()) or min(poly.items(), key=lambda term: monomial_key(term[0]))[1]
        content = content if balance > 0 else -content
    return {m: c / content for m, c in poly.items()}, content


def _only(poly: Poly) -> Fraction:
    return next(iter(poly.values()))


def leading_term(poly: Frozen) -> tuple[Monomial, Fraction, Monomial]:
    """The term of a denominator that is divided by, as (monomial, coefficient, the part of it that must be there).

    It is the term of the greatest degree, the last by key among equals. Factors that are never zero (dimensions,
    exponentials) need not be there, unless terms differ by nothing else. A factor that may vanish always must: to
    divide by it would prove too much.
    """
    cores = [tuple(f for f in monomial if not isinstance(f[0], (Size, Exp, Prime))) for monomial, _ in poly]
    top = max(cores, key=lambda core: (sum(e for _, e in core), monomial_key(core)))
    if cores.count(top) == 1 and top:
        return (*poly[cores.index(top)], top)
    monomial, coefficient = max(poly, key=lambda term: (sum(e for _, e in term[0]), monomial_key(term[0])))
    return monomial, coefficient, monomial


def factor(number: Fraction) -> dict[int, int]:
    """The prime factorisation of a positive fraction."""
    if max(number.numerator, number.denominator) > LARGEST_FACTORED:
        raise Refused(f"the number {number} under a root or a logarithm is too large to factor")
    factors = {int(p): int(e) for p, e in sp.factorint(number.numerator).items()}
    for p, e in sp.factorint(number.denominator).items():
        factors[int(p)] = -int(e)
    return factors
