"""Integers in linear operations: where every partial sum fits the accumulator, the result is known to the last bit.

Products and sums of integers are integers, and every integer up to 2^p = 1/u is a number of the format. So if Σ|a||b|
is at most 1/u_acc, every kernel, whatever order it sums in, computes the exact result and rounds it once (the check
that CUTLASS makes of its products). A wrong index or a dropped term has no rounding to hide in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lla_spec.evaluating.contracts import Contract, Precision
from lla_spec.evaluating.float64 import Float64
from lla_spec.evaluating.prepared import Prepared

Array = np.ndarray


def rounded(value: Array, precision: Precision) -> Array:
    """float64 values rounded to nearest even in another format (subnormals of the format included).

    >>> from lla_spec.evaluating.contracts import PRECISIONS
    >>> float(rounded(np.array(1.001), PRECISIONS["bf16"]))
    1.0
    """
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(value)
        spacing = np.ldexp(2 * precision.unit_roundoff, exponent - 1)
        spacing = np.maximum(spacing, precision.smallest_subnormal)
        found = np.rint(value / spacing) * spacing
        found = np.where(np.abs(found) > precision.largest, np.copysign(np.inf, value), found)
    return np.where(np.isfinite(value), found, value)


class Magnitudes(Float64):
    """Sums and products of absolute values: no sum of some of the terms is larger."""

    def input(self, array: Array, kind: str) -> Array:
        return np.abs(super().input(array, kind))

    def negate(self, a: Array) -> Array:
        return a


def results_are_exact(prepared: Prepared, contract: Contract) -> bool:
    """Whether every kernel of the contract must give cast(R), bitwise, for every result at these inputs."""
    if not prepared.plan.is_multilinear:
        return False
    largest = 2.0**11 if contract.tf32 else 1 / contract.io.unit_roundoff
    values: list[Any] = [np.asarray(value) for value in prepared.inputs.values()]
    if not all(np.isfinite(v).all() and (v == np.rint(v)).all() and (np.abs(v) <= largest).all() for v in values):
        return False
    totals = prepared.run(Magnitudes())
    return all(total.max(initial=0.0) <= 1 / contract.u_acc for total in totals.values())
