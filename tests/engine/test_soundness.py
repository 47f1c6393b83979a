"""Every bound is at least the real error (a short run of soundness.py), and it has an edge."""

import statistics

import numpy as np
import pytest
import torch

from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.operations import oracle
from lla_spec.language import registry
from lla_spec.testing.cases import Case
from lla_spec.testing.features import features
from lla_spec.testing.inputs import build
from lla_spec.testing.judge import worst_entry
from lla_spec.testing.threads import one_blas_thread
from lla_spec.testing.truth import truth_of
from tests.engine import ball_truth, loss_kernels, multi_head_kernels, normalization_kernels, soundness
from tests.engine.kernels import FORWARD, kernels_of
from tests.engine.soundness import MARKS, judged, outputs_of, rows

ROWS = list(rows())
OPERATIONS = [formula for formula in registry.operations() if formula.name in FORWARD]
ELSEWHERE = (loss_kernels, multi_head_kernels, normalization_kernels)  # their campaigns: test_<topic>_bounds.py


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with one_blas_thread():
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("formula", "law", "dtype", "promise"), ROWS, ids=lambda v: getattr(v, "name", str(v)))
def test_the_real_error_stays_within_the_bound(formula, law, dtype, promise):
    count = 10 if dtype == "fp64" else 20  # balls are slow
    row = judged(formula, law, dtype, promise, count, seed=1)
    assert row.violations == [] and len(row.worst) == count


@pytest.mark.parametrize("formula", OPERATIONS, ids=lambda f: f.name)
def test_the_bound_has_an_edge_in_bf16(formula):
    """Normal data, 64 outputs or more, reductions up to 1024, strict: in half of the cases the worst error is above 0.3
    of its bound, so a kernel that is wrong by four times as much is seen."""
    f, declared = features(formula), contract("strict", "bf16")
    kernels = kernels_of(formula.name, "definition", "strict")
    quick = [kernel for name, kernel in kernels.items() if name not in soundness.SLOW]
    worst = []
    for number in range(24):
        length = (16, 100, 1024)[number % 3]
        longest = f.summed[number // 3 % len(f.summed)]
        sizes = {name: length if name == longest else 16 for name in f.dims}
        batch = (64,) if formula.rows else (2,)
        case = Case(formula.name, "definition", "bf16", sizes=tuple(sizes.items()), batch=batch, seed=number)
        arguments = build(formula, case).arguments
        truth = truth_of(formula, arguments, declared, vjp=False)
        chosen = quick if length == 1024 else list(kernels.values())
        entry = worst_entry(outputs_of(chosen[number // 3 % len(chosen)], arguments, truth), truth, declared)
        assert entry is not None and truth[""].value.size >= 64
        worst.append(entry.ratio)
    assert statistics.median(worst) >= 0.3 and max(worst) <= 1


def test_every_operation_has_kernels_and_a_second_opinion():
    for formula, law, _, promise in ROWS:
        assert len(kernels_of(formula.name, law, promise)) >= (2 if promise in ("strict", "fused") else 1)
    assert set(ball_truth.FORWARD) == set(ball_truth.GRADIENTS) == {formula.name for formula in OPERATIONS}


def test_a_kernel_that_breaks_its_promise_is_a_violation(monkeypatch):
    """The table can say no: weights rounded to bf16 under a strict contract."""
    casting = kernels_of("attention", "definition", "fused")
    monkeypatch.setattr(soundness, "kernels_of", lambda *_: casting)
    row = judged(registry.formulas["attention"], "definition", "bf16", "strict", 40, seed=2)
    assert len(row.violations) >= 10 and max(row.worst) > 1.5


def up(values):
    """The next float64 of each."""
    return {key: up(x) for key, x in values.items()} if isinstance(values, dict) else np.nextafter(values, np.inf)


@pytest.mark.parametrize("law", ["definition", "vjp"])
def test_an_oracle_that_is_off_by_one_unit_in_the_last_place_is_a_violation(monkeypatch, law):
    def off(name, arguments, *, vjp, exact):
        found = oracle(name, arguments, vjp=vjp, exact=exact)
        return up(found) if exact else found

    monkeypatch.setattr(soundness, "oracle", off)
    row = judged(registry.formulas["softmax"], law, "fp64", "strict", 10, seed=2)
    assert any("is not correctly rounded" in line for line in row.violations)


@pytest.mark.parametrize("law", ["definition", "vjp"])
def test_a_value_to_judge_by_that_is_off_by_one_unit_in_the_last_place_is_a_violation(monkeypatch, law):
    def off(formula, arguments, declared, *, vjp):
        truth = truth_of(formula, arguments, declared, vjp=vjp)
        return {key: b.around(up(b.value)) for key, b in truth.items()}

    monkeypatch.setattr(soundness, "truth_of", off)
    row = judged(registry.formulas["softmax"], law, "fp64", "strict", 10, seed=2)
    assert any("further off than its bound does not see" in line for line in row.violations)


def test_a_float64_oracle_that_is_wrong_is_a_violation(monkeypatch):
    def wrong(name, arguments, *, vjp, exact):
        return oracle(name, arguments, vjp=vjp, exact=exact) * (1 if exact else 1 + 1e-9)

    monkeypatch.setattr(soundness, "oracle", wrong)
    row = judged(registry.formulas["softmax"], "definition", "fp64", "strict", 10, seed=2)
    assert any("beyond the bound of fp64" in line for line in row.violations)


def test_the_table_is_written_between_its_marks(tmp_path, capsys):
    page = tmp_path / "bounds.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert soundness.main(["--cases", "3", "--op", "matmul", "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    lines = [line for line in rows() if line[0].name == "matmul"]
    assert text.count("| matmul |") == len(lines) >= 8
    told = f"{3 * len(lines)} cases, 0 violations"
    assert told in text and told in capsys.readouterr().out
