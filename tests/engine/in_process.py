"""lla-spec as somebody else's copy of it runs: in a process of its own, forked from one that has imported torch.

Importing torch and sympy takes two seconds, and nothing of it belongs to the copy: lla_spec itself is imported anew.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile

SERVER = """
import importlib, json, os, signal, sys
import hypothesis, numpy, pytest, sympy, torch, typer.testing

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        os.chdir(job["cwd"])
        os.environ.update(job["environment"])
        sys.path[1:1] = job["path"]
        importlib.invalidate_caches()
        written = os.open(job["written"], os.O_WRONLY)
        os.dup2(written, 1)
        os.dup2(written, 2)
        status = 1
        try:
            exec(job["code"], {"__name__": "__main__", "given": job["given"]})
            status = 0
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

COMMANDS = """
import json
from typer.testing import CliRunner
from lla_spec.cli import app

for command in given:
    done = CliRunner().invoke(app, command)
    raised = "" if isinstance(done.exception, SystemExit | None) else repr(done.exception)
    print(json.dumps([done.exit_code, done.output + raised]))
"""

PYTEST = """
import sys, pytest

sys.argv = ["pytest", *given]
raise SystemExit(int(pytest.main(given)))
"""


def environment(*folders):
    """One thread, and only the packages in `folders` beside the installed ones."""
    path = os.pathsep.join(map(str, folders))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}


@functools.cache
def _server():
    """It ends with its standard input, that is with this process."""
    run = [sys.executable, "-c", SERVER]
    return subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())


def _run(code, given, *, cwd, path):
    """(exit status, output) of the code, in a process whose working directory and first folders to import from are
    these."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.NamedTemporaryFile("r") as written:
        job = {
            "code": code, "given": given, "cwd": str(cwd), "path": list(map(str, path)), "written": written.name,
            "environment": environment(*path),
        }  # fmt: skip
        print(json.dumps(job), file=server.stdin, flush=True)
        status = server.stdout.readline()
        assert status, "the process that the others are forked from has ended"
        return int(status), written.read()


def commands(*lines, cwd, path):
    """(exit status, output) of each `lla-spec` line, run in one process; `verify` begins no others."""
    split = [[*line.split(), *(["--jobs", "1"] if line.startswith("verify") else [])] for line in lines]
    status, written = _run(COMMANDS, split, cwd=cwd, path=path)
    assert status == 0, written
    found = [tuple(json.loads(line)) for line in written.splitlines()]
    assert len(found) == len(lines)
    return found


def run_pytest(*arguments, cwd, path):
    """(exit status, output) of pytest in a process of its own."""
    return _run(PYTEST, ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments], cwd=cwd, path=path)
