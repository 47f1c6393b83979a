"""What a normal form is made of.

A polynomial is a sum of monomials with rational coefficients; a monomial is a product of atoms with rational exponents.
The atoms are tensor entries, dimensions, roots of primes, deltas, exp, log, powers of sums, maxima, and closed sums:
Σ over bound indices of a monomial, the indices canonically numbered. Dimensions are positive atoms, so a coefficient
such as 1/√d is a monomial like any other.

Everything is compared and ordered by `key`, a string: Python's `hash` never decides an order or a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias


class Refused(Exception):
    """The engine cannot go on; the message says what it lacks."""


class Base(NamedTuple):
    """The index below a leaf's permutations."""

    name: str
    dim: str
    height: int


class Leaf(NamedTuple):
    """An index where an atom uses it: free (height 0), or number `name` of the sum of that `height` that binds it.

    `through` are the permutations that it passes, innermost first: π[j] is the leaf j through (π,).
    """

    name: str
    dim: str
    height: int = 0
    through: tuple[str, ...] = ()

    @property
    def base(self) -> Base:
        return Base(self.name, self.dim, self.height)

    @property
    def key(self) -> str:
        text = f"{self.name}:{self.dim}" if not self.height else f"~{self.height}.{self.name}:{self.dim}"
        for permutation in self.through:
            text = f"{permutation}({text})"
        return text

    def renamed(self, names: Mapping[Base, Leaf]) -> Leaf:
        """The leaf with its index replaced; what replaces it passes this leaf's permutations after its own."""
        new = names.get(self[:3])  # pyright: ignore[reportArgumentType]  (equal to the base, and cheaper)
        return self if new is None else new._replace(through=cancel(new.through + self.through))


INVERSE = "⁻"


def inverse(permutation: str) -> str:
    return permutation.removesuffix(INVERSE) if permutation.endswith(INVERSE) else permutation + INVERSE


def cancel(through: tuple[str, ...]) -> tuple[str, ...]:
    """A chain of permutations with π after π⁻¹, and π⁻¹ after π, taken out."""
    kept: list[str] = []
    for permutation in through:
        if kept and kept[-1] == inverse(permutation):
            kept.pop()
        else:
            kept.append(permutation)
    return tuple(kept)


class Atom:
    """A factor of a monomial. `leaves` are its indices, nested ones too, except those that it binds itself.

    `height` is the greatest height of a sum or maximum inside.
    """

    __slots__ = ("height", "key", "leaves", "nonnegative")
    key: str
    leaves: tuple[Leaf, ...]
    height: int
    nonnegative: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.key

    def uses(self, base: Base) -> bool:
        return any(leaf[0] == base[0] and leaf[:3] == base for leaf in self.leaves)


Monomial: TypeAlias = tuple[tuple[Atom, Fraction], ...]  # sorted by the atoms' keys
Poly: TypeAlias = dict[Monomial, Fraction]  # no zero coefficient
Frozen: TypeAlias = tuple[tuple[Monomial, Fraction], ...]  # a polynomial as a key: sorted

ONE: Monomial = ()


class Entry(Atom):
    """An entry of an input tensor; `tensor` is unique among the inputs of a proof."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: str, leaves: tuple[Leaf, ...], nonnegative: bool) -> None:
        self.tensor, self.leaves, self.nonnegative, self.height = tensor, leaves, nonnegative, 0
        self.key = f"{tensor}[{','.join(leaf.key for leaf in leaves)}]"


class Size(Atom):
    """A dimension: a positive integer."""

    __slots__ = ("dim",)

    def __init__(self, dim: str) -> None:
        self.dim, self.leaves, self.nonnegative, self.height = dim, (), True, 0
        self.key = f"|{dim}|"


class Prime(Atom):
    """A prime under a root; its exponent stays between 0 and 1."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value, self.leaves, self.nonnegative, self.height = value, (), True, 0
        self.key = f"#{value}"


class Delta(Atom):
    """1 where both leaves are equal, else 0. Its exponent stays 1. Only the second leaf passes permutations."""

    __slots__ = ("first", "second")

    def __init__(self, first: Leaf, second: Leaf) -> None:
        self.first, self.second = first, second
        self.leaves, self.nonnegative, self.height = (self.first, self.second), True, 0
        self.key = f"δ({self.first.key},{self.second.key})"


class Exp(Atom):
    """exp of one monomial with coefficient 1."""

    __slots__ = ("monomial",)

    def __init__(self, monomial: Monomial) -> None:
        self.monomial, self.nonnegative = monomial, True
        self.leaves, self.height = leaves_of(monomial), height_of(monomial)
        self.key = f"exp({monomial_key(monomial)})"


class Log(Atom):
    """log of a polynomial, from which every factor of known sign has been taken."""

    __slots__ = ("poly",)

    def __init__(self, poly: Frozen) -> None:
        self.poly, self.nonnegative = poly, False
        self.leaves, self.height, text = _of_poly(poly)
        self.key = f"log({text})"


class Root(Atom):
    """A polynomial without common factors, raised to an exponent < 1 that is not a positive integer."""

    __slots__ = ("poly",)

    def __init__(self, poly: Frozen) -> None:
        self.poly = poly
        self.nonnegative = all(c > 0 and nonnegative_monomial(m) for m, c in poly)
        self.leaves, self.height, text = _of_poly(poly)
        self.key = f"({text})"


class Peak(Atom):
    """A maximum: any real number, the same wherever its contents are the same. It binds one index, or none."""

    __slots__ = ("contents", "dims")

    def __init__(self, dims: tuple[str, ...], contents: tuple[Frozen, ...], height: int) -> None:
        self.dims, self.contents, self.height, self.nonnegative = dims, contents, height, False
        inner = [leaf for poly in contents for leaf in _of_poly(poly)[0]]
        self.leaves = _distinct(leaf for leaf in inner if not dims or leaf.height != height)
        self.key = f"max{{{','.join(dims)}}}({';'.join(frozen_key(poly) for poly in contents)})"


class Total(Atom):
    """Σ over all indices of `height`, whose dimensions are `dims`, of a monomial in which they hang together."""

    __slots__ = ("dims", "monomial")

    def __init__(self, dims: tuple[str, ...], monomial: Monomial, height: int) -> None:
        self.dims, self.monomial, self.height = dims, monomial, height
        self.nonnegative = nonnegative_monomial(monomial)
        self.leaves = _distinct(leaf for leaf in leaves_of(monomial) if leaf.height != height)
        self.key = f"Σ{{{','.join(dims)}}}({monomial_key(monomial)})"


def _distinct(leaves: Iterable[Leaf]) -> tuple[Leaf, ...]:
    return tuple(dict.fromkeys(leaves))


def leaves_of(monomial: Monomial) -> tuple[Leaf, ...]:
    return _distinct(leaf for atom, _ in monomial for leaf in atom.leaves)


def height_of(monomial: Monomial) -> int:
    return max((atom.height for atom, _ in monomial), default=0)


def _of_poly(poly: Frozen) -> tuple[tuple[Leaf, ...], int, str]:
    leaves = _distinct(leaf for monomial, _ in poly for leaf in leaves_of(monomial))
    return leaves, max((height_of(m) for m, _ in poly), default=0), frozen_key(poly)


def nonnegative_power(atom: Atom, exponent: Fraction) -> bool:
    """Is this power known to be ≥ 0? A root's argument is positive, by the condition that the root brings."""
    return atom.nonnegative or exponent.denominator != 1 or exponent.numerator % 2 == 0


def nonnegative_monomial(monomial: Monomial) -> bool:
    return all(nonnegative_power(atom, exponent) for atom, exponent in monomial)


def monomial_key(monomial: Monomial) -> str:
    return "·".join(atom.key if exponent == 1 else f"{atom.key}^{exponent}" for atom, exponent in monomial)


def frozen_key(poly: Frozen) -> str:
    return "+".join(f"{c}·{monomial_key(m)}" for m, c in poly)


def freeze(poly: Poly) -> Frozen:
    return tuple(sorted(poly.items(), key=lambda term: monomial_key(term[0])))


def order_factors(factors: Mapping[Atom, Fraction]) -> Monomial:
    return tuple(sorted(((a, whole(e)) for a, e in factors.items() if e), key=lambda factor: factor[0].key))


def whole(exponent: Fraction | int) -> Fraction:
    """An exponent as an int where it is one: equal to the Fraction, and hashed many times faster."""
    number: Any = exponent.numerator if exponent.denominator == 1 else exponent
    return number
