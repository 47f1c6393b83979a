"""How much the sharp rules gain on the generic one: python -m tests.engine.generic_table [cases]."""

from __future__ import annotations

import sys

import numpy as np

from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.operations import generic_bound, sharp_bound
from tests.engine.kernels import FORWARD, random_arguments, rounded_to


def ratios(name: str, dtype: str, vjp: bool, cases: int) -> np.ndarray:
    """sharp / generic, over all entries of all cases where both are finite and the generic one is not 0."""
    rng, found = np.random.default_rng(0), []
    for _ in range(cases):
        given, _tensors, _options = rounded_to(random_arguments(name, rng), dtype)
        if vjp:
            given["grad_output"] = rng.normal(size=generic_bound(name, given, contract(None, dtype)).value.shape)
        generic, sharp = (rule(name, given, contract(None, dtype), vjp=vjp) for rule in (generic_bound, sharp_bound))
        if sharp is None:
            return np.array([])
        for key in generic if vjp else [None]:
            top, bottom = (b.error if key is None else b[key].error for b in (sharp, generic))
            usable = np.isfinite(top) & np.isfinite(bottom) & (bottom > 0)
            found.append((top[usable] / bottom[usable]).ravel())
    return np.concatenate(found)


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    print(f"{'sharp / generic':24} {'dtype':6} {'entries':>8} {'median':>8} {'largest':>8}  generic is smaller")
    for vjp in (False, True):
        for name in FORWARD:
            for dtype in ("fp32", "bf16"):
                found = ratios(name, dtype, vjp, cases)
                title = f"{name}_vjp" if vjp else name
                if not found.size:
                    print(f"{title:24} {dtype:6} no sharp rule")
                    continue
                wins = np.mean(found > 1)
                print(f"{title:24} {dtype:6} {found.size:8} {np.median(found):8.3g} {found.max():8.3g}  {wins:.2%}")


if __name__ == "__main__":
    main()
