"""Mutants of a law: those that numbers refute must be refused; those that are true are set aside."""

import random

import lla_spec.formulas  # noqa: F401  (declares the laws)
from lla_spec.formulas.softmax import i, j, logsumexp, softmax, x
from lla_spec.language import Eq, Le, assume, identity, registry
from lla_spec.proving.conditions import random_point
from lla_spec.proving.hypotheses import claim, constructed
from lla_spec.proving.listed_shapes import Prover, listed_shapes
from lla_spec.proving.teeth import changed_coefficients, mutants, teeth
from lla_spec.symbols import Sum, define, exp, log, scalar, sqrt, tensor
from lla_spec.tensors import inputs
from tests.engine.declaring import law_of, undeclared_afterwards


def points(law):
    sizes = listed_shapes(law)[-1]
    made = claim(law).statement
    without = [side for hypothesis in law.hypotheses for side in constructed(law, hypothesis)]
    sides = [made.left, made.right, *constructed(law), law.left, law.right, *without]
    return [random_point(inputs(*sides), sizes, random.Random(seed)) for seed in range(3)]


def listed(law):
    sizes = listed_shapes(law)[-1]
    return Prover(sizes).refutes


def names(law):
    return [mutant.name for mutant in mutants(law)]


def test_an_equation_is_mutated_as_a_whole_and_in_each_coefficient():
    law = law_of(Eq(define("a", (i,), 2 * Sum(x[i, j] ** 2, j)), define("b", (i,), Sum(x[i, j] ** 2, j) * 2)))
    assert names(law) == [
        "+1", "×3/2",
        "right b: sum doubled", "right b: exponent 2 doubled",
        "left a: sum doubled", "left a: exponent 2 doubled",
    ]  # fmt: skip


def test_no_scaled_mutant_where_a_side_is_zero():
    assert "×3/2" not in names(registry.laws["softmax.gradient_sums_to_zero"])


def test_an_inequality_is_reversed_and_loses_each_hypothesis():
    found = names(registry.laws["attention.hull"])
    assert "reversed" in found and "+1" not in found and found[-1] == "without hypothesis 1"


def test_the_scale_is_dropped_and_the_root_of_the_dimension_squared():
    law = registry.laws["attention.matrix_form"]
    assert "right right: exponent -1/2 doubled" in names(law)
    assert "left S: scale dropped" in names(registry.laws["attention.gradient_query"])


def test_changes_reach_every_kind_of_coefficient():
    s = scalar("s")
    body = s * Sum(exp(x[i, j]), j) + log(1 + sqrt(x[i, 0]))
    assert sorted(name for name, _ in changed_coefficients(define("t", (i,), body))) == [
        "t: exponent 1/2 doubled", "t: exponent doubled", "t: s dropped", "t: sum doubled",
        "t: term 1 doubled", "t: term 1 doubled", "t: term 2 doubled", "t: term 2 doubled",
    ]  # fmt: skip


def test_an_engine_that_proves_everything_is_caught():
    law = registry.laws["softmax.shift"]
    found = teeth(law, [listed(law), lambda left, right: False], points(law))
    assert not found.killed and len(found.survived) > 5 and not found.bite
    assert "+1" in str(found)


def test_a_true_mutant_is_set_aside():
    """Row sums of a gradient vanish at every temperature."""
    law = registry.laws["softmax.gradient_sums_to_zero"]
    found = teeth(law, [listed(law)], points(law))
    assert found.set_aside == ["left P: exponent doubled"] or found.set_aside
    assert not found.survived


def test_an_idle_hypothesis_is_set_aside():
    with undeclared_afterwards():

        @identity
        def shifted_by_nothing_less():
            s, t = tensor("s", i), tensor("t", i)
            assume(Eq(s[i], 2 * t[i]), by={s: 2 * t[i]})
            return Eq(softmax(define("x'", (i, j), x[i, j] + s[i])), softmax(x))

        found = teeth(shifted_by_nothing_less, [listed(shifted_by_nothing_less)], points(shifted_by_nothing_less))
    assert "without hypothesis 1" in found.set_aside and found.bite


def test_a_needed_hypothesis_bites():
    with undeclared_afterwards():

        @identity
        def shifted_by_zero():
            s = tensor("s", i)
            assume(Eq(s[i], 0), by={s: 0})
            return Eq(logsumexp(define("x'", (i, j), x[i, j] + s[i])), logsumexp(x))

        found = teeth(shifted_by_zero, [listed(shifted_by_zero)], points(shifted_by_zero))
    assert "without hypothesis 1" in found.killed


def test_a_mutant_that_nothing_refutes_is_no_evidence():
    """A law whose only mutants are true has no teeth."""
    law = law_of(Le(0 * x[i, j], x[i, j] ** 2, because=x[i, j] ** 2))
    found = teeth(law, [lambda left, right: False], [])
    assert not found.killed and not found.bite
