"""What has to be proved for a law: its statement with its hypotheses built in, and that what is built satisfies them.

A hypothesis `assume(Eq(…), by={K: construction})` is used by putting the construction in place of K. What is proved
then holds for every input that the construction yields; that it yields all that matter is for its author to see.
A matrix that is `orthonormal` or `centred` is such a construction, one that both engines know: for all dimensions by
the rules Σ U U = δ and Σ U = 0, which hold for every such matrix, so that nothing is left to its author; at listed
shapes by entries in free parameters (orthonormal.py). Several of them for one input are joined in one matrix.
A hypothesis `assume(Le(…))` is used through its slack, a tensor that is ≥ 0 by assumption; nothing is replaced for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from lla_spec.language import Hypothesis, Law, sides_of
from lla_spec.proving.conditions import readable
from lla_spec.proving.orthonormal import is_constrained
from lla_spec.proving.rewriting import Rewriter
from lla_spec.tensors import Tensor


@dataclass(frozen=True, eq=False)
class Obligation:
    """An equation left = right that a law needs; `name` is "law", or says which hypothesis it checks."""

    name: str
    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class Claim:
    """A law as it is proved: its sides over the constructed inputs, the equation that it rests on, checks, slacks."""

    left: Tensor
    right: Tensor
    statement: Obligation
    checks: tuple[Obligation, ...]
    slacks: tuple[Tensor, ...]


def obligations(law: Law) -> list[Obligation]:
    """The equations that prove `law`, its own first: what both engines are given, and nothing else.

    For an equation: left = right over the constructed inputs. For left ≤ right: right - left = because. Then one
    equation for each hypothesis that is an equation.
    """
    made = claim(law)
    return [made.statement, *made.checks]


def claim(law: Law, dropped: Hypothesis | None = None) -> Claim:
    """The claim that `law` makes; `dropped` is left out, as if it had not been assumed."""
    kept = [h for h in law.hypotheses if h is not dropped]
    equations = [h for h in kept if h.relation.kind == "="]
    build = Rewriter(constructions(equations))
    left, right = build(law.left), build(law.right)
    statement = Obligation("law", left, right)
    if law.because is not None:
        statement = Obligation("law", difference(right, left), build(law.because))
    checks = tuple(_check(number, h, build) for number, h in enumerate(equations, start=1))
    slacks = tuple(build(h.slack) for h in kept if h.slack is not None and h.relation.kind == "<=")
    return Claim(left, right, statement, checks, slacks)


def constructions(hypotheses: Iterable[Hypothesis]) -> Mapping[Tensor, Tensor]:
    """What stands in the place of each constrained input."""
    found: dict[Tensor, Tensor] = {}
    for hypothesis in hypotheses:
        for old, new in hypothesis.by.items():
            found[old] = _joined(found[old], new) if old in found else new
    return found


@cache  # the same matrix each time, so that a point that values it can be used again
def _joined(one: Tensor, other: Tensor) -> Tensor:
    if not (is_constrained(one) and is_constrained(other)):
        return other
    orthonormal, centred = one.orthonormal or other.orthonormal, one.centred or other.centred
    return Tensor(one.name, one.axes, role=one.role, orthonormal=orthonormal, centred=centred)


def _check(number: int, hypothesis: Hypothesis, build: Rewriter) -> Obligation:
    left, right = sides_of(hypothesis.relation)
    built = ", ".join(tensor.name for tensor in hypothesis.by) or "nothing"
    name = f"hypothesis {number}: the construction of {built} satisfies {readable(left.body)} = {readable(right.body)}"
    return Obligation(name, build(left), build(right))


def difference(greater: Tensor, less: Tensor) -> Tensor:
    """greater - less, entry by entry, over the axes of `less`."""
    return Tensor(f"{greater.name} - {less.name}", less.axes, greater[less.axes] - less.entry)


def constructed(law: Law, dropped: Hypothesis | None = None) -> tuple[Tensor, Tensor]:
    """Both sides over inputs that satisfy every hypothesis, inequalities too: what numbers are put into."""
    build = Rewriter(constructions(h for h in law.hypotheses if h is not dropped))
    return build(law.left), build(law.right)
