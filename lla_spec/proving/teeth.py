"""Teeth: a law is worth its mutants. Each is the law slightly changed; both engines must refuse those that are false.

A mutant is false where balls tell its sides apart at a point that meets the law's conditions. One that balls do not
refute is set aside and counted: row sums survive softmax(2x), and a hypothesis may be idle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from lla_spec.language import Hypothesis, Law
from lla_spec.proving.conditions import Point, differ
from lla_spec.proving.counterexamples import counterexample
from lla_spec.proving.hypotheses import claim, constructed, difference
from lla_spec.proving.inequalities import why_not_nonnegative
from lla_spec.proving.rewriting import Rewriter
from lla_spec.tensors import Dim, Label, Tensor, definitions

SHAPES_WITHOUT, POINTS_WITHOUT = 3, 100  # tried for a law without one of its hypotheses

Refuter = Callable[[Tensor, Tensor], bool]  # whether an engine refuses left = right


@dataclass(frozen=True, eq=False)
class Mutant:
    """A changed law: an equation, or (`dropped`) the law without one of its inequalities."""

    name: str
    left: Tensor
    right: Tensor
    coefficient: bool = False
    dropped: Hypothesis | None = None


@dataclass
class Teeth:
    """What became of a law's mutants; `survived` are false and were proved all the same."""

    killed: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    survived: list[str] = field(default_factory=list)
    coefficients_killed: int = 0
    coefficients: int = 0

    @property
    def bite(self) -> bool:
        """No false mutant was proved, some was killed, and a coefficient's among them where there is a coefficient."""
        return not self.survived and bool(self.killed) and (self.coefficients_killed > 0 or self.coefficients == 0)

    def counts(self) -> dict[str, int]:
        return {"killed": len(self.killed), "set_aside": len(self.set_aside), "survived": len(self.survived)}

    def __str__(self) -> str:
        text = ", ".join(f"{number} {word.replace('_', ' ')}" for word, number in self.counts().items())
        return f"{text}: {', '.join(self.survived)}" if self.survived else text


def teeth(law: Law, refuters: Sequence[Refuter], points: Sequence[Point]) -> Teeth:
    """Give every mutant of `law` to every engine. At `points`, which value all inputs, the law's conditions hold."""
    found = Teeth()
    for mutant in mutants(law):
        found.coefficients += mutant.coefficient
        if not _is_false(law, mutant, points):
            found.set_aside.append(mutant.name)
        elif not all(_refused(law, mutant, refuter) for refuter in refuters):
            found.survived.append(mutant.name)
        else:
            found.killed.append(mutant.name)
            found.coefficients_killed += mutant.coefficient
    return found


def _is_false(law: Law, mutant: Mutant, points: Sequence[Point]) -> bool:
    sides, relation = (mutant.left, mutant.right), "="
    if mutant.dropped is not None:
        sides, relation = constructed(law, mutant.dropped), law.relation
    if any(differ(*sides, point, relation) is not None for point in points):
        return True
    if mutant.dropped is None:
        return False
    # A hypothesis is missed at special points only: most approximations are worse than the best one by far.
    names = [dim.name for dim in law.dims]
    return counterexample(*sides, relation, names, shapes=SHAPES_WITHOUT, points=POINTS_WITHOUT) is not None


def _refused(law: Law, mutant: Mutant, refuter: Refuter) -> bool:
    if mutant.dropped is not None and law.because is not None and why_not_nonnegative(law, mutant.dropped):
        return True
    return refuter(mutant.left, mutant.right)


def mutants(law: Law) -> Iterator[Mutant]:
    """Every mutant of a law, by name: +1, ×3/2, reversed, each changed coefficient, each hypothesis dropped."""
    made = claim(law)
    left, right = made.statement.left, made.statement.right
    if law.because is None:
        yield Mutant("+1", left, Tensor(right.name, right.axes, right.entry + 1))
        if sp.S.Zero not in (left.body, right.body):
            yield Mutant("×3/2", left, Tensor(right.name, right.axes, right.entry * sp.Rational(3, 2)))
    else:
        yield Mutant("reversed", difference(made.left, made.right), right)
    for side, other, swap in ((right, left, False), (left, right, True)):
        for name, changed in changed_coefficients(side):
            pair = (changed, other) if swap else (other, changed)
            yield Mutant(f"{'left' if swap else 'right'} {name}", *pair, coefficient=True)
    for number, hypothesis in enumerate(law.hypotheses, start=1):
        dropped = claim(law, hypothesis).statement
        yield Mutant(f"without hypothesis {number}", dropped.left, dropped.right, dropped=hypothesis)


def changed_coefficients(side: Tensor) -> Iterator[tuple[str, Tensor]]:
    """`side` with one coefficient changed in one of the definitions that make it, for each in turn."""
    for definition in definitions(side):
        if definition.body is not None:
            for name, body in _changes(definition.body):
                yield f"{definition.name}: {name}", Rewriter(bodies={definition: body})(side)


def _changes(expr: Any) -> Iterator[tuple[str, Any]]:
    """`expr` with a sum or a term doubled, a power squared, an exponential's argument doubled, or a scalar dropped."""
    if isinstance(expr, sp.Sum):
        yield "sum doubled", _doubled(expr)
    if isinstance(expr, sp.Pow):
        yield f"exponent {expr.exp} doubled", sp.Pow(expr.base, _doubled(expr.exp))
    if isinstance(expr, sp.exp):
        yield "exponent doubled", _rebuilt(expr, _doubled(expr.exp))
    for position, part in enumerate(expr.args):
        if isinstance(expr, sp.Add):
            yield f"term {position + 1} doubled", expr + part
        if isinstance(expr, sp.Mul) and isinstance(part, (Label, Dim)):
            yield f"{part} dropped", _rebuilt(expr, *(p for p in expr.args if p is not part))
    if isinstance(expr, sp.Sum):
        yield from ((name, _rebuilt(expr, inner, *expr.limits)) for name, inner in _changes(expr.function))
    elif isinstance(expr, (sp.Add, sp.Mul, sp.Pow, sp.exp, sp.log)):
        for position, part in enumerate(expr.args):
            for name, inner in _changes(part):
                yield name, _rebuilt(expr, *expr.args[:position], inner, *expr.args[position + 1 :])


def _doubled(expr: Any) -> Any:
    return 2 * expr


def _rebuilt(expr: Any, *args: Any) -> Any:
    return expr.func(*args)
