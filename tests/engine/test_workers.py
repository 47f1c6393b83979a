"""Rows on several processes: the same verdicts as in one, and a target that ends its process is a named failure."""

import dataclasses
import os
import subprocess
import sys

import pytest

from lla_spec.testing import workers
from lla_spec.testing.runner import Options
from lla_spec.testing.running import Here, Isolated
from lla_spec.testing.targets import TargetError
from lla_spec.testing.workers import Job

DEADLY = """
import ctypes, os, torch
LLA_TARGET = {"dtypes": ["fp32"]}

def softmax(x):
    if x.shape[-1] == 33:
        ctypes.string_at(0)
    return x.softmax(-1)

def log_softmax(x):
    if x.shape[-1] == 5:
        os._exit(3)
    return x.log_softmax(-1)

def logsumexp(x):
    if x.shape[-1] == 3:
        os.abort()
    return x.logsumexp(-1)

def matmul(a, b):
    return a @ b
"""
TRAPS = """
import ctypes, os, signal, torch
import numpy as np

def softmax(x):  # holds the interpreter: no alarm is heard before it returns
    if x.shape[-1] == 33:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        ctypes.PyDLL(None).sleep(600)
    return x.softmax(-1)

def log_softmax(x):
    if x.shape[-1] == 33:
        [np.empty(1 << 26) for _ in range(10**6)]
    return x.log_softmax(-1)

def logsumexp(x):
    if x.dtype == torch.float64 and not x.requires_grad:
        os._exit(7)  # a dtype that it does not declare: the probe itself ends the process
    return x.logsumexp(-1)
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that writes a target beside the working directory's other files and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        (tmp_path / name).write_text(text)
        return name

    return write


def run(way, spec, jobs, **options):
    found = way(Job(spec, None, Options(**options)), jobs)
    rows = found.rows()
    by_row = {result.row: result for result in found.results(rows)}
    return found, [by_row[row] for row in rows]


@pytest.mark.parametrize("way", [Here, Isolated])
def test_a_segfault_an_abort_and_an_exit_are_failures_with_their_case_and_the_run_goes_on(written, way):
    target, results = run(way, written("deadly.py", DEADLY), 2, laws=("definition",))
    told = {r.row.op: (r.verdict, r.message) for r in results if r.verdict != "unimplemented"}
    assert told == {
        "softmax": ("fail", "softmax: the process was ended by SIGSEGV"),
        "log_softmax": ("fail", "log_softmax: the process exited with status 3"),
        "logsumexp": ("fail", "logsumexp: the process was ended by SIGABRT"),
        "matmul": ("pass", ""),
    }
    by_size = {r.row.op: dict(r.failing.case.sizes)["m"] for r in results if r.verdict == "fail"}
    assert by_size == {"softmax": 33, "log_softmax": 5, "logsumexp": 3}
    said = target.texts(results, "deadly.py")
    assert len(said) == 3 and all("lla-spec replay" in text for text in said)


def test_isolated_a_call_in_c_a_memory_bomb_and_a_probe_that_exits_are_rows_that_fail(written, monkeypatch):
    monkeypatch.setattr(workers, "GRACE_S", 0.5)
    monkeypatch.setattr("lla_spec.testing.running.MEMORY", 3 << 30)
    options = {"laws": ("definition",), "ops": ("softmax", "log_softmax", "logsumexp"), "dtypes": ("fp32", "fp64")}
    target = Isolated(Job(written("traps.py", TRAPS), None, Options(**options, limit=1.0)), 2)
    found = {(r.row.op, r.row.dtype): r for r in target.results(target.rows())}
    hang, bomb, exits = (found[key] for key in (("softmax", "fp32"), ("log_softmax", "fp32"), ("logsumexp", "fp64")))
    assert (hang.verdict, hang.kind) == ("fail", "hangs") and "only ends with its process" in hang.message
    assert (bomb.verdict, bomb.kind) == ("fail", "raises") and "MemoryError" in bomb.message
    assert (exits.verdict, exits.kind) == ("fail", "crashes") and "status 7" in exits.message
    assert found["logsumexp", "fp32"].verdict == "pass"


def test_a_failure_whose_second_look_ends_the_process_is_told_as_it_was_found(written):
    once = """
import os, torch
def matmul(a, b):
    if a.shape[-1] < 3 and torch.is_grad_enabled():
        os._exit(5)  # what shrinking tries
    return a @ b * 1.5
"""
    target = Isolated(Job(written("once.py", once), None, Options(laws=("definition",), dtypes=("fp32",))), 1)
    results = [r for r in target.results(target.rows()) if r.verdict == "fail"]
    (text,) = target.texts(results, "once.py")
    assert "when it was looked at again, the process exited with status 5" in text


def test_an_import_that_ends_the_process_is_one_line(written):
    target = Isolated(Job(written("dies.py", "import os\nos._exit(9)\n"), None, Options()))
    with pytest.raises(TargetError, match=r"^target dies\.py: while it is imported, the process exited with status 9$"):
        target.rows()


KEEPS = """
import multiprocessing.util, pathlib, time
LLA_TARGET = {"dtypes": ["fp32"]}
HERE = pathlib.Path(__file__)

def put_away():
    HERE.with_name("away").touch()
    time.sleep({stays})

multiprocessing.util.Finalize(None, put_away, exitpriority=1)  # as semaphores and pools are given back

def matmul(a, b):
    return a @ b
"""


@pytest.mark.parametrize("stays", [0, 600])
def test_a_worker_puts_away_what_the_target_has_opened_and_one_that_stays_is_killed(
    written, tmp_path, monkeypatch, stays
):
    monkeypatch.setattr(workers, "PARTING_S", 2.0 if not stays else 0.5)
    written("keeps.py", KEEPS.replace("{stays}", str(stays)))
    target = Isolated(Job("keeps.py", None, Options(laws=("definition",), ops=("matmul",), examples=1)), 1)
    rows = target.rows()
    assert (tmp_path / "away").exists()
    (tmp_path / "away").unlink()
    assert [result.verdict for result in target.results(rows)] == ["pass"]
    assert (tmp_path / "away").exists()


def test_two_processes_find_what_one_finds():
    options = {"ops": ("softmax", "log_softmax"), "laws": ("definition", "vjp", "shift"), "examples": 5}
    (_, alone), (_, together) = (run(Here, "torch_native", jobs, **options) for jobs in (1, 2))
    assert {r.verdict for r in alone} == {"pass", "fail"}
    assert [dataclasses.replace(r, seconds=0, failing=None) for r in alone] == [
        dataclasses.replace(r, seconds=0, failing=None) for r in together
    ]


def test_the_workers_run_the_installed_lla_spec_and_not_what_lies_in_the_working_directory(tmp_path):
    for folder in ("lla_spec", "impl"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    code = "import sys, lla_spec.cli; sys.argv[1:] = sys.argv[1].split(); lla_spec.cli.main()"
    run = [
        sys.executable,
        "-P",
        "-c",
        code,
        "verify --op matmul --law definition --examples 1 -j 2",
    ]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120)
    assert done.returncode == 0 and "fail" not in done.stdout, done.stdout + done.stderr
