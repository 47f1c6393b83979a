"""A run of `lla-spec verify` that ends early leaves a whole JSON, and `--resume` goes on from it."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from rich.progress import Progress

from lla_spec.testing.errors import TargetError
from lla_spec.testing.report import ReportError
from lla_spec.testing.runner import Options
from lla_spec.testing.running import Here
from lla_spec.testing.verifying import Reports, Verification
from lla_spec.testing.workers import Job

OPTIONS = Options(ops=("softmax", "log_softmax"), laws=("definition", "shift"), dtypes=("fp32", "bf16"), examples=2)


def verify(tmp_path, *, options=OPTIONS, json_name="run.json", resume=False, target=None):
    """(exit status, what was printed, the JSON) of one run of torch_native."""
    file = tmp_path / json_name
    out, err = (Console(file=io.StringIO(), width=120) for _ in range(2))
    run = target or Here(Job("torch_native", None, options), 1)
    reports = Reports(None if resume else file, file if resume else None)
    status = Verification(run, options, "torch_native", reports, out, err, Progress(disable=True)).run()
    return status, out.file.getvalue() + err.file.getvalue(), json.loads(file.read_text())


class Interrupted(Here):
    """Ctrl-C is pressed after three rows."""

    def results(self, rows):
        for number, result in enumerate(super().results(rows)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            yield result


def test_ctrl_c_prints_the_rows_so_far_writes_them_and_says_how_to_go_on(tmp_path):
    status, said, written = verify(tmp_path, target=Interrupted(Job("torch_native", None, OPTIONS), 1))
    assert status == 130 and len(written["results"]) == 3
    assert "interrupted after 3 of 6 rows; go on with --resume" in said.replace("\n", " ") and "3 rows:" in said


class InterruptedWhereNothingCanBeRaised(Here):
    """Ctrl-C is pressed after three rows, while Python takes an object apart."""

    def results(self, rows):
        class Goes:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)

        for number, result in enumerate(super().results(rows)):
            if number == 3:
                Goes()
            yield result


def test_ctrl_c_that_python_can_only_print_is_heard_and_not_printed(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    target = InterruptedWhereNothingCanBeRaised(Job("torch_native", None, OPTIONS), 1)
    status, said, written = verify(tmp_path, target=target)
    assert status == 130 and len(written["results"]) in (3, 4) and not printed
    assert "interrupted after" in said


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    status, _, whole = verify(tmp_path, json_name="whole.json")
    verify(tmp_path, target=Interrupted(Job("torch_native", None, OPTIONS), 1))
    resumed = verify(tmp_path, resume=True)
    assert status == resumed[0] == 1  # log_softmax in bf16
    assert resumed[2]["results"] == whole["results"]


def test_what_did_not_fail_is_not_run_again(tmp_path):
    _, _, whole = verify(tmp_path)
    failed = sum(row["verdict"] == "fail" for row in whole["results"])
    counted = []

    class Counting(Here):
        def results(self, rows):
            counted.extend(rows)
            return super().results(rows)

    verify(tmp_path, resume=True, target=Counting(Job("torch_native", None, OPTIONS), 1))
    assert 0 < len(counted) == failed < len(whole["results"])


def test_another_runs_file_is_refused_with_the_option_that_differs(tmp_path):
    verify(tmp_path)
    other = Options(**{**vars(OPTIONS), "seed": 7})
    with pytest.raises(TargetError, match=r"--resume .*: seed was 0 and is 7; resume with the same options"):
        verify(tmp_path, options=other, resume=True)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ReportError, match=r"run\.json: not a report; `lla-spec verify --json"):
        verify(tmp_path, resume=True)


def test_a_killed_run_leaves_a_whole_json_and_is_resumed(tmp_path):
    file = tmp_path / "killed.json"
    command = [sys.executable, "-m", "lla_spec", "verify", "--op", "matmul", "--examples", "60", "-j", "1"]
    run = subprocess.Popen([*command, "--json", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not file.exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    rows = json.loads(file.read_text())["results"]
    assert rows and {row["verdict"] for row in rows} == {"pass"}
