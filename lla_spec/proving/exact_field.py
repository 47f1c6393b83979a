"""The exact field: polynomials over ℚ (FLINT) in generators that are adjoined when exp, 1/P, √P, log or max is met.

A generator stands for a real function of the inputs and carries the relation that defines it:

    inverse       r·P = 1                 P not zero: a recorded condition
    root          s² = P, s ≥ 0           P > 0: a recorded condition
    exponential   exp(u·m), m a monomial; exp of a sum is the product of the exponentials of its terms
    logarithm     log P, P irreducible
    opaque        a maximum, an unknown function: any real number, the same for equal arguments

Only true relations are ever used, so a difference that they reduce to the zero polynomial is zero for all real inputs
that meet the conditions. Relations that are not known (√6 and √(2x)·√(3/x)) lose a proof and never make one.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

import sympy as sp
from flint import Ordering, fmpq, fmpq_mpoly_ctx

PRIME = 9223372036854774959  # 3 mod 4, so a root is a power; 2, 3, 5, 7, 11 and 13 are squares modulo it

Polynomial = Any  # flint.fmpq_mpoly, whose stubs do not know its operators
Monomial = tuple[int, ...]


class Full(Exception):
    """More generators than the polynomial ring was made for: start again in a larger one."""


class Undefined(ArithmeticError):
    """A division by what is identically zero, or a real root or logarithm of a negative number."""


@dataclass
class Generator:
    """`kind` and its data: `of` is P; an exponential has its monomial and unit; `finer` is (h, k) where this is h^k."""

    kind: str
    text: str = ""
    of: Polynomial = None
    monomial: Monomial = ()
    unit: Any = None  # fmpq
    finer: tuple[int, int] | None = None
    nonnegative: bool = False


class ExactField:
    """The field over one polynomial ring of `capacity` generators; its operations raise Full beyond them."""

    def __init__(self, capacity: int) -> None:
        self.ring = fmpq_mpoly_ctx.get([f"g{number}" for number in range(capacity)], Ordering.degrevlex)
        self.symbols = self.ring.gens()
        self.generators: list[Generator] = []
        self._known: dict[Any, int] = {}
        self._inverses: dict[str, Polynomial] = {}
        self._random = random.Random(0)
        self._values: list[int] | None = None
        self.zero, self.one = self.ring.constant(0), self.ring.constant(1)

    # Generators

    def _adjoin(self, key: Any, generator: Generator) -> Polynomial:
        """The generator known by `key`, made if it is new."""
        if key not in self._known:
            if len(self.generators) == len(self.symbols):
                raise Full
            self._known[key] = len(self.generators)
            self.generators.append(generator)
        return self.symbols[self._known[key]]

    def variable(self, key: Any, text: str, *, nonnegative: bool = False) -> Polynomial:
        """An independent real variable."""
        return self._adjoin(("variable", key), Generator("variable", text, nonnegative=nonnegative))

    def _which(self, p: Polynomial) -> Generator | None:
        """The generator that `p` is, if it is one."""
        if len(p) != 1 or p.total_degree() != 1 or p.leading_coefficient() != 1:
            return None
        return self.generators[next(i for i, e in enumerate(p.monomial(0)) if e)]

    def nonnegative(self, p: Polynomial) -> bool:
        """Whether `p` is seen to be ≥ 0: every term is a positive number times squares and nonnegative generators.

        That suffices wherever a factor is taken out of a root, a logarithm or an inverse: the recorded condition says
        that the whole is > 0 (or not 0), so a factor that is ≥ 0 is > 0, and the rest has the sign of the whole.
        """
        return all(
            coefficient > 0 and all(self.generators[i].nonnegative for i, e in enumerate(monomial) if e % 2)
            for monomial, coefficient in p.terms()
        )

    # The operations that entries.Field asks for

    def rational(self, value: Fraction) -> Polynomial:
        return self.ring.constant(fmpq(value.numerator, value.denominator))

    def power(self, base: Polynomial, exponent: Fraction) -> Polynomial:
        if exponent.denominator > 2:
            return self.function(f"power {exponent}", [base])
        root = base if exponent.denominator == 1 else self.sqrt(base)
        return (root if exponent > 0 else self.inverse(root)) ** abs(exponent.numerator)

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
        constant, factors = numerator.factor()
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
        constant, factors = p.factor()
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
        for monomial, coefficient in self._canonical(p).terms():
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
        constant, factors = (fmpq(0), []) if p.is_zero() else p.factor()
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

    # Relations applied

    def is_zero(self, p: Polynomial) -> bool:
        return not self.remainder(p)

    def is_nonzero_somewhere(self, p: Polynomial) -> bool:
        """Whether `p` is not 0 at a random point of the finite field, where every relation holds: it cannot be proved.

        This only ever refuses, and in microseconds where clearing the denominators of a false statement takes minutes.
        """
        values = self._values_modulo_prime()
        return values is not None and _at(p, values) != 0

    def _values_modulo_prime(self) -> list[int] | None:
        """Random residues that obey every generator's relation; None where no root was found for one of them."""
        if self._values is None or len(self._values) != len(self.generators):
            drawn = (self._draw_values() for _ in range(8))
            self._values = next((values for values in drawn if values is not None), None)
        return self._values

    def _draw_values(self) -> list[int] | None:
        values = [self._random.randrange(1, PRIME) for _ in self.generators]
        for number, generator in reversed(list(enumerate(self.generators))):
            if generator.finer is not None:
                values[number] = pow(values[generator.finer[0]], generator.finer[1], PRIME)
        for number, generator in enumerate(self.generators):
            if generator.kind in ("inverse", "root"):
                of = _at(generator.of, values)
                values[number] = pow(of, -1 if generator.kind == "inverse" and of else (PRIME + 1) // 4, PRIME)
                if of == 0 or (generator.kind == "root" and pow(values[number], 2, PRIME) != of):
                    return None
        return values

    def remainder(self, p: Polynomial) -> list[Polynomial]:
        """Polynomials whose vanishing makes `p` vanish; none is left where `p` is proved to be zero.

        Generators go in the reverse order of their making, because P is older than the generator that it defines:
        an inverse by multiplying with a power of P (which is not zero), a root by taking even and odd powers apart.
        """
        parts = [] if p.is_zero() else [p]
        for number in range(len(self.generators) - 1, -1, -1):
            generator = self.generators[number]
            if generator.kind == "inverse":
                parts = [self._cleared(part, number, part.degrees()[number]) for part in parts]
            elif generator.kind == "root":
                parts = [half for part in parts for half in self._halves(part, number)]
            parts = [part for part in parts if not part.is_zero()]
        parts = [self._refined(part) for part in parts]
        return [part for part in parts if not part.is_zero()]

    def _canonical(self, p: Polynomial) -> Polynomial:
        """`p` as numerator times inverses of the denominator's factors, in lowest terms: what keys are made of."""
        used = set(itertools.compress(range(len(self.generators)), p.degrees()))
        if not any(self.generators[number].kind in ("inverse", "root") for number in used):
            return p
        numerator, denominator = self._fraction(p)
        return numerator if denominator.is_one() else numerator * self.inverse(denominator)

    def _fraction(self, p: Polynomial) -> tuple[Polynomial, Polynomial]:
        """`p` as numerator / denominator without inverses, in lowest terms."""
        numerator, denominator = p, self.one
        for number in range(len(self.generators) - 1, -1, -1):
            generator = self.generators[number]
            if generator.kind == "inverse":
                power = max(numerator.degrees()[number], denominator.degrees()[number])
                numerator = self._cleared(numerator, number, power)
                denominator = self._cleared(denominator, number, power)
            elif generator.kind == "root":
                numerator, denominator = self._reduced(numerator, number), self._reduced(denominator, number)
        common = numerator.gcd(denominator)
        numerator, denominator = numerator / common, denominator / common
        leading = denominator.leading_coefficient()
        return numerator * (1 / leading), denominator * (1 / leading)

    def _by_power(self, p: Polynomial, number: int) -> dict[int, Polynomial]:
        """The coefficients of the powers of one generator."""
        found: dict[int, dict[Monomial, fmpq]] = {}
        for monomial, coefficient in p.to_dict().items():
            rest = (*monomial[:number], 0, *monomial[number + 1 :])
            found.setdefault(int(monomial[number]), {})[rest] = coefficient
        return {power: self.ring.from_dict(terms) for power, terms in found.items()}

    def _cleared(self, p: Polynomial, number: int, power: int) -> Polynomial:
        """P^power · p, with r·P = 1."""
        if not power:
            return p
        of, out = self.generators[number].of, self.zero
        for exponent, coefficient in self._by_power(p, number).items():
            out = out + coefficient * of ** (int(power) - exponent)
        return out

    def _halves(self, p: Polynomial, number: int) -> list[Polynomial]:
        """(A, B) with p = A + B·s, where s² = P."""
        if not p.degrees()[number]:
            return [p]
        halves = [self.zero, self.zero]
        for exponent, coefficient in self._by_power(p, number).items():
            halves[exponent % 2] += coefficient * self.generators[number].of ** (exponent // 2)
        return halves

    def _reduced(self, p: Polynomial, number: int) -> Polynomial:
        if p.degrees()[number] < 2:
            return p
        even, odd = self._halves(p, number)
        return even + odd * self.symbols[number]

    def _refined(self, p: Polynomial) -> Polynomial:
        """`p` with exp(x) written as exp(x/2)², where the finer one was met later."""
        for number, generator in enumerate(self.generators):
            if generator.finer is not None and p.degrees()[number]:
                finer, ratio = generator.finer
                out = self.zero
                for exponent, coefficient in self._by_power(p, number).items():
                    out = out + coefficient * self.symbols[finer] ** (exponent * ratio)
                p = out
        return p

    # For people

    def describe(self, p: Polynomial, limit: int = 160) -> str:
        """`p` with its generators spelt out, cut at about `limit` characters."""
        text = ""
        for number, (monomial, coefficient) in enumerate(p.terms()):
            if len(text) > limit:
                return f"{text} + … ({len(p)} terms)"
            term = self._describe_term(monomial, coefficient)
            text += term if not number else f" - {term[1:]}" if term.startswith("-") else f" + {term}"
        return text or "0"

    def _describe_term(self, monomial: Any, coefficient: fmpq) -> str:
        factors = [
            self._describe_generator(number) + (f"**{exponent}" if exponent > 1 else "")
            for number, exponent in enumerate(monomial)
            if exponent
        ]
        if abs(coefficient) == 1 and factors:
            return ("-" if coefficient < 0 else "") + "*".join(factors)
        return "*".join([str(coefficient), *factors])

    def _describe_generator(self, number: int) -> str:
        generator = self.generators[number]
        if generator.kind == "exponential":
            return f"exp({self._describe_term(generator.monomial, generator.unit)})"
        shape = {"inverse": "1/({})", "root": "sqrt({})", "logarithm": "log({})"}.get(generator.kind)
        return generator.text if shape is None else shape.format(self.describe(generator.of, 60))


def _at(p: Polynomial, values: list[int]) -> int:
    """`p` modulo PRIME."""
    total = 0
    for monomial, coefficient in p.to_dict().items():
        term = int(coefficient.p) * pow(int(coefficient.q), -1, PRIME)
        for number, exponent in enumerate(monomial):
            if exponent:
                term = term * pow(values[number], int(exponent), PRIME) % PRIME
        total += term
    return total % PRIME


def _common_unit(unit: fmpq, coefficient: fmpq) -> fmpq:
    """The largest rational of which both are integer multiples."""
    numerator = gcd(int(unit.p) * int(coefficient.q), int(coefficient.p) * int(unit.q))
    return fmpq(numerator, int(unit.q) * int(coefficient.q))


def _multiply(factors: list[tuple[Polynomial, int]], start: Polynomial) -> Polynomial:
    for factor, multiplicity in factors:
        start = start * factor**multiplicity
    return start
