"""The pytest plugin: rows as items, the table at the end, JSON, replay, and the floor of evidence.

Under xdist: tests/engine/test_elsewhere.py, and every run of this suite.
"""

import fnmatch
import importlib
import json
import pkgutil

import pytest

import lla_spec.formulas
from lla_spec.testing.pytest_laws import RowTests
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load

pytest_plugins = ["pytester"]

TOPIC = """
    from hypothesis import given
    from hypothesis import strategies as st
    import lla_spec.formulas.softmax as page
    from lla_spec.testing import each_law, each_operation

    @each_operation(page)
    @given(data=st.data())
    def test_equals_its_formula(row, data):
        row.check(data.draw(row.cases()))

    @each_law(page)
    @given(data=st.data())
    def test_law(row, data):
        row.check(data.draw(row.cases()))
"""
SMALL = ["--lla-op", "softmax", "--lla-dtype", "bf16", "--lla-examples", "2"]


def pages():
    names = [page.name for page in pkgutil.iter_modules(lla_spec.formulas.__path__)]
    return [importlib.import_module(f"lla_spec.formulas.{name}") for name in names]


def test_pytest_and_the_command_have_the_same_rows():
    session = Session(load("impl"), Options())
    tests = RowTests(session, "dev", "impl")
    kinds = ("definition", "vjp", "laws")
    collected = [
        test.row for page in pages() for kind in kinds for test in tests.of_page(page.__name__.split(".")[-1], kind)
    ]
    assert sorted(row.id for row in collected) == sorted(row.id for row in session.rows())


def test_rows_pass_and_the_table_and_the_report_say_so(pytester, monkeypatch):
    pytester.makepyfile(TOPIC)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    outcome = pytester.runpytest_inprocess("-q", *SMALL, "--lla-report", "rows.json")
    outcome.assert_outcomes(passed=7)
    outcome.stdout.fnmatch_lines(["*cuda not available: nothing on a GPU was checked*", "*softmax*definition*0.*"])
    rows = json.loads((pytester.path / "rows.json").read_text())["results"]
    assert {row["verdict"] for row in rows} == {"pass"} and len(rows) == 7
    assert "| softmax | definition |" in (pytester.path / "summary.md").read_text()


def test_a_failing_row_tells_the_whole_story(pytester):
    pytester.makepyfile(TOPIC)
    options = ["--lla-target", "torch_native", "--lla-op", "log_softmax", "--lla-dtype", "bf16", "--lla-examples", "2"]
    outcome = pytester.runpytest_inprocess("-q", *options, "-k", "formula")
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["*FAIL log_softmax / definition*", "*cause*sums are rounded to bf16 on their way*"])


def test_a_row_without_evidence_fails(pytester):
    """log_softmax of one logit is 0: zeros would pass, so a target that takes no more has shown nothing."""
    pytester.makepyfile(TOPIC)
    pytester.makepyfile(one_logit="LLA_TARGET = {'supports': {'m': [1]}}\ndef log_softmax(x):\n    return x * 0\n")
    options = ["--lla-target", "one_logit.py", "--lla-op", "log_softmax", "--lla-dtype", "bf16"]
    outcome = pytester.runpytest_inprocess("-q", *options, "-k", "formula")
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["*cases are evidence, fewer than half*"])


def test_a_case_replays(pytester):
    case = "softmax:definition:bf16:cpu:m=3,batch=2,family=normal,seed=1"
    outcome = pytester.runpytest_inprocess("--lla-case", case)
    assert outcome.ret == 0
    outcome.stdout.fnmatch_lines(["pass softmax(m=3*"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--lla-target", "nothing.py"], "*target nothing.py: no such file*"),
        (["--lla-device", "cuda"], "*cuda: cuda is not available here*"),
        (["--lla-case", "softmax"], "*needs op:law:dtype:device*"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error(pytester, options, line):
    pytester.makepyfile(TOPIC)
    outcome = pytester.runpytest_inprocess("-q", *options)
    assert outcome.ret == pytest.ExitCode.USAGE_ERROR
    assert any(fnmatch.fnmatch(told, line) for told in (*outcome.outlines, *outcome.errlines))


def test_other_peoples_tests_see_nothing_of_it(pytester):
    pytester.makepyfile("import sys\n\ndef test_theirs():\n    assert 'torch' not in sys.modules")
    outcome = pytester.runpytest_subprocess("-q")
    outcome.assert_outcomes(passed=1)
    outcome.stdout.no_fnmatch_line("*lla-spec*")
