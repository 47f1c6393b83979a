"""Random identities, and random near misses, put to the all-dimensions prover and to numbers.

    python -m tests.engine.fuzz --seconds 240 --seed 0

A case is an expression and the same expression rewritten (`rewrites`), in two of five cases with one thing changed. The
prover says proved or refused; an evaluator in balls, which shares no code with it, says true or false at several
sizes. One proved-and-false is a failure. So is a run that put too few questions of either kind: `verdict`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping

import sympy as sp

from lla_spec.proving.all_dims import prove
from lla_spec.tensors import Tensor
from tests.engine.fuzz_numbers import agree
from tests.engine.fuzz_statements import Draw, Skip, fresh, i


def one_case(seed: int) -> tuple[str, sp.Expr, sp.Expr]:
    """The verdict on one random question, and the question."""
    draw = Draw(seed)
    left = draw.any(3, [i])
    right = fresh(left)
    for _ in range(draw.pick([1, 2, 2, 3])):
        right = draw.rewrite(right, [i])
    if draw.random.random() < 0.4:
        right = draw.changed(right)
    if sp.count_ops(left) + sp.count_ops(right) > 150 or left.has(sp.zoo, sp.nan) or right.has(sp.zoo, sp.nan):
        raise Skip("too large")
    true = agree(left, right, seed)
    proved = prove(Tensor("left", (i,), left), Tensor("right", (i,), right), fuel=20_000).proved
    return f"{'proved' if proved else 'refused'}-and-{'true' if true else 'false'}", left, right


def run(*, seconds: float, seed: int, enough: Mapping[str, int] | None = None) -> Counter[str]:
    """Counts of verdicts within the time, or until there are `enough` of each kind. Stops at a proved-and-false."""
    counts: Counter[str] = Counter()
    start, case = time.monotonic(), 0
    while time.monotonic() - start < seconds and not (enough and all(counts[k] >= v for k, v in enough.items())):
        case += 1
        try:
            kind, left, right = one_case(seed * 10_000_000 + case)
        except Skip:
            counts["skipped"] += 1
            continue
        counts[kind] += 1
        if kind == "proved-and-false":
            print(f"PROVED AND FALSE (case {seed * 10_000_000 + case}):\n  left  {left}\n  right {right}")
            break
    return counts


def verdict(counts: Mapping[str, int], *, true: int, false: int) -> str:
    """Empty where the run is good evidence; else what is wrong with it."""
    if counts.get("proved-and-false", 0):
        return "a false statement was proved"
    if counts.get("proved-and-true", 0) < true:
        return f"only {counts.get('proved-and-true', 0)} true statements were proved, fewer than {true}"
    if counts.get("refused-and-false", 0) < false:
        return f"only {counts.get('refused-and-false', 0)} false statements were refused, fewer than {false}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the all-dimensions prover against numbers.")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--true", type=int, default=3000, help="fail with fewer proved-and-true")
    parser.add_argument("--false", type=int, default=1000, help="fail with fewer refused-and-false")
    options = parser.parse_args()
    counts = run(seconds=options.seconds, seed=options.seed)
    print(dict(sorted(counts.items())))
    wrong = verdict(counts, true=options.true, false=options.false)
    print(wrong or "ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
