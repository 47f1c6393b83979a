"""Numbers from Philox raw bits (Salmon et al. 2011), by our own mapping.

numpy promises the raw bits of a bit generator for ever (NEP 19), but not the streams of its distributions, and libm's
log and cos differ in the last bit between processors: so a normal is a sum of uniforms, which is exact arithmetic
anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

_NORMAL_TERMS = 12  # the sum of 12 uniforms on [-1/2, 1/2) has variance 1


class _Key(ISeedSequence):
    """Gives Philox its key as it is: `Philox(key=…)` does the same, and draws from the system's entropy beside it."""

    def __init__(self, label: str) -> None:
        self.label = label

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.frombuffer(hashlib.sha256(self.label.encode()).digest(), dtype)[:n_words]


class Bits:
    """A stream of random bits that depends on its labels only: `Bits(17, "q")` is the same on every machine.

    >>> Bits(17, "q").integers(0, 10, (4,)).tolist() == Bits(17, "q").integers(0, 10, (4,)).tolist()
    True
    """

    def __init__(self, *labels: object) -> None:
        self._raw = np.random.Philox(_Key("\x1f".join(map(str, labels))))  # pyright: ignore[reportArgumentType]

    def _words(self, count: int) -> np.ndarray:
        return np.asarray(self._raw.random_raw(max(count, 1)))[:count]

    def uniform(self, shape: Sequence[int]) -> np.ndarray:
        """float64 in [0, 1), multiples of 2⁻⁵³."""
        count = int(np.prod(shape))
        return ((self._words(count) >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """float64, mean 0, variance 1, within ±6: a sum of 12 uniforms of 16 bits, and one below them of 53 bits.

        Without the last one every value is a multiple of 2⁻¹⁶, and products of two are exact in float64: nothing would
        round, and a wrong fp64 kernel could hide.
        """
        count = int(np.prod(shape))
        words = self._words(count * _NORMAL_TERMS // 4).view(np.uint16)
        coarse = words.reshape(count, _NORMAL_TERMS).sum(1, dtype=np.uint32) * 2.0**-16 - _NORMAL_TERMS / 2
        return (coarse + self.uniform((count,)) * 2.0**-16).reshape(shape)

    def integers(self, low: int, high: int, shape: Sequence[int] = ()) -> np.ndarray:
        """int64 in [low, high)."""
        return low + (self._words(int(np.prod(shape))) % np.uint64(high - low)).astype(np.int64).reshape(shape)

    def choice(self, options: Sequence[object]) -> object:
        return options[int(self.integers(0, len(options)))]

    def signs(self, shape: Sequence[int]) -> np.ndarray:
        return 1.0 - 2.0 * self.integers(0, 2, shape)

    def permutation(self, n: int) -> np.ndarray:
        return np.argsort(self._words(n), kind="stable")
