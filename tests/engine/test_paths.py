"""A kernel has more than one path. One that is wrong on a single path is refused, whatever numbers are drawn there."""

import itertools
import re
from dataclasses import replace

import pytest

from lla_spec.testing.diagnose import texts
from lla_spec.testing.features import features
from lla_spec.testing.pairs import pairwise
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load, operation_formula
from tests.targets.paths import PATHS, attention_by


def row_of(functions):
    """The session, its one row, and what judges a case of it."""
    (operation,) = functions
    session = Session(load(functions), Options(ops=(operation,), laws=("definition",), dtypes=("fp32",), examples=0))
    (row,) = session.rows()
    return session, row, session.judging(row, session.contract(row))


@pytest.mark.parametrize("words", PATHS)
def test_a_kernel_that_is_wrong_on_one_path_alone_is_refused(words):
    session, row, judging = row_of(PATHS[words])
    assert session.run(row).verdict == "fail"
    assert any(judging(replace(case, seed=case.seed + 1000)).failed for _, case in session.cases(row))


def test_where_a_rounding_would_explain_it_too_the_block_is_named_first():
    words = "last key lost where the keys fill their tiles"
    session, row, _ = row_of(PATHS[words])
    (text,) = texts(session, [session.run(row)], "kernels.py", seconds=2.0)
    assert "m=128" in text and re.search(
        r"try +smaller sizes pass: look at the last block .* over m = 128; if it is", text
    )


def test_the_attention_that_these_paths_spoil_is_right_without_them():
    session, row, _ = row_of({"attention": attention_by(lambda call: {})})
    assert session.run(row).verdict == "pass"


@pytest.mark.parametrize("operation", ["attention", "linear", "layer_norm", "multi_head_attention", "pca_transform"])
@pytest.mark.parametrize("dtype", ["fp64", "bf16"])
def test_every_axis_has_more_than_a_tile_in_some_case(operation, dtype):
    session = Session(load("impl"), Options(ops=(operation,), laws=("definition",), dtypes=(dtype,), examples=0))
    (row,) = session.rows()
    found = features(operation_formula(operation))
    for name in (name for name in found.dims if name not in found.heads):
        sizes = {case.size(name) for _, case in session.cases(row)}
        assert any(size > 64 and size % 16 for size in sizes), f"{name} is within a tile"
        assert dtype == "fp64" or any(size >= 64 and size % 64 == 0 for size in sizes), f"{name} never fills its tiles"


@pytest.mark.parametrize(
    "factors", [{"a": (0, 1)}, {"a": (0, 1, 2), "b": "xy"}, {"a": (0, 1), "b": "xyz", "c": (True, False), "d": "pqrs"}]
)
def test_any_two_values_of_two_factors_meet(factors):
    rows = pairwise(factors)
    assert all(set(row) == set(factors) for row in rows)
    assert {row["a"] for row in rows} == set(factors["a"])
    for a, b in itertools.combinations(factors, 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(factors[a], factors[b]))
    assert len(rows) < 2 * max((len(x) * len(y) for x, y in itertools.combinations(factors.values(), 2)), default=2)
