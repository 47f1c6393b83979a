"""The exact field: polynomials over ℚ (FLINT) in generators that are adjoined when exp, 1/P, √P, log or max is met.

Its operations bring what they get into one form (lowest terms, irreducible factors, squares taken out) before they name
a generator by it, so that what is equal is mostly found equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import gcd

import sympy as sp
from flint import fmpq

from lla_spec.proving.generators import Generator, Generators, Monomial, Polynomial, Undefined

MOST_FACTORED = 4096
_FACTORS: dict[tuple[int, str], tuple[fmpq, list[tuple[dict[Monomial, fmpq], int]]]] = {}


class ExactField(Generators):
    """The operations that `entries.Field` asks for; addition and multiplication are the polynomials' own."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._inverses: dict[str, Polynomial] = {}

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        inverses = dict(self._inverses)
        with super().rolled_back():
            try:
                yield
            finally:
                self._inverses = inverses

    def rational(self, value: Fraction) -> Polynomial:
        return self.ring.constant(fmpq(value.numerator, value.denominator))

    def power(self, base: Polynomial, exponent: Fraction) -> Polynomial:
        while exponent.denominator % 2 == 0:
            base, exponent = self.sqrt(base), 2 * exponent
        if exponent.denominator > 1:
            return self.function(f"power {exponent}", [base])
        return (base if exponent > 0 else self.inverse(base)) ** abs(exponent.numerator)

    def inverse(self, p: Polynomial) -> Polynomial:
        """1/p, irreducible factor by irreducible factor, so that 1/(P·Q) is 1/P · 1/Q."""
        key = str(p)
        if key not in self._inverses:
            self._inverses[key] = self._inverted(p)
        return self._inverses[key]

    def _inverted(self, p: Polynomial) -> Polynomial:
        if self.is_zero(p):
            raise Undefined("a denominator is identically zero")
        numerator, denominator = self._fraction(p)
        constant, factors = self._factored(numerator)
        out = denominator * (1 / constant)
        for factor, multiplicity in factors:
            out = out * self._inverse_of(factor) ** multiplicity
        return out

    def _inverse_of(self, p: Polynomial) -> Polynomial:
        generator = self._which(p)
        if generator is not None and generator.kind == "inverse":
            return generator.of
        if generator is not None and generator.kind == "root":  # 1/s = s/P
            return p * self.inverse(generator.of)
        return self._adjoin(("inverse", str(p)), Generator("inverse", of=p, nonnegative=self.nonnegative(p)))

    def sqrt(self, p: Polynomial) -> Polynomial:
        """√p. Squares of what is seen to be ≥ 0 come out; √x² of a free x stays a root, for it is |x|."""
        p = self._canonical(p)
        if p.is_zero():
            return self.zero
        constant, factors = self._factored(p)
        out, rest = self._root_of_constant(abs(constant)), []
        for factor, multiplicity in factors:
            if self.nonnegative(factor):
                out = out * factor ** (multiplicity // 2) * (self._root_of(factor) if multiplicity % 2 else 1)
            else:
                rest.append((factor, multiplicity))
        sign = self.ring.constant(1 if constant > 0 else -1)
        if not rest:
            if constant < 0:
                raise Undefined("a root of what is negative")
            return out
        if constant > 0 and len(rest) == 1 and rest[0][1] % 2:  # p > 0, so this one factor is
            factor, multiplicity = rest[0]
            return out * factor ** (multiplicity // 2) * self._root_of(factor)
        return out * self._root_of(_multiply(rest, sign))

    def _root_of(self, p: Polynomial) -> Polynomial:
        generator = self._which(p)
        if generator is not None and generator.kind == "exponential":
            return self.exp(p.context().from_dict({generator.monomial: generator.unit / 2}))
        if generator is not None and generator.kind == "inverse":
            return self.inverse(self.sqrt(generator.of))
        return self._adjoin(("root", str(p)), Generator("root", of=p, nonnegative=True))

    def _root_of_constant(self, q: fmpq) -> Polynomial:
        out = self.one
        for prime, exponent in sp.factorint(int(q.p)).items() | {(f, -e) for f, e in sp.factorint(int(q.q)).items()}:
            out = out * self.ring.constant(fmpq(int(prime)) ** (exponent // 2))
            out = out * (self._root_of(self.ring.constant(int(prime))) if exponent % 2 else 1)
        return out

    def exp(self, p: Polynomial) -> Polynomial:
        """exp(Σ c·m) = Π exp(c·m), and exp(c log P) = P^c for c a multiple of ½."""
        out = self.one
        for monomial, coefficient in self._apart(p).terms():
            alone = self._which(self.ring.from_dict({monomial: 1}))
            if alone is not None and alone.kind == "logarithm" and coefficient.q <= 2:
                out = out * self.power(alone.of, Fraction(int(coefficient.p), int(coefficient.q)))
            else:
                out = out * self._exp_of_term(tuple(map(int, monomial)), coefficient)
        return out

    def _exp_of_term(self, monomial: Monomial, coefficient: fmpq) -> Polynomial:
        known = self._known.get(("exponential", monomial))
        unit = abs(coefficient) if known is None else _common_unit(self.generators[known].unit, coefficient)
        if known is not None and unit != self.generators[known].unit:  # exp(x) was met before, and now exp(x/2)
            del self._known["exponential", monomial]
        made = Generator("exponential", monomial=monomial, unit=unit, nonnegative=True)
        symbol = self._adjoin(("exponential", monomial), made)
        if known is not None and unit != self.generators[known].unit:
            ratio = self.generators[known].unit / unit
            self.generators[known].finer = (self._known["exponential", monomial], int(ratio.p))
        ratio = int((coefficient / unit).p)
        return symbol**ratio if ratio > 0 else self._inverse_of(symbol) ** -ratio

    def log(self, p: Polynomial) -> Polynomial:
        """log p. Factors that are seen to be ≥ 0 come out, since then the rest is positive with p."""
        p = self._canonical(p)
        constant, factors = (fmpq(0), []) if p.is_zero() else self._factored(p)
        if constant == 0 or (constant < 0 and not factors):
            raise Undefined("a logarithm of what is not positive")
        out, rest = self._log_of_constant(abs(constant)), []
        for factor, multiplicity in factors:
            if self.nonnegative(factor):
                out = out + multiplicity * self._log_of(factor)
            else:
                rest.append((factor, multiplicity))
        if not rest and constant > 0:
            return out
        if constant > 0 and len(rest) == 1 and rest[0][1] % 2:
            return out + rest[0][1] * self._log_of(rest[0][0])
        return out + self._log_of(_multiply(rest, self.ring.constant(1 if constant > 0 else -1)))

    def _log_of(self, p: Polynomial) -> Polynomial:
        generator = self._which(p)
        if generator is not None and generator.kind == "exponential":
            return self.ring.from_dict({generator.monomial: generator.unit})
        if generator is not None and generator.kind == "inverse":
            return -self.log(generator.of)
        if generator is not None and generator.kind == "root":
            return self.log(generator.of) / 2
        return self._adjoin(("logarithm", str(p)), Generator("logarithm", of=p))

    def _log_of_constant(self, q: fmpq) -> Polynomial:
        out = self.zero
        for number, direction in ((q.p, 1), (q.q, -1)):
            for prime, exponent in sp.factorint(int(number)).items():
                out = out + direction * exponent * self._log_of(self.ring.constant(int(prime)))
        return out

    def maximum(self, entries: list[tuple[Polynomial, Polynomial]]) -> Polynomial:
        """Any real number, the same for the same entries: what is proved holds whatever is subtracted."""
        key = frozenset((str(self._canonical(entry)), str(self._canonical(mask))) for entry, mask in entries)
        return self._adjoin(("maximum", key), Generator("opaque", "max(…)"))

    def function(self, name: str, arguments: list[Polynomial]) -> Polynomial:
        """A function that the field knows nothing about, except that equal arguments give equal values."""
        if name == "Abs":
            return self.sqrt(arguments[0] ** 2)
        key = (name, *(str(self._canonical(argument)) for argument in arguments))
        return self._adjoin(("function", key), Generator("opaque", f"{name}(…)"))

    def _canonical(self, p: Polynomial) -> Polynomial:
        """`p` as numerator times inverses of the denominator's factors, in lowest terms: what keys are made of."""
        if self._is_canonical(p):
            return p
        numerator, denominator = self._fraction(p)
        return numerator if denominator.is_one() else numerator * self.inverse(denominator)

    def _is_canonical(self, p: Polynomial) -> bool:
        """Whether no inverse and no root stands in `p`."""
        used = itertools.compress(self.generators, p.degrees())
        return not any(generator.kind in ("inverse", "root") for generator in used)

    def _apart(self, p: Polynomial) -> Polynomial:
        """`p` as a polynomial plus a remainder over the denominator, term by term: (x + c·T)/T is x·(1/T) + c."""
        if self._is_canonical(p):
            return p
        numerator, denominator = self._fraction(p)
        whole, rest = divmod(numerator, denominator)
        terms = (self.ring.from_dict({monomial: coefficient}) for monomial, coefficient in rest.terms())
        return sum((self._canonical(term * self.inverse(denominator)) for term in terms), whole)

    def _factored(self, p: Polynomial) -> tuple[fmpq, list[tuple[Polynomial, int]]]:
        """(c, [(f, k), …]) with p = c · Π f^k, multiplied out again to be sure.

        A law and its mutants have most denominators in common, so factors are kept: they do not depend on what the
        generators mean.
        """
        key = (self.ring.nvars(), str(p))
        if key not in _FACTORS:
            constant, factors = p.factor()
            if _multiply(factors, self.ring.constant(constant)) != p:
                raise ArithmeticError(f"a factorisation of {self.describe(p)} does not multiply out to it")
            if len(_FACTORS) >= MOST_FACTORED:
                _FACTORS.clear()
            _FACTORS[key] = constant, [(factor.to_dict(), multiplicity) for factor, multiplicity in factors]
        constant, kept = _FACTORS[key]
        return constant, [(self.ring.from_dict(terms), multiplicity) for terms, multiplicity in kept]


def _common_unit(unit: fmpq, coefficient: fmpq) -> fmpq:
    """The largest rational of which both are integer multiples."""
    numerator = gcd(int(unit.p) * int(coefficient.q), int(coefficient.p) * int(unit.q))
    return fmpq(numerator, int(unit.q) * int(coefficient.q))


def _multiply(factors: list[tuple[Polynomial, int]], start: Polynomial) -> Polynomial:
    for factor, multiplicity in factors:
        start = start * factor**multiplicity
    return start
