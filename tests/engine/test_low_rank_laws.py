"""Compression and PCA: the laws on witnesses that numpy makes; statements one slip away, refused by both engines."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

import lla_spec.formulas  # noqa: F401  (declares the laws)
from lla_spec.formulas import low_rank as L
from lla_spec.formulas import pca as P
from lla_spec.formulas.linear import linear
from lla_spec.language import Eq, Law, Le, Relation, registry, theorem
from lla_spec.proving import listed_shapes
from lla_spec.proving.all_dims import prove as prove_all_dimensions
from lla_spec.proving.cited import CITED, cited_by
from lla_spec.proving.counterexamples import counterexample
from lla_spec.proving.entries import Entries, positions
from lla_spec.proving.hypotheses import constructed
from lla_spec.proving.ledger import prove_law
from lla_spec.symbols import Sum, define, delta, index
from lla_spec.tensors import Tensor, inputs
from tests.engine.declaring import undeclared_afterwards
from tests.engine.false_statements import FalseStatement

LAWS = [law for law in registry.laws.values() if law.topic in ("low_rank", "pca")]
CONSTRAINED = [law for law in LAWS if law.hypotheses]
OPERATIONS = {"truncated_svd", "low_rank", "pca", "pca_transform", "pca_inverse"}


# The laws, in float64, at sizes and matrices that no prover has seen


def orthonormal_columns(rng: np.random.Generator, rows: int, columns: int, centred: bool) -> np.ndarray:
    """Householder's, of a random matrix: nothing of Cayley's transform, and any number of rows."""
    drawn = rng.normal(size=(rows, columns))
    made, _ = np.linalg.qr(drawn - drawn.mean(0) if centred else drawn)
    return made


def numbers(rng: np.random.Generator, given: Tensor, sizes: dict[str, int]) -> np.ndarray:
    rows, columns = (dim.size(sizes) for dim in given.shape) if len(given.axes) == 2 else (0, 0)
    if given.orthonormal is None:
        drawn = rng.normal(size=[dim.size(sizes) for dim in given.shape])
        return np.abs(drawn) if given.nonnegative else drawn
    if given.axes[0] == given.orthonormal:
        return orthonormal_columns(rng, rows, columns, given.centred is not None)
    return orthonormal_columns(rng, columns, rows, given.centred is not None).T


class Floats:
    """The rational operations, and a maximum, that the two pages use."""

    def rational(self, value: Fraction) -> float:
        return float(value)

    def exp(self, value: float, /) -> float:
        return math.exp(value)

    def log(self, value: float, /) -> float:
        return math.log(value)

    def power(self, base: float, exponent: Fraction) -> float:
        return base ** float(exponent)

    def maximum(self, entries: list[tuple[float, float]]) -> float:
        return max(entry for entry, kept in entries if kept)

    def function(self, name: str, arguments: list[float]) -> float:
        raise NotImplementedError(name)


@pytest.mark.parametrize("law", CONSTRAINED, ids=lambda law: law.id)
def test_a_law_holds_in_float64(law: Law):
    sizes = {"k": 2, "l": 3, "e": 2, "r": 3, "m": 8, "n": 9, "d": 7, "p": 2}
    left, right = constructed(law)
    rng = np.random.default_rng(0)
    values = {given: numbers(rng, given, sizes) for given in inputs(left, right)}
    entries = Entries(Floats(), sizes, lambda given, where: float(values[given][where]))
    for where in positions(left, sizes):
        this, that = entries.at(left, where), entries.at(right, where)
        if law.relation == "=":
            assert this == pytest.approx(that, rel=1e-9, abs=1e-10)
        else:
            assert this <= that * (1 + 1e-9) + 1e-10


def test_the_inequalities_are_met_with_equality():
    """At the best B, and at v_{k+1}: what is stated as a bound is the distance itself."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(7, 5))
    u, s, vt = np.linalg.svd(W)
    for k in range(1, 5):
        rest = W - (u[:, :k] * s[:k]) @ vt[:k]
        assert np.isclose(np.linalg.norm(rest) ** 2, np.sum(s[k:] ** 2))
        assert np.isclose(np.linalg.norm(rest @ vt[k]), s[k])


def test_every_law_names_its_operation():
    assert {law.operation for law in LAWS} == OPERATIONS
    assert len([law for law in LAWS if law.corollary_of is None]) >= 22


def test_every_law_says_what_it_catches_or_justifies():
    """A mirror image, or a step of a chain, says of what."""
    for law in LAWS:
        assert len(law.doc.split(". ")) > 1 or ": " in law.doc, law.id


# What is cited


def test_every_cited_fact_is_leant_on_and_every_name_in_it_exists():
    for cited in CITED:
        assert any(cited.rests_under(law) for law in registry.laws.values())
        assert set(cited.laws) <= set(registry.laws)
        assert set(cited.operations) <= {law.operation for law in registry.laws.values()}


def test_what_is_cited_is_shown_beside_the_laws_that_lean_on_it():
    lines = cited_by([registry.laws["low_rank.eckart_young"]])
    assert [line.split(":")[1].split()[0] for line in lines] == ["every", "a", "Cayley's"]
    assert cited_by([registry.laws["softmax.shift"]]) == []


# False statements

FALSE: list[FalseStatement] = []


def false(numbers: str, **shape: int) -> Callable[[Callable[[], Relation]], Callable[[], Relation]]:
    """Declare the relation that a function returns as false at `shape`, where the entry shown has these `numbers`."""

    def declare(build: Callable[[], Relation]) -> Callable[[], Relation]:
        FALSE.append(FalseStatement(build.__name__, build, shape, numbers))
        return build

    return declare


i, j, t, a, b, q, c = L.i, L.j, L.t, L.a, L.b, L.q, L.c
h, j2, u = index("h", L.m), index("j'", L.n), index("u", L.r)
U, V = Tensor("U", (i, t), orthonormal=i), Tensor("V", (j, t), orthonormal=j)
Uq, Vq = Tensor("U", (i, q), orthonormal=i), Tensor("V", (j, q), orthonormal=j)
Q = Tensor("Q", (i, c), orthonormal=i)
W, W_all, W_k = L.witness(U, L.s, V), L.witness(Uq, L.whole, Vq), L.witness(Uq, L.kept, Vq, "W_k")
rest = L.minus(W_all, W_k)


@false("left = 4, right = 2", k=1, l=1, m=2, n=2)
def tail_of_s_and_not_of_its_square():
    return Eq(L.squared(rest), Sum(L.s2[b], b))


@false("left = 0, right = 1", k=1, l=1, m=2, n=2)
def error_is_the_energy_that_is_kept():
    return Eq(L.squared(rest), Sum(L.s1[a] ** 2, a))


@false("left = 0, right = 1", m=1, n=2, r=1)
def energy_without_orthonormal_columns_of_v():
    return Eq(L.squared(L.witness(U, L.s, L.V)), Sum(L.s[t] ** 2, t))


@false("left[0, 0] = 0, right[0, 0] = 1", m=2, r=1)
def orthonormal_columns_have_orthonormal_rows():
    return Eq(Sum(U[i, t] * U[h, t], t), delta(i, h))


@false("left[0, 0] = -1, right[0, 0] = 1", m=1, n=1, r=1)
def singular_values_squared():
    return Eq(define("Wv", (i, t), Sum(W[i, j] * V[j, t], j)), define("su", (i, t), L.s[t] ** 2 * U[i, t]))


@false("left[0, 0] = 1, right[0, 0] = -1", m=1, n=1, r=1)
def gram_with_singular_values():
    return Eq(Sum(W[i, j] * W[i, j2], i), Sum(V[j, t] * L.s[t] * V[j2, t], t))


@false("left[0, 1] = 0, right[0, 1] = -1", k=1, l=1, m=2)
def projection_on_the_wrong_side():
    """W_k = V_k V_kᵀ W, of a square W."""
    X = Tensor("V", (h, q), orthonormal=h)
    square = L.witness(Uq, L.whole, X)
    onto = define("VᵀW", (q, h), Sum(X[i, q] * square[i, h], i))
    projected = define("VVᵀW", (i, h), Sum(X[i, q] * L.concat("1_k", (q,), 1, 0)[q] * onto[q, h], q))
    return Eq(L.witness(Uq, L.kept, X, "W_k"), projected)


@false("left = 9, right = -3", k=1, m=1, n=1)
def projection_error_of_any_columns():
    return Eq(L.squared(L.minus(L.A, L.projected(L.Q, L.A))), L.squared(L.A) - L.squared(L.onto(L.Q, L.A)))


@false("left = 0, right = 1", k=1, m=2, r=1)
def weights_sum_to_k():
    return Eq(Sum(L.weight(Q, U)[t], t), L.k)


@false("left[0] = 0, right[0] = 1", k=1, l=1, m=2, n=2)
def error_in_the_spectral_norm_is_that_in_frobenius():
    return Eq(Sum(Sum(rest[i, j] * Vq[j, q], j) ** 2, i), Sum(L.s2[b] ** 2, b))


@false("left[0, 1] = -1, right[0, 1] = 1", m=1, n=2, r=1)
def rotation_of_the_columns_only():
    """(UR) diag(s) Vᵀ = U diag(s) Vᵀ."""
    R = Tensor("R", (t, u), orthonormal=u)
    UR = define("UR", (i, u), Sum(L.U[i, t] * R[t, u], t))
    return Eq(L.witness(UR, define("s", (u,), L.s[u]), define("V", (j, u), L.V[j, u])), L.witness(L.U, L.s, L.V))


@false("left[0, 0] = 0, right[0, 0] = 1", m=1, n=1, r=2)
def ties_where_there_are_none():
    """(UR, s, VR) for s that are not equal."""
    R = Tensor("R", (t, u), orthonormal=u)
    UR = define("UR", (i, u), Sum(L.U[i, t] * R[t, u], t))
    VR = define("VR", (j, u), Sum(L.V[j, t] * R[t, u], t))
    return Eq(L.witness(UR, define("s", (u,), L.s[u]), VR), L.witness(L.U, L.s, L.V))


# PCA: n samples in rows

s_, x_ = P.i, P.j
PU, PV = Tensor("U", (P.i, t), orthonormal=P.i, centred=P.i), Tensor("V", (P.j, t), orthonormal=P.j)
axis2 = index("j'", P.d)


def data(left: Tensor = PU) -> Tensor:
    return define("X", (P.i, P.j), P.μ[P.j] + Sum(left[P.i, t] * P.s[t] * PV[P.j, t], t))


def covariance(X: Tensor, divisor, mean: Tensor | None = None):
    mean = P.mean_of(X) if mean is None else mean
    return Sum((X[P.i, P.j] - mean[P.j]) * (X[P.i, axis2] - mean[axis2]), P.i) / divisor


def of_the_axes(matrix) -> Relation:
    product = define("Cov·v", (P.j, t), Sum(matrix * PV[axis2, t], axis2))
    return Eq(product, define("λv", (P.j, t), P.s[t] ** 2 / (P.n - 1) * PV[P.j, t]))


@false("left[0, 0] = -0.25, right[0, 0] = -0.3333333333", d=1, n=4, r=1)
def variance_with_the_divisor_n():
    return of_the_axes(covariance(data(), P.n))


@false("left[0, 0] = 1.333333333, right[0, 0] = 0", d=1, n=4, r=1)
def second_moments_of_data_that_were_not_centred():
    return of_the_axes(covariance(data(), P.n - 1, define("0", (P.j,), 0)))


@false("left[0, 0] = -0.5, right[0, 0] = -1", d=1, n=2, r=1)
def axes_of_a_witness_that_is_not_centred():
    return of_the_axes(covariance(data(Tensor("U", (P.i, t), orthonormal=P.i)), P.n - 1))


@false("left[0, 0] = 0, right[0, 0] = 1", d=1, n=4, r=1)
def whitened_scores():
    X = data()
    scores = P.pca_transform(X, P.mean_of(X), define("Vᵀ", (t, P.j), PV[P.j, t]))
    return Eq(Sum(scores[P.i, t] * scores[P.i, u], P.i) / (P.n - 1), delta(t, u))


@false("left[0, 0] = 0, right[0, 0] = 1", d=1, k=1, n=1)
def scores_survive_with_any_components():
    return Eq(P.pca_transform(P.pca_inverse(P.Z, P.μ, P.C), P.μ, P.C), P.Z)


@false("left[0, 0] = -1, right[0, 0] = 0", d=1, k=1, n=1)
def scores_without_the_mean():
    return Eq(P.pca_transform(P.X, P.μ, P.C), linear(P.X, P.C))


@false("left[0, 0] = 1, right[0, 0] = 0", d=1, k=1, n=1)
def inverse_without_the_mean():
    return Eq(P.pca_inverse(P.Z, P.μ, P.C), linear(P.Z, define("Cᵀ", (P.j, a), P.C[a, P.j])))


@false("left = 1, right = 0", d=2, k=1, n=1)
def every_offset_is_as_good():
    subspace, mean = Tensor("Q", (P.j, a), orthonormal=P.j), P.mean_of(P.X)
    from_offset = define("x-o", (P.j, P.i), P.X[P.i, P.j] - P.offset[P.j])
    from_mean = define("x-μ", (P.j, P.i), P.X[P.i, P.j] - mean[P.j])
    return Eq(L.squared(P.missed(from_offset, subspace)), L.squared(P.missed(from_mean, subspace)))


@false("left[0, 0] = 1, right[0, 0] = 0", d=2, k=1, n=1)
def reconstruction_is_the_data():
    C = Tensor("C", (a, P.j), orthonormal=P.j)
    return Eq(P.pca_inverse(P.pca_transform(P.X, P.μ, C), P.μ, C), P.X)


each = pytest.mark.parametrize("statement", FALSE, ids=lambda statement: statement.name)


@each
def test_numbers_refute_it(statement: FalseStatement):
    law = statement.law()
    found = counterexample(law.left, law.right, "=", [dim.name for dim in law.dims])
    assert found is not None
    assert dict(found.point.sizes) == statement.shape
    assert str(found.difference) == statement.numbers


@each
def test_both_engines_refuse_it(statement: FalseStatement):
    law = statement.law()
    everywhere = prove_all_dimensions(law.left, law.right)
    assert not everywhere.proved and everywhere.residual
    for sizes in (statement.shape, listed_shapes.listed_shapes(law)[-1]):
        listed = listed_shapes.prove(law.left, law.right, sizes)
        assert not listed.proved and listed.residual


# False inequalities: each theorem without what it needs


def refuted(declare: Callable[[], Relation]) -> str:
    with undeclared_afterwards():
        entry = prove_law(theorem(declare, of="low_rank"))
    assert entry.status == "refuted", str(entry)
    return entry.message


def test_a_truncation_is_not_the_best_where_the_spectrum_is_not_sorted():
    """Σ_{t > k} s_t² ≤ ‖W - QC‖² for s in any order."""

    def unsorted():
        B = define("B", (i, j), Sum(Q[i, c] * L.C[c, j], c))
        error = L.squared(L.minus(W_all, B))
        return Le(Sum(L.s2[b] ** 2, b), error, because=error - Sum(L.s2[b] ** 2, b))

    law = _law(unsorted)
    names = [dim.name for dim in law.dims]
    found = counterexample(law.left, law.right, "<=", names, shapes=3, points=200)
    assert found is not None and str(found.difference) == "left = 1, right = 0"


def test_columns_hold_no_more_than_they_are():
    """Σ_t w_t ≤ k needs orthonormal u_t."""

    def free_vectors():
        held = Sum(L.weight(Q, L.U)[t], t)
        return Le(held, L.k, because=L.k - held)

    assert refuted(free_vectors).startswith("false at ")


def test_the_cut_bounds_what_is_lost_only_if_it_is_the_largest():
    """‖(W - W_k) x‖² ≤ σ²‖x‖² for any σ ≥ 0."""

    def any_bound():
        lost = Sum(Sum(rest[i, j] * L.x[j], j) ** 2, i)
        bound = L.σ**2 * Sum(L.x[j] ** 2, j)
        return Le(lost, bound, because=bound - lost)

    assert refuted(any_bound).startswith("false at ")


def _law(declare: Callable[[], Relation]) -> Law:
    with undeclared_afterwards():
        return theorem(declare, of="low_rank")
