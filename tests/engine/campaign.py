"""Is every bound of norms, losses, lookups and heads at least the real error? One loop for the topics, row by row.

    python -m tests.engine.campaign --cases 640 --write docs/bounds.md

A row is operation × forward or VJP × dtype × contract, as in soundness.py. A topic (test_<topic>_bounds.py) brings the
kernels that keep the contract, and the cases. fp64 is judged by balls. A violation is a defect of a kernel here or an
error of a derivation: find out which.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lla_spec.formulas  # noqa: F401  (declares the operations)
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract, contract
from lla_spec.evaluating.edges import hazards
from lla_spec.language import registry
from lla_spec.testing.judge import worst_entry
from lla_spec.testing.threads import one_blas_thread
from lla_spec.testing.truth import truth_of
from tests.engine import marked, soundness
from tests.engine.kernels import CONTRACTS

Arguments = Mapping[str, Any]
Kernel = Callable[..., Any]
Truth = dict[str, Bounded]
RowName = tuple[str, str, str, str]  # operation, law, dtype, contract

MARKS = ("<!-- topics -->", "<!-- /topics -->")
SHORT = 130
"""Kernels that loop in Python take cases whose axes are no longer than this."""


def suite_truth(operation: str, arguments: Arguments, declared: Contract) -> Truth:
    """The value and the bound that `lla-spec verify` judges by."""
    return truth_of(registry.formulas[operation], dict(arguments), declared, vjp="grad_output" in arguments)


@dataclass(frozen=True)
class Topic:
    """What a topic brings to its rows.

    `kernels(operation, law, contract)`: those that keep the contract, by name; each takes torch arguments by name and
    returns a tensor, or with grad_output a dict of gradients. `drawn(operation, law, dtype, count, seed)`: the cases,
    each a line that names it and its arguments; their classes come round every `period` cases. `slow`: what stands in
    the name of a kernel that loops in Python.
    """

    rows: Sequence[RowName]
    kernels: Callable[[str, str, str], Mapping[str, Kernel]]
    drawn: Callable[[str, str, str, int, int], Iterable[tuple[str, Arguments]]]
    period: int
    slow: str | None = None
    truth: Callable[[str, Arguments, Contract], Truth] = suite_truth


def judged(topic: Topic, row: RowName, count: int, seed: int) -> soundness.Row:
    """One row, on `count` cases of its topic."""
    operation, law, dtype, _ = row
    return judged_on(topic, row, topic.drawn(operation, law, dtype, count, seed))


def judged_on(topic: Topic, row: RowName, cases: Iterable[tuple[str, Arguments]]) -> soundness.Row:
    """One row, on these cases: the kernels take turns. A case without any entry shows nothing and is not counted."""
    operation, law, dtype, promise = row
    found, declared = soundness.Row(*row), contract(CONTRACTS[promise], dtype)
    kernels = topic.kernels(operation, law, promise)
    quick = [name for name in kernels if topic.slow is None or topic.slow not in name]
    for number, (what, arguments) in enumerate(cases):
        chosen = list(kernels) if _longest(arguments) <= SHORT else quick
        name = chosen[(number + number // topic.period) % len(chosen)]  # no class keeps to one kernel
        truth = topic.truth(operation, arguments, declared)
        worst = worst_entry(outputs_of(kernels[name], arguments), truth, declared)
        if worst is None:
            continue
        found.worst.append(worst.ratio)
        found.hazards += any(bool(hazards(b).any()) for b in truth.values())
        units = np.concatenate([b.in_units_of(declared.io.unit_roundoff).ravel() for b in truth.values()])
        found.units += [float(np.median(units[np.isfinite(units)]))] if np.isfinite(units).any() else []
        if not (worst.ratio <= 1):
            found.violations.append(f"{' '.join(row)}, {name}: {what}: {worst}")
    return found


def _longest(arguments: Arguments) -> int:
    return max(size for value in arguments.values() if isinstance(value, Tensor) for size in (1, *value.shape))


def outputs_of(kernel: Kernel, arguments: Arguments) -> dict[str, Tensor]:
    """What the kernel computes, by output; optional arguments that are None are left out."""
    result = kernel(**{name: value for name, value in arguments.items() if value is not None})
    return result if "grad_output" in arguments else {"": result}


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with one_blas_thread():
        yield
    torch.set_num_threads(before)


# ---- the table


def _cut(line: str) -> str:
    """Without the last column, sharp/generic: for most of these operations no generic rule holds."""
    return line.rsplit("|", 2)[0] + "|"


def main(topics: Sequence[Topic], arguments: list[str] | None = None) -> int:
    """Judge the rows of the topics, print them as a table, and exit with 1 where one shows a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="cases per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--op", action="append", default=[], help="only this operation")
    parser.add_argument("--dtype", action="append", default=[], help="only this dtype")
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args(arguments)
    found: list[soundness.Row] = []
    with on_one_thread():
        for topic, row in [(given, row) for given in topics for row in given.rows]:
            if (not options.op or row[0] in options.op) and (not options.dtype or row[2] in options.dtype):
                found.append(judged(topic, row, options.cases, options.seed))
                print(_cut(found[-1].line()), *found[-1].violations[:3], sep="\n", flush=True)
    failed = [line for row in found for line in row.violations]
    total = f"{sum(len(row.worst) for row in found):,} cases, {len(failed)} violations"
    total += f"; in {sum(row.hazards for row in found):,} some entry may overflow on the way and is not judged."
    print(total, *failed[:40], sep="\n")
    if options.write:
        table = "\n".join([total, "", *map(_cut, (*soundness.HEAD, *(row.line() for row in found)))])
        marked.put(options.write, MARKS, table)
    return int(bool(failed))


if __name__ == "__main__":
    from tests.engine import test_loss_bounds as losses
    from tests.engine import test_multi_head_bounds as heads
    from tests.engine import test_normalization_bounds as norms

    raise SystemExit(main([norms.TOPIC, losses.TOPIC, heads.TOPIC]))
