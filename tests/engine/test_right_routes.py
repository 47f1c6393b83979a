"""Correct kernels by other routes pass: NumPy, torch.linalg, loops, and scikit-learn where it is installed."""

import importlib.util

import pytest

from lla_spec.language import registry
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from tests.targets import right_numpy, right_routes

ROUTES = {"numpy": right_numpy, "linalg": right_routes.by_linalg, "loops": right_routes.in_loops}
if importlib.util.find_spec("sklearn") is not None:
    ROUTES["scikit-learn"] = right_routes.by_scikit_learn
WITHOUT_GRADIENT = {
    ("numpy", "multi_head_attention"),
    ("scikit-learn", "pca_transform"),
    ("scikit-learn", "pca_inverse"),
}


ROWS = [("definition", "fp32"), ("vjp", "fp32"), ("definition", "bf16")]


@pytest.mark.parametrize(
    ("route", "law", "dtype"),
    [(route, *row) for route in ROUTES for row in (ROWS[:2] if route == "loops" else ROWS)],  # loops: the slowest
)
def test_a_correct_kernel_passes_every_row_that_it_offers(route, law, dtype):
    session = Session(load(ROUTES[route]), Options(laws=(law,), dtypes=(dtype,), examples=0))
    rows = [row for row in session.rows() if session.target.implements(row.op)]
    results = {row.op: session.run(row) for row in rows}
    expected = {op: "unimplemented" if law == "vjp" and (route, op) in WITHOUT_GRADIENT else "pass" for op in results}
    assert results and {op: r.verdict for op, r in results.items()} == expected, [r.message for r in results.values()]


def test_every_operation_is_computed_by_another_route():
    computed = {op for target in ROUTES.values() for op in load(target).functions}
    assert {formula.name for formula in registry.operations()} <= computed
