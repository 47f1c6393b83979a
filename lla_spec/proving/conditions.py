"""Points: numbers for every input. Side conditions are checked there, and two sides are told apart there, in balls."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import sympy as sp
from sympy.printing.str import StrPrinter

from lla_spec.proving import orthonormal
from lla_spec.proving.ball_field import Ball, BallField, ball, precision
from lla_spec.proving.entries import Entries, Unreadable, Where, index_values, positions
from lla_spec.tensors import Tensor

Condition = tuple[sp.Expr, str]


@dataclass(frozen=True, eq=False)
class Point:
    """Sizes and the entries of each input: rational numbers; integers for a permutation."""

    sizes: Mapping[str, int]
    values: Mapping[Tensor, Mapping[Where, Fraction]]

    @cached_property
    def entries(self) -> Entries[Ball]:
        """Their values here, each computed once: a law and its mutants share most of their definitions."""
        return Entries(BallField(), self.sizes, self._leaf)

    def _leaf(self, tensor: Tensor, where: Where) -> Any:
        value = self.values[tensor][where]
        return int(value) if tensor.permutation else ball(value)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} = {size}" for name, size in self.sizes.items())
        values = ", ".join(f"{tensor.name} = {self._nested(tensor)}" for tensor in self.values)
        return f"{sizes}; {values}" if values else sizes

    def _nested(self, tensor: Tensor) -> str:
        shape = [dim.size(self.sizes) for dim in tensor.shape]

        def text(prefix: Where) -> str:
            if len(prefix) == len(shape):
                return str(self.values[tensor][prefix])
            return "[" + ", ".join(text((*prefix, k)) for k in range(shape[len(prefix)])) + "]"

        return text(())


def random_point(tensors: Iterable[Tensor], sizes: Mapping[str, int], rng: random.Random) -> Point:
    """A generic point: eighths between -2 and 2, none of them 0; positive where a tensor is declared nonnegative.

    The parameters of an orthonormal or centred matrix are such eighths; a square one is reflected or not.
    """
    values: dict[Tensor, dict[Where, Fraction]] = {}
    for tensor in tensors:
        places = list(positions(tensor, sizes))
        if orthonormal.is_constrained(tensor):
            values[tensor] = constrained(
                tensor, sizes, rng, lambda: Fraction(rng.choice((-1, 1)) * rng.randint(1, 16), 8)
            )
            continue
        if tensor.permutation:
            drawn: Sequence[Any] = rng.sample(range(len(places)), len(places))
        elif tensor.nonnegative:
            drawn = [rng.randint(1, 16) for _ in places]
        else:
            drawn = [rng.choice((-1, 1)) * rng.randint(1, 16) for _ in places]
        unit = 1 if tensor.permutation else 8
        values[tensor] = {place: Fraction(number, unit) for place, number in zip(places, drawn, strict=True)}
    return Point(sizes, values)


def _eighths(rng: random.Random) -> Fraction:
    return Fraction(rng.choice((-1, 1)) * rng.randint(1, 16), 8)


def constrained(
    tensor: Tensor, sizes: Mapping[str, int], rng: random.Random, draw: Callable[[], Fraction]
) -> dict[Where, Fraction]:
    """A rational matrix with the properties that `tensor` declares, its free parameters by `draw`."""
    scalars = orthonormal.Scalars(lambda value: value, lambda name: draw(), lambda value: 1 / value)
    reflected = orthonormal.is_square(tensor, sizes) and rng.random() < 1 / 2
    made = orthonormal.entries(tensor, sizes, scalars, reflected=reflected)
    return {(row, column): entry for row, line in enumerate(made) for column, entry in enumerate(line)}


def failing_condition(conditions: Iterable[Condition], point: Point) -> str:
    """The first condition that balls do not confirm at `point`, as text; empty where all hold."""
    with precision():
        entries = point.entries
        for expr, kind in conditions:
            for environment in index_values(expr, point.sizes):
                value = entries.value(expr, environment)
                if not (value > 0 if kind == "> 0" else value != 0):
                    where = ", ".join(f"{index} = {number}" for index, number in environment.items())
                    return f"{readable(expr)} {kind}{f' at {where}' if where else ''}"
    return ""


@dataclass(frozen=True)
class Difference:
    """An entry at which two sides certainly differ, with their values there."""

    where: Where
    left: float
    right: float

    def __str__(self) -> str:
        entry = str(list(self.where)) if self.where else ""
        return f"left{entry} = {self.left:.10g}, right{entry} = {self.right:.10g}"


def differences(left: Tensor, right: Tensor, point: Point, relation: str = "=") -> Iterator[Difference]:
    """The entries at which left = right (or left ≤ right) is certainly false at `point`."""
    with precision():
        entries = point.entries
        for where in positions(left, point.sizes):
            a, b = entries.at(left, where), entries.at(right, where)
            if a > b or (relation == "=" and a < b):
                yield Difference(where, float(a.mid()), float(b.mid()))


def differ(left: Tensor, right: Tensor, point: Point, relation: str = "=") -> Difference | None:
    """The first entry at which the relation is certainly false, if there is one."""
    try:
        return next(differences(left, right, point, relation), None)
    except Unreadable:
        return None


def is_strictly_less(left: Tensor, right: Tensor, point: Point) -> bool:
    """Whether left < right certainly holds in every entry."""
    with precision():
        entries = point.entries
        return all(entries.at(left, where) < entries.at(right, where) for where in positions(left, point.sizes))


class _Readable(StrPrinter):
    def _over(self, symbol: str, expr: Any) -> str:
        names = itertools.chain.from_iterable(limit[:1] for limit in expr.limits)
        return f"{symbol}_{''.join(map(str, names))}({self._print(expr.function)})"

    def _print_Sum(self, expr: Any) -> str:
        return self._over("Σ", expr)

    def _print_Maximum(self, expr: Any) -> str:
        return self._over("max", expr)

    def _print_Kept(self, expr: Any) -> str:
        return self._print(expr.args[0])


def readable(expr: Any) -> str:
    """An expression on one line, its sums without limits: Σ_j(exp(x[i, j]))."""
    return _Readable().doprint(expr)
