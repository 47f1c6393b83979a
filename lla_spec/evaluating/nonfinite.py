"""Arguments with NaN or infinity: which results depend on them, and what the other results are.

- A result that depends on a live NaN must be NaN.
- One that depends on an infinity is not judged, except on a -∞ logit where the result is finite: that is a weight of
  exactly 0.
- What a mask hides reaches nothing: everything else is what it would be with 0 in the place of what is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lla_spec.evaluating.dependence import Dependence
from lla_spec.evaluating.float64 import Float64
from lla_spec.evaluating.prepared import Prepared

Array = np.ndarray


@dataclass(frozen=True)
class Special:
    """Per result: `nan`, where it must be NaN; `infinite`, where it is not judged; `logits`, where -∞ logits enter."""

    finite_inputs: dict[str, Any]
    logit_inputs: dict[str, Any]  # NaN and +∞ replaced, -∞ logits kept
    nan: dict[str, Array]
    infinite: dict[str, Array]
    logits: dict[str, Array]

    def choose(
        self, run: Callable[[Mapping[str, Any]], dict[str, Any]], put: Callable[[Any, Any, Array], Any]
    ) -> dict[str, Any]:
        """The results of `run`: on the finite inputs, and where -∞ logits take part (`put`), with these."""
        found = run(self.finite_inputs)
        if not any(where.any() for where in self.logits.values()):
            return found
        kept = run(self.logit_inputs)
        return {name: put(found[name], kept[name], self.logits[name]) for name in found}


def special(prepared: Prepared) -> Special | None:
    """None where every input is finite."""
    reals = {e.name: prepared.inputs[e.name] for e in prepared.plan.inputs if e.kind in ("real", "scalar")}
    if all(np.isfinite(array).all() for array in reals.values()):
        return None

    def reached(test: Callable[[str, Array], Array]) -> dict[str, Array]:
        marks = {name: test(name, array) for name, array in reals.items()}
        others = {e.name: prepared.inputs[e.name] for e in prepared.plan.inputs if e.name not in reals}
        found = prepared.run(Dependence(), {**others, **prepared.masks, **marks})
        return {name: _outside_empty(prepared, name, reach.marked) for name, reach in found.items()}

    plan_logits = prepared.plan.logits
    nan = reached(lambda _, array: np.isnan(array))
    infinite = reached(lambda name, array: np.isposinf(array) if name in plan_logits else np.isinf(array))
    logits = reached(lambda name, array: np.isneginf(array) & (name in plan_logits))

    def without(keep: Callable[[str, Array], Array]) -> dict[str, Any]:
        return {**prepared.inputs, **{name: np.where(keep(name, a), a, 0.0) for name, a in reals.items()}}

    result = Special(
        without(lambda _, array: np.isfinite(array)),
        without(lambda name, array: np.isfinite(array) | (np.isneginf(array) & (name in plan_logits))),
        nan, infinite, logits,
    )  # fmt: skip
    if any(where.any() for where in logits.values()):
        for name, value in prepared.run(Float64(), result.logit_inputs).items():
            infinite[name] = infinite[name] | (logits[name] & ~np.isfinite(value))
    return result


def _outside_empty(prepared: Prepared, name: str, marked: Array) -> Array:
    """A row that looks at nothing depends on nothing."""
    empty = prepared.empty_in(name)
    return marked if empty is None else marked & ~empty
