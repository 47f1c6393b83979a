"""Is every bound at least the real error? Kernels that follow each contract, on random cases, row by row.

    python -m tests.engine.soundness --cases 320 --write docs/bounds.md

A row is operation × forward or VJP × dtype × contract. fp64 is judged by balls (ball_truth.py), which also check the
exact and the float64 oracle. A violation is a defect of a kernel here or an error of a derivation: find out which.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lla_spec.formulas  # noqa: F401  (declares the operations)
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract, contract
from lla_spec.evaluating.edges import hazards
from lla_spec.evaluating.operations import NEGLIGIBLE, UNSEEN, generic_bound, oracle, sharp_bound
from lla_spec.language import Formula, registry
from lla_spec.testing.cases import DTYPES, Case
from lla_spec.testing.drawing import draw
from lla_spec.testing.features import features
from lla_spec.testing.inputs import build
from lla_spec.testing.judge import worst_entry
from lla_spec.testing.regimes import LARGEST, SMALLEST
from lla_spec.testing.strategies import cases
from lla_spec.testing.threads import one_blas_thread
from lla_spec.testing.truth import as_numpy, truth_of
from tests.engine import ball_truth, marked
from tests.engine.kernels import CONTRACTS, MULTILINEAR, SLOW, Kernel, kernels_of

LONG = {"fp64": 200, "fp32": 4099, "bf16": 4099, "fp16": 700}
"""A long reduction: balls are slow, and so are torch's products of fp16 on a CPU."""

HARD = ("dominant", "above", "step", "below", "tiny", "zeros")
MARKS = ("<!-- table -->", "<!-- /table -->")
HEAD = (
    "| operation | law | dtype | contract | cases | violations | worst error/bound | its median "
    "| bound in u·\\|value\\| | sharp/generic |",
    "|---|---|---|---|---:|---:|---:|---:|---:|---:|",
)
Truth = Mapping[str, Bounded]


@dataclass
class Row:
    """What one row showed: for each case the worst error / bound, the median bound in units of u·|value|, and the
    median of the sharp rule's bound over the generic rule's (of every fourth case, where both hold)."""

    operation: str
    law: str
    dtype: str
    promise: str
    worst: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    hazards: int = 0

    def line(self) -> str:
        counts = (f"{len(self.worst)}", f"{len(self.violations)}", f"{max(self.worst, default=0):.3f}")
        medians = (_median(self.worst, ".3f"), _median(self.units, ".3g"), _median(self.gain, ".2g"))
        return f"| {' | '.join((self.operation, self.law, self.dtype, self.promise, *counts, *medians))} |"


def _median(values: list[float], form: str) -> str:
    return format(statistics.median(values), form) if values else "–"


def rows() -> Iterator[tuple[Formula, str, str, str]]:
    """(formula, law, dtype, contract): strict, and the others where there are kernels that need them."""
    for formula in registry.operations():
        for law in ("definition", "vjp"):
            for dtype in DTYPES:
                for promise in CONTRACTS:
                    dtypes = {"strict": DTYPES, "tf32": ("fp32",)}.get(promise, ("bf16", "fp16"))
                    if dtype in dtypes and kernels_of(formula.name, law, promise):
                        yield formula, law, dtype, promise


def random_cases(formula: Formula, law: str, dtype: str, count: int, seed: int) -> Iterator[Case]:
    """Cases of the suite's own strategy. Of every ten, one has a long reduction, one values of a hard family, one
    values near over- or underflow, and one (of an operation on logits) entries of -inf."""
    f = features(formula)
    summed = f.summed if law == "definition" else f.dims
    drawn = draw(cases(formula, law, dtype), count, seed, f"{formula.name} {law} {dtype}")
    for number, case in enumerate(drawn):
        turn = number // 10
        if number % 10 == 9:
            rest = {name: min(size, 7) for name, size in case.sizes}
            batch: tuple[int, ...] = (2,)
            if law == "vjp" and formula.rows is not None and turn % 2:
                batch = (LONG[dtype],)
            else:
                rest[summed[turn % len(summed)]] = LONG[dtype]
            case = replace(case.with_sizes(rest), batch=batch, mask="none" if case.mask == "one_key" else case.mask)
        elif number % 10 == 6:
            case = replace(case, family=f"{HARD[turn % len(HARD)]}+{case.family}")
        elif number % 10 == 3:
            case = replace(case, exponent=(LARGEST, SMALLEST)[turn % 2][dtype])
        elif number % 10 == 1 and f.exponential and f.arguments == 1:
            case = replace(case, special="minus_inf")
        yield case


def judged(formula: Formula, law: str, dtype: str, promise: str, count: int, seed: int = 0) -> Row:
    """One row: the kernels of its contract take turns."""
    row, declared = Row(formula.name, law, dtype, promise), contract(CONTRACTS[promise], dtype)
    for number, case in enumerate(random_cases(formula, law, dtype, count, seed)):
        name, kernel = _in_turn(kernels_of(formula.name, law, promise), case, number)
        arguments = build(formula, case).arguments
        truth = truth_of(formula, arguments, declared, vjp=law == "vjp")
        if dtype == "fp64":
            row.violations += [f"{what}: {case}" for what in _second_opinion(formula, law, arguments, truth)]
        worst = worst_entry(outputs_of(kernel, arguments, truth), truth, declared)
        if worst is None:
            continue
        row.worst.append(worst.ratio)
        row.hazards += any(bool(hazards(b).any()) for b in truth.values())
        units = np.concatenate([b.in_units_of(declared.io.unit_roundoff).ravel() for b in truth.values()])
        row.units += _middle(units)
        if number % 4 == 0 and (law == "definition" or formula.name in MULTILINEAR):
            row.gain += _middle(_sharp_over_generic(formula, law, arguments, declared))
        if not (worst.ratio <= 1):
            row.violations.append(f"{name}: {case}: {worst}")
    return row


def _in_turn(kernels: Mapping[str, Kernel], case: Case, number: int) -> tuple[str, Kernel]:
    """Cases with a long reduction have a turn of their own, and none for loops in Python."""
    longest = max([*(size for _, size in case.sizes), *case.batch])
    if longest <= 130:
        return list(kernels.items())[number % len(kernels)]
    quick = [item for item in kernels.items() if item[0] not in SLOW]
    return quick[number // 10 % len(quick)]


def _middle(values: np.ndarray) -> list[float]:
    finite = values[np.isfinite(values)]
    return [float(np.median(finite))] if finite.size else []


def _sharp_over_generic(formula: Formula, law: str, arguments: Mapping[str, Any], declared: Contract) -> np.ndarray:
    given = {name: as_numpy(value) for name, value in arguments.items()}
    sharp, generic = (rule(formula.name, given, declared, vjp=law == "vjp") for rule in (sharp_bound, generic_bound))
    if sharp is None:
        return np.array([])
    if law == "definition":
        sharp, generic = {"": sharp}, {"": generic}
    with np.errstate(all="ignore"):
        return np.concatenate([(sharp[key].error / generic[key].error).ravel() for key in generic])


def _second_opinion(formula: Formula, law: str, arguments: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    """Where the balls of ball_truth.py contradict the exact oracle, or the float64 one by more than the bound."""
    given, vjp = {name: as_numpy(value) for name, value in arguments.items()}, law == "vjp"
    plain, rounded = (oracle(formula.name, given, vjp=vjp, exact=exact) for exact in (False, True))
    second = ball_truth.truth(formula.name, given, vjp=vjp)
    finite = [np.abs(value[np.isfinite(value)]).max(initial=0.0) for value, _ in second.values()]
    digitless = NEGLIGIBLE * max(finite)  # beside the largest result an entry may have no first digit (oracle)
    for key, (value, radius) in second.items():
        judged, error = truth[key].value, truth[key].error
        computed, exact = (plain[key], rounded[key]) if vjp else (plain, rounded)
        with np.errstate(all="ignore"):
            # 2·radius: one unit in the last place where the exact number lies half way, and nothing elsewhere.
            agrees = (exact == value) | (np.abs(exact - value) <= 2 * radius + digitless)
            known = (judged == value) | (np.abs(judged - value) <= 2 * radius + digitless + UNSEEN * error)
            inside = (computed == value) | (np.abs(computed - value) <= error + radius)
        if not (agrees | np.isnan(exact)).all():
            yield f"the exact oracle of {key or 'the result'} is not correctly rounded"
        if not (known | np.isnan(judged)).all():
            yield f"the value that {key or 'the result'} is judged by is further off than its bound does not see"
        if not (inside | np.isinf(error) | np.isnan(exact)).all():
            yield f"the float64 oracle of {key or 'the result'} is beyond the bound of fp64"


def outputs_of(kernel: Kernel, arguments: Mapping[str, Any], truth: Truth) -> dict[str, Tensor]:
    """What the kernel computes, by output."""
    options = {k: v for k, v in arguments.items() if k in ("mask", "scale", "is_causal") and v is not None}
    tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and k not in ("mask", "grad_output")}
    if "grad_output" not in arguments:
        return {"": kernel(*tensors.values(), **options)}
    found = kernel(*tensors.values(), grad_output=arguments["grad_output"], **options)
    return {key: value for key, value in zip(tensors, found, strict=True) if key in truth}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.soundness", description=__doc__)
    parser.add_argument("--cases", type=int, default=320, help="cases per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--op", action="append", default=[], help="only this operation")
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: list[Row] = []
    with one_blas_thread():
        for formula, law, dtype, promise in rows():
            if not options.op or formula.name in options.op:
                found.append(judged(formula, law, dtype, promise, options.cases, options.seed))
                print(found[-1].line(), flush=True)
    failed = [line for row in found for line in row.violations]
    total = f"{sum(len(row.worst) for row in found):,} cases, {len(failed)} violations"
    total += f"; in {sum(row.hazards for row in found):,} some entry may overflow on the way and is not judged."
    print(total, *failed[:20], sep="\n")
    if options.write:
        table = "\n".join([total, "", *HEAD, *(row.line() for row in found)])
        marked.put(options.write, MARKS, table)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
