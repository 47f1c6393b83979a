"""Arithmetic of normal forms: products, rational powers, exp and log, each with a step budget.

Why a root or a logarithm may be taken apart: its argument is > 0, a side condition that is recorded with the proof.
So a factor that is known to be ≥ 0 is > 0 there, and may leave; of a factor of unknown sign only its even powers may.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from lla_spec.proving.all_dims.factors import common_factors, factor, leading_term, positive_factors, primitive
from lla_spec.proving.all_dims.terms import (
    ONE,
    Atom,
    Delta,
    Exp,
    Frozen,
    Log,
    Monomial,
    Poly,
    Prime,
    Refused,
    Root,
    freeze,
    monomial_key,
    order_factors,
    whole,
)

LARGEST_POWER = 64


class Algebra:
    """Polynomials with a budget of steps: what takes more is refused, on every machine after the same step."""

    def __init__(self, fuel: int) -> None:
        self.budget = self.fuel = fuel

    def refuel(self) -> None:
        """The whole budget again, for the next statement."""
        self.fuel = self.budget

    def spend(self, steps: int = 1) -> None:
        self.fuel -= steps
        if self.fuel < 0:
            raise Refused(f"gave up after {self.budget} steps")

    # --- sums and products ---------------------------------------------------------------------------------------

    def constant(self, value: Fraction | int) -> Poly:
        return {ONE: Fraction(value)} if value else {}

    def atom(self, atom: Atom, exponent: Fraction | int = 1) -> Poly:
        return {((atom, whole(exponent)),): Fraction(1)}

    def add(self, *terms: Poly) -> Poly:
        total: Poly = {}
        for poly in terms:
            self.spend(len(poly))
            for monomial, coefficient in poly.items():
                before = total.get(monomial)
                value = coefficient if before is None else before + coefficient
                if value:
                    total[monomial] = value
                else:
                    total.pop(monomial, None)
        return total

    def scale(self, poly: Poly, factor: Fraction | int) -> Poly:
        if factor == 1:
            return poly
        return {m: c * factor for m, c in poly.items()} if factor else {}

    def mul(self, left: Poly, right: Poly) -> Poly:
        if left == {ONE: 1}:
            return right
        if right == {ONE: 1}:
            return left
        parts = []
        for m1, c1 in left.items():
            for m2, c2 in right.items():
                parts.append(self.scale(self.product(m1, m2), c1 * c2))
        return self.add(*parts)

    def product(self, *monomials: Monomial) -> Poly:
        """The product of monomials; a polynomial, because a whole power of a root's argument is multiplied out."""
        self.spend(sum(map(len, monomials)) + 1)
        factors: dict[Atom, Any] = {}
        for monomial in monomials:
            for atom, exponent in monomial:
                factors[atom] = factors.get(atom, 0) + exponent
        coefficient, multiplied = Fraction(1), []
        for atom, exponent in factors.items():
            if isinstance(atom, Delta) and exponent:
                factors[atom] = Fraction(1)
            elif isinstance(atom, Prime) and not 0 <= exponent < 1:
                floor = exponent.numerator // exponent.denominator
                coefficient *= Fraction(atom.value) ** floor
                factors[atom] = exponent - floor
            elif isinstance(atom, Root) and exponent >= 1:
                floor = exponent.numerator // exponent.denominator
                multiplied += [dict(atom.poly)] * floor
                factors[atom] = exponent - floor
        result = {order_factors(factors): coefficient}
        for poly in multiplied:
            result = self.mul(result, poly)
        return result

    # --- powers --------------------------------------------------------------------------------------------------

    def power(self, poly: Poly, exponent: Fraction) -> Poly:
        """poly ** exponent. The caller records the condition: poly ≠ 0 (exponent < 0) or poly > 0 (not whole)."""
        if exponent == 0:
            return self.constant(1)
        if exponent.denominator == 1 and exponent > 0:
            return self._repeated(poly, int(exponent))
        poly = self.reduce(poly)
        if not poly:
            raise Refused("division by 0" if exponent < 0 else "root of 0, which needs an argument > 0")
        if any(isinstance(atom, Delta) for atom, _ in common_factors(poly)):
            raise Refused("a power of a delta, which is 0 off the diagonal")
        return self._whole_power(poly, exponent) if exponent.denominator == 1 else self._root(poly, exponent)

    def _repeated(self, poly: Poly, exponent: int) -> Poly:
        if len(poly) == 1:
            ((monomial, coefficient),) = poly.items()
            return self.scale(self._monomial_power(monomial, Fraction(exponent)), coefficient**exponent)
        if exponent > LARGEST_POWER:
            raise Refused(f"power {exponent} of a sum")
        result = self.constant(1)
        for _ in range(exponent):
            result = self.mul(result, poly)
        return result

    def _monomial_power(self, monomial: Monomial, exponent: Fraction) -> Poly:
        return self.product(tuple((atom, e * exponent) for atom, e in monomial))

    def _whole_power(self, poly: Poly, exponent: Fraction) -> Poly:
        result = self.constant(1)
        while common := common_factors(poly):  # dividing may multiply a root's argument out, so look again
            result = self.mul(result, self._monomial_power(common, exponent))
            poly = self._nonzero(self._divide(poly, common))
        rest, content = primitive(poly, signed=True)
        result = self.scale(result, content ** int(exponent))
        return result if rest == {ONE: 1} else self.mul(result, self.atom(Root(freeze(rest)), exponent))

    def _root(self, poly: Poly, exponent: Fraction) -> Poly:
        factors, content, rest = self._positive_factors(poly, "root")
        result = self._number_power(content, exponent)
        for base, e in factors:
            if isinstance(base, Atom):
                result = self.mul(result, self.product(((base, e * exponent),)))
            elif (e * exponent).denominator == 1:
                result = self.mul(result, self.power(dict(base), e * exponent))
            else:
                result = self.mul(result, self.product(((Root(base), e * exponent),)))
        return result if rest == {ONE: 1} else self.mul(result, self.atom(Root(freeze(rest)), exponent))

    def _number_power(self, number: Fraction, exponent: Fraction) -> Poly:
        return self.product(tuple((Prime(p), e * exponent) for p, e in factor(number).items()))

    def _divide(self, poly: Poly, monomial: Monomial) -> Poly:
        inverse = tuple((atom, -exponent) for atom, exponent in monomial)
        return self.add(*[self.scale(self.product(m, inverse), c) for m, c in poly.items()])

    def _nonzero(self, poly: Poly) -> Poly:
        if not poly:
            raise Refused("division by 0")
        return poly

    def _positive_factors(self, poly: Poly, where: str) -> tuple[list[tuple[Atom | Frozen, Fraction]], Fraction, Poly]:
        """A polynomial known to be > 0 as (factors, content, rest); a factor is an atom or a square, to a power."""
        found: list[tuple[Atom | Frozen, Fraction]] = []
        while True:
            positive, squares = positive_factors(poly)
            if not positive and not squares:
                break
            found += [*positive, *((freeze(self.product(((atom, Fraction(2)),))), half) for atom, half in squares)]
            poly = self._nonzero(self._divide(poly, (*positive, *((atom, 2 * half) for atom, half in squares))))
        rest, content = primitive(poly)
        if rest == {ONE: -1}:
            raise Refused(f"{where} of a number that is not positive")
        return found, content, rest

    # --- exp and log ---------------------------------------------------------------------------------------------

    def exp(self, poly: Poly) -> Poly:
        result = self.constant(1)
        for monomial, coefficient in sorted(self.reduce(poly).items(), key=lambda term: monomial_key(term[0])):
            if len(monomial) == 1 and isinstance(monomial[0][0], Log) and monomial[0][1] == 1:
                part = self.power(dict(monomial[0][0].poly), coefficient)
            else:
                part = self.atom(Exp(monomial), coefficient)
            result = self.mul(result, part)
        return result

    def log(self, poly: Poly) -> Poly:
        """log(poly). Its condition, poly > 0, is the caller's to record."""
        poly = self.reduce(poly)
        if not poly:
            raise Refused("log of 0")
        factors, content, rest = self._positive_factors(poly, "log")
        parts = [self.scale(self._log_factor(base), e) for base, e in factors]
        for prime, exponent in factor(content).items():
            parts.append(self.scale(self.atom(Log(((ONE, Fraction(prime)),))), exponent))
        if rest != {ONE: 1}:
            parts.append(self.atom(Log(freeze(rest))))
        return self.add(*parts)

    def _log_factor(self, base: Atom | Frozen) -> Poly:
        if isinstance(base, Exp):
            return {base.monomial: Fraction(1)}
        if isinstance(base, Root):
            return self.atom(Log(base.poly))
        if isinstance(base, Prime):
            return self.atom(Log(((ONE, Fraction(base.value)),)))
        if isinstance(base, Atom):
            return self.atom(Log(freeze(self.atom(base))))
        return self.atom(Log(base))

    # --- fractions -----------------------------------------------------------------------------------------------

    def reduce(self, poly: Poly) -> Poly:
        """Cancel: where R = lead + rest stands below as R^e, lead · R^e becomes R^(e+1) - rest · R^e.

        So (1 + x)/(1 + x) is 1 even though it was multiplied out to 1/(1 + x) + x/(1 + x).
        """
        done: list[Poly] = []
        todo = [(m, c) for m, c in poly.items() if any(isinstance(atom, Root) for atom, _ in m)]
        if not todo:
            return poly
        done.append({m: c for m, c in poly.items() if not any(isinstance(atom, Root) for atom, _ in m)})
        for _ in range(200):
            pending: list[Poly] = []
            for monomial, coefficient in todo:
                rewritten = self._reduce_once(monomial)
                if rewritten is None:
                    done.append({monomial: coefficient})
                else:
                    pending.append(self.scale(rewritten, coefficient))
            if not pending:
                break
            todo = list(self.add(*pending).items())
        else:
            done.append(dict(todo))
        return self.add(*done)

    def _reduce_once(self, monomial: Monomial) -> Poly | None:
        exponents = dict(monomial)
        for atom, exponent in monomial:
            if isinstance(atom, Root) and exponent < 0:
                lead, coefficient, needed = leading_term(atom.poly)
                if needed and all(exponents.get(a, 0) >= e > 0 for a, e in needed):
                    self.spend(len(atom.poly))
                    inverse = tuple((a, -e) for a, e in lead)
                    above = self.product(monomial, inverse, ((atom, Fraction(1)),))
                    rest = {m: -c / coefficient for m, c in atom.poly if m != lead}
                    below = self.mul(self.product(monomial, inverse), rest)
                    return self.add(self.scale(above, 1 / coefficient), below)
        return None
