"""Summation and renaming of indices: what makes a polynomial of entries a normal form.

    Σ_j δ(j, a) f(j) = f(a)        Σ_j 1 = m        Σ_j f(π[j]) = Σ_j f(j), π a permutation
    Σ_i U[i, a] U[i, b] = δ(a, b), U declared orthonormal along i; 0 for columns of two parts of one such matrix
    Σ_i U[i, a] = 0, U declared centred along i

A product of sums becomes one sum over all their indices, which then falls apart into its connected components.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from lla_spec.proving.all_dims.algebra import Algebra
from lla_spec.proving.all_dims.canonical import close
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
    Refused,
    Root,
    Size,
    Total,
    cancel,
    freeze,
    frozen_key,
    height_of,
    inverse,
)

LARGEST_OPENED = 3  # a sum to a higher power stays folded inside another sum


class Sums(Algebra):
    """`orthonormal` says of an input along which of its axes its columns are orthonormal, and the matrix that they
    are columns of; `centred` along which axis each column sums to 0."""

    def __init__(self, fuel: int) -> None:
        super().__init__(fuel)
        self.orthonormal: dict[str, tuple[int, str]] = {}
        self.centred: dict[str, int] = {}
        self._made = 0
        self._renamed: dict[tuple[str, tuple[tuple[Base, Leaf], ...]], Poly] = {}

    def fresh(self, dim: str) -> Leaf:
        self._made += 1
        return Leaf(f"?{self._made}", dim)

    # --- renaming ------------------------------------------------------------------------------------------------

    def rename(self, poly: Poly, names: Mapping[Base, Leaf]) -> Poly:
        """`poly` with indices replaced, and put into normal form again: x[i] - x[j] vanishes where j becomes i."""
        parts = [self.scale(self.rename_monomial(m, names), c) for m, c in poly.items()]
        return self.add(*parts)

    def rename_monomial(self, monomial: Monomial, names: Mapping[Base, Leaf]) -> Poly:
        kept = tuple((a, e) for a, e in monomial if not _touches(a, names))
        result: Poly = {kept: Fraction(1)}
        for atom, exponent in monomial:
            if _touches(atom, names):
                self.spend(1 + len(atom.leaves))
                renamed = self._rename_atom(atom, names)
                result = self.mul(result, renamed if exponent == 1 else self.power(renamed, exponent))
        return result

    def _rename_atom(self, atom: Atom, names: Mapping[Base, Leaf]) -> Poly:
        if isinstance(atom, Entry):
            leaves = tuple(leaf.renamed(names) for leaf in atom.leaves)
            return self.atom(Entry(atom.tensor, leaves, atom.nonnegative))
        if isinstance(atom, Delta):
            return self.delta(atom.first.renamed(names), atom.second.renamed(names))
        own = {leaf.base: names[leaf.base] for leaf in atom.leaves if leaf.base in names}
        place = (atom.key, tuple(sorted(own.items())))
        if place not in self._renamed:  # a mutant shares most of its atoms with its law
            self._renamed[place] = self._rename_inside(atom, own)
        return self._renamed[place]

    def _rename_inside(self, atom: Atom, names: Mapping[Base, Leaf]) -> Poly:
        if isinstance(atom, Exp):
            return self.exp(self.rename_monomial(atom.monomial, names))
        if isinstance(atom, Log):
            return self.log(self.rename(dict(atom.poly), names))
        if isinstance(atom, Root):
            return self.rename(dict(atom.poly), names)
        if isinstance(atom, Total):
            bound, poly = self._open(atom)
            return self.total(bound, self.rename(poly, names))
        if isinstance(atom, Peak):
            return self._rename_peak(atom, names)
        raise AssertionError(atom)

    def _rename_peak(self, atom: Peak, names: Mapping[Base, Leaf]) -> Poly:
        if not atom.dims:
            return self.peak([self.rename(dict(poly), names) for poly in atom.contents])
        bound = self.fresh(atom.dims[0])
        inner = {Base("0", atom.dims[0], atom.height): bound}
        return self.peak([self.rename(self.rename(dict(p), inner), names) for p in atom.contents], bound)

    # --- atoms with indices ---------------------------------------------------------------------------------------

    def delta(self, first: Leaf, second: Leaf) -> Poly:
        if first.dim != second.dim:
            raise Refused(f"a delta between an index over {first.dim} and one over {second.dim}")
        first, second = sorted((first, second), key=lambda leaf: leaf.base)
        undone = tuple(inverse(p) for p in reversed(first.through))  # p(i) = q(j) says i = p⁻¹(q(j))
        first, second = first._replace(through=()), second._replace(through=cancel(second.through + undone))
        return self.constant(1) if first == second else self.atom(Delta(first, second))

    def peak(self, contents: list[Poly], bound: Leaf | None = None) -> Poly:
        """The maximum of the contents, over `bound` where one is given: an atom of any real value, keyed on them."""
        contents = [self.reduce(poly) for poly in contents]
        if bound is None:
            keys = sorted({frozen_key(freeze(p)): freeze(p) for p in contents}.items())
            height = max(_height(poly) for _, poly in keys)
            return self.atom(Peak((), tuple(poly for _, poly in keys), height))
        height = 1 + max(_height(freeze(poly)) for poly in contents)
        names = {bound.base: Leaf("0", bound.dim, height)}
        renamed = tuple(freeze(self.rename(poly, names)) for poly in contents)
        return self.atom(Peak((bound.dim,), renamed, height))

    # --- summation -----------------------------------------------------------------------------------------------

    def sum(self, poly: Poly, over: Leaf) -> Poly:
        return self.total([over.base], self.reduce(poly))

    def total(self, bound: list[Base], poly: Poly) -> Poly:
        """Σ over `bound`."""
        return self.add(*[self.scale(self._sum_monomial(bound, m), c) for m, c in poly.items()])

    def _sum_monomial(self, bound: list[Base], monomial: Monomial) -> Poly:
        """Σ over `bound` of a monomial; sums inside that use a bound index are opened and summed along."""
        used = tuple(f for f in monomial if any(f[0].uses(base) for base in bound))
        free = tuple(f for f in monomial if f not in used)
        opened = [(a, e) for a, e in used if isinstance(a, Total) and e.denominator == 1 and 0 < e <= LARGEST_OPENED]
        if not opened:
            return self.mul({free: Fraction(1)}, self._simplify(bound, used))
        inside: Poly = {tuple(f for f in used if f not in opened): Fraction(1)}
        bound = list(bound)
        for atom, exponent in opened:
            for _ in range(int(exponent)):
                inner, poly = self._open(atom)
                bound += inner
                inside = self.mul(inside, poly)
        return self.mul({free: Fraction(1)}, self.total(bound, inside))

    def _open(self, total: Total) -> tuple[list[Base], Poly]:
        """Its bound indices, made free under new names, and what it sums."""
        leaves = [self.fresh(dim) for dim in total.dims]
        names = {Base(str(p), leaf.dim, total.height): leaf for p, leaf in enumerate(leaves)}
        return [leaf.base for leaf in leaves], self.rename_monomial(total.monomial, names)

    def _simplify(self, bound: list[Base], monomial: Monomial) -> Poly:
        """Σ over `bound` of a monomial: one rule at a time until none applies, then connected components."""
        for base in bound:
            users = [(atom, exponent) for atom, exponent in monomial if atom.uses(base)]
            rest = [other for other in bound if other != base]
            if not users:
                return self.mul(self.atom(Size(base.dim)), self.total(rest, {monomial: Fraction(1)}))
            found = self._delta_value(base, users)
            if found is not None:
                others = tuple(f for f in monomial if f[0] != found[0])
                return self.total(rest, self.rename_monomial(others, {base: found[1]}))
            pair = self._orthonormal_pair(base, users)
            if pair is not None:
                others = tuple(f for f in monomial if f not in users)
                return self.total(rest, self.mul({others: Fraction(1)}, pair))
            if self._is_centred(base, users):
                return {}
            permutation = _common_permutation(base, users)
            if permutation is not None:  # sum over π[j] instead of j: every use of j is under the bijection π
                leaf = self.fresh(base.dim)._replace(through=(inverse(permutation),))
                return self.total([*rest, leaf.base], self.rename_monomial(monomial, {base: leaf}))
        return self._components(bound, monomial)

    def _delta_value(self, base: Base, users: list[tuple[Atom, Fraction]]) -> tuple[Delta, Leaf] | None:
        """A delta that says what the summed index is, and what it says."""
        for atom, _ in users:
            if isinstance(atom, Delta):
                this, other = (atom.first, atom.second) if atom.first.base == base else (atom.second, atom.first)
                if other.base != base:  # p(this) = q(other)
                    undone = tuple(inverse(p) for p in reversed(this.through))
                    return atom, other._replace(through=cancel(other.through + undone))
        return None

    def _is_centred(self, base: Base, users: list[tuple[Atom, Fraction]]) -> bool:
        """Whether what is summed over i is U[i, a] alone, of a centred U."""
        atom, exponent = users[0]
        if len(users) > 1 or exponent != 1 or not isinstance(atom, Entry) or atom.tensor not in self.centred:
            return False
        summed, other = (atom.leaves[axis] for axis in (self.centred[atom.tensor], 1 - self.centred[atom.tensor]))
        return summed.base == base and other.base != base

    def _orthonormal_pair(self, base: Base, users: list[tuple[Atom, Fraction]]) -> Poly | None:
        """What Σ_i U[i, a] U[i, b] is, where i stands in nothing else and both exponents are whole and > 0."""
        if sum(e for _, e in users) != 2 or not all(e.denominator == 1 and e > 0 for _, e in users):
            return None
        others: list[Leaf] = []
        tensors: set[str] = set()
        wholes: set[str] = set()
        for atom, exponent in users:
            if not isinstance(atom, Entry) or atom.tensor not in self.orthonormal or len(atom.leaves) != 2:
                return None
            axis, whole = self.orthonormal[atom.tensor]
            wholes.add(whole)
            summed, other = atom.leaves[axis], atom.leaves[1 - axis]
            if summed.base != base or summed.through or other.base == base:
                return None
            tensors.add(atom.tensor)
            others += [other] * int(exponent)
        if len(wholes) > 1:
            return None
        return self.delta(others[0], others[1]) if len(tensors) == 1 else {}

    def _components(self, bound: list[Base], monomial: Monomial) -> Poly:
        result: Poly = {tuple(f for f in monomial if not any(f[0].uses(b) for b in bound)): Fraction(1)}
        left = list(bound)
        while left:
            group, factors = [left.pop(0)], []
            for base in group:
                for factor in monomial:
                    if factor not in factors and factor[0].uses(base):
                        factors.append(factor)
                        linked = [b for b in left if factor[0].uses(b)]
                        group += linked
                        left = [b for b in left if b not in linked]
            closed, coefficient = close(group, factors, self.rename_monomial, self.spend)
            result = self.scale(self.mul(result, {closed: Fraction(1)}), coefficient)
        return result


def _touches(atom: Atom, names: Mapping[Base, Leaf]) -> bool:
    return any(leaf[:3] in names for leaf in atom.leaves)  # a base, without making one: this is asked millions of times


def _height(poly: Frozen) -> int:
    return max((height_of(monomial) for monomial, _ in poly), default=0)


def _common_permutation(base: Base, users: list[tuple[Atom, Fraction]]) -> str | None:
    """The permutation that every use of the index passes first."""
    first = {leaf.through[:1] for atom, _ in users for leaf in atom.leaves if leaf.base == base}
    return next(iter(first))[0] if len(first) == 1 and () not in first else None
