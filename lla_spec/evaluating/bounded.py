"""A value together with the most that a kernel's result may differ from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bounded:
    """`value`: the exact result as float64 (...). `error` (...): the bound on |computed - value|, >= 0, never NaN.

    `before_cast` (...), if given, is the bound before the last rounding to the io dtype; overflow is decided there.
    value NaN with error 0: the result depends on a NaN and must be NaN. value NaN with error inf: it depends on an
    infinity and is not judged.
    """

    value: np.ndarray
    error: np.ndarray
    before_cast: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("error", "before_cast"):
            array = getattr(self, name)
            if array is not None and array.shape != self.value.shape:
                raise ValueError(f"Bounded: {name} has shape {array.shape} but value has {self.value.shape}")
        if np.isnan(self.error).any():
            raise ValueError("Bounded: error has a NaN; a bound that breaks down is inf")

    @property
    def pre_cast_error(self) -> np.ndarray:
        """The error before the last rounding; where it is not known, the whole error."""
        return self.error if self.before_cast is None else self.before_cast

    def minimum(self, other: Bounded) -> Bounded:
        """The smaller error, entry by entry, around this value: both must bound the same result."""
        if other.value.shape != self.value.shape:
            raise ValueError(f"Bounded: value has shape {self.value.shape} but the other has {other.value.shape}")
        return Bounded(
            self.value,
            np.minimum(self.error, other.error),
            np.minimum(self.pre_cast_error, other.pre_cast_error),
        )

    def around(self, value: np.ndarray) -> Bounded:
        """The same bound around a better value (balls give one)."""
        return Bounded(value, self.error, self.before_cast)

    def in_units_of(self, unit_roundoff: float) -> np.ndarray:
        """error / (u·|value|), NaN where the value is 0 or not finite: how loose the bound is."""
        magnitude = np.abs(self.value)
        usable = np.isfinite(magnitude) & (magnitude > 0)
        with np.errstate(all="ignore"):  # u·|value| may underflow
            return np.where(usable, self.error / np.where(usable, unit_roundoff * magnitude, 1.0), np.nan)
