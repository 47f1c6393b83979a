"""Is a normal form zero? Denominators and roots are cleared one argument at a time; what is left must cancel."""

from __future__ import annotations

from fractions import Fraction

from lla_spec.proving.all_dims.sums import Sums
from lla_spec.proving.all_dims.terms import Delta, Monomial, Poly, Root


def residual(engine: Sums, poly: Poly) -> Poly:
    """Empty only if `poly` is zero wherever all its roots and denominators have a meaning; else what did not cancel."""
    poly = engine.reduce(_at_equal_indices(engine, poly))
    target = _largest_root(poly)
    if not poly or target is None:
        return poly
    classes: dict[Fraction, Poly] = {}
    for monomial, coefficient in poly.items():
        classes.setdefault(dict(monomial).get(target, Fraction(0)) % 1, {})[monomial] = coefficient
    for _, part in sorted(classes.items()):  # powers of one root that differ by no whole number cancel apart
        left = residual(engine, _cleared(engine, part, target))
        if left:
            return poly
    return {}


def is_zero(engine: Sums, poly: Poly) -> bool:
    return not residual(engine, poly)


def _largest_root(poly: Poly) -> Root | None:
    """The root to clear first: no other one can hold it."""
    roots = [atom for monomial in poly for atom, _ in monomial if isinstance(atom, Root)]
    return max(roots, key=lambda atom: (len(atom.key), atom.key), default=None)


def _cleared(engine: Sums, poly: Poly, target: Root) -> Poly:
    """`poly` times the power of the target that leaves none of it below; the target is not zero."""
    exponents = [dict(monomial).get(target, Fraction(0)) for monomial in poly]
    up: Monomial = ((target, -min(exponents)),)
    return engine.add(*[engine.scale(engine.product(m, up), c) for m, c in poly.items()])


def _at_equal_indices(engine: Sums, poly: Poly) -> Poly:
    """δ(i, j) f(i) as δ(i, j) f(j), so that both spellings are one."""
    parts = []
    for monomial, coefficient in poly.items():
        kept: Poly = {(): coefficient}
        rest: Poly = {monomial: Fraction(1)}
        for delta in sorted((a for a, _ in monomial if isinstance(a, Delta)), key=lambda a: a.key):
            if len(rest) != 1 or not any(a == delta for a, _ in next(iter(rest))):
                continue
            ((others, scale),) = rest.items()
            others = tuple(f for f in others if f[0] != delta)
            kept = engine.mul(engine.scale(kept, scale), engine.atom(delta))
            if delta.first.base != delta.second.base:
                rest = engine.rename_monomial(others, {delta.first.base: delta.second})
            else:
                rest = {others: Fraction(1)}
        parts.append(engine.mul(kept, rest))
    return engine.add(*parts)
