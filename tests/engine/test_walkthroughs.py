"""What CONTRIBUTING.md and README.md tell people to do works as it stands, in a copy of the checkout."""

import re
import shutil
from pathlib import Path

import pytest

from tests.engine.in_process import commands, run_pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")


def sections(text):
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        yield section.splitlines()[0], BLOCK.findall(section)


def followed(checkout, blocks):
    """Put each file where its first line says (a page of the spec is extended); the commands that stand beside them."""
    lines = []
    for language, code in blocks:
        if language == "console":
            lines += [
                line.removeprefix("$ lla-spec ").split("#")[0].strip()
                for line in code.splitlines()
                if line.startswith("$ lla-spec")
            ]
            continue
        named = FILE.match(code)
        if named is not None:
            path = checkout / named[1]
            before = path.read_text() if path.exists() else ""
            path.write_text(f"{before}\n\n{code[named.end() :]}")
    return lines


CONTRIBUTING = dict(sections((ROOT / "CONTRIBUTING.md").read_text()))


TITLES = [title for title in CONTRIBUTING if title.startswith("Adding")]


def newcomer_of_the_readme():
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    return next(code for language, code in blocks if language == "python" and "def null_direction" in code)


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

NEWCOMERS = (
    "prove null_direction",
    "verify --law null_direction",
    "list",
    "show null_direction",
)
BEYOND = ("prove sine_of_a_sum", "prove value_bias_vanishes", "verify --law value_bias_vanishes --dtype fp32")


def copied(folder):
    for name in ("lla_spec", "impl"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "tests").mkdir()
    for name in ("pyproject.toml", "conftest.py", "tests/test_attention.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def add_laws(checkout, *sources):
    path = checkout / "lla_spec" / "formulas" / "attention.py"
    path.write_text("\n\n".join([path.read_text(), *sources]))


def said(checkout, lines):
    return dict(zip(lines, commands(*lines, cwd=checkout, path=(checkout,)), strict=True))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout to which everything was added that the walk-throughs and the README add."""
    return copied(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def told(checkout):
    """(exit status, output) by command, and a list of them by walk-through."""
    walks = {title: followed(checkout, CONTRIBUTING[title]) for title in TITLES}
    add_laws(checkout, newcomer_of_the_readme())
    found = said(checkout, [*(line for walk in walks.values() for line in walk), *NEWCOMERS])
    return found | {title: [found[line] for line in walk] for title, walk in walks.items()}


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    """(exit status, output) by command, where one law is true and not to be proved, and one is false."""
    checkout = copied(tmp_path_factory.mktemp("beyond"))
    add_laws(checkout, TRUE_BEYOND_THE_ENGINES, FALSE)
    return said(checkout, BEYOND)


@pytest.mark.parametrize("title", TITLES)
def test_a_walk_through_works(told, title):
    assert told[title], f"{title}: no command stands in it"
    for status, text in told[title]:
        assert status == 0, text


def test_a_newcomers_identity_appears_everywhere_with_no_other_edit(checkout, told):
    status, proved = told["prove null_direction"]
    assert status == 0 and "attention.null_direction: proved (all dimensions)" in proved
    status, verified = told["verify --law null_direction"]
    assert status == 0 and "null_direction" in verified and "4 rows: 4 pass" in verified
    chosen = ["tests/test_attention.py", "-k", "null_direction", "--lla-examples", "5"]
    status, text = run_pytest("-o", "addopts=--import-mode=importlib", *chosen, cwd=checkout, path=(checkout,))
    assert status == 0 and "4 passed" in text, text
    assert "null_direction" in told["list"][1]
    assert "What is orthogonal to every key" in told["show null_direction"][1]


def test_a_true_law_beyond_the_engines_is_tested_and_its_residual_shown(beyond):
    status, proved = beyond["prove sine_of_a_sum"]
    assert status == 0, proved
    assert "attention.sine_of_a_sum: tested" in proved and "left over" in proved


def test_a_false_law_fails_with_the_smallest_counterexample(beyond):
    status, proved = beyond["prove value_bias_vanishes"]
    assert status == 1 and "refuted" in proved and "false at d = 1, e = 1, m = 1, n = 1; V = [[0]], u = [1]" in proved
    status, verified = beyond["verify --law value_bias_vanishes --dtype fp32"]
    assert status == 1 and "FAIL attention / value_bias_vanishes" in verified
