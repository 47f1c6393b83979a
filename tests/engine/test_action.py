"""action.yml: its inputs reach `lla-spec verify` word for word, and the workflows of our page use them rightly."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from lla_spec.cli import app

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "your_repository.md").read_text(encoding="utf-8")
WORKFLOWS = [yaml.safe_load(code) for code in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
STEPS = {step.get("id", step["name"]): step for step in ACTION["runs"]["steps"]}


def test_every_input_and_output_that_is_named_exists():
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    for step, output in re.findall(r"steps\.(\w+)\.outputs\.(\w+)", text):
        assert f'echo "{output}=' in STEPS[step]["run"]
    assert all(each["description"] for each in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))
    assert all("default" in given or given.get("required") for given in ACTION["inputs"].values())
    assert all("${{" not in step.get("run", "") for step in STEPS.values())  # an input is never read as a script
    assert all(step.get("shell") == "bash" for step in STEPS.values() if "run" in step)


def test_every_option_is_one_of_the_commands():
    verify = typer.main.get_command(app).commands["verify"]
    known = {name for parameter in verify.params for name in parameter.opts}
    used = set(re.findall(r"\((--[a-z]+) |(?<= )(--[a-z]+) \"", STEPS["verify"]["run"]))
    assert {name for pair in used for name in pair if name} <= known and len(used) >= 8


def test_the_page_lists_the_inputs():
    (table,) = re.findall(r"\| input \| meaning \|\n(.*?)\n\n", PAGE, re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))) == sorted(
        ACTION["inputs"]
    )


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow["name"])
def test_workflows_of_the_page_use_inputs_that_exist(workflow):
    assert workflow[True]  # `on`, as YAML 1.1 reads it
    (job,) = workflow["jobs"].values()
    assert job["runs-on"]
    (used,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("<owner>/lla-spec@")]
    assert set(used) <= set(ACTION["inputs"])
    assert {name for name, given in ACTION["inputs"].items() if given.get("required")} <= set(used)


def run(step, tmp_path, **env):
    script = "set -e -o pipefail\n" + STEPS[step]["run"]
    output = tmp_path / "output"
    output.touch()
    given = {"PATH": "/usr/bin:/bin", "GITHUB_OUTPUT": str(output), "RUNNER_TEMP": str(tmp_path), **env}
    done = subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    return done, dict(line.split("=", 1) for line in output.read_text().splitlines())


def stub(tmp_path, code):
    """An interpreter that writes down what it is told to run, and looks things up as the real one."""
    file = tmp_path / "python"
    looks_up = f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi'
    file.write_text(f'#!/bin/bash\n{looks_up}\nprintf "%s\\n" "$@" > {tmp_path}/told\nexit {code}\n')
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_inputs_reach_the_command_and_its_status_the_job(tmp_path, status):
    given = {"TARGET": "my kernels.py:$(touch x)", "AS": "attention", "OPS": "attention rms_norm", "DTYPES": "bf16"}
    given |= {"DEVICES": "", "EXAMPLES": "7", "KNOWN": "known.toml", "REPORT": f"{tmp_path}/made"}
    done, outputs = run("verify", tmp_path, PYTHON=stub(tmp_path, status), GITHUB_STEP_SUMMARY="/summary", **given)
    assert done.returncode == status, done.stderr
    assert outputs == {"status": str(status), "report": f"{tmp_path}/made"}
    assert (tmp_path / "made").is_dir() and not (tmp_path / "x").exists()
    files = ["--json", f"{tmp_path}/made/report.json", "--html", f"{tmp_path}/made/report.html"]
    chosen = ["--markdown", "/summary", "--op", "attention", "--op", "rms_norm", "--dtype", "bf16"]
    last = ["--as", "attention", "--known", "known.toml"]
    begin = ["-m", "lla_spec", "verify", "my kernels.py:$(touch x)", "--examples", "7"]
    assert (tmp_path / "told").read_text().splitlines() == [*begin, *files, *chosen, *last]


@pytest.mark.parametrize(
    ("version", "installed"),
    [("", "/the action[report]"), ("0.1.0", "lla-spec[report]==0.1.0")],
    ids=["own", "release"],
)
def test_the_torch_that_is_there_is_held(tmp_path, version, installed):
    import torch

    done, outputs = run("install", tmp_path, PYTHON=stub(tmp_path, 0), VERSION=version, SOURCE="/the action")
    assert done.returncode == 0, done.stderr
    held = tmp_path / "lla-spec-keep.txt"
    told = ["-m", "pip", "install", "--quiet", "--constraint", str(held), installed]
    assert (tmp_path / "told").read_text().splitlines() == told
    assert held.read_text().strip() == f"torch=={torch.__version__}"
    assert outputs == {"python": f"{tmp_path}/python"}
