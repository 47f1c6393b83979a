"""Where in a matrix the error lies: |error| / bound over the two last axes of an output, small enough to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDE = 64  # blocks along each axis, at most


@dataclass(frozen=True)
class Heat:
    """`values` (rows, columns): the largest ratio in each block of the matrix at `at`, whose full size is `shape`."""

    at: tuple[int, ...]
    shape: tuple[int, int]
    values: tuple[tuple[float, ...], ...]


def heat_of(ratio: np.ndarray, index: tuple[int, ...]) -> Heat | None:
    """The matrix of `ratio` (...) that holds the entry `index`; a vector is one row. None for a single number.

    >>> heat_of(np.array([[0.5, 3.0], [0.0, 0.1]]), (0, 1))
    Heat(at=(), shape=(2, 2), values=((0.5, 3.0), (0.0, 0.1)))
    """
    if ratio.size < 2:
        return None
    at = index[:-2]
    matrix = np.atleast_2d(ratio[at])
    rows, columns = matrix.shape
    blocks = np.maximum.reduceat(np.maximum.reduceat(matrix, _starts(rows), axis=0), _starts(columns), axis=1)
    return Heat(at, (rows, columns), tuple(tuple(map(float, row)) for row in blocks))


def _starts(size: int) -> np.ndarray:
    """Where the blocks along an axis begin: each entry its own while there are at most SIDE."""
    count = min(size, SIDE)
    return np.arange(count) * size // count
