"""Families of matrices by their spectrum: what a factorisation gets wrong depends on it, not on the entries.

A family fills a float64 matrix (m, n) from random bits by additions, products, divisions and square roots alone, in an
order of its own, so that a case replays bit for bit on any machine (a library's QR or product would not). Those that
promise an exact spectrum hold small integers and halves: no dtype rounds them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lla_spec.testing.bits import Bits

Fill = Callable[[Bits, int, int], np.ndarray]


def _reflected(a: np.ndarray, bits: Bits) -> np.ndarray:
    """H A with three Householder reflections H = I - 2vvᵀ/vᵀv, v of small integers: orthonormal up to rounding."""
    for _ in range(3):
        v = bits.integers(-3, 4, (a.shape[0],)).astype(np.float64)
        v[0] += v[0] == 0
        total = np.zeros(a.shape[1])
        for row, weight in zip(a, v, strict=True):  # in this order on every machine
            total = total + weight * row
        a = a - v[:, None] * (total * (2 / float((v * v).sum())))  # a sum of integers is exact
    return a


def _with(bits: Bits, m: int, n: int, values: np.ndarray) -> np.ndarray:
    """U diag(values) Vᵀ with random orthonormal U and V."""
    a = np.zeros((m, n))
    size = min(m, n)
    a[np.arange(size), np.arange(size)] = values
    return _reflected(_reflected(a, bits).T, bits).T


def _degenerate(bits: Bits, m: int, n: int) -> np.ndarray:
    """Clusters of equal singular values (2 and 1, exactly), mixed by Hadamard blocks H₄/2: halves and integers."""
    a, size = np.zeros((m, n)), min(m, n)
    rows, columns = bits.permutation(m)[:size], bits.permutation(n)[:size]
    a[rows, columns] = np.where(np.arange(size) < (size + 1) // 2, 2.0, 1.0) * bits.signs((size,))
    return _hadamard(_hadamard(a).T).T


def _hadamard(a: np.ndarray) -> np.ndarray:
    """Each four rows mixed by H₄/2, which is orthonormal; what is left over stays."""
    for top in range(0, a.shape[0] - 3, 4):
        p, q, r, s = (a[top + step].copy() for step in range(4))
        a[top : top + 4] = np.stack([p + q + r + s, p - q + r - s, p + q - r - s, p - q - r + s]) / 2
    return a


def _clustered(bits: Bits, m: int, n: int) -> np.ndarray:
    """Singular values in groups of three that differ by 2⁻²⁰."""
    index = np.arange(min(m, n))
    return _with(bits, m, n, 1 / (1.0 + index // 3) + (index % 3) * 2.0**-20)


def _log_spaced(bits: Bits, m: int, n: int) -> np.ndarray:
    """Singular values from 1 to 2⁻³⁰, evenly in the exponent (powers of √2, made of exact ones and one root)."""
    size = min(m, n)
    steps = np.round(np.linspace(0, 60, size)).astype(int) if size > 1 else np.zeros(1, int)
    return _with(bits, m, n, np.ldexp(np.where(steps % 2, np.sqrt(0.5), 1.0), -(steps // 2)))


def _slow_decay(bits: Bits, m: int, n: int) -> np.ndarray:
    """σᵢ = i^(-1/2): a random sketch without power iterations misses much of it."""
    return _with(bits, m, n, 1 / np.sqrt(1.0 + np.arange(min(m, n))))


def _factors(bits: Bits, m: int, n: int, rank: int) -> np.ndarray:
    left, right = bits.integers(-2, 3, (m, rank)), bits.integers(-2, 3, (rank, n))
    return (left[:, :, None] * right[None]).sum(1).astype(np.float64)


def _low_rank(bits: Bits, m: int, n: int) -> np.ndarray:
    """Rank about min(m, n)/2, at most 6: products of small integers, exact in every dtype."""
    return _factors(bits, m, n, max(1, min(6, min(m, n) // 2)))


def _graded(bits: Bits, m: int, n: int) -> np.ndarray:
    """Rows that shrink from 1 to 2⁻²⁰."""
    exponents = np.round(np.linspace(0, -20, m)).astype(int)
    return np.ldexp(bits.normal((m, n)), exponents[:, None])


def _offset(bits: Bits, m: int, n: int) -> np.ndarray:
    """A mean of 10², 10³ or 10⁴ times the spread in each column: the data of a PCA that was not centred."""
    scale = np.array([100.0, 1000.0, 10000.0])[bits.integers(0, 3, (n,))] * bits.signs((n,))
    return bits.normal((m, n)) + scale


def _mild_offset(bits: Bits, m: int, n: int) -> np.ndarray:
    """A mean of 8 times the spread: 16 bits still resolve what varies."""
    return bits.normal((m, n)) + 8 * bits.signs((n,))


def _constant_columns(bits: Bits, m: int, n: int) -> np.ndarray:
    """Every row the same: centred, it is zero."""
    return np.broadcast_to(bits.integers(-4, 5, (1, n)).astype(np.float64), (m, n)).copy()


def _unsorted_diagonal(bits: Bits, m: int, n: int) -> np.ndarray:
    """A diagonal of distinct integers in random order: singular vectors are known, and so is a forgotten sort."""
    a, size = np.zeros((m, n)), min(m, n)
    a[np.arange(size), np.arange(size)] = 1.0 + bits.permutation(size)
    return a


SPECTRA: dict[str, Fill] = {
    "normal": lambda bits, m, n: bits.normal((m, n)),
    "ints": lambda bits, m, n: bits.integers(-4, 5, (m, n)).astype(np.float64),
    "degenerate": _degenerate,
    "clustered": _clustered,
    "log_spaced": _log_spaced,
    "slow_decay": _slow_decay,
    "low_rank": _low_rank,
    "rank_one": lambda bits, m, n: _factors(bits, m, n, 1),
    "graded": _graded,
    "offset": _offset,
    "mild_offset": _mild_offset,
    "constant": _constant_columns,
    "diagonal": _unsorted_diagonal,
    "zeros": lambda bits, m, n: np.zeros((m, n)),
}
"""By name: bits, rows and columns to a matrix."""
