"""Rows on several processes: the same verdicts as in one, and a target that ends its process is a named failure."""

import dataclasses
import os
import subprocess
import sys

import pytest

from lla_spec.testing.diagnose import texts
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from lla_spec.testing.workers import Job, results_of

DEADLY = """
import ctypes, os, signal, torch
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


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.chdir(tmp_path)
    return "deadly.py"


def run(spec, jobs, **options):
    session = Session(load(spec), Options(**options))
    rows = list(session.rows())
    found = {r.row: r for r in results_of(session, Job(spec, None, session.options), rows, jobs)}
    return session, [found[row] for row in rows]


def test_a_segfault_an_abort_and_an_exit_are_failures_with_their_case_and_the_run_goes_on(deadly):
    session, results = run(deadly, 2, laws=("definition",))
    told = {r.row.op: (r.verdict, r.message) for r in results if r.verdict != "unimplemented"}
    assert told == {
        "softmax": ("fail", "softmax: the process was ended by SIGSEGV"),
        "log_softmax": ("fail", "log_softmax: the process exited with status 3"),
        "logsumexp": ("fail", "logsumexp: the process was ended by SIGABRT"),
        "matmul": ("pass", ""),
    }
    by_size = {r.row.op: dict(r.failing.case.sizes)["m"] for r in results if r.verdict == "fail"}
    assert by_size == {"softmax": 33, "log_softmax": 5, "logsumexp": 3}
    said = texts(session, results, deadly)
    assert len(said) == 3 and all("lla-spec replay" in text for text in said)


def test_two_processes_find_what_one_finds():
    options = {"ops": ("softmax", "log_softmax"), "laws": ("definition", "vjp", "shift"), "examples": 5}
    (_, alone), (_, together) = (run("torch_native", jobs, **options) for jobs in (1, 2))
    assert {r.verdict for r in alone} == {"pass", "fail"}
    assert [dataclasses.replace(r, seconds=0, failing=None) for r in alone] == [
        dataclasses.replace(r, seconds=0, failing=None) for r in together
    ]


def test_the_workers_run_the_installed_lla_spec_and_not_what_lies_in_the_working_directory(tmp_path):
    for folder in ("lla_spec", "impl"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    code = "import sys, lla_spec.cli; sys.argv[1:] = ['verify', '--op', 'matmul', '-j', '2']; lla_spec.cli.main()"
    run = [sys.executable, "-P", "-c", code]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120)
    assert done.returncode == 0 and "fail" not in done.stdout, done.stdout + done.stderr
