"""Two runs compared: what broke and was mended by verdict, whose accuracy fell by the sign test of the same cases."""

import copy

import numpy as np
import pytest
import torch

from lla_spec.testing import report
from lla_spec.testing.report.compare import LEVEL, chance
from lla_spec.testing.runner import Options
from tests.engine import reported


def document(ratios, **changes):
    """A report of one row, softmax fp32, with these ratios."""
    row = {
        "op": "softmax", "law": "definition", "dtype": "fp32", "device": "cpu", "verdict": "pass",
        "examples": len(ratios), "evidence": len(ratios), "hazards": 0, "no_power": 0, "classes": [],
        "contract": "strict", "within": "",
        "meets": "", "worst_ratio": max(ratios), "tight_ratio": None, "case": "softmax:…", "kind": "", "cause": "",
        "message": "", "text": "", "worst": None, "cases": "the same", "ratios": list(ratios), "notes": [],
    }  # fmt: skip
    return {"schema": 1, "target": "mine", "run": {}, "environment": {}, "results": [row | changes]}


def ratios(seed, scale=1.0, count=40):
    return (np.random.default_rng(seed).random(count) * scale).round(3).tolist()


def test_a_run_compared_with_itself_says_that_nothing_changed():
    found = report.compare(reported.run(), reported.run())
    assert not found.failed and found.lines()[-1] == "nothing changed"


def test_a_kernel_that_loses_accuracy_within_its_bound_is_named():
    """softmax without subtracting the maximum, in float32: right within the bound, and worse in almost every case."""
    options = Options(ops=("softmax",), laws=("definition",), dtypes=("fp32",), examples=40)

    def rough(x):
        return torch.softmax(x, -1) * (1 + 2**-23)

    before, after = (
        reported.document(reported.results_of({"softmax": f}, options)[1]) for f in (reported.softmax, rough)
    )
    assert [row["verdict"] for row in after["results"]] == ["pass"]
    found = report.compare(before, after)
    assert [change.row.op for change in found.fell] == ["softmax"] and not found.failed and not found.rose
    line = next(line for line in found.lines() if line.startswith("fell"))
    assert "cases that differ are worse" in line and "× in the median (by chance: " in line
    assert [change.row.op for change in report.compare(after, before).rose] == ["softmax"]


def test_another_order_of_rounding_is_noise():
    """Equally accurate: each pair of ratios is drawn from one distribution, and up is as likely as down."""
    named = sum(bool(report.compare(document(ratios(2 * s)), document(ratios(2 * s + 1))).fell) for s in range(200))
    assert named <= 6  # 200 · LEVEL are 2; more than 6 have a chance of 0.4 %


def test_the_level_is_shared_by_the_rows_that_are_compared():
    once = document([0.1] * 8), document([0.2] * 8)
    assert chance(8, 8) < LEVEL and report.compare(*once).fell
    many = copy.deepcopy(once)
    for run in many:
        run["results"] += [{**run["results"][0], "law": f"law {k}", "ratios": [0.1], "cases": "one"} for k in range(9)]
    assert chance(8, 8) > LEVEL / 10 and not report.compare(*many).fell


@pytest.mark.parametrize("other", [{"cases": "others"}, {"contract": "fused"}, {"examples": 39}])
def test_other_cases_or_another_contract_are_compared_by_verdict_alone(other):
    found = report.compare(document([0.1] * 40), document([0.9] * other.get("examples", 40), **other))
    assert not found.fell and "1 compared by verdict alone (other cases or another contract)" in found.lines()[-1]


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ("pass", "fail", "broke"), ("pass", "no_evidence", "broke"), ("known", "fail", "broke"),
        ("hazard", "no_evidence", "broke"), ("pass", "unimplemented", "broke"), ("fail", "pass", "mended"),
        ("no_evidence", "pass", "mended"), ("known", "pass", "mended"), ("fail", "unimplemented", "moved"),
        ("fail", "known", "moved"), ("fail", "no_evidence", "moved"), ("pass", "hazard", "moved"),
        ("unimplemented", "pass", "moved"),
    ],
)  # fmt: skip
def test_verdicts_decide_what_broke_and_what_was_mended(before, after, where):
    found = report.compare(document([0.1], verdict=before), document([0.1], verdict=after))
    for name in ("broke", "mended", "moved"):
        assert bool(getattr(found, name)) == (name == where)
    assert found.failed == (where == "broke")
    assert f"{where:<7} softmax definition fp32 cpu    {before} → {after}" in "\n".join(found.lines())


def test_what_broke_is_told_with_its_cause_and_the_case_to_replay():
    after = document([0.1], verdict="fail", worst_ratio=37.2, cause="the maximum is not subtracted", case="softmax:x")
    lines = report.compare(document([0.1]), after).lines()
    assert "pass → fail, 37.2 × bound: the maximum is not subtracted" in lines[2] and "replay 'softmax:x'" in lines[2]


def test_a_row_that_is_gone_counts_unless_it_was_not_asked_for():
    before, after = reported.run(), copy.deepcopy(reported.run())
    after["results"] = [row for row in after["results"] if row["dtype"] != "bf16"]
    found = report.compare(before, after)
    assert found.failed and {result.row.dtype for result in found.gone} == {"bf16"}
    after["run"] = {**before["run"], "dtypes": ["fp32"]}
    assert not report.compare(before, after).failed


def test_what_differs_around_the_runs_is_said():
    before, after = document([0.1]), document([0.1])
    before["environment"], after["environment"] = {"torch": "2.13"}, {"torch": "2.14", "command": "lla-spec verify"}
    assert report.compare(before, after).lines()[2] == "differs torch: 2.13 → 2.14"
