"""The smallest point that refutes a statement: fewest input entries first, then zeros and ones wherever they do."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

from lla_spec.proving.conditions import Difference, Point, constrained, differ
from lla_spec.proving.entries import Where, positions
from lla_spec.proving.orthonormal import CENTRED_ROWS, is_constrained, why_infeasible
from lla_spec.tensors import Tensor, inputs

LARGEST_SIZE = 3
MOST_SHAPES = 60
POINTS_PER_SHAPE = 6


@dataclass(frozen=True)
class Counterexample:
    """A point, and an entry at which the two sides certainly differ there."""

    point: Point
    difference: Difference

    def __str__(self) -> str:
        return f"at {self.point}: {self.difference}"


def counterexample(
    left: Tensor,
    right: Tensor,
    relation: str,
    dims: Sequence[str],
    *,
    shapes: int = MOST_SHAPES,
    points: int = POINTS_PER_SHAPE,
) -> Counterexample | None:
    """The smallest point found at which left = right (or ≤) is certainly false; None where none is found.

    `dims` names the dimensions that need a size; `points` are tried at each of the smallest `shapes`.
    Balls decide, so what is returned is a refutation; None says nothing.
    """
    tensors = inputs(left, right)
    rng = random.Random(0)
    for sizes in _shapes(tensors, dims)[:shapes]:
        for number in range(points):
            point = _simple_point(tensors, sizes, rng, generic=number > 1)
            difference = differ(left, right, point, relation)
            if difference is not None:
                return _shrunk(left, right, relation, Counterexample(point, difference))
    return None


def _shapes(tensors: list[Tensor], dims: Sequence[str]) -> list[dict[str, int]]:
    """Shapes by the number of input entries."""

    def entries(sizes: Mapping[str, int]) -> int:
        return sum(prod(dim.size(sizes) for dim in tensor.shape) for tensor in tensors)

    names = sorted(dims)
    largest = LARGEST_SIZE if len(names) <= 4 else 2
    if any(tensor.orthonormal and tensor.centred for tensor in tensors):
        largest = CENTRED_ROWS
    shapes = [dict(zip(names, s, strict=True)) for s in itertools.product(range(1, largest + 1), repeat=len(names))]
    shapes = [sizes for sizes in shapes if not any(why_infeasible(tensor, sizes) for tensor in tensors)]
    return sorted(shapes, key=lambda sizes: (entries(sizes), *sizes.values()))[:MOST_SHAPES]


def _choices(tensor: Tensor) -> list[Fraction]:
    """What an entry may be, simplest first."""
    if tensor.role is not None and tensor.role.kind == "mask":
        return [Fraction(1), Fraction(0)]
    if tensor.positive:
        return [Fraction(1), Fraction(2), Fraction(1, 2)]
    if tensor.nonnegative:
        return [Fraction(0), Fraction(1), Fraction(2), Fraction(1, 2)]
    return [Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(1, 2)]


def _simple_point(tensors: list[Tensor], sizes: Mapping[str, int], rng: random.Random, generic: bool) -> Point:
    values: dict[Tensor, dict[Where, Fraction]] = {}
    for tensor in tensors:
        places = list(positions(tensor, sizes))
        choices = _choices(tensor)
        if is_constrained(tensor):
            values[tensor] = constrained(tensor, sizes, rng, lambda: Fraction(rng.choice((0, 0, 1, -1))))
            continue
        if tensor.permutation:
            drawn = [Fraction(k) for k in rng.sample(range(len(places)), len(places))]
        else:
            drawn = [rng.choice(choices if generic else choices[:3]) for _ in places]
        values[tensor] = dict(zip(places, drawn, strict=True))
    return Point(dict(sizes), values)


def _shrunk(left: Tensor, right: Tensor, relation: str, found: Counterexample) -> Counterexample:
    """`found` with one entry after another made as simple as still refutes."""
    for tensor, where in [(t, w) for t, entries in found.point.values.items() for w in entries]:
        for simpler in _simpler(tensor, found.point.values[tensor][where]):
            entries = {**found.point.values[tensor], where: simpler}
            point = replace(found.point, values={**found.point.values, tensor: entries})
            difference = differ(left, right, point, relation)
            if difference is not None:
                found = Counterexample(point, difference)
                break
    return found


def _simpler(tensor: Tensor, value: Fraction) -> Iterator[Fraction]:
    """The choices before `value` in the order of simplicity; a permutation stays, and so does a constrained matrix."""
    choices = [] if tensor.permutation or is_constrained(tensor) else _choices(tensor)
    yield from itertools.takewhile(lambda choice: choice != value, choices)
