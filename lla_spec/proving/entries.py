"""A declaration evaluated entry by entry at concrete sizes, in any field: Σ is a loop, an index is an integer.

The exact-field prover and the ball checks read declarations through this one small evaluator. The Σ-normal form engine
does not: two provers that share their reader would share its mistakes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Generic, Protocol, TypeVar

import sympy as sp

from lla_spec.substituting import expand
from lla_spec.tensors import Dim, Index, Kept, Label, Maximum, Tensor, free_indices, split_axis

S = TypeVar("S")
Where = tuple[int, ...]
Environment = dict[sp.Basic, int]


class Unreadable(ValueError):
    """An expression that this evaluator has no meaning for; the message names it."""


class Field(Protocol[S]):
    """What a scalar must be able to do. Addition and multiplication are the scalars' own."""

    def rational(self, value: Fraction) -> S: ...
    def power(self, base: S, exponent: Fraction) -> S: ...
    def exp(self, value: S, /) -> S: ...
    def log(self, value: S, /) -> S: ...
    def maximum(self, entries: list[tuple[S, S]]) -> S: ...  # (entry, mask): among entries whose mask is not 0
    def function(self, name: str, arguments: list[S]) -> S: ...


def positions(tensor: Tensor, sizes: Mapping[str, int]) -> Iterator[Where]:
    """Every position of a tensor's entries, in order."""
    return itertools.product(*(range(dim.size(sizes)) for dim in tensor.shape))


class Entries(Generic[S]):
    """The entries of tensors at `sizes`: `at(T, (0, 1))`.

    `leaf(tensor, position)` gives the entry of an input: a field element, or an int for a permutation.
    `conditions` collects what evaluation divided by ("≠ 0") and took a root or a logarithm of ("> 0").
    """

    def __init__(self, field: Field[S], sizes: Mapping[str, int], leaf: Callable[[Tensor, Where], Any]) -> None:
        self.field, self.sizes, self.leaf = field, sizes, leaf
        self.conditions: dict[tuple[sp.Expr, str], None] = {}
        self._shapes: dict[Label, tuple[int, ...]] = {}
        self._entries: dict[tuple[Label, Where], Any] = {}
        self._bodies: dict[Label, Callable[[Environment], S]] = {}
        self._blocks: dict[Label, list[Callable[[Environment], S]]] = {}

    def at(self, tensor: Tensor, where: Where) -> Any:
        """One entry of a tensor, computed once."""
        key = (tensor.label, where)
        if key not in self._entries:
            self._entries[key] = self._entry(tensor, where)
        return self._entries[key]

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        """The entries computed inside are forgotten at the end; how bodies are read, and the conditions, stay."""
        entries = dict(self._entries)
        try:
            yield
        finally:
            self._entries = entries

    def value(self, expr: sp.Expr, environment: Mapping[sp.Basic, int]) -> S:
        """An expression whose free indices have the given values."""
        return self._compile(expr)(dict(environment))

    def _entry(self, tensor: Tensor, where: Where) -> Any:
        if tensor.label not in self._shapes:
            self._shapes[tensor.label] = tuple(axis.dim.size(self.sizes) for axis in tensor.axes)
        for axis, position, size in zip(tensor.axes, where, self._shapes[tensor.label], strict=True):
            if not 0 <= position < size:
                raise Unreadable(f"{tensor.name}{list(where)}: {axis} is outside 0 … {size - 1}")
        if tensor.blocks:
            return self._block_entry(tensor, where)
        if tensor.body is None:
            return self.leaf(tensor, where)
        if tensor.label not in self._bodies:
            self._bodies[tensor.label] = self._compile(tensor.body)
        return self._bodies[tensor.label](dict(zip(tensor.axes, where, strict=True)))

    def _block_entry(self, tensor: Tensor, where: Where) -> S:
        if tensor.label not in self._blocks:
            self._blocks[tensor.label] = [self._compile(block) for block in tensor.blocks]
        environment: Environment = dict(zip(tensor.axes, where, strict=True))
        if not any(axis.dim.parts for axis in tensor.axes):  # a merge: each product axis counts its factors
            for axis, position in zip(tensor.axes, where, strict=True):
                for factor in reversed(axis.dim.factors):
                    position, environment[factor] = divmod(position, factor.dim.size(self.sizes))
            return self._blocks[tensor.label][0](environment)
        along = split_axis(tensor)
        inside = where[along]
        for part, block in zip(tensor.axes[along].dim.parts, self._blocks[tensor.label], strict=True):
            size = part.dim.size(self.sizes)
            if inside < size:
                return block({**environment, part: inside})
            inside -= size
        raise AssertionError("a position inside the axis lies in one of its parts")

    # Compilation: an expression is read once and becomes a function of the values of its indices.

    def _compile(self, expr: sp.Basic) -> Callable[[Environment], S]:
        if isinstance(expr, sp.Rational):
            return self._constant(Fraction(int(expr.p), int(expr.q)))
        if isinstance(expr, Dim):
            return self._constant(Fraction(expr.size(self.sizes)))
        if expr is sp.E:
            return lambda env: self.field.exp(self.field.rational(Fraction(1)))
        if isinstance(expr, (sp.Indexed, Label)):
            return self._compile_entry(expr)
        if isinstance(expr, (sp.Add, sp.Mul)):
            return self._compile_fold(expr)
        if isinstance(expr, sp.Pow):
            return self._compile_power(expr)
        if isinstance(expr, (sp.exp, sp.log)):
            return self._compile_transcendental(expr)
        if isinstance(expr, (sp.Sum, Maximum)):
            return self._compile_over(expr)
        if isinstance(expr, (Index, sp.KroneckerDelta)):
            read = self._position(expr)
            return lambda env: self.field.rational(Fraction(read(env)))
        if isinstance(expr, sp.Float):
            raise Unreadable(f"{float(expr):g} is a decimal: write it as a Rational, which is exact")
        if isinstance(expr, sp.Function) and not isinstance(expr, Kept) and expr.args:
            name, arguments = type(expr).__name__, [self._compile(argument) for argument in expr.args]
            return lambda env: self.field.function(name, [argument(env) for argument in arguments])
        raise Unreadable(f"{type(expr).__name__} has no meaning entry by entry: {expr}")

    def _constant(self, value: Fraction) -> Callable[[Environment], S]:
        scalar = self.field.rational(value)
        return lambda env: scalar

    def _compile_entry(self, expr: sp.Basic) -> Callable[[Environment], S]:
        tensor: Tensor = expr.tensor if isinstance(expr, Label) else expr.base.label.tensor  # pyright: ignore
        reads = [self._position(i) for i in expr.indices] if isinstance(expr, sp.Indexed) else []

        def entry(env: Environment) -> S:
            found = self.at(tensor, tuple(read(env) for read in reads))
            return self.field.rational(Fraction(found)) if isinstance(found, int) else found

        return entry

    def _compile_fold(self, expr: sp.Basic) -> Callable[[Environment], S]:
        first, *rest = [self._compile(argument) for argument in expr.args]

        def add(env: Environment) -> S:
            total: Any = first(env)
            for argument in rest:
                total = total + argument(env)
            return total

        def multiply(env: Environment) -> S:
            total: Any = first(env)
            for argument in rest:
                total = total * argument(env)
            return total

        return add if isinstance(expr, sp.Add) else multiply

    def _compile_power(self, expr: sp.Pow) -> Callable[[Environment], S]:
        dims = [symbol for symbol in expr.exp.free_symbols if isinstance(symbol, Dim)]
        exponent = expr.exp.xreplace({dim: sp.Integer(dim.size(self.sizes)) for dim in dims})
        if not isinstance(exponent, sp.Rational):
            raise Unreadable(f"the exponent of {expr} is not a rational number")
        base, number = self._compile(expr.base), Fraction(int(exponent.p), int(exponent.q))
        if number.denominator > 1:
            self._needs(expr.base, "> 0")
        elif number < 0:
            self._needs(expr.base, "≠ 0")
        return lambda env: self.field.power(base(env), number)

    def _compile_transcendental(self, expr: sp.Basic) -> Callable[[Environment], S]:
        argument = self._compile(expr.args[0])
        if isinstance(expr, sp.exp):
            return lambda env: self.field.exp(argument(env))
        self._needs(expr.args[0], "> 0")
        return lambda env: self.field.log(argument(env))

    def _compile_over(self, expr: Any) -> Callable[[Environment], S]:
        bounds = [(bound, *map(self._position, (low, high))) for bound, low, high in expr.limits]
        function = expr.function
        kept = function.args if isinstance(function, Kept) else (function, sp.S.One)
        body, mask = self._compile(kept[0]), self._compile(kept[1])

        def over(env: Environment, level: int) -> Iterator[Environment]:
            if level < 0:
                yield env
                return
            bound, low, high = bounds[level]  # sympy writes the innermost sum's limits first
            for value in range(low(env), high(env) + 1):
                yield from over({**env, bound: value}, level - 1)

        def total(env: Environment) -> S:
            result: Any = self.field.rational(Fraction(0))
            for inner in over(env, len(bounds) - 1):
                result = result + body(inner)
            return result

        def largest(env: Environment) -> S:
            return self.field.maximum([(body(inner), mask(inner)) for inner in over(env, len(bounds) - 1)])

        return total if isinstance(expr, sp.Sum) else largest

    def _position(self, expr: Any) -> Callable[[Environment], int]:
        """An expression that stands where an integer must: an index, π[j], a bound of a sum, δ."""
        if expr.is_Integer:
            number = int(expr)
            return lambda env: number
        if isinstance(expr, Dim):
            size = expr.size(self.sizes)
            return lambda env: size
        if isinstance(expr, sp.Indexed):
            tensor, reads = expr.base.label.tensor, [self._position(i) for i in expr.indices]  # pyright: ignore
            if not tensor.permutation:
                raise Unreadable(f"{expr} stands as an index, but {tensor.name} is not a permutation")
            return lambda env: self.at(tensor, tuple(read(env) for read in reads))
        if isinstance(expr, sp.KroneckerDelta):
            left, right = map(self._position, expr.args[:2])
            return lambda env: int(left(env) == right(env))
        if isinstance(expr, sp.Symbol):
            return lambda env: env[expr]
        if isinstance(expr, (sp.Add, sp.Mul)):
            parts = [self._position(argument) for argument in expr.args]
            if isinstance(expr, sp.Add):
                return lambda env: sum(part(env) for part in parts)
            return lambda env: _product(part(env) for part in parts)
        raise Unreadable(f"{expr} stands as an index, but it is not an integer")

    def _needs(self, expr: Any, kind: str) -> None:
        if expr.free_symbols - {symbol for symbol in expr.free_symbols if isinstance(symbol, Dim)}:
            self.conditions[expr, kind] = None


def _product(numbers: Iterator[int]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


def in_inputs(conditions: Mapping[tuple[sp.Expr, str], None]) -> tuple[tuple[sp.Expr, str], ...]:
    """Conditions written in the inputs, each once: two that differ only in the keys of bound indices are one."""
    found: dict[tuple[str, str], tuple[sp.Expr, str]] = {}
    for expr, kind in conditions:
        whole = expand(expr)
        found.setdefault((str(whole), kind), (whole, kind))
    return tuple(found.values())


def index_values(expr: sp.Expr, sizes: Mapping[str, int]) -> Iterator[Environment]:
    """Every assignment of values to the free indices of an expression."""
    free = sorted(free_indices(expr), key=lambda i: (i.name, i.key))
    for values in itertools.product(*(range(i.dim.size(sizes)) for i in free)):
        yield dict(zip(free, values, strict=True))
