"""What happens to the factors of a product before they enter it, and to the product: for attention and what is built on
it. A kernel may read subnormals as zero, multiply the scale into q, into k or into their product, and round to io
before that or after it.
"""

from __future__ import annotations

import math

import numpy as np

from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.sharp.roundings import Arguments, Array, Roundings, array, join


def finite(arguments: Arguments, name: str) -> Array:
    """NaN and infinities read as 0: the caller tells what depends on them (nonfinite.py), the rest is not moved."""
    given = array(arguments, name)
    return given if np.isfinite(given).all() else np.where(np.isfinite(given), given, 0.0)


def added(error: Array | None, other: Array | None) -> Array | None:
    return other if error is None else error if other is None else error + other


def overflows(operand: Array, scale: float, promise: Contract) -> Array:
    """Where an entry of q or k may be infinite once the scale, and log2(e) with it, is multiplied into it."""
    most = abs(scale) * (math.log2(math.e) if promise.kappa >= 2 else 1.0)
    return np.abs(operand) * max(most, 1.0) >= promise.acc.overflow_threshold


def scale_casts(promise: Contract) -> float:
    """Relative error of a product of q and k when either was rounded to io after the scale went into it."""
    return join(*[promise.io.unit_roundoff] * promise.scale_casts) if promise.io != promise.acc else 0.0


def scaled(operand: Array, scale: float, model: Roundings, given: Array | None = None) -> Array | None:
    """The absolute error of q or k, in its own units: `given`, read as zero, and subnormal once the scale is in it. A
    kernel may multiply by the scale or by its root."""
    small, promise = flushed(operand, given, model), model.contract
    if not promise.scale_casts or promise.io == promise.acc or not scale:
        return added(small, given)
    nonzero = operand != 0 if given is None else (operand != 0) | (given != 0)
    underflow = np.where(nonzero, promise.eta_out / min(abs(scale), 1.0), 0.0)
    return added(underflow if small is None else np.maximum(underflow, small), given)


def flushed(operand: Array, given: Array | None, model: Roundings) -> Array | None:
    """What reading subnormals as zero may cost: |operand| where it is one, η where it may be one within `given`."""
    small = model.flushed(operand)
    if given is None:
        return small
    near = np.where((given > 0) & (np.abs(operand) - given < model.eta), model.eta, 0.0)
    return near if small is None else np.maximum(near, small)


def cast_at(value: Array, error: Array, other: Array, ratio: float, promise: Contract) -> Array:
    """The error after a cast to io of numbers within `error` of `value`, or of the same numbers divided by `ratio`,
    which are at most `other`; +inf where either may overflow."""
    if promise.io == promise.acc:
        return error
    moved = moved_at(value, error, other, ratio, promise)
    return np.where(np.maximum(np.abs(value) + error, other) >= promise.io.overflow_threshold, np.inf, error + moved)


def moved_at(value: Array, error: Array, other: Array, ratio: float, promise: Contract) -> Array:
    """How far that cast moves them: a kernel may round before it multiplies by the scale or after it, and spacing and
    underflow of the format are others there."""
    io = promise.io
    moved = np.maximum(io.half_spacing(np.abs(value) + error), ratio * io.half_spacing(other))
    moved = moved + promise.eta_out * max(1.0, ratio)
    if math.frexp(ratio)[0] != 0.5:
        return moved
    normal = (np.abs(value) - error >= ratio * io.smallest_normal) | (value == 0)
    return np.where(io.settles(value, error) & normal, 0.0, moved)  # the format has both numbers, or neither
