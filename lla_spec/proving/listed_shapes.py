"""The prover for listed shapes: both sides entry by entry in the exact field; a zero difference is a proof.

It proves a law at one shape, for all real inputs that meet the recorded conditions. A permutation is every bijection in
turn; a maximum is any real number; an orthonormal matrix has free parameters (orthonormal.py), and a square one is
reflected as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from math import factorial, prod
from typing import Any

from lla_spec.language import Law
from lla_spec.proving import orthonormal
from lla_spec.proving.entries import Entries, Unreadable, Where, in_inputs, positions
from lla_spec.proving.exact_field import ExactField
from lla_spec.proving.generators import Full, Undefined
from lla_spec.proving.hypotheses import obligations
from lla_spec.proving.outcome import Outcome
from lla_spec.proving.residues import Residues
from lla_spec.tensors import Dim, Tensor, inputs

MOST_BIJECTIONS = 720
MOST_WORK = 18  # parameters of a law's orthonormal matrices × their number: beyond it polynomials take seconds


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
    return Prover(sizes, given).prove(left, right)


class Prover:
    """The prover of one statement at one shape, and of what is like it: what a law and its mutants share is kept."""

    def __init__(self, sizes: Mapping[str, int], given: Mapping[Tensor, Any] | None = None) -> None:
        self.sizes, self.given = sizes, given or {}
        self._residues = Residues(sizes)
        self._kept: dict[Any, _Evaluation] = {}

    def refutes(self, left: Tensor, right: Tensor) -> bool:
        """Whether the exact field cannot prove left = right: as `prove`, without saying what is left."""
        return (not self.given and self._residues.refute(left, right)) or not self.prove(left, right, brief=True).proved

    def prove(self, left: Tensor, right: Tensor, *, brief: bool = False) -> Outcome:
        """As the function `prove`; `brief` does not say what the difference comes down to."""
        if [dim.size(self.sizes) for dim in left.shape] != [dim.size(self.sizes) for dim in right.shape]:
            return Outcome(False, f"left is over {left.shape} and right over {right.shape}")
        permutations = [t for t in inputs(left, right) if t.permutation and t not in self.given]
        lengths = [t.shape[0].size(self.sizes) for t in permutations]
        if prod(map(factorial, lengths)) > MOST_BIJECTIONS:
            return Outcome(False, f"more than {MOST_BIJECTIONS} bijections at {dict(self.sizes)}; list a smaller shape")
        conditions: dict[Any, None] = {}
        square = [t for t in inputs(left, right) if orthonormal.is_square(t, self.sizes)]
        bijections = (itertools.permutations(range(length)) for length in lengths)
        for *chosen, mirrored in itertools.product(*bijections, itertools.product((False, True), repeat=len(square))):
            fixed = {**self.given, **dict(zip(permutations, chosen, strict=True))}
            reflected = [t for t, mirror in zip(square, mirrored, strict=True) if mirror]
            refusal = self._refusal(left, right, fixed, reflected, conditions, brief)
            if refusal:
                named = ", ".join([
                    *(f"{t.name} = {c}" for t, c in zip(permutations, chosen, strict=True)),
                    *(f"{t.name} reflected" for t in reflected),
                ])  # fmt: skip
                return Outcome(False, f"{named}: {refusal}" if named else refusal, tuple(conditions))
        return Outcome(True, "", in_inputs(conditions))

    def _refusal(
        self,
        left: Tensor,
        right: Tensor,
        given: Mapping[Tensor, Any],
        reflected: Sequence[Tensor],
        conditions: dict[Any, None],
        brief: bool,
    ) -> str:
        """Why left = right is not proved; empty where it is. The ring grows until it holds all generators."""
        key = (*((t.label, value) for t, value in given.items() if t not in self.given), *(t.label for t in reflected))
        capacity = 48 + 2 * sum(prod(dim.size(self.sizes) for dim in t.shape) for t in inputs(left, right))
        if key in self._kept:
            try:
                with self._kept[key].rolled_back():
                    return self._kept[key].refusal(left, right, conditions, brief)
            except Full:
                pass
        while True:
            evaluation = _Evaluation(capacity, self.sizes, given, reflected)
            try:
                refusal = evaluation.refusal(left, right, conditions, brief)
            except Full:
                capacity *= 2
                continue
            if not self._kept:  # of many bijections the first: it refuses most mutants
                self._kept[key] = evaluation
            return refusal


class _Evaluation:
    """One exact field, with the entries that were computed in it."""

    def __init__(
        self, capacity: int, sizes: Mapping[str, int], given: Mapping[Tensor, Any], reflected: Collection[Tensor]
    ) -> None:
        self.field = ExactField(capacity)
        self.inputs = _Inputs(self.field, sizes, given, reflected)
        self.entries = Entries(self.field, sizes, self.inputs.entry)

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        """What is adjoined and computed inside is forgotten at the end: the ring does not fill up with mutants."""
        matrices = dict(self.inputs.matrices)
        with self.field.rolled_back(), self.entries.rolled_back():
            try:
                yield
            finally:
                self.inputs.matrices = matrices

    def refusal(self, left: Tensor, right: Tensor, conditions: dict[Any, None], brief: bool) -> str:
        try:
            return _first_difference(left, right, self.field, self.entries, brief)
        except (Undefined, Unreadable, orthonormal.Infeasible) as error:
            return str(error)
        finally:
            conditions.update(self.entries.conditions)


def _first_difference(left: Tensor, right: Tensor, field: ExactField, entries: Entries[Any], brief: bool) -> str:
    for where in positions(left, entries.sizes):
        difference = entries.at(left, where) - entries.at(right, where)
        rest = [difference] if field.is_nonzero_somewhere(difference) else field.remainder(difference)
        if rest:
            entry = f"entry {list(where)}" if where else "the scalar"
            return f"{entry}: left - right" + ("" if brief else f" comes down to {field.describe(rest[0])}")
    return ""


class _Inputs:
    """The entries of inputs: given numbers, free variables, or rational functions of free parameters."""

    def __init__(
        self,
        field: ExactField,
        sizes: Mapping[str, int],
        given: Mapping[Tensor, Any],
        reflected: Collection[Tensor],
    ) -> None:
        self.field, self.sizes, self.given, self.reflected = field, sizes, given, reflected
        self.matrices: dict[Tensor, orthonormal.Matrix] = {}

    def entry(self, tensor: Tensor, where: Where) -> Any:
        if tensor in self.given:
            value = self.given[tensor]
            for position in where:
                value = value[position]
            return int(value) if tensor.permutation else self.field.rational(Fraction(value))
        if orthonormal.is_constrained(tensor):
            if tensor not in self.matrices:
                self.matrices[tensor] = self._matrix(tensor)
            return self.matrices[tensor][where[0]][where[1]]
        text = f"{tensor.name}{list(where)}" if where else tensor.name
        return self.field.variable((tensor.label, where), text, nonnegative=tensor.nonnegative)

    def _matrix(self, tensor: Tensor) -> orthonormal.Matrix:
        def parameter(name: str) -> Any:
            return self.field.variable((tensor.label, name), f"{tensor.name}⟨{name}⟩")

        scalars = orthonormal.Scalars(self.field.rational, parameter, self.field.inverse)
        return orthonormal.entries(tensor, self.sizes, scalars, reflected=tensor in self.reflected)


MOST_DIMS = 5  # that are all above 1 in one shape


def listed_shapes(law: Law) -> list[dict[str, int]]:
    """The shapes that a law is proved at: all ones, and sizes from 2 on that differ pairwise (`_distinct`).

    Scale 1/d is right at d = 1, and a transposed square is hard to see. What is permuted has size 3, so that few
    bijections do not commute and there are not many of them. Orthonormal columns are at least as long as there are of
    them: first just as long, then longer; there are few of them, since their entries are rational functions.
    """
    obliged = obligations(law)
    names = sorted({dim.name for o in obliged for dim in replace(law, left=o.left, right=o.right, because=None).dims})
    tensors = {tensor: None for o in obliged for tensor in inputs(o.left, o.right)}
    permuted = {tensor.shape[0].name for tensor in tensors if tensor.permutation}
    ranked = sorted(names, key=lambda name: name not in permuted)
    if permuted and len(ranked) > 1:
        ranked[0], ranked[1] = ranked[1], ranked[0]
    constrained = [tensor for tensor in tensors if orthonormal.is_constrained(tensor)]
    if not any(tensor.orthonormal for tensor in constrained):
        return [dict.fromkeys(names, 1), *_distinct(ranked)]
    shapes = dict.fromkeys(names, 1), _few_columns(names, constrained)
    return [_long_enough(sizes, constrained) for sizes in shapes]


def _distinct(ranked: Sequence[str]) -> list[dict[str, int]]:
    """All sizes from 2 on; of more than `MOST_DIMS` dimensions three at a time, the others 1: work is their product."""
    count = 1 if len(ranked) <= MOST_DIMS else -(-len(ranked) // 3)
    shapes = []
    for part in (ranked[start::count] for start in range(count)):
        sizes = {name: size for size, name in enumerate(part, start=2)}
        shapes.append({name: sizes.get(name, 1) for name in sorted(ranked)})
    return shapes


def _few_columns(names: Iterable[str], constrained: Collection[Tensor]) -> dict[str, int]:
    """Few orthonormal columns, and lengths that differ pairwise: longer than their number, where that stays small."""
    rows = sorted({_along(tensor).name for tensor in constrained})
    numbers = {axis.dim for tensor in constrained for axis in tensor.axes} - {_along(tensor) for tensor in constrained}
    plain = sorted(dim.name for dim in numbers if not dim.parts)
    sizes = {name: size for size, name in enumerate(plain, start=2 if len(plain) == 1 else 1)}
    sizes |= {name: 1 for dim in numbers if dim.parts for name in _elementary(dim)}
    least = max([2, *(dim.size(sizes) for dim in numbers)])
    taken = {*sizes.values(), *range(least, least + len(rows) + 1)}
    others = sorted(set(names) - {*sizes, *rows})
    free = (size for size in itertools.count(2) if size not in taken)
    sizes |= dict(zip(others, free, strict=False))

    def work(chosen: dict[str, int]) -> int:
        return len(constrained) * sum(orthonormal.parameters(tensor, chosen) for tensor in constrained)

    for start in (least + 1, least):
        lengths = range(start, start + len(rows))
        options = [sizes | dict(zip(rows, order, strict=True)) for order in itertools.permutations(lengths)]
        options = [_long_enough(option, constrained) for option in options]
        options = [o for o in options if work(o) <= MOST_WORK and len({o[r] for r in rows}) == len(rows)]
        if options:
            return max(options, key=work)
    return sizes | dict.fromkeys(rows, least)


def _long_enough(sizes: dict[str, int], constrained: Collection[Tensor]) -> dict[str, int]:
    """The sizes with orthonormal columns made as long as they must be."""
    for tensor in constrained:
        if tensor.orthonormal is not None and tensor.centred is not None:
            sizes[_along(tensor).name] = orthonormal.CENTRED_ROWS
    for tensor in constrained:
        while orthonormal.why_infeasible(tensor, sizes):
            sizes[_along(tensor).name] += 1
    return dict(sorted(sizes.items()))


def _along(tensor: Tensor) -> Dim:
    """The dimension that the columns of a constrained matrix are as long as."""
    along = tensor.orthonormal or tensor.centred
    assert along is not None
    return along.dim


def _elementary(dim: Dim) -> list[str]:
    return [one.name for one in dim.elementary]
