"""From a computed result and a bound to one number per entry: |error| / bound, with the edges of a format respected.

A ratio in [0, 1] is right, above 1 (or inf) is wrong; it is never NaN. The rules, in this order:

1. The value is NaN: with error 0 the computed entry must be NaN; with error inf the entry is not judged.
2. The computed entry is NaN although the value is not: inf. Where the error is infinite it is not judged, like any
   other number there: after an overflow on the way, inf - inf is NaN (`hazards` counts these entries).
3. Equal entries, infinities of the same sign included: 0, even where the bound is 0. An infinite value wants itself.
4. With T the smallest magnitude that rounds to infinity and e the error before the last cast: |R|-e >= T must
   overflow; +inf may stand where R+e >= T, -inf where R-e <= -T, and an infinity anywhere else is wrong.
5. Otherwise |computed - R| / bound; a bound of 0 asks for equality.
"""

from __future__ import annotations

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Precision


def ratios(computed: np.ndarray, bounded: Bounded, io: Precision) -> np.ndarray:
    """Ratio |computed - value| / error per entry, shape (...) float64, never NaN; right means `ratio <= 1`.

    `computed` (...) holds the result of a kernel in dtype `io`, converted to float64. ValueError if shapes differ.

    >>> from lla_spec.evaluating.contracts import PRECISIONS
    >>> b = Bounded(np.array([1.0, 1e6]), np.array([0.5, 500.0]))
    >>> ratios(np.array([1.25, np.inf]), b, PRECISIONS["fp16"])
    array([0.5, 0. ])
    """
    computed = np.asarray(computed, dtype=np.float64)
    if computed.shape != bounded.value.shape:
        raise ValueError(f"ratios: computed has shape {computed.shape} but the value has {bounded.value.shape}")
    value, error = bounded.value, bounded.error
    with np.errstate(all="ignore"):
        difference = np.abs(computed - value)
        if _ordinary(difference, bounded, io):
            return np.where(difference == 0, 0.0, difference / error)
        must, may = _overflow(np.sign(computed), bounded, io)
        # A bound of 0 divides to inf (0/0 is caught by rule 3); inf/inf is a breakdown of the bound: nothing is known.
        ratio = np.where(np.isinf(error), 0.0, difference / error)
    ratio = np.where(np.isinf(computed), np.where(may, 0.0, np.inf), ratio)
    ratio = np.where(np.isfinite(computed) & (must | np.isinf(value)), np.inf, ratio)
    ratio = np.where(np.isinf(computed) & np.isinf(error) & np.isfinite(value), 0.0, ratio)
    ratio = np.where(computed == value, 0.0, ratio)
    ratio = np.where(np.isnan(computed), np.where(np.isinf(error), 0.0, np.inf), ratio)
    wanted_nan = np.isnan(value)
    return np.where(wanted_nan, np.where(np.isnan(computed) | np.isinf(error), 0.0, np.inf), ratio)


def _ordinary(difference: np.ndarray, bounded: Bounded, io: Precision) -> bool:
    """Whether every entry is a number and none may overflow: then rules 3 and 5 are all there is."""
    most = np.abs(bounded.value) + bounded.pre_cast_error
    return bool(np.isfinite(difference + bounded.error).all() and (most < io.overflow_threshold).all())


def hazards(bounded: Bounded) -> np.ndarray:
    """True (...) where an overflow on the way, or a bound that broke down, leaves nothing to judge: a finite value
    with an infinite error. Such entries are counted and reported, neither passed nor failed."""
    return np.isfinite(bounded.value) & np.isinf(bounded.error)


def _overflow(sign: np.ndarray, bounded: Bounded, io: Precision) -> tuple[np.ndarray, np.ndarray]:
    """Where the result must be infinite, and where it may be so with this sign: a wide bound reaches to both sides."""
    value, slack = bounded.value, bounded.pre_cast_error
    finite = np.isfinite(value)
    with np.errstate(all="ignore"):
        must = finite & (np.abs(value) - slack >= io.overflow_threshold)
        may = finite & (sign * value + slack >= io.overflow_threshold)
    return must, may
