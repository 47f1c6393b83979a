"""Families of values: each is an input class on which some wrong kernel shows (NUMERICS: a bound is half the tool).

A family fills an array of float64 values; the last axis is the one that reductions run over. `magnitude` is a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lla_spec.testing.bits import Bits

Fill = Callable[[Bits, Sequence[int], float], np.ndarray]


@dataclass(frozen=True)
class Family:
    """`fill(bits, shape, magnitude)`. `random_mantissas`: rounding errors are independent, so the tight tier holds.
    `cotangent`: where an argument is of this family, the cotangent is as well (else it is normal)."""

    name: str
    fill: Fill
    random_mantissas: bool = False
    cotangent: bool = False


def _normal(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    return bits.normal(shape) * magnitude


def _weights(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """As a layer is initialised, 1/√(length of a row): what passes through it keeps its size."""
    return bits.normal(shape) / np.sqrt(max(shape[-1], 1) if shape else 1) * magnitude


def _heavy(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    return bits.normal(shape) / (bits.uniform(shape) + 2.0**-7) * magnitude


def _spike(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    few = bits.uniform(shape) < 1 / 16
    return np.where(few, bits.normal(shape) * 4, bits.normal(shape) / 64) * magnitude


def _offset(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    return (bits.normal(shape) / 16 + 3) * magnitude


def _far(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """A mean of three thousand deviations: E[x²] - μ² has lost most of its digits there, a centred square few."""
    return (bits.normal(shape) / 1024 + 3) * magnitude


def _nearly_constant(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """Each row one number around 3, and once the next one of bfloat16: as far from zero as different numbers can be."""
    if not shape:
        return np.full(shape, 3.0) * magnitude
    row = (*shape[:-1], 1)
    values = np.broadcast_to(3 + bits.integers(-32, 33, row) / 64, shape).copy()
    if shape[-1]:
        chosen = bits.integers(0, shape[-1], row)
        np.put_along_axis(values, chosen, np.take_along_axis(values, chosen, -1) + 1 / 64, -1)
    return values * magnitude


def _positive(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    return (np.abs(bits.normal(shape)) + 2.0**-6) * magnitude


def _cancel(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """The second half of each row takes the first half back, exactly: sums are far below their terms."""
    values = bits.normal(shape)
    half = shape[-1] // 2 if shape else 0
    if half:
        values[..., half : 2 * half] = -values[..., :half]
    return values * magnitude


def _ones(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    return np.ones(shape) * magnitude


def _equal_rows(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """Every row constant (ties everywhere), rows different."""
    return np.broadcast_to(bits.normal((*shape[:-1], 1)) if shape else bits.normal(()), shape) * magnitude


def _ties(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    return bits.integers(-1, 2, shape).astype(np.float64) * magnitude


def _units(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """-1, 0 and 1, the cotangent too: sums of a few products fit 8 bits, and the result of a chain of them may be exact
    in every format."""
    return bits.integers(-1, 2, shape).astype(np.float64)


def _powers_of_two(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    return bits.signs(shape) * 2.0 ** bits.integers(-4, 5, shape) * magnitude


def _integers(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """Small integers: products and sums are exact in every accumulator."""
    return bits.integers(-4, 5, shape).astype(np.float64)


def _dominant(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """One entry of each row far above the others: a softmax that saturates at 1."""
    values = bits.normal(shape)
    if shape and shape[-1]:
        chosen = bits.integers(0, shape[-1], (*shape[:-1], 1))
        np.put_along_axis(values, chosen, np.take_along_axis(values, chosen, -1) + 24, -1)
    return values * magnitude


def _confident(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """The last entry of each row is 7 above the others, which together weigh about a hundredth of it."""
    values = bits.normal(shape) / 4
    if shape:
        values[..., -1:] += 7
    return values * magnitude


def _late(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """The last entry of each row is 0, the others are around -40: a part of their exponentials is seen beside it."""
    values = bits.normal(shape) / 4 - 40
    if shape:
        values[..., -1:] = 0
    return values * magnitude


def _step(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """0 in the first half of the rows, 1 in the second: along the keys, scores that jump after many blocks."""
    if len(shape) < 2:
        return np.ones(shape) * magnitude
    late = np.arange(shape[-2]) >= (shape[-2] + 1) // 2
    return np.broadcast_to(late[:, None], shape) * magnitude


def _last(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """0 in all rows but the last, which is 1: the tail of the last block carries nearly all the weight."""
    if len(shape) < 2:
        return np.ones(shape) * magnitude
    return np.broadcast_to((np.arange(shape[-2]) == shape[-2] - 1)[:, None], shape) * magnitude


def _far_below_zero(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """All around -400: without the maximum taken out every exponential underflows."""
    return (bits.normal(shape) - 400) * magnitude


def _far_above_zero(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """All around +400: without the maximum taken out every exponential overflows."""
    return (bits.normal(shape) + 400) * magnitude


def _tiny(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    """Near the smallest normal number of the dtype (`magnitude` is set to it by the case)."""
    return bits.normal(shape) * magnitude


def _zeros(bits: Bits, shape: Sequence[int], magnitude: float) -> np.ndarray:
    return np.zeros(shape)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("normal", _normal, True),
        Family("weights", _weights, True),
        Family("model", _normal, True),  # and "weights" for the matrices that all rows share: see inputs.py
        Family("heavy", _heavy, True),
        Family("spike", _spike, True),
        Family("positive", _positive),
        Family("offset", _offset),
        Family("far", _far),
        Family("nearly", _nearly_constant),
        Family("cancel", _cancel),
        Family("ones", _ones),
        Family("equal_rows", _equal_rows),
        Family("ties", _ties),
        Family("units", _units, cotangent=True),
        Family("pow2", _powers_of_two),
        Family("ints", _integers),
        Family("dominant", _dominant),
        Family("confident", _confident),
        Family("late", _late),
        Family("step", _step),
        Family("last", _last),
        Family("below", _far_below_zero),
        Family("above", _far_above_zero),
        Family("tiny", _tiny),
        Family("zeros", _zeros),
    )
}
