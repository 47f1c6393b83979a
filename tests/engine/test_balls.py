"""Balls enclose the exact result, and judge float64."""

from __future__ import annotations

import flint
import numpy as np
import pytest
from flint import arb

from lla_spec.calculus import gradient_parameters
from lla_spec.certified import Certified
from lla_spec.evaluating.balls import Balls, enclose, enclosure, precision
from lla_spec.evaluating.compiling import compile_formula, compile_vjp
from lla_spec.evaluating.float64 import Float64
from lla_spec.evaluating.operations import oracle
from lla_spec.language import Formula, registry
from tests.engine.float64_bounds import assert_within, float64_bounds
from tests.engine.test_plan import numbers

SIZES = {"n": 3, "m": 5, "d": 4, "e": 2, "k": 3, "v": 4, "g": 2, "r": 2, "a": 3, "o": 2}
OPERATIONS = [f for f in registry.operations() if not isinstance(f, Certified)]


def values_of(formula: Formula, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = {name: numbers(rng, parameter, SIZES) for name, parameter in formula.parameters.items()}
    return {**values, "grad_output": numbers(rng, formula.result, SIZES)}


@pytest.mark.parametrize("formula", OPERATIONS, ids=lambda f: f.name)
@pytest.mark.parametrize("vjp", [False, True])
def test_float64_and_balls_agree_to_float64(formula: Formula, vjp: bool) -> None:
    plan = compile_vjp(formula, tuple(gradient_parameters(formula))) if vjp else compile_formula(formula)
    for seed in range(5):
        values = values_of(formula, seed)
        plain, bounds = plan.run(Float64(), values), float64_bounds(plan, values)
        for name, ball in enclose(plan, values).items():
            zero = np.abs(ball.high) + ball.radius < 1e-30  # the exact 0 of a key bias's gradient never rounds
            assert (ball.rounded | zero).all()
            assert (ball.radius < 1e-30).all()
            assert_within(plain[name], bounds[name].around(ball.high), beside=np.abs(ball.low) + ball.radius)


@pytest.mark.parametrize("formula", OPERATIONS, ids=lambda f: f.name)
def test_a_wider_precision_lies_inside_a_narrower_one(formula: Formula) -> None:
    plan, values = compile_formula(formula), values_of(formula, 7)
    (narrow,), (wide,) = enclose(plan, values, bits=60).values(), enclose(plan, values, bits=300).values()
    apart = np.abs((narrow.high - wide.high) + (narrow.low - wide.low))
    assert (apart <= narrow.radius + wide.radius + np.abs(wide.low) * 2.0**-52).all()
    assert (narrow.radius > wide.radius).any()


def test_cancellation_is_resolved() -> None:
    plan = compile_formula(registry.formulas["matmul"])
    a, b = np.array([[1e16, 1.0, -1e16]]), np.ones((3, 1))
    (ball,) = enclose(plan, {"A": a, "B": b}).values()
    assert ball.high == 1.0
    assert ball.radius == 0.0


def test_minus_infinity_is_a_weight_of_exactly_zero() -> None:
    plan = compile_formula(registry.formulas["softmax"], frozenset("M"))
    (ball,) = enclose(plan, {"x": np.array([[0.0, -np.inf, 0.0]])}).values()
    np.testing.assert_array_equal(ball.high, [[0.5, 0.0, 0.5]])
    assert ball.radius[0, 1] == 0.0


def test_scores_near_the_largest_float64_are_resolved_by_a_wider_precision() -> None:
    plan = compile_formula(registry.formulas["attention"])
    values = {"Q": np.array([[1e150]]), "K": np.array([[1e150], [-1e150]]), "V": np.array([[3.0], [4.0]]), "scale": 0.3}
    values["M"] = np.ones((1, 2))
    assert not enclose(plan, values, bits=128)["O"].rounded.any()
    found = oracle("attention", {"q": values["Q"], "k": values["K"], "v": values["V"], "scale": 0.3}, exact=True)
    assert found == 3.0


def test_what_is_hidden_does_not_reach_a_ball() -> None:
    plan = compile_formula(registry.formulas["softmax"])
    (ball,) = enclose(plan, {"x": np.array([[0.0, 1e300, 0.0]]), "M": np.array([[1.0, 0.0, 1.0]])}).values()
    np.testing.assert_array_equal(ball.high, [[0.5, 0.0, 0.5]])


def test_batches_of_matrix_products() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 3, 4)), rng.normal(size=(5, 4, 2))
    plan = compile_formula(registry.formulas["matmul"])
    (ball,), (judged,) = enclose(plan, {"A": a, "B": b}).values(), float64_bounds(plan, {"A": a, "B": b}).values()
    assert_within(a @ b, judged.around(ball.high), beside=np.abs(ball.low) + ball.radius)


def test_an_enclosure_knows_whether_it_rounds_to_one_float64() -> None:
    with precision(128):
        halfway = arb(1) + arb(2) ** -53
        near = np.array([halfway, halfway + arb("0 +/- 1e-30"), halfway + arb(2) ** -80], dtype=object)
        found = enclosure(near)
    np.testing.assert_array_equal(found.rounded, [True, False, True])
    assert found.high[2] == 1 + 2.0**-52
    assert (np.abs(found.low) <= 2.0**-53).all()


def test_a_wide_ball_beyond_float64_is_no_infinity() -> None:
    with precision(128):
        found = enclosure(np.array([arb("1e400 +/- 1e401"), arb("1e400 +/- 1e300")], dtype=object))
    np.testing.assert_array_equal(found.radius, [np.inf, 0.0])
    np.testing.assert_array_equal(found.rounded, [False, True])


def test_the_precision_of_flint_is_put_back() -> None:
    before = flint.ctx.prec
    with precision(333):
        Balls().exp(np.array([arb(1)], dtype=object), 0)
    assert flint.ctx.prec == before
