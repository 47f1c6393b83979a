"""Expressions in numbers: an evaluator in balls that shares no code with the provers."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp
from flint import arb, fmpq

from lla_spec.evaluating.balls import DEFAULT_BITS, Balls, precision
from lla_spec.tensors import Index, Kept, Label, Maximum, Tensor
from tests.engine.fuzz_statements import Skip, i

SIZES = ({"n": 2, "m": 3, "m1": 2, "m2": 1}, {"n": 3, "m": 2, "m1": 1, "m2": 3}, {"n": 1, "m": 4, "m1": 2, "m2": 2})


class Numbers:
    """Values as object arrays of balls, drawn in float64: axis p of an array is the p-th index in scope."""

    balls = Balls()

    def __init__(self, sizes: Mapping[str, int], rng: np.random.Generator) -> None:
        self.sizes, self.rng = sizes, rng
        self.arrays: dict[Label, np.ndarray] = {}

    def array(self, made: Tensor) -> np.ndarray:
        if made.label not in self.arrays:
            shape = [axis.dim.size(self.sizes) for axis in made.axes]
            if made.blocks:
                self.arrays[made.label] = np.concatenate(
                    [self.array(b.base.label.tensor) for b in made.blocks], axis=-1
                )
            elif made.permutation:
                self.arrays[made.label] = self.rng.permutation(shape[0])
            else:
                drawn = np.asarray(self.rng.normal(size=shape))
                self.arrays[made.label] = np.abs(drawn) + 0.3 if made.positive else drawn
        return self.arrays[made.label]

    def value(self, expr: Any, scope: tuple[Index, ...]) -> np.ndarray:
        if isinstance(expr, sp.Rational):
            return np.full((1,) * len(scope), arb(fmpq(expr.p, expr.q)), dtype=object)
        if isinstance(expr, sp.Indexed):
            where = tuple(self.position(k, scope) for k in expr.indices)
            return self.ball(self.array(expr.base.label.tensor)[where])
        if isinstance(expr, sp.KroneckerDelta):
            first, second = (self.position(k, scope) for k in expr.args)
            return self.ball(first == second)
        if isinstance(expr, Label):
            return self.ball(np.full((1,) * len(scope), self.array(expr.tensor)))
        if isinstance(expr, sp.Symbol):
            return self.ball(np.full((1,) * len(scope), expr.size(self.sizes)))  # pyright: ignore
        if isinstance(expr, (sp.Sum, Maximum)):
            *inner, (bound, _, _) = expr.limits
            body = self.value(expr.func(expr.function, *inner) if inner else expr.function, (*scope, bound))
            body = np.broadcast_to(body, (*body.shape[:-1], bound.dim.size(self.sizes)))
            return self.balls.sum(body, 1) if isinstance(expr, sp.Sum) else self.balls.maximum(body, 1)
        if not isinstance(expr, (sp.Add, sp.Mul, sp.Pow, sp.exp, sp.log, sp.Max, Kept)):
            raise Skip(f"no value of {type(expr).__name__}")
        values = [self.value(arg, scope) for arg in expr.args]
        if isinstance(expr, sp.Add):
            return np.broadcast_arrays(sum(values))[0]
        if isinstance(expr, sp.Mul):
            product = values[0]
            for other in values[1:]:
                product = product * other
            return product
        if isinstance(expr, sp.exp):
            return self.balls.exp(values[0], 0)
        if isinstance(expr, sp.log):
            return self.balls.log(values[0])
        if isinstance(expr, sp.Pow):
            if isinstance(expr.exp, sp.Rational):
                return self.balls.power(values[0], Fraction(expr.exp.p, expr.exp.q))
            return values[0] ** values[1]
        if isinstance(expr, sp.Max):
            return self.balls.maximum(np.stack(np.broadcast_arrays(*values), -1), 1)
        return np.where(values[1] != 0, values[0], arb("-inf"))

    @staticmethod
    def ball(exact: np.ndarray) -> np.ndarray:
        """Float64 entries as balls of radius 0."""
        return np.vectorize(lambda entry: arb(float(entry)), otypes=[object])(exact)

    def position(self, where: Any, scope: tuple[Index, ...]) -> np.ndarray:
        if isinstance(where, sp.Indexed):
            return self.array(where.base.label.tensor)[self.position(where.indices[0], scope)]
        axis = scope.index(where)
        shape = [1] * len(scope)
        shape[axis] = where.dim.size(self.sizes)
        return np.arange(shape[axis]).reshape(shape)


def agree(left: sp.Expr, right: sp.Expr, seed: int) -> bool:
    """Are both sides equal in numbers, at every size?

    False is certain: somewhere the balls of both sides do not meet. True: they meet everywhere, and are so narrow that
    what could still lie between the sides is below one rounding of float64 (2^-53) of the largest entry.
    """
    for bits in (DEFAULT_BITS, 4 * DEFAULT_BITS):
        with precision(bits):
            largest, apart = arb(0), []
            for sizes in SIZES:
                numbers = Numbers(sizes, np.random.default_rng(seed))
                sides = np.broadcast_arrays(numbers.value(left, (i,)), numbers.value(right, (i,)))
                apart += (sides[0] - sides[1]).tolist()
                if all(ball.is_finite() for ball in apart) and not all(ball.contains(0) for ball in apart):
                    return False
                largest = max(largest, *(ball.abs_lower() for ball in sides[0].tolist()))
            if all(ball.abs_upper() <= largest * 2.0**-53 for ball in apart):  # not so where a ball is not finite
                return True
    raise Skip("not finite, or nothing but 0")
