"""Canonical numbering of the indices that a sum binds: equal sums get equal keys, however their indices were called.

Colour refinement first (an index is coloured by the factors that it stands in), then a search through what colours do
not tell apart: the least key wins. A colour is computed from a text in which bound indices show as their colours, and
nothing depends on the names of bound indices or on Python's `hash`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    Refused,
    Root,
    Total,
    height_of,
    monomial_key,
    whole,
)

Rename = Callable[[Monomial, Mapping[Base, Leaf]], Poly]
Factors = list[tuple[Atom, Fraction]]


def close(
    bound: list[Base], factors: Factors, rename: Rename, spend: Callable[[int], None]
) -> tuple[Monomial, Fraction]:
    """(Σ over `bound` of the product of `factors`) as (monomial, coefficient): a Total, and what renaming split off."""
    height = 1 + height_of(tuple(factors))
    best: tuple[str, Fraction, Monomial, tuple[str, ...]] | None = None
    for numbering in _numberings(bound, factors, spend):
        names = {base: Leaf(str(position), base.dim, height) for position, base in enumerate(numbering)}
        renamed = rename(tuple(factors), names)
        if len(renamed) != 1:
            raise Refused("a sum whose terms depend on the names of its indices")
        ((monomial, coefficient),) = renamed.items()
        candidate = (monomial_key(monomial), coefficient, monomial, tuple(base.dim for base in numbering))
        if best is None or candidate[:2] < best[:2]:
            best = candidate
    assert best is not None
    _, coefficient, monomial, dims = best
    inside = tuple((a, e) for a, e in monomial if any(leaf.height == height for leaf in a.leaves))
    outside = tuple((a, e) for a, e in monomial if not any(leaf.height == height for leaf in a.leaves))
    total = Total(dims, inside, height)
    return tuple(sorted((*outside, (total, whole(1))), key=lambda f: f[0].key)), coefficient


def _numberings(bound: list[Base], factors: Factors, spend: Callable[[int], None]) -> Iterator[list[Base]]:
    """The orders of `bound` among which the least is sought; one order where colours tell all indices apart."""
    start = {base: base.dim for base in bound}
    yield from _search(_refine(start, factors, spend), factors, spend)


def _search(colours: dict[Base, str], factors: Factors, spend: Callable[[int], None]) -> Iterator[list[Base]]:
    classes: dict[str, list[Base]] = {}
    for base in sorted(colours, key=lambda b: colours[b]):
        classes.setdefault(colours[base], []).append(base)
    tied = next((members for members in classes.values() if len(members) > 1), None)
    if tied is None:
        spend(len(factors))
        yield [members[0] for members in classes.values()]
        return
    for chosen in tied:
        yield from _search(_refine({**colours, chosen: colours[chosen] + "!"}, factors, spend), factors, spend)


def _refine(colours: dict[Base, str], factors: Factors, spend: Callable[[int], None]) -> dict[Base, str]:
    """Recolour by the factors around each index until no class splits any more. Colours are ranks of texts."""
    while True:
        ranks = _ranked(colours)
        if len(set(ranks.values())) == len(ranks):
            return ranks
        spend(len(factors))
        texts: dict[Base, str] = {}
        for base in colours:
            around = sorted(
                f"{_text(atom, {**ranks, base: '*'})}^{exponent}" for atom, exponent in factors if atom.uses(base)
            )
            texts[base] = f"{ranks[base]} {' '.join(around)}"
        finer = _ranked(texts)
        if len(set(finer.values())) == len(set(ranks.values())):
            return finer
        colours = finer


def _ranked(texts: Mapping[Base, str]) -> dict[Base, str]:
    ranks = {text: f"{rank:04d}" for rank, text in enumerate(sorted(set(texts.values())))}
    return {base: ranks[text] for base, text in texts.items()}


def _text(atom: Atom, colours: Mapping[Base, str]) -> str:
    """The atom with bound indices as their colours and nested bound ones anonymous; sorted anew at every level."""
    if isinstance(atom, Entry):
        return f"{atom.tensor}[{','.join(_leaf(leaf, colours) for leaf in atom.leaves)}]"
    if isinstance(atom, Delta):
        return f"δ({','.join(sorted(_leaf(leaf, colours) for leaf in atom.leaves))})"
    if isinstance(atom, Exp):
        return f"exp({_monomial(atom.monomial, colours)})"
    if isinstance(atom, (Log, Root)):
        return f"{type(atom).__name__}({_poly(atom.poly, colours)})"
    if isinstance(atom, Peak):
        return f"max{len(atom.dims)}({';'.join(sorted(_poly(poly, colours) for poly in atom.contents))})"
    if isinstance(atom, Total):
        return f"Σ{sorted(atom.dims)}({_monomial(atom.monomial, colours)})"
    return atom.key


def _leaf(leaf: Leaf, colours: Mapping[Base, str]) -> str:
    base = leaf.base
    name = colours.get(base)
    name = f"<{name}>" if name is not None else f"~{leaf.dim}" if leaf.height else leaf.name
    return f"{name}{''.join(f'/{p}' for p in leaf.through)}"


def _monomial(monomial: Monomial, colours: Mapping[Base, str]) -> str:
    return "·".join(sorted(f"{_text(atom, colours)}^{exponent}" for atom, exponent in monomial))


def _poly(poly: Frozen, colours: Mapping[Base, str]) -> str:
    return "+".join(sorted(f"{c}{_monomial(m, colours)}" for m, c in poly))
