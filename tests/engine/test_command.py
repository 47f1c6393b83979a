"""The command as a person uses it: exit codes, one clear line, a report that can be read by machines."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from lla_spec.cli import app

REPLAY = re.compile(r"lla-spec replay '([^']+)' --target (\S+)")


def command(*arguments, cwd=None, timeout=120):
    env = {**os.environ, "COLUMNS": "150", "PYTHONPATH": os.getcwd()}
    run = [sys.executable, "-m", "lla_spec", *arguments]
    return subprocess.run(run, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout)


def here(command, *arguments):
    """In this process, which has imported everything; `verify` begins no others."""
    alone = ["--jobs", "1"] if command == "verify" else []
    return CliRunner().invoke(app, [command, *arguments, *alone])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["verify", "nothing.py"], "target nothing.py: no such file"),
        (["verify", "no_such_module"], "target no_such_module: there is no module of that name"),
        (["verify", "raises.py"], "target raises.py: its import raises ZeroDivisionError: division by zero"),
        (["verify", "empty.py"], "target empty.py: implements none of the operations"),
        (["verify", "typo.py"], "target typo.py: LLA_TARGET has the unknown key 'dtype'; known are"),
        (["verify", "impl", "--op", "convolution"], "convolution: no operation of that name; there are"),
        (["verify", "mine.py", "--op", "attention"], "has no attention, which was asked for"),
        (["verify", "impl", "--dtype", "fp8"], "fp8: no dtype of that name; there are fp64, fp32, bf16, fp16"),
        (["verify", "impl", "--law", "nonsense"], "nonsense: no law of that name"),
        (["verify", "mine.py", "--at", "d=64"], "size d: no dimension of softmax; there are m"),
        (
            ["verify", "mine.py", "--as", "softmax"],
            "--as softmax needs a function, and it is module; name one, mine.py:",
        ),
        (["verify", "mine.py", "--json", "no/folder.json"], "--json no/folder.json: there is no folder"),
        (["verify", "cuda.py"], "nothing to check with these options: it takes cuda alone, and that is not available"),
        (["verify", "impl", "--contract", "loose"], "--contract loose: there are strict, fused, whiteboard"),
        (["verify", "impl", "--at", "n=many"], "--at n=many: 'n=many' is not name=size"),
        (["verify", "mine.py", "--known", "none.toml"], "known none.toml: no such file"),
        (["compare", "none.json", "none.json"], "none.json: no such file"),
        (["replay", "softmax:definition"], "needs op:law:dtype:device:key=value"),
        (["replay", "softmax:definition:bf16:cpu:n=3"], "needs the sizes m"),
        (["show", "nonsense"], "nonsense: no law of that name"),
        (["prove", "nonsense"], "nonsense: no law of that name"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_and_exits_with_2(arguments, line, tmp_path, monkeypatch):
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "typo.py").write_text("LLA_TARGET = {'dtype': ['fp32']}\ndef softmax(x): return x.softmax(-1)\n")
    (tmp_path / "mine.py").write_text("def softmax(x): return x.softmax(-1)\n")
    (tmp_path / "cuda.py").write_text("LLA_TARGET = {'devices': ['cuda']}\ndef softmax(x): return x.softmax(-1)\n")
    if "cuda.py" in arguments and torch.cuda.is_available():
        pytest.skip("cuda is available here")
    monkeypatch.chdir(tmp_path)
    done = here(*arguments)
    assert done.exit_code == 2, done.output
    assert line in done.stderr and len(done.stderr.strip().splitlines()) == 1 and not done.stdout


def test_a_terminal_that_knows_no_unicode_gets_the_text_all_the_same(tmp_path):
    """With the signs that it does not know as their numbers."""
    run = [sys.executable, "-m", "lla_spec", "show", "softmax"]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60)
    assert done.returncode == 0 and r"P[i, j] = exp(x[i, j])\xb7M[i, j]/Z[i]" in done.stdout, done.stdout + done.stderr


def test_the_command_itself_exits_with_2_and_no_traceback(tmp_path):
    done = command("verify", "nothing.py", "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "lla-spec: target nothing.py: no such file\n"


def test_a_module_of_the_current_folder_is_a_target(tmp_path, monkeypatch):
    """A console script has its own folder on the path and not the current one."""
    (tmp_path / "kernels_here.py").write_text("def softmax(x): return x.float().softmax(-1).to(x.dtype)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    run = ["verify", "kernels_here", "--op", "softmax", "--law", "definition", "--dtype", "fp32", "--jobs", "1"]
    done = here(*run, "--examples", "1")
    assert done.exit_code == 0 and "1 rows: 1 pass" in done.stdout, done.output


def test_a_failure_replays_in_another_process(tmp_path):
    wrong = "tests/targets/wrong.py:scale_by_value_dim"
    done = here("verify", wrong, "--op", "attention", "--law", "definition", "--dtype", "fp32")
    assert done.exit_code == 1, done.output
    case, target = REPLAY.search(done.stdout).groups()
    again = command("replay", case, "--target", target)
    assert again.returncode == 1 and "the scale is 1/sqrt(e) instead of 1/sqrt(d)" in again.stdout
    fixed = here("replay", case, "--target", "impl")
    assert fixed.exit_code == 0 and fixed.stdout.startswith("pass")


def test_torch_log_softmax_in_16_bits_is_found_with_its_cause(tmp_path):
    report = tmp_path / "report.json"
    done = here("verify", "torch_native", "--op", "log_softmax", "--law", "definition", "--json", str(report))
    assert done.exit_code == 1
    assert "sums are rounded to bf16 on their way" in done.stdout
    rows = {r["dtype"]: r for r in json.loads(report.read_text())["results"]}
    assert {dtype: row["verdict"] for dtype, row in rows.items()} == {
        "fp64": "pass",
        "fp32": "pass",
        "bf16": "fail",
        "fp16": "fail",
    }
    assert {"vocabulary", "dominant"} <= set(rows["fp32"]["classes"])


SLOW_TARGET = """
import pathlib, time
import impl

calls = 0

def softmax(x):
    global calls
    calls += 1
    if calls == 60:  # its rows run: what it takes was probed before
        pathlib.Path("started").touch()
    time.sleep(0.02)
    return impl.softmax(x)
"""


def test_interrupted_it_prints_the_table_so_far_and_writes_the_report(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_TARGET)
    run = [sys.executable, "-m", "lla_spec", "verify", "slow.py", "--examples", "500", "--json", "report.json"]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
    while not (tmp_path / "started").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted after" in err and "Traceback" not in err
    assert "operation" in out and json.loads((tmp_path / "report.json").read_text())["schema"] == 1


def test_list_and_show_name_every_operation_and_law():
    import lla_spec.formulas  # noqa: F401
    from lla_spec.language import registry

    def said(*arguments):
        done = here(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    listed = said("list")
    for name in (*(f.name for f in registry.operations()), *(law.name for law in registry.laws.values())):
        assert name in listed
    assert "attention(q, k, v, mask=None, *, is_causal=False, scale=None)" in listed
    assert r"\sum_{j}" in said("show", "attention", "--latex")
    assert "Adding one vector to every key" in said("show", "key_bias")
