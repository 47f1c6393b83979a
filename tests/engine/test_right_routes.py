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


KINDS = [("definition", "fp32"), ("vjp", "fp32"), ("definition", "bf16")]
ROWS = [(f.name, law, dtype) for f in registry.operations() for law, dtype in KINDS if law != "vjp" or f.differentiable]


@pytest.mark.parametrize(("operation", "law", "dtype"), ROWS)
def test_correct_kernels_by_other_routes_pass(operation, law, dtype):
    """One route after the other at the same cases: what their answers are compared with is computed once."""
    routes = {
        name: load(target) for name, target in ROUTES.items() if dtype == "fp32" or name != "loops"
    }  # the slowest
    options = Options(ops=(operation,), laws=(law,), dtypes=(dtype,), examples=0)
    sessions = {name: Session(target, options) for name, target in routes.items() if target.implements(operation)}
    results = {name: session.run(row) for name, session in sessions.items() for row in session.rows()}
    without = {name for name, op in WITHOUT_GRADIENT if law == "vjp" and op == operation}
    expected = {name: "unimplemented" if name in without else "pass" for name in sessions}
    found = {name: result.verdict for name, result in results.items()}
    assert results and found == expected, [result.message for result in results.values()]


def test_every_operation_is_computed_by_another_route():
    computed = {op for target in ROUTES.values() for op in load(target).functions}
    assert {formula.name for formula in registry.operations()} <= computed
