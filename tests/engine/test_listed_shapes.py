"""The exact field proves what is true at a shape, for all real inputs, and nothing else."""

from fractions import Fraction

import pytest
import sympy as sp
from sympy import Rational

import lla_spec.formulas  # noqa: F401  (declares the laws)
from lla_spec.formulas.softmax import i, j, logsumexp, m, n, softmax, x
from lla_spec.language import Eq, registry
from lla_spec.proving.conditions import readable
from lla_spec.proving.listed_shapes import listed_shapes, prove
from lla_spec.proving.outcome import Outcome
from lla_spec.symbols import Max, Sum, concat, define, exp, log, permutation, scalar, split, sqrt, tensor
from lla_spec.tensors import Tensor
from tests.engine.declaring import law_of

SIZES = {"n": 2, "m": 3, "m1": 1, "m2": 2}
y, W = tensor("y", i, j), tensor("W", i, j, positive=True)


def proved(left, right, sizes=SIZES, **options) -> Outcome:
    law = law_of(Eq(left, right))
    return prove(law.left, law.right, sizes, **options)


def entrywise(body) -> Tensor:
    return define("t", (i, j), body)


def test_listed_shapes_are_ones_and_sizes_that_differ():
    ones, distinct = listed_shapes(registry.laws["attention.gradient_key"])
    assert set(ones.values()) == {1}
    assert len(set(distinct.values())) == len(distinct) and min(distinct.values()) == 2
    assert listed_shapes(registry.laws["attention.query_equivariance"])[-1]["n"] == 3


# Roots: √x² is |x|


def test_the_root_of_a_square_is_not_its_base():
    assert not proved(entrywise(sqrt(x[i, j] ** 2)), x).proved


def test_the_root_of_a_square_of_something_nonnegative_is_its_base():
    assert proved(entrywise(sqrt(W[i, j] ** 2)), W).proved
    positive = exp(x[i, j]) + W[i, j]
    assert proved(entrywise(sqrt((positive**2).expand())), entrywise(positive)).proved


def test_the_square_of_a_root_is_what_is_under_it():
    root = define("root", (i,), sqrt(Sum(x[i, j] ** 2, j)))
    assert proved(define("square", (i,), root[i] ** 2), define("sum", (i,), Sum(x[i, j] ** 2, j))).proved


def test_roots_of_numbers():
    assert proved(entrywise(sqrt(12) * x[i, j]), entrywise(2 * sqrt(3) * x[i, j])).proved
    assert proved(entrywise(x[i, j] / sqrt(m)), entrywise(x[i, j] * sqrt(m) / m)).proved
    assert not proved(entrywise(sqrt(2) * x[i, j]), entrywise(sqrt(3) * x[i, j])).proved


def test_roots_of_exponentials():
    assert proved(entrywise(sqrt(define("e", (i, j), exp(x[i, j]))[i, j])), entrywise(exp(x[i, j] / 2))).proved


# Keys: what equals must be found equal


def test_cancellation_inside_an_exponential():
    product = entrywise(x[i, j] * W[i, j])
    assert proved(entrywise(exp(product[i, j] / W[i, j])), entrywise(exp(x[i, j]))).proved


def test_an_exponential_is_taken_apart_over_its_denominator():
    """exp(x/T + c) = exp(x/T) exp(c), and T may be a sum."""
    temperature = define("T", (i,), Sum(W[i, j], j))
    whole = entrywise(exp(x[i, j] / temperature[i] + y[i, 0]))
    assert proved(whole, entrywise(exp(x[i, j] / temperature[i]) * exp(y[i, 0]))).proved
    assert proved(
        entrywise(exp((x[i, j] + y[i, 0] * W[i, j]) / W[i, j])), entrywise(exp(y[i, 0]) * exp(x[i, j] / W[i, j]))
    ).proved
    assert not proved(whole, entrywise(exp(x[i, j] / temperature[i]))).proved


def test_fourth_roots_are_roots_of_roots():
    assert proved(entrywise(W[i, j] ** Rational(3, 4)), entrywise(sqrt(W[i, j]) * sqrt(sqrt(W[i, j])))).proved


def test_cancellation_inside_a_logarithm_and_its_content():
    total = define("Z", (i,), Sum(W[i, j], j))
    scaled = define("6Z", (i,), Sum(6 * W[i, j] * exp(y[i, 0]), j))
    logs = define("logs", (i,), log(6) + y[i, 0] + log(total[i]))
    assert proved(define("log", (i,), log(scaled[i])), logs).proved


def test_the_logarithm_of_a_product_of_free_signs_stays_whole():
    product = entrywise(x[i, j] * y[i, j])
    assert not proved(entrywise(log(product[i, j])), entrywise(log(x[i, j]) + log(y[i, j]))).proved


@pytest.mark.parametrize("coarse_first", [True, False])
def test_exponentials_of_a_half(coarse_first):
    half = entrywise(exp(x[i, j] / 2))
    sides = entrywise(exp(x[i, j])), entrywise(half[i, j] ** 2)
    assert proved(*(sides if coarse_first else sides[::-1])).proved
    assert not proved(entrywise(exp(x[i, j])), entrywise(half[i, j] ** 3)).proved


def test_a_division_by_an_inverse():
    inverse = entrywise(1 / (1 + W[i, j]))
    assert proved(entrywise(1 / inverse[i, j]), entrywise(1 + W[i, j])).proved


# Maxima are any real number; unknown functions are known by their arguments


def test_a_maximum_is_any_real_number():
    peak = define("peak", (i,), Max(x[i, j], j))
    assert proved(peak, define("again", (i,), Max(x[i, j], j))).proved
    assert not proved(peak, define("first", (i,), x[i, 0])).proved
    shifted = define("shifted", (i,), Max(x[i, j] + 1, j))
    assert not proved(shifted, define("peak + 1", (i,), peak[i] + 1)).proved  # true, and beyond what the field knows


def test_an_unknown_function_has_equal_values_at_equal_arguments_only():
    squared = entrywise(x[i, j] ** 2)
    assert proved(entrywise(sp.tanh(squared[i, j] / x[i, j])), entrywise(sp.tanh(x[i, j]))).proved
    assert not proved(entrywise(sp.tanh(x[i, j])), entrywise(sp.tanh(y[i, j]))).proved


# Names, permutations, blocks, fixed values


def test_a_dimension_and_a_scalar_of_one_name_differ():
    scalar_m = scalar("m")
    assert not proved(entrywise(x[i, j] / m), entrywise(x[i, j] / scalar_m)).proved


def test_every_bijection_is_tried():
    π = permutation("π", j)
    assert proved(define("Σ", (i,), Sum(x[i, π[j]], j)), define("Σ'", (i,), Sum(x[i, j], j))).proved
    twice = proved(entrywise(x[i, π[π[j]]]), x)
    assert twice.residual.startswith("π = (1, 2, 0): entry [0, 0]")
    assert proved(entrywise(x[i, π[π[j]]]), x, given={π: (2, 1, 0)}).proved


def test_more_bijections_than_can_be_tried_are_refused():
    π = permutation("π", j)
    outcome = proved(entrywise(x[i, π[j]]), entrywise(x[i, π[j]]), {"n": 1, "m": 7})
    assert outcome.residual == "more than 720 bijections at {'n': 1, 'm': 7}; list a smaller shape"


def test_blocks_stand_one_after_the_other():
    from lla_spec.formulas.softmax import j1, j2

    jj = split(j, j1, j2)
    x1, x2 = tensor("x1", i, j1), tensor("x2", i, j2)
    whole, turned = concat("x", (i, jj), x1[i, j1], x2[i, j2]), split(j, j2, j1)
    other = concat("x'", (i, turned), x2[i, j2], x1[i, j1])
    assert proved(Sum(whole[i, jj], jj), Sum(other[i, turned], turned)).proved
    assert not proved(define("first", (i,), whole[i, 0]), define("first'", (i,), other[i, 0])).proved


def test_given_values_prove_at_those_values_only():
    unit = {x: [[Fraction(3, 5), Fraction(4, 5), 0], [1, 0, 0]]}
    square, one = define("norm", (i,), Sum(x[i, j] ** 2, j)), define("one", (i,), 1)
    assert proved(square, one, given=unit).proved
    assert not proved(square, one).proved


# What is refused says why


def test_a_denominator_that_vanishes_identically_is_refused():
    zero = entrywise(x[i, j] - y[i, j] - define("d", (i, j), x[i, j] - y[i, j])[i, j])
    side = entrywise(1 / zero[i, j])
    assert proved(side, side).residual == "a denominator is identically zero"


def test_a_root_of_what_is_negative_is_refused():
    negative = entrywise(-1 - W[i, j])
    side = entrywise(sqrt(negative[i, j]))
    assert proved(side, side).residual == "a root of what is negative"


def test_what_has_no_real_value_is_refused_by_name():
    assert "ImaginaryUnit has no meaning entry by entry" in proved(entrywise(sp.I * x[i, j]), x).residual


def test_the_residual_names_the_entry_and_what_is_left():
    outcome = proved(entrywise(2 * x[i, j]), x)
    assert outcome.residual == "entry [0, 0]: left - right comes down to x[0, 0]"


def test_shapes_that_differ_are_refused():
    assert "left is over (n, m) and right over (n,)" in prove(x, define("row", (i,), x[i, 0]), SIZES).residual


def test_conditions_are_recorded_in_the_inputs():
    law = registry.laws["softmax.log_of_softmax"]
    outcome = prove(law.left, law.right, SIZES)
    assert {f"{readable(expr)} {kind}" for expr, kind in outcome.conditions} == {
        "Σ_j(exp(x[i, j])) > 0",
        "Σ_l(exp(x[i, l])) ≠ 0",
        "exp(x[i, j])/Σ_l(exp(x[i, l])) > 0",
    }


def test_a_wrong_law_is_refused_at_once():
    """A false statement whose denominators would take minutes to clear is refused by one residue modulo a prime."""
    totals = [define(f"Z{k}", (i,), Sum(exp((k + 1) * x[i, j]) * W[i, j], j)) for k in range(6)]
    left = define("left", (i,), sum(total[i] ** -3 for total in totals))
    outcome = proved(left, define("right", (i,), softmax(x)[i, 0] + logsumexp(x)[i]), {"n": 1, "m": 6})
    assert not outcome.proved and n
