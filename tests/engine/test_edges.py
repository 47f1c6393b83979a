"""Edges: overflow that must, may or must not happen; NaN; infinities; bounds that are zero or broke down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import PRECISIONS, contract
from lla_spec.evaluating.edges import hazards, ratios
from lla_spec.evaluating.operations import bound

FP16 = PRECISIONS["fp16"]
T = FP16.overflow_threshold  # 65520
INF, NAN = math.inf, math.nan


def ratio(computed: float, value: float, error: float, before: float | None = None) -> float:
    b = Bounded(np.array([value]), np.array([error]), None if before is None else np.array([before]))
    (found,) = ratios(np.array([computed]), b, FP16)
    return float(found)


def test_the_ratio_is_the_error_over_the_bound() -> None:
    assert ratio(1.25, 1.0, 0.5) == 0.5
    assert ratio(0.5, 1.0, 0.5) == 1.0
    assert ratio(2.0, 1.0, 0.5) == 2.0


def test_an_ordinary_entry_is_judged_alike_beside_one_that_is_not() -> None:
    numbers = np.array([1.25, 1.0, -3.0, 0.0])
    b = Bounded(np.array([1.0, 1.0, -2.0, 0.0]), np.array([0.5, 0.0, 0.25, 0.0]))
    beside = Bounded(np.append(b.value, INF), np.append(b.error, 0.0))
    assert ratios(numbers, b, FP16).tolist() == [0.5, 0.0, 4.0, 0.0]
    assert ratios(np.append(numbers, INF), beside, FP16).tolist() == [0.5, 0.0, 4.0, 0.0, 0.0]


# ---- overflow


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_beyond_the_threshold_for_certain_must_overflow(sign: int) -> None:
    value = sign * (T + 100)
    assert ratio(sign * INF, value, 50.0) == 0.0
    assert ratio(sign * 65504.0, value, 50.0) == INF
    assert ratio(-sign * INF, value, 50.0) == INF


@pytest.mark.parametrize("sign", [1, -1])
def test_near_the_threshold_a_result_may_overflow_or_not(sign: int) -> None:
    value = sign * (T - 10)
    assert ratio(sign * INF, value, 50.0) == 0.0
    assert ratio(sign * 65504.0, value, 50.0) == pytest.approx(6 / 50)
    assert ratio(-sign * INF, value, 50.0) == INF


@pytest.mark.parametrize("value", [4000.0, 0.0, -4000.0])
def test_a_bound_that_reaches_beyond_both_thresholds_allows_both_infinities(value: float) -> None:
    assert ratio(INF, value, 9e5) == ratio(-INF, value, 9e5) == 0.0
    assert ratio(math.copysign(INF, -value), value, T + 1000) == (0.0 if value == 0 else INF)


def test_below_the_threshold_a_result_must_not_overflow() -> None:
    assert ratio(INF, T - 100, 50.0) == INF
    assert ratio(-INF, -1.0, 50.0) == INF
    assert ratio(INF, T - 50, 50.0) == 0.0  # |R| + e = T: may
    assert ratio(INF, T, 0.0) == 0.0 and ratio(65504.0, T, 0.0) == INF  # T itself rounds to infinity


def test_overflow_is_decided_before_the_last_cast() -> None:
    value = 65504.0
    assert ratio(INF, value, 16.0, before=0.0) == INF
    assert ratio(INF, value, 16.0, before=16.0) == 0.0
    assert ratio(65504.0, T + 8, 40.0, before=0.0) == INF


def test_a_value_beyond_every_format_wants_the_infinity() -> None:
    assert ratio(INF, INF, 0.0) == 0.0
    assert ratio(-INF, INF, 0.0) == INF
    assert ratio(65504.0, INF, INF) == INF
    assert ratio(-INF, -INF, 0.0) == 0.0


# ---- NaN


def test_a_result_that_depends_on_a_nan_must_be_nan() -> None:
    assert ratio(NAN, NAN, 0.0) == 0.0
    for other in (0.0, 1.0, INF):
        assert ratio(other, NAN, 0.0) == INF


def test_a_result_that_depends_on_an_infinity_is_not_judged() -> None:
    for computed in (NAN, INF, -INF, 0.0, 7.0):
        assert ratio(computed, NAN, INF) == 0.0


def test_a_nan_from_nowhere_is_wrong() -> None:
    for value in (0.0, 1.0, T, INF):
        assert ratio(NAN, value, 1.0) == INF
    assert ratio(NAN, 0.0, 0.0) == INF


def test_a_ratio_is_never_nan() -> None:
    numbers = [0.0, -0.0, 1.0, -1.0, 1e-8, 65504.0, -65504.0, T, 1e6, INF, -INF, NAN]
    for computed in numbers:
        for value in numbers:
            for error in (0.0, 1e-9, 1.0, 1e6, INF):
                assert not math.isnan(ratio(computed, value, error))


# ---- bounds of zero, and none


def test_a_bound_of_zero_asks_for_equality() -> None:
    assert ratio(1.0, 1.0, 0.0) == 0.0
    assert ratio(0.0, -0.0, 0.0) == 0.0
    assert ratio(float(np.nextafter(1.0, 2.0)), 1.0, 0.0) == INF


def test_a_bound_that_broke_down_judges_nothing_and_is_a_hazard() -> None:
    for computed in (0.0, 1e4, INF, -INF, NAN):
        assert ratio(computed, 1.0, INF) == 0.0
    b = Bounded(np.array([1.0, 1.0, NAN, NAN, INF]), np.array([INF, 1.0, INF, 0.0, INF]))
    np.testing.assert_array_equal(hazards(b), [True, False, False, False, False])


def test_scores_that_may_overflow_fp16_are_a_hazard_of_whiteboard_alone() -> None:
    """q·k = 90,000 is beyond fp16 and scale·q·k = 45,000 is not: the product is rounded before the scale as well."""
    q, k, v = np.full((1, 4), 150.0), np.full((2, 4), 150.0), np.array([[1.0], [2.0]])
    given = {"q": q, "k": k, "v": v}
    assert hazards(bound("attention", given, contract("whiteboard", "fp16"))).all()
    assert not hazards(bound("attention", given, contract("fused", "fp16"))).any()
    assert not hazards(bound("attention", given, contract("whiteboard", "bf16"))).any()


def test_a_product_beyond_fp16_must_overflow_and_an_accumulator_that_may_overflow_is_a_hazard() -> None:
    a, b = np.full((1, 2), 300.0), np.full((2, 1), 300.0)
    found = bound("matmul", {"a": a, "b": b}, contract("strict", "fp16"))
    assert ratios(np.array([[INF]]), found, FP16).item() == 0.0
    assert ratios(np.array([[65504.0]]), found, FP16).item() == INF
    huge = np.array([[1e38, 1e38, -1e38, -1e38]])
    found = bound("matmul", {"a": huge, "b": np.full((4, 1), 3.0)}, contract("strict", "fp32"))
    assert hazards(found).all()


def test_nothing_is_known_where_the_scale_may_make_a_key_infinite() -> None:
    """A kernel may multiply the scale into k: its column is infinite then, and 0 times that is NaN in every query."""
    q, v = np.eye(3, 2) * 2.0**-100, np.ones((3, 2))
    k = np.array([[1.0, 0.0], [0.0, 1.0], [2.0**127, 1.0]])  # three times 2^127 is no float32
    mask = np.array([[True, True, False], [False, False, False], [True, True, True]])  # the first two do not look there
    given = {"q": q, "k": k, "v": v, "mask": mask, "scale": 3.0}
    promise = contract("strict", "fp32")
    assert hazards(bound("attention", given, promise)).any(-1).tolist() == [False, False, True]
    dq = bound("attention", {**given, "grad_output": np.ones((3, 2))}, promise, vjp=True)["q"]
    assert hazards(dq).tolist() == [[True, False], [True, False], [True, True]]
    mild = bound("attention", {**given, "scale": 1.0, "grad_output": np.ones((3, 2))}, promise, vjp=True)["q"]
    assert not hazards(mild)[:2].any()


# ---- shapes


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"ratios: computed has shape \(2,\) but the value has \(3,\)"):
        ratios(np.zeros(2), Bounded(np.zeros(3), np.zeros(3)), FP16)
    with pytest.raises(ValueError, match=r"Bounded: error has shape \(2,\) but value has \(3,\)"):
        Bounded(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="error has a NaN; a bound that breaks down is inf"):
        Bounded(np.zeros(1), np.array([NAN]))


def test_nothing_has_no_ratio() -> None:
    assert ratios(np.zeros((0, 3)), Bounded(np.zeros((0, 3)), np.zeros((0, 3))), FP16).shape == (0, 3)
