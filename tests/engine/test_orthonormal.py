"""Orthonormal and centred matrices: their entries in free parameters, and the rules that both engines use."""

import itertools
import random
from fractions import Fraction

import pytest
import sympy as sp

from lla_spec.language import Eq, assume, identity, registry
from lla_spec.proving import listed_shapes, orthonormal
from lla_spec.proving.all_dims import prove as prove_all_dimensions
from lla_spec.proving.conditions import random_point
from lla_spec.proving.hypotheses import claim
from lla_spec.proving.orthonormal import HADAMARD, Infeasible, Scalars
from lla_spec.proving.residues import Residues
from lla_spec.symbols import Sum, centred, concat, define, delta, dims, index, split, sqrt, tensor
from lla_spec.tensors import DeclarationError, Tensor
from tests.engine.declaring import law_of, undeclared_afterwards

m, n, r, k, l = dims("m n r k l")
i, h, g, j = index("i", m), index("h", m), index("g", m), index("j", n)
t, u = index("t", r), index("u", r)
a, b = index("a", k), index("b", l)
U = Tensor("U", (i, t), orthonormal=i)
both = Tensor("U", (i, t), orthonormal=i, centred=i)
A = tensor("A", i, j)
SHAPES = [(rows, columns) for rows in range(1, 6) for columns in range(1, min(rows, 3) + 1)]


def drawn(seed: int) -> Scalars:
    rng = random.Random(seed)
    return Scalars(lambda value: value, lambda name: Fraction(rng.randint(-9, 9), 4), lambda value: 1 / value)


def gram(matrix) -> list:
    return [[sum(x * y for x, y in zip(one, two, strict=True)) for two in zip(*matrix, strict=True)]
            for one in zip(*matrix, strict=True)]  # fmt: skip


def unit(size: int) -> list:
    return [[int(row == column) for column in range(size)] for row in range(size)]


# Entries


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_columns_are_orthonormal_exactly(rows, columns):
    for seed, reflected in itertools.product(range(5), (False, True)):
        made = orthonormal.entries(U, {"m": rows, "r": columns}, drawn(seed), reflected=reflected)
        assert gram(made) == unit(columns)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_square_one_is_a_rotation_or_reflected(size):
    for seed in range(5):
        for reflected, sign in ((False, 1), (True, -1)):
            made = orthonormal.entries(U, {"m": size, "r": size}, drawn(seed), reflected=reflected)
            assert sp.Matrix(made).det() == sign


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_orthonormal_matrix_with_a_regular_block_is_reached(rows, columns):
    """Solve Q = [I + B - AᵀA; 2A] M⁻¹ for B and A, for a random rational Q, and put them in again."""
    q = rotation(rows, random.Random(rows * 10 + columns))[:, :columns]
    inner = 2 * (sp.eye(columns) + q[:columns, :]).inv()
    below = q[columns:, :] * inner / 2
    skew = sp.eye(columns) + below.T * below - inner
    assert skew == -skew.T
    free = skew.col_join(below)
    scalars = Scalars(sp.Rational, lambda name: free[tuple(map(int, name.split(",")))], lambda value: 1 / value)
    assert sp.Matrix(orthonormal.entries(U, {"m": rows, "r": columns}, scalars)) == q


def rotation(size: int, rng: random.Random) -> sp.Matrix:
    """A rational rotation (size, size): an even number of reflections I - 2 v vᵀ / vᵀv, enough of them to make any
    rotation (Cartan and Dieudonné)."""
    product = sp.eye(size)
    for _ in range(size + size % 2):
        v = sp.Matrix([rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(size)])
        product *= sp.eye(size) - 2 * v * v.T / v.dot(v)
    return product


def test_along_the_other_axis_the_rows_are_orthonormal():
    made = orthonormal.entries(Tensor("C", (t, i), orthonormal=i), {"m": 4, "r": 2}, drawn(0))
    assert len(made) == 2 and gram(list(zip(*made, strict=True))) == unit(2)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_centred_ones_are_orthonormal_and_sum_to_zero(columns):
    made = orthonormal.entries(both, {"m": 4, "r": columns}, drawn(1))
    assert gram(made) == unit(columns) and all(sum(column) == 0 for column in zip(*made, strict=True))


def test_the_basis_of_the_centred_ones():
    assert gram(HADAMARD) == [[4 * entry for entry in row] for row in unit(3)]
    assert all(sum(column) == 0 for column in zip(*HADAMARD, strict=True))


def test_centred_alone_is_anything_without_its_mean():
    made = orthonormal.entries(centred(tensor("X", i, t), i), {"m": 3, "r": 2}, drawn(2))
    assert all(sum(column) == 0 for column in zip(*made, strict=True)) and gram(made) != unit(2)


@pytest.mark.parametrize(
    ("matrix", "sizes", "message"),
    [
        (U, {"m": 2, "r": 3}, "U has 3 orthonormal columns of length 2"),
        (both, {"m": 3, "r": 2}, "U has orthonormal centred columns of length 3: they are made of length 4 only"),
        (both, {"m": 4, "r": 4}, "U has 4 orthonormal columns of length 3"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(matrix, sizes, message):
    with pytest.raises(Infeasible, match=message):
        orthonormal.entries(matrix, sizes, drawn(0))
    assert message in listed_shapes.prove(matrix, matrix, sizes).residual


def test_the_axis_must_be_one_of_two_of_an_input():
    with pytest.raises(DeclarationError, match="orthonormal along j needs an input with that axis and one other"):
        Tensor("U", (i, t), orthonormal=j)
    with pytest.raises(DeclarationError, match="centred along i needs an input"):
        Tensor("U", (i,), centred=i)


# Rules


def statement(left, right) -> tuple[Tensor, Tensor]:
    law = law_of(Eq(left, right))
    return law.left, law.right


TRUE = {
    "UᵀU = I": statement(Sum(U[i, t] * U[i, u], i), delta(t, u)),
    "‖U‖² = r": statement(Sum(U[i, t] ** 2, i, t), r),
    "(UUᵀ)² = UUᵀ": statement(
        Sum(Sum(U[i, t] * U[h, t], t) * Sum(U[h, u] * U[g, u], u), h), Sum(U[i, t] * U[g, t], t)
    ),
    "UᵀUUᵀA = UᵀA": statement(
        Sum(U[i, u] * Sum(U[i, t] * Sum(U[h, t] * A[h, j], h), t), i), Sum(U[i, u] * A[i, j], i)
    ),
    "centred columns sum to 0": statement(Sum(both[i, t] * (1 + A[h, j]), i), 0),
    "what is centred and orthonormal is both": statement(
        Sum((1 + both[i, t]) * (2 + both[i, u]), i), 2 * m + delta(t, u)
    ),
}  # fmt: skip
FALSE = {
    "UUᵀ = I": statement(Sum(U[i, t] * U[h, t], t), delta(i, h)),
    "Σ U³ = ΣU": statement(Sum(U[i, t] ** 3, i), Sum(U[i, t], i)),
    "Σ U = 0": statement(Sum(U[i, t], i), 0),
    "Σ_t U = 0 of a matrix centred along i": statement(Sum(both[i, t], t), 0),
    "Σ U² = 0 of a centred one": statement(Sum(both[i, t] ** 2, i), 0),
    "U U of two different matrices": statement(
        Sum(U[i, t] * Tensor("V", (i, t), orthonormal=i)[i, u], i), delta(t, u)
    ),
}  # fmt: skip


SIZES = {"m": 4, "r": 2, "n": 2}


@pytest.mark.parametrize("name", TRUE)
def test_what_follows_is_proved_by_both_engines(name):
    left, right = TRUE[name]
    assert prove_all_dimensions(left, right).proved
    assert listed_shapes.prove(left, right, SIZES).proved
    assert not Residues(SIZES).refute(left, right)


@pytest.mark.parametrize("name", FALSE)
def test_what_does_not_follow_is_refused_by_both_engines(name):
    left, right = FALSE[name]
    assert not prove_all_dimensions(left, right).proved
    assert not listed_shapes.prove(left, right, SIZES).proved
    assert Residues(SIZES).refute(left, right)


def test_a_square_one_is_proved_for_reflections_too():
    """det = 1 is true of rotations only."""
    square = Tensor("R", (i, t), orthonormal=i)
    determinant = square[0, 0] * square[1, 1] - square[0, 1] * square[1, 0]
    outcome = listed_shapes.prove(*statement(determinant, 1), {"m": 2, "r": 2})
    assert not outcome.proved and outcome.residual.startswith("R reflected: ")
    assert listed_shapes.prove(*statement(determinant**2, 1), {"m": 2, "r": 2}).proved


# Split dimensions: some of the columns are orthonormal, and to the others; some of the rows are not


def test_columns_of_two_parts_are_orthogonal():
    q = split(t, a, b)
    whole = Tensor("U", (i, q), orthonormal=i)
    other = split(u, a, b)
    left, right = statement(Sum(whole[i, q] * whole[i, other], i), delta(q, other))
    assert prove_all_dimensions(left, right).proved
    assert listed_shapes.prove(left, right, {"m": 3, "k": 1, "l": 2}).proved


def test_some_of_the_rows_are_not_orthonormal():
    q = split(i, a, b)
    whole, first = Tensor("U", (q, t), orthonormal=q), concat("first", (q,), 1, 0)
    left, right = statement(Sum(first[q] * whole[q, t] * whole[q, u], q), delta(t, u))
    assert not prove_all_dimensions(left, right).proved
    assert not listed_shapes.prove(left, right, {"k": 2, "l": 1, "r": 2}).proved


# Hypotheses


@pytest.fixture
def law():
    with undeclared_afterwards():
        X = tensor("X", i, t)

        @identity(of="pca")
        def covariance():
            assume(Eq(Sum(X[i, t] * X[i, u], i), delta(t, u)), by={X: Tensor("X", (i, t), orthonormal=i)})
            assume(Eq(Sum(X[i, t], i), 0), by={X: centred(X, i)})
            mean = Sum(X[h, t], h) / m
            return Eq(Sum((X[i, t] - mean) * X[i, u], i), delta(t, u))

        yield covariance


def test_two_hypotheses_about_one_input_are_joined(law):
    (joined,) = [tensor for tensor in claim(law).statement.left.dependencies if tensor.name == "X"]
    assert joined.orthonormal == i and joined.centred == i
    point = random_point([joined], {"m": 4, "r": 2}, random.Random(0))
    columns = [[point.values[joined][row, column] for row in range(4)] for column in range(2)]
    assert all(sum(column) == 0 for column in columns)


def test_a_hypothesis_that_is_dropped_is_not_used(law):
    orthonormality, centring = law.hypotheses
    assert prove_all_dimensions(claim(law).statement.left, claim(law).statement.right).proved
    for dropped in (orthonormality, centring):
        left = claim(law, dropped).statement.left
        assert not prove_all_dimensions(left, claim(law).statement.right).proved
        assert not listed_shapes.prove(left, claim(law).statement.right, {"m": 4, "r": 2}).proved


def test_shapes_are_long_enough_and_differ():
    for law in registry.laws.values():
        made = claim(law)
        matrices = [t for t in made.statement.left.dependencies if orthonormal.is_constrained(t)]
        for sizes in listed_shapes.listed_shapes(law):
            assert not any(orthonormal.why_infeasible(matrix, sizes) for matrix in matrices)


# Residues


def test_residues_only_refuse():
    x = tensor("x", i)
    half = define("half", (i,), x[i] / (2 * x[i]))
    assert not Residues({"m": 3}).refute(half, define("½", (i,), sp.Rational(1, 2)))
    assert Residues({"m": 3}).refute(half, define("1/3", (i,), sp.Rational(1, 3)))
    assert not Residues({"m": 3}).refute(*statement(sqrt(x[i] ** 2), x[i]))  # a root has no residue here
    zero = define("zero", (i,), (x[i] + 1) ** 2 - x[i] ** 2 - 2 * x[i] - 1)
    assert not Residues({"m": 3}).refute(define("1/0", (i,), 1 / zero[i]), define("1", (i,), 1))
