"""Generators of the exact field and the relations that they obey.

A generator stands for a real function of the inputs and carries the relation that defines it:

    inverse       r·P = 1                 P not zero: a recorded condition
    root          s² = P, s ≥ 0           P > 0: a recorded condition
    exponential   exp(u·m), m a monomial; exp of a sum is the product of the exponentials of its terms
    logarithm     log P, P irreducible
    opaque        a maximum, an unknown function: any real number, the same for equal arguments

P is made of older generators, so that relations are applied from the youngest to the oldest. Only true relations are
used: what they reduce to the zero polynomial is zero for all real inputs that meet the conditions. Relations that are
not known (√6 and √(2x)·√(3/x)) lose a proof and never make one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

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


class Generators:
    """A polynomial ring over ℚ whose generators are adjoined one by one, with their relations: `capacity` at most."""

    def __init__(self, capacity: int) -> None:
        self.ring = fmpq_mpoly_ctx.get([f"g{number}" for number in range(capacity)], Ordering.degrevlex)
        self.symbols = self.ring.gens()
        self.generators: list[Generator] = []
        self._known: dict[Any, int] = {}
        self._random = random.Random(0)
        self._values: list[int] | None = None
        self.zero, self.one = self.ring.constant(0), self.ring.constant(1)

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        """What is adjoined inside is forgotten at the end."""
        generators = [replace(generator) for generator in self.generators]  # one may become `finer`
        known, values = dict(self._known), self._values
        try:
            yield
        finally:
            self.generators, self._known, self._values = generators, known, values

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
        """The coefficients of the powers of one generator: dividing by the highest leaves the lower ones over."""
        found: dict[int, Polynomial] = {}
        for power in range(int(p.degrees()[number]), 0, -1):
            coefficient, p = divmod(p, self.symbols[number] ** power)
            if not coefficient.is_zero():
                found[power] = coefficient
        return found if p.is_zero() else {**found, 0: p}

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
    total, used = 0, [number for number, degree in enumerate(p.degrees()) if degree]
    for monomial, coefficient in p.to_dict().items():
        term = int(coefficient.p) * pow(int(coefficient.q), -1, PRIME)
        for number in used:
            if exponent := monomial[number]:
                term = term * pow(values[number], int(exponent), PRIME) % PRIME
        total += term
    return total % PRIME
