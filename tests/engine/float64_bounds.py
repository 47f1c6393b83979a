"""How far evaluations in float64 may be from the exact result: the generic rule of rounding.py, for strict fp64.

    judged = float64_bounds(plan, inputs)["result"]
    assert_within(computed, judged)

The rule allows every rounding of the plan's own steps, sums in any order; there is nothing to choose. Two evaluations
of one plan may differ by twice the error, two plans of one exact value by the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.plan import Plan
from lla_spec.evaluating.rounding import Rounding
from lla_spec.evaluating.sharp.roundings import finish

FP64 = contract("strict", "fp64")


def float64_bounds(plan: Plan, inputs: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> dict[str, Bounded]:
    """By result of the plan (...): its value in float64, and the most that such a value differs from the exact one.

    `oracle_u` is 0: the bound is on |float64 - exact| alone, and each step counts its roundings once.
    """
    results = plan.run(Rounding(FP64, oracle_u=0.0), inputs, sizes)
    return {name: finish(np.asarray(found.value), found.deviation, FP64) for name, found in results.items()}


def assert_within(computed: Any, judged: Bounded, *, times: float = 1.0, beside: Any = 0.0) -> None:
    """|computed - value| <= times · error + beside, entry by entry. An infinite bound would say nothing."""
    computed = np.asarray(computed)
    allowed = times * judged.error + beside
    assert computed.shape == judged.value.shape
    assert np.isfinite(allowed).all()
    wrong = ~(np.abs(computed - judged.value) <= allowed)
    assert not wrong.any(), f"{computed[wrong][:3]} for {judged.value[wrong][:3]} ± {allowed[wrong][:3]}"
