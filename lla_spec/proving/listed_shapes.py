"""The prover for listed shapes: both sides entry by entry in the exact field; a zero difference is a proof.

It proves a law at one shape, for all real inputs that meet the recorded conditions. A permutation is every bijection in
turn; a maximum is any real number.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import factorial, prod
from typing import Any

from lla_spec.language import Law
from lla_spec.proving.entries import Entries, Unreadable, Where, in_inputs, positions
from lla_spec.proving.exact_field import ExactField
from lla_spec.proving.generators import Full, Undefined
from lla_spec.proving.hypotheses import obligations
from lla_spec.proving.outcome import Outcome
from lla_spec.symbols import Tensor, inputs

MOST_BIJECTIONS = 720


def prove(
    left: Tensor, right: Tensor, sizes: Mapping[str, int], *, given: Mapping[Tensor, Any] | None = None
) -> Outcome:
    """Prove left = right at `sizes` (by name of dimension), entry by entry.

    `given` fixes inputs to numbers (nested sequences of int or Fraction): then it is proved for those only. Refused:
    `residual` names the first entry that is not proved and what its difference comes down to, and `conditions` are
    as they were met, in definitions; of a proof they are in the inputs.

    >>> from lla_spec.formulas.softmax import x, j, softmax
    >>> from lla_spec.symbols import Sum, define
    >>> i = x.axes[0]
    >>> total = define("total", (i,), Sum(softmax(x)[i, j], j))
    >>> prove(total, define("one", (i,), 1), {"n": 1, "m": 2}).proved
    True
    """
    if [dim.size(sizes) for dim in left.shape] != [dim.size(sizes) for dim in right.shape]:
        return Outcome(False, f"left is over {left.shape} and right over {right.shape}")
    permutations = [t for t in inputs(left, right) if t.permutation and t not in (given or {})]
    lengths = [t.shape[0].size(sizes) for t in permutations]
    if prod(map(factorial, lengths)) > MOST_BIJECTIONS:
        return Outcome(False, f"more than {MOST_BIJECTIONS} bijections at {dict(sizes)}; list a smaller shape")
    conditions: dict[Any, None] = {}
    for chosen in itertools.product(*(itertools.permutations(range(length)) for length in lengths)):
        fixed = {**(given or {}), **dict(zip(permutations, chosen, strict=True))}
        refusal = _refusal(left, right, sizes, fixed, conditions)
        if refusal:
            named = ", ".join(f"{t.name} = {c}" for t, c in zip(permutations, chosen, strict=True))
            return Outcome(False, f"{named}: {refusal}" if named else refusal, tuple(conditions))
    return Outcome(True, "", in_inputs(conditions))


def _refusal(
    left: Tensor, right: Tensor, sizes: Mapping[str, int], given: Mapping[Tensor, Any], conditions: dict[Any, None]
) -> str:
    """Why left = right is not proved; empty where it is. The ring grows until it holds all generators."""
    capacity = 48 + 2 * sum(prod(dim.size(sizes) for dim in t.shape) for t in inputs(left, right))
    while True:
        field = ExactField(capacity)
        entries = Entries(field, sizes, lambda tensor, where, f=field: _input_entry(f, tensor, where, given))
        try:
            return _first_difference(left, right, field, entries)
        except Full:
            capacity *= 2
        except (Undefined, Unreadable) as error:
            return str(error)
        finally:
            conditions.update(entries.conditions)


def _first_difference(left: Tensor, right: Tensor, field: ExactField, entries: Entries[Any]) -> str:
    for where in positions(left, entries.sizes):
        difference = entries.at(left, where) - entries.at(right, where)
        rest = [difference] if field.is_nonzero_somewhere(difference) else field.remainder(difference)
        if rest:
            entry = f"entry {list(where)}" if where else "the scalar"
            return f"{entry}: left - right comes down to {field.describe(rest[0])}"
    return ""


def _input_entry(field: ExactField, tensor: Tensor, where: Where, given: Mapping[Tensor, Any]) -> Any:
    if tensor in given:
        value = given[tensor]
        for position in where:
            value = value[position]
        return int(value) if tensor.permutation else field.rational(Fraction(value))
    text = f"{tensor.name}{list(where)}" if where else tensor.name
    return field.variable((tensor.label, where), text, nonnegative=tensor.nonnegative)


def listed_shapes(law: Law) -> list[dict[str, int]]:
    """The shapes that a law is proved at: all ones, and sizes from 2 on that differ pairwise.

    Scale 1/d is right at d = 1, and a transposed square is hard to see. What is permuted has size 3, so that few
    bijections do not commute and there are not many of them.
    """
    obliged = [replace(law, left=o.left, right=o.right, because=None) for o in obligations(law)]
    names = sorted({dim.name for one in obliged for dim in one.dims})
    permuted = {t.shape[0].name for one in obliged for t in inputs(one.left, one.right) if t.permutation}
    ranked = sorted(names, key=lambda name: name not in permuted)
    if permuted and len(ranked) > 1:
        ranked[0], ranked[1] = ranked[1], ranked[0]
    distinct = {name: size for size, name in enumerate(ranked, start=2)}
    return [dict.fromkeys(names, 1), {name: distinct[name] for name in names}]
