"""The spectrum of an exactly given matrix: a float64 SVD, and balls that say how far from the truth it is.

|σᵢ(A) - sᵢ| ≤ ‖A - U S V‖_F + sᵢ·max(√((1+δU)(1+δV)) - 1, 1 - √((1-δU)(1-δV))) with δU = ‖UᵀU - I‖_F, δV likewise:
Weyl's inequality for the residual, Ostrowski's for factors that are not quite orthonormal (Horn and Johnson, Matrix
Analysis, 2nd ed., Corollary 7.3.5 and Theorem 4.5.9). Residual and defects are evaluated in balls, so the radius is
rigorous whatever LAPACK did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from flint import arb, arb_mat

from lla_spec.evaluating.balls import DEFAULT_BITS, precision

Array = np.ndarray


@dataclass(frozen=True)
class Spectrum:
    """A = u·diag(s)·vh up to `error` in the Frobenius norm; u (m, r), s (r,) descending, vh (r, n), r = min(m, n).

    `radius` (r,): |σᵢ(A) - sᵢ| ≤ radiusᵢ. `norm` ≥ ‖A‖_F. `matrix` (m, n): the float64 numbers nearest to A.
    """

    matrix: Array
    u: Array
    s: Array
    vh: Array
    radius: Array
    error: float
    norm: float

    def tail(self, k: int) -> tuple[float, float]:
        """(√Σ_{i≥k} sᵢ², its radius): the distance of A from the matrices of rank k (Eckart and Young)."""
        return frobenius(self.s[k:]), frobenius(self.radius[k:])

    def after(self, k: int) -> float:
        """σ_{k+1}, the largest one left out; 0 where none is."""
        return float(self.s[k]) if k < self.s.size else 0.0


def spectrum(exact: arb_mat) -> Spectrum:
    """The spectrum of a finite matrix with at least one row and one column."""
    matrix = nearest(exact)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    with precision(DEFAULT_BITS):
        left, right = balls(u), balls(vh)
        error = norm(exact - left * (_diagonal(s) * right))
        defects = [
            norm(left.transpose() * left - _identity(s.size)),
            norm(right * right.transpose() - _identity(s.size)),
        ]
        stretch = float(np.sqrt((1 + defects[0]) * (1 + defects[1]))) - 1
        shrink = 1 - float(np.sqrt(max((1 - defects[0]) * (1 - defects[1]), 0.0)))
        # One more ulp of 1 for the three float64 operations of each of these two lines.
        relative = max(stretch, shrink) + 2.0**-50
        return Spectrum(matrix, u, s, vh, error + s * relative, error, norm(exact))


def balls(array: Array) -> arb_mat:
    """A float64 matrix as balls of radius 0."""
    rows, columns = array.shape
    return arb_mat(rows, columns, np.asarray(array, dtype=np.float64).ravel().tolist())


def nearest(matrix: arb_mat) -> Array:
    """The midpoints, as float64."""
    return np.array([float(entry.mid()) for entry in matrix.entries()]).reshape(matrix.nrows(), matrix.ncols())


def norm(matrix: arb_mat) -> float:
    """No less than the Frobenius norm of any matrix in the balls."""
    total = sum((entry * entry for entry in matrix.entries()), arb(0))
    return upper(total.abs_upper().sqrt())  # of the upper end: a ball around 0 has no real root


def upper(ball: arb) -> float:
    """A float64 that is no less than any |number| of the ball."""
    bound = ball.abs_upper()
    return 0.0 if bound.is_zero() else float(np.nextafter(float(bound), np.inf))


def frobenius(array: Array) -> float:
    """√Σx² of float64 numbers, neither over- nor underflowing on the way."""
    largest = float(np.max(np.abs(array), initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return largest
    exponent = int(np.frexp(largest)[1])
    return float(np.ldexp(np.sqrt(np.sum(np.ldexp(array, -exponent) ** 2)), exponent))


def centred(x: Array) -> tuple[list[arb], arb_mat]:
    """The columns' means and x - mean, in balls: x (n, d)."""
    n, d = x.shape
    with precision(DEFAULT_BITS):
        means = [sum(map(arb, column), arb(0)) / n for column in x.T.tolist()]
        return means, arb_mat(n, d, list(_minus(x, means)))


def _minus(x: Array, means: list[arb]) -> Iterator[arb]:
    for row in x.tolist():
        yield from (arb(value) - mean for value, mean in zip(row, means, strict=True))


def _diagonal(values: Array) -> arb_mat:
    return balls(np.diag(values))


def _identity(size: int) -> arb_mat:
    return balls(np.eye(size))
