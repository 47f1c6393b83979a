"""Cases drawn by hypothesis: the same ones for the same seed, whatever else is imported."""

from __future__ import annotations

from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider

from lla_spec.testing.cases import Case

EVERY_CHECK: Any = list(HealthCheck)  # hypothesis guards its own heuristics; a slow oracle is none of them
BACKEND = "lla_spec"


class SeedAlone(HypothesisProvider):
    """hypothesis without the constants that it reads from the source of local modules: those of a target, for one."""

    def _maybe_draw_constant(self, *args: Any, **kwargs: Any) -> None:
        return None


AVAILABLE_PROVIDERS[BACKEND] = f"{__name__}.{SeedAlone.__name__}"


def draw(strategy: Any, count: int, seed: int, label: str) -> list[Case]:
    """`count` cases of a hypothesis strategy, the same ones for the same seed and label."""
    drawn: list[Case] = []

    @hypothesis.seed(f"{seed}:{label}")
    @settings(
        max_examples=max(count, 1), database=None, deadline=None, phases=[Phase.generate], derandomize=False,
        suppress_health_check=EVERY_CHECK, backend=BACKEND,
    )  # fmt: skip
    @given(strategy)
    def collect(case: Case) -> None:
        drawn.append(case)

    if count:
        collect()
    return drawn[:count]
