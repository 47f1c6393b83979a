"""What CONTRIBUTING.md and README.md tell people to do works as it stands, in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")


@pytest.fixture
def checkout(tmp_path):
    for name in ("lla_spec", "impl"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "conftest.py", "tests/test_attention.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run(checkout, *arguments):
    env = {**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=checkout, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def sections(text):
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        yield section.splitlines()[0], BLOCK.findall(section)


def follow(checkout, blocks):
    """Put each file where its first line says (a page of the spec is extended), then run each command."""
    commands = []
    for language, code in blocks:
        if language == "console":
            commands += [
                line.removeprefix("$ lla-spec ").split("#")[0].split()
                for line in code.splitlines()
                if line.startswith("$ lla-spec")
            ]
            continue
        named = FILE.match(code)
        if named is not None:
            path = checkout / named[1]
            before = path.read_text() if path.exists() else ""
            path.write_text(f"{before}\n\n{code[named.end() :]}")
    return [run(checkout, "-m", "lla_spec", *command) for command in commands]


CONTRIBUTING = dict(sections((ROOT / "CONTRIBUTING.md").read_text()))


@pytest.mark.parametrize("title", [title for title in CONTRIBUTING if title.startswith("Adding")])
def test_a_walk_through_works(checkout, title):
    outcomes = follow(checkout, CONTRIBUTING[title])
    assert outcomes, f"{title}: no command stands in it"
    for status, text in outcomes:
        assert status == 0, text


def add_law(checkout, source):
    path = checkout / "lla_spec" / "formulas" / "attention.py"
    path.write_text(f"{path.read_text()}\n\n{source}")


def newcomer_of_the_readme():
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    return next(code for language, code in blocks if language == "python" and "def null_direction" in code)


def test_a_newcomers_identity_appears_everywhere_with_no_other_edit(checkout):
    add_law(checkout, newcomer_of_the_readme())
    status, proved = run(checkout, "-m", "lla_spec", "prove", "null_direction")
    assert status == 0 and "attention.null_direction: proved (all dimensions)" in proved
    status, verified = run(checkout, "-m", "lla_spec", "verify", "--law", "null_direction")
    assert status == 0 and "null_direction" in verified and "4 rows: 4 pass" in verified
    status, tested = run(
        checkout,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "tests/test_attention.py",
        "-k",
        "null_direction",
        "--lla-examples",
        "5",
    )
    assert status == 0 and "4 passed" in tested, tested
    assert "null_direction" in run(checkout, "-m", "lla_spec", "list")[1]
    assert "What is orthogonal to every key" in run(checkout, "-m", "lla_spec", "show", "null_direction")[1]


TRUE_BEYOND_THE_ENGINES = '''
@identity
def sine_of_a_sum():
    """True, and beyond both engines: sin(2x) = 2 sin(x) cos(x) of an output."""
    O = attention(Q, K, V)
    import sympy as sp
    twice = sp.sin(2 * O[i, c], evaluate=False)
    return Eq(define("left", (i, c), twice), define("right", (i, c), 2 * sp.sin(O[i, c]) * sp.cos(O[i, c])))
'''

FALSE = '''
@identity
def value_bias_vanishes():
    """False: a vector added to every value does not vanish."""
    u = tensor("u", c)
    return Eq(attention(Q, K, define("V'", (j, c), V[j, c] + u[c])), attention(Q, K, V))
'''


def test_a_true_law_beyond_the_engines_is_tested_and_its_residual_shown(checkout):
    add_law(checkout, TRUE_BEYOND_THE_ENGINES)
    status, proved = run(checkout, "-m", "lla_spec", "prove", "sine_of_a_sum")
    assert status == 0, proved
    assert "attention.sine_of_a_sum: tested" in proved and "left over" in proved


def test_a_false_law_fails_with_the_smallest_counterexample(checkout):
    add_law(checkout, FALSE)
    status, proved = run(checkout, "-m", "lla_spec", "prove", "value_bias_vanishes")
    assert status == 1 and "refuted" in proved and "false at d = 1, e = 1, m = 1, n = 1; V = [[0]], u = [1]" in proved
    status, verified = run(checkout, "-m", "lla_spec", "verify", "--law", "value_bias_vanishes", "--dtype", "fp32")
    assert status == 1 and "FAIL attention / value_bias_vanishes" in verified
