"""Every bound is at least the real error (a short run of soundness.py), and it has an edge."""

import statistics

import pytest
import torch

from lla_spec.evaluating.contracts import contract
from lla_spec.language import registry
from lla_spec.testing.cases import Case
from lla_spec.testing.covering import features
from lla_spec.testing.inputs import build
from lla_spec.testing.judge import truth_of, worst_entry
from lla_spec.testing.threads import one_blas_thread
from tests.engine.soundness import forward_kernels, judged, outputs_of, rows

ROWS = list(rows())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with one_blas_thread():
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("formula", "law", "dtype", "promise"), ROWS, ids=lambda v: getattr(v, "name", str(v)))
def test_the_real_error_stays_within_the_bound(formula, law, dtype, promise):
    row = judged(formula, law, dtype, promise, 30, seed=1)
    assert row.violations == [] and len(row.worst) >= 20


@pytest.mark.parametrize("formula", registry.operations(), ids=lambda f: f.name)
def test_the_bound_has_an_edge_in_bf16(formula):
    """Normal data, at least 64 outputs, reductions up to 1024, strict: half of the cases reach 0.3 of the bound."""
    f, declared = features(formula), contract("strict", "bf16")
    found = list(forward_kernels(formula.name, "strict").values())
    worst = []
    for number in range(24):
        sizes = {name: (16, 100, 1024)[number % 3] if name in f.summed else 16 for name in f.dims}
        batch = (64,) if formula.rows else (2,)
        case = Case(formula.name, "definition", "bf16", sizes=tuple(sizes.items()), batch=batch, seed=number)
        arguments = build(formula, case).arguments
        truth = truth_of(formula, arguments, declared, vjp=False)
        kernel = found[0] if number % 3 == 2 else found[number % len(found)]
        entry = worst_entry(outputs_of(kernel, arguments, truth), truth, declared)
        assert entry is not None
        worst.append(entry.ratio)
    assert statistics.median(worst) >= 0.3 and max(worst) <= 1
