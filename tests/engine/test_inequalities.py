"""An inequality is an identity and a certificate that is seen to be ≥ 0; whatever is not seen is refused in words."""

import random

import pytest

import lla_spec.formulas  # noqa: F401  (declares the laws)
from lla_spec.formulas.linear import V, c, weighted_average
from lla_spec.formulas.softmax import M, i, j, softmax, x
from lla_spec.language import Le, assume, registry, theorem
from lla_spec.proving import listed_shapes
from lla_spec.proving.all_dims import prove as prove_all_dimensions
from lla_spec.proving.conditions import differ, random_point
from lla_spec.proving.hypotheses import claim, constructed
from lla_spec.proving.inequalities import why_not_nonnegative
from lla_spec.proving.ledger import prove_law
from lla_spec.symbols import Max, Sum, define, exp, log, scalar, sqrt, tensor
from lla_spec.tensors import inputs
from tests.engine.declaring import law_of, undeclared_afterwards

y, W = tensor("y", i, j), tensor("W", i, j, positive=True)
P = softmax(x, M)


def why(certificate) -> str:
    return why_not_nonnegative(law_of(Le(x, y, because=certificate)))


@pytest.mark.parametrize(
    "certificate",
    [
        0,
        x[i, j] ** 2 + 3,
        (x[i, j] - y[i, j]) ** 4,
        1 / (x[i, j] - y[i, j]) ** 2,
        W[i, j] * exp(x[i, j]),
        W[i, j] ** 3 / Sum(W[i, j], j),
        sqrt(x[i, j]),
        M[i, j] * P[i, j],
        Sum(P[i, j] * (x[i, j] - y[i, j]) ** 2, j),
        Max(W[i, j], j, where=M[i, j]),
        abs(x[i, j]),
    ],
    ids=str,
)
def test_what_is_nonnegative_by_structure(certificate):
    assert why(certificate) == ""


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (-1, "-1 is negative"),
        (x[i, j], "x[i, j] is not declared nonnegative"),
        (W[i, j] - y[i, j], "-1 is negative"),
        (x[i, j] ** 3, "x[i, j] is not declared nonnegative"),
        (log(W[i, j]), "log(W[i, j]) may be negative"),
        (Sum(P[i, j] * x[i, j], j), "x[i, j] is not declared nonnegative"),
        (W[i, j] / Sum(x[i, j], j), "x[i, j] is not declared nonnegative"),
        (define("gap", (i, j), W[i, j] - 1)[i, j], "gap[i, j]: -1 is negative"),
    ],
    ids=str,
)
def test_what_is_not_seen_to_be_nonnegative_is_refused_in_words(certificate, reason):
    assert why(certificate) == f"because[i, j]: {reason}"


def test_an_equation_needs_no_certificate():
    assert why_not_nonnegative(registry.laws["softmax.shift"]) == ""


def test_the_arithmetic_and_geometric_mean():
    square = (x[i, j] - y[i, j]) ** 2
    law = law_of(Le(2 * x[i, j] * y[i, j], x[i, j] ** 2 + y[i, j] ** 2, because=square))
    statement = claim(law).statement
    assert why_not_nonnegative(law) == ""
    assert prove_all_dimensions(statement.left, statement.right).proved
    assert listed_shapes.prove(statement.left, statement.right, {"n": 2, "m": 3}).proved


def test_a_certificate_that_is_not_the_difference_is_refused():
    statement = claim(law_of(Le(x[i, j], y[i, j], because=(x[i, j] - y[i, j]) ** 2))).statement
    assert not prove_all_dimensions(statement.left, statement.right).proved
    assert not listed_shapes.prove(statement.left, statement.right, {"n": 1, "m": 1}).proved


def test_the_hull_needs_its_hypothesis():
    """Without ⟨w, v_j⟩ ≤ b the certificate is refused, and numbers refute the statement."""
    law = registry.laws["attention.hull"]
    (hypothesis,) = law.hypotheses
    assert why_not_nonnegative(law) == ""
    assert "-1 is negative" in why_not_nonnegative(law, dropped=hypothesis)
    left, right = constructed(law, dropped=hypothesis)
    sizes = listed_shapes.listed_shapes(law)[-1]
    points = [random_point(inputs(left, right), sizes, random.Random(seed)) for seed in range(3)]
    assert any(differ(left, right, point, "<=") for point in points)


def test_weights_that_do_not_sum_to_one_leave_the_hull():
    """The hull's certificate with unnormalised weights is no identity, and the statement is refuted."""
    with undeclared_afterwards():

        @theorem
        def unnormalised():
            b = scalar("b")
            gap = assume(Le(V[j, c], b), by={b: define("b", (), Max(V[j, c], j, c))})
            E = define("E", (i, j), exp(x[i, j]))
            return Le(weighted_average(E, V)[i, c], b, because=Sum(E[i, j] * gap[c, j], j))

    assert why_not_nonnegative(unnormalised) == ""
    statement = claim(unnormalised).statement
    assert not prove_all_dimensions(statement.left, statement.right).proved
    entry = prove_law(unnormalised)
    assert entry.status == "refuted"
    assert entry.message == (
        "false at e = 1, m = 1, n = 1; V = [[1]], x = [[1]]: left[0, 0] = 2.718281828, right[0, 0] = 1"
    )
