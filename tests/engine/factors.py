"""How small a common factor does the covering list notice? A gradient that is 2 % too large as a whole looks right.

    python -m tests.engine.factors --write docs/bounds.md

For every output of every operation: the smallest share of some entry that its bound allows in some case of the list, in
unit roundoffs of the dtype. A kernel whose whole output is off by a larger factor is refused there, whatever else its
roundings do. Nothing is run but bounds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import lla_spec.formulas  # noqa: F401  (declares the operations)
from lla_spec.certified import Certified
from lla_spec.evaluating.contracts import PRECISIONS, contract
from lla_spec.language import Formula, registry
from lla_spec.testing.covering import covering
from lla_spec.testing.inputs import build
from lla_spec.testing.truth import truth_of
from tests.engine import marked
from tests.engine.campaign import on_one_thread

MARKS = ("<!-- factors -->", "<!-- /factors -->")
DTYPES = ("fp32", "bf16", "fp16")
LONGEST = 700  # of all sizes together: long sums have the wider bounds, and take the time


def noticed(formula: Formula, law: str, dtype: str, longest: int = LONGEST) -> dict[str, tuple[float, str]]:
    """By output: the factor that is noticed, in unit roundoffs, and the class of the case. Without those that are 0,
    which no factor changes: a bias of the keys has no gradient."""
    found: dict[str, tuple[float, str]] = {}
    declared, unit = contract(None, dtype), PRECISIONS[dtype].unit_roundoff
    for name, case in covering(formula, law, dtype):
        if sum(size for _, size in case.sizes) > longest:
            continue
        truth = truth_of(formula, build(formula, case).arguments, declared, vjp=law == "vjp")
        for output, bounded in truth.items():
            usable = np.isfinite(bounded.value) & (bounded.value != 0)
            with np.errstate(over="ignore"):
                allowed = (bounded.error[usable] / np.abs(bounded.value[usable])).min(initial=np.inf) / unit
            if allowed < found.get(output, (np.inf, ""))[0]:
                found[output] = (float(allowed), name)
    return {output: best for output, best in found.items() if best[0] * unit < 1}


def formulas() -> list[Formula]:
    """The operations that bounds judge; the others have certificates."""
    return [formula for formula in registry.operations() if not isinstance(formula, Certified)]


def table() -> Iterator[str]:
    yield "| operation | law | output | " + " | ".join(DTYPES) + " |"
    yield "|---|---|---|" + "---:|" * len(DTYPES)
    for formula, law in itertools.product(formulas(), ("definition", "vjp")):
        by_dtype = [noticed(formula, law, dtype) for dtype in DTYPES]
        for output in by_dtype[0]:
            cells = [f"{found[output][0]:.2g}" if output in found else "–" for found in by_dtype]
            yield f"| {formula.name} | {law} | {output or 'result'} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args()
    with on_one_thread():
        lines = "\n".join(table())
    print(lines)
    if options.write:
        marked.put(options.write, MARKS, lines)


if __name__ == "__main__":
    main()
