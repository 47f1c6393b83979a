"""Matrices with orthonormal columns, entry by entry, in any field: all of them but a thin set, by Cayley's transform.

With B skew (k × k) and A free ((n - k) × k), the columns of

    Q = [I + B - AᵀA; 2A] (I - B + AᵀA)⁻¹

are orthonormal, and every orthonormal Q whose upper block Q₁ has I + Q₁ regular is of this form (Jauch, Hoff & Dunson
2020, "Random orthogonal matrices and the Cayley transform"; k = n is Cayley's own). Those lie dense where k < n; where
k = n they are dense among the rotations, and one reflection carries them into the other component. So an identity of
rational functions that holds for free B and A, and for the reflected ones, holds for every matrix with such columns.

A centred one (columns that sum to 0 as well) is H Q, H an orthonormal basis of what is orthogonal to (1, …, 1). That is
rational for n = 4, where H is three columns of Hadamard's matrix over 2; other n are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from lla_spec.tensors import Tensor

Matrix = list[list[Any]]
CENTRED_ROWS = 4  # where an orthonormal basis of the vectors that sum to 0 is rational
HADAMARD = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))  # without its column of ones


class Infeasible(ValueError):
    """No matrix of that shape has the property, or this file has no rational form of it."""


class Scalars:
    """What a field must do here: numbers, free parameters by name, and the inverse of what is never 0."""

    def __init__(
        self, rational: Callable[[Fraction], Any], parameter: Callable[[str], Any], inverse: Callable[[Any], Any]
    ) -> None:
        self.rational, self.parameter, self.inverse = rational, parameter, inverse


def is_constrained(tensor: Tensor) -> bool:
    return tensor.orthonormal is not None or tensor.centred is not None


def shape(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, int]:
    """(length of its columns, their number), the columns along the axis that it is orthonormal or centred along."""
    along = tensor.orthonormal or tensor.centred
    first, second = (axis.dim.size(sizes) for axis in tensor.axes)
    return (first, second) if tensor.axes[0] == along else (second, first)


def why_infeasible(tensor: Tensor, sizes: Mapping[str, int]) -> str:
    """Why no such matrix is made at `sizes`; empty where one is."""
    if tensor.orthonormal is None:
        return ""
    rows, columns = shape(tensor, sizes)
    if tensor.centred is not None:
        if tensor.centred != tensor.orthonormal:
            return f"{tensor.name} is centred along another axis than it is orthonormal along"
        if rows != CENTRED_ROWS:
            return f"{tensor.name} has orthonormal centred columns of length {rows}: they are made of length 4 only"
        rows -= 1
    return f"{tensor.name} has {columns} orthonormal columns of length {rows}" if columns > rows else ""


def parameters(tensor: Tensor, sizes: Mapping[str, int]) -> int:
    """How many free parameters an orthonormal matrix has."""
    if tensor.orthonormal is None or why_infeasible(tensor, sizes):
        return 0
    rows, columns = shape(tensor, sizes)
    rows -= tensor.centred is not None
    return columns * (columns - 1) // 2 + (rows - columns) * columns


def is_square(tensor: Tensor, sizes: Mapping[str, int]) -> bool:
    """Whether it has two components, rotations and reflections."""
    if tensor.orthonormal is None:
        return False
    rows, columns = shape(tensor, sizes)
    return columns == rows - (tensor.centred is not None)


def entries(tensor: Tensor, sizes: Mapping[str, int], scalars: Scalars, *, reflected: bool = False) -> Matrix:
    """A constrained tensor's entries in its own axes' order, in free parameters."""
    why = why_infeasible(tensor, sizes)
    if why:
        raise Infeasible(why)
    rows, columns = shape(tensor, sizes)
    if tensor.orthonormal is None:
        made = _centred(rows, columns, scalars)
    elif tensor.centred is None:
        made = _cayley(rows, columns, scalars, reflected)
    else:
        half = [[scalars.rational(Fraction(number, 2)) for number in row] for row in HADAMARD]
        made = _product(half, _cayley(rows - 1, columns, scalars, reflected))
    along = tensor.orthonormal or tensor.centred
    return made if tensor.axes[0] == along else [list(row) for row in zip(*made, strict=True)]


def _centred(rows: int, columns: int, scalars: Scalars) -> Matrix:
    free = [[scalars.parameter(f"{row},{column}") for column in range(columns)] for row in range(rows)]
    share = scalars.rational(Fraction(-1, rows))
    means = [share * _total(row[column] for row in free) for column in range(columns)]
    return [[entry + mean for entry, mean in zip(row, means, strict=True)] for row in free]


def _cayley(rows: int, columns: int, scalars: Scalars, reflected: bool) -> Matrix:
    zero, one = scalars.rational(Fraction(0)), scalars.rational(Fraction(1))
    skew = [[zero] * columns for _ in range(columns)]
    for row in range(columns):
        for column in range(row):
            skew[row][column] = scalars.parameter(f"{row},{column}")
            skew[column][row] = -skew[row][column]
    below = [[scalars.parameter(f"{row},{column}") for column in range(columns)] for row in range(columns, rows)]
    gram = [[_total((r[a] * r[b] for r in below), zero) for b in range(columns)] for a in range(columns)]

    def combined(sign: int) -> Matrix:
        return [
            [(one if a == b else zero) + sign * (skew[a][b] - gram[a][b]) for b in range(columns)]
            for a in range(columns)
        ]

    inner = combined(-1)
    inverse = scalars.inverse(_determinant(inner))
    adjugate = [[_cofactor(inner, column, row, one) * inverse for column in range(columns)] for row in range(columns)]
    made = _product([*combined(1), *([2 * entry for entry in row] for row in below)], adjugate)
    return [[-entry for entry in made[0]], *made[1:]] if reflected else made


def _product(left: Matrix, right: Matrix) -> Matrix:
    return [[_total(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)]
            for row in left]  # fmt: skip


def _determinant(matrix: Matrix) -> Any:
    if len(matrix) == 1:
        return matrix[0][0]
    return _total(matrix[0][column] * _cofactor(matrix, 0, column, None) for column in range(len(matrix)))


def _cofactor(matrix: Matrix, row: int, column: int, one: Any) -> Any:
    """The signed minor; `one` for a matrix of one entry."""
    if len(matrix) == 1:
        return one
    minor = [[e for c, e in enumerate(line) if c != column] for r, line in enumerate(matrix) if r != row]
    value = _determinant(minor)
    return -value if (row + column) % 2 else value


def _total(terms: Iterable[Any], start: Any = None) -> Any:
    result = start
    for term in terms:
        result = term if result is None else result + term
    return result
