"""Which entries of a result depend on a marked entry of an input: how NaN and infinity must spread, and where not.

An entry that a mask hides is *not live*: it is exactly 0 whatever stands there, so no mark passes it. That is a property
of the declaration, decided here on booleans; float64 arithmetic could not say it (0 · NaN is NaN).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lla_spec.evaluating.plan import Move, Plan

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
        return Reach(a.live.any(axis=over), a.marked.any(axis=over))

    def maximum(self, a: Reach, axes: int) -> Reach:
        total = self.sum(a, axes)
        return Reach(np.ones(total.live.shape, bool), total.marked)

    def matmul(self, a: Reach, b: Reach) -> Reach:
        live_a, live_b = a.live.astype(np.float32), b.live.astype(np.float32)
        marked = (a.marked.astype(np.float32) @ live_b > 0) | (live_a @ b.marked.astype(np.float32) > 0)
        return Reach(live_a @ live_b > 0, marked)

    def edge(self, a: Reach, kind: str) -> Reach:
        return a


def depends(plan: Plan, inputs: Mapping[str, Any], marks: Mapping[str, Array]) -> dict[str, Array]:
    """By result name: the entries that depend on an entry where `marks` (by input name) is True.

    `inputs` are the plan's own; only its masks and the shapes of the others are read.
    """
    given = {
        entry.name: inputs[entry.name]
        if entry.kind in ("mask", "permutation")
        else marks.get(entry.name, np.zeros(np.shape(inputs[entry.name]), bool))
        for entry in plan.inputs
    }
    return {name: reach.marked for name, reach in plan.run(Dependence(), given).items()}
