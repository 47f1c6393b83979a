"""lla-spec as somebody else's copy of it runs: one process for all commands, since each would import torch anew."""

import json
import os
import subprocess
import sys

COMMANDS = """
import json, sys
from typer.testing import CliRunner
from lla_spec.cli import app

for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, command)
    raised = "" if isinstance(done.exception, SystemExit | None) else repr(done.exception)
    print(json.dumps([done.exit_code, done.output + raised]))
"""


def environment(*folders):
    """One thread, and only the packages in `folders` beside the installed ones."""
    path = os.pathsep.join(map(str, folders))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}


def commands(*lines, cwd, path):
    """(exit status, output) of each `lla-spec` line, run in one process; `verify` begins no others."""
    split = [[*line.split(), *(["--jobs", "1"] if line.startswith("verify") else [])] for line in lines]
    run = [sys.executable, "-c", COMMANDS, json.dumps(split)]
    done = subprocess.run(run, capture_output=True, text=True, env=environment(*path), cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(lines)
    return found


def run_pytest(*arguments, cwd, path):
    """(exit status, output) of pytest in a process of its own."""
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, env=environment(*path), cwd=cwd, timeout=300)
    return done.returncode, done.stdout + done.stderr
