"""Which entries of a result depend on a marked entry of an input: how NaN and infinity must spread, and where not.

An entry that a mask hides is *not live*: it is exactly 0 whatever stands there, so no mark passes it. That is a
property of the declaration, decided here on booleans; float64 arithmetic could not say it (0 · NaN is NaN).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.plan import Move

Array = np.ndarray


@dataclass(frozen=True)
class Reach:
    """`live` (...): may differ from 0; `marked` (...): depends on a marked entry; what is not live is not marked."""

    live: Array
    marked: Array


class Dependence:
    """The domain of `Reach`. Its real inputs are boolean arrays, the marks; masks are given as they are."""

    def input(self, array: Array, kind: str) -> Reach:
        if kind == "mask":
            return Reach(array != 0, np.zeros(array.shape, bool))
        return Reach(np.ones(array.shape, bool), array.astype(bool))

    def bounded(self, given: Bounded) -> Reach:
        return Reach(np.ones(given.value.shape, bool), ~np.isfinite(given.value))

    def number(self, value: Fraction) -> Reach:
        return Reach(np.array(value != 0), np.array(False))

    def move(self, function: Move, *values: Reach) -> Reach:
        return Reach(function(*(v.live for v in values)), function(*(v.marked for v in values)))

    def add(self, a: Reach, b: Reach) -> Reach:
        return Reach(a.live | b.live, a.marked | b.marked)

    def negate(self, a: Reach) -> Reach:
        return a

    def multiply(self, a: Reach, b: Reach) -> Reach:
        live = a.live & b.live
        return Reach(live, (a.marked | b.marked) & live)

    def mask(self, a: Reach, mask: Reach) -> Reach:
        return self.multiply(a, mask)

    def keep(self, a: Reach, mask: Reach) -> Reach:
        return self.multiply(a, mask)

    def power(self, a: Reach, exponent: Fraction) -> Reach:
        return Reach(np.ones(a.live.shape, bool) if exponent < 0 else a.live, a.marked)

    def exp(self, a: Reach, shifted: int) -> Reach:
        return Reach(np.ones(a.live.shape, bool), a.marked)

    def log(self, a: Reach) -> Reach:
        return Reach(np.ones(a.live.shape, bool), a.marked)

    def sum(self, a: Reach, axes: int) -> Reach:
        over = tuple(range(-axes, 0))
        return Reach(np.asarray(a.live.any(axis=over)), np.asarray(a.marked.any(axis=over)))

    def maximum(self, a: Reach, axes: int) -> Reach:
        total = self.sum(a, axes)
        return Reach(np.ones(total.live.shape, bool), total.marked)

    def matmul(self, a: Reach, b: Reach) -> Reach:
        live_a, live_b = a.live.astype(np.float32), b.live.astype(np.float32)
        marked = (a.marked.astype(np.float32) @ live_b > 0) | (live_a @ b.marked.astype(np.float32) > 0)
        return Reach(live_a @ live_b > 0, marked)

    def edge(self, a: Reach, kind: str) -> Reach:
        return a
