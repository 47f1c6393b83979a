"""In somebody else's repository, which has a conftest, options, an `impl` and rows of its own, and raises on warnings.

docs/your_repository.md is followed there: its files are the tests that run.
"""

import functools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lla_spec.testing import assert_correct, parametrize_with_laws, sampled
from lla_spec.testing.addresses import address
from lla_spec.testing.pytest_laws import LawCheck
from lla_spec.testing.targets import TargetError, load
from tests.engine.in_process import environment

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "your_repository.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# file: (\S+)\n(.*?)```", PAGE, re.DOTALL))
(OLD_LINE,) = re.findall(r"^    torch\.testing\.assert_close.*\n", FILES["tests/test_softmax.py"], re.MULTILINE)
(NEW_LINE,) = re.findall(r"^    assert_correct\(.*\n", PAGE, re.MULTILINE)

THEIRS = {
    "pyproject.toml": """
        [tool.pytest.ini_options]
        addopts = "--strict-markers --strict-config"
        filterwarnings = ["error"]
        pythonpath = ["."]
        """,
    "conftest.py": """
        import hypothesis, pytest

        hypothesis.settings.register_profile("theirs", max_examples=3, derandomize=True)
        hypothesis.settings.load_profile("theirs")

        def pytest_addoption(parser):
            parser.addoption("--target", default="theirs")

        @pytest.fixture(params=[1, 2])
        def row(request):
            return request.param
        """,
    "impl/__init__.py": "THEIRS = True\n",
    "kernels.py": """
        import torch

        def softmax(x):
            return torch.softmax(x, -1)

        def layer_norm_of_variance_over_d_minus_1(x, weight=None, bias=None, *, eps=1e-5):
            found = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=1) + eps).sqrt()
            return found * (1 if weight is None else weight) + (0 if bias is None else bias)
        """,
    "tests/test_theirs.py": """
        import hypothesis, pytest

        def test_their_option_their_fixture_and_their_profile(row, request):
            assert row in (1, 2) and request.config.getoption("--target") == "theirs"
            assert hypothesis.settings().max_examples == 3

        @pytest.mark.parametrize("row", [None, {"finish": 1}])
        def test_their_parameter(row):
            assert row is None or row["finish"]

        @pytest.mark.parametrize("law_check", ["by another name"])
        def test_their_word(law_check):
            assert law_check

        def test_their_impl_is_theirs_and_not_taken_for_ours():
            import impl
            from lla_spec.testing import verify

            assert impl.THEIRS
            with pytest.raises(Exception, match="^impl is .*/impl, not the reference of lla-spec .*; name it by path$"):
                verify("impl")
        """,
    "tests/test_wrong.py": """
        import kernels
        from lla_spec.testing import parametrize_with_laws

        wrong = {"layer_norm": kernels.layer_norm_of_variance_over_d_minus_1}

        @parametrize_with_laws(wrong, dtypes=["fp32"], laws=["definition"], examples=0)
        def test_wrong(law_check):
            law_check()

        @parametrize_with_laws(kernels, dtypes=["fp32"], laws=["definition"], devices=["cuda:7"])
        def test_absent(law_check):
            law_check()

        @parametrize_with_laws(kernels, dtypes=["fp32"], laws=["definition"], examples=0)
        def test_that_checks_nothing(law_check):
            pass
        """,
}


FEW = ["-k", "not test_laws or definition or safe"]  # two laws show what ten would


def settle(folder, files):
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").split("\n")
        margin = len(lines[0]) - len(lines[0].lstrip())
        file.write_text("\n".join(line[margin:] for line in lines) + "\n")


def with_one_changed_line(test):
    changed = test.replace(OLD_LINE, NEW_LINE)
    assert changed != test
    return changed.replace("from kernels", "from lla_spec.testing import assert_correct\nfrom kernels")


def test_the_whole_page_in_a_project_of_its_own_under_xdist(tmp_path):
    settle(tmp_path, THEIRS)
    files = FILES | {"tests/test_before.py": FILES["tests/test_softmax.py"]}
    settle(tmp_path, files | {"tests/test_softmax.py": with_one_changed_line(FILES["tests/test_softmax.py"])})
    run = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *FEW, "--lla-report", "rows.json"]
    env = environment(ROOT) | {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    failed = re.findall(r"^FAILED tests/(.*?)(?: - |$)", done.stdout, re.MULTILINE)
    assert sorted(failed) == [
        "test_wrong.py::test_absent[cuda:7 is not available]",
        "test_wrong.py::test_that_checks_nothing[softmax-definition-fp32-cpu]",
        "test_wrong.py::test_wrong[layer_norm-definition-fp32-cpu]",
    ], done.stdout + done.stderr
    laws = len(re.findall(r'"op": "softmax"', (tmp_path / "rows.json").read_text()))
    theirs, in_each_softmax_file = 6, 5
    assert f"3 failed, {theirs + 2 * in_each_softmax_file + laws} passed" in done.stdout and laws == 2
    for told in (
        "layer_norm: the variance is divided by n - 1, not by n (fp32, cpu)",
        "--target kernels.py:layer_norm_of_variance_over_d_minus_1 --as layer_norm",
        "cuda:7 is not available here, so nothing was checked on it",
        "the test did not call law_check(), so nothing was checked",
        f"{laws + 1} rows: ",
    ):
        assert told in done.stdout, done.stdout
    report = json.loads((tmp_path / "rows.json").read_text())
    assert report["target"] == "dict"
    assert {row["verdict"] for row in report["results"] if row["op"] == "softmax"} == {"pass"}
    assert "| softmax | definition |" in (tmp_path / "summary.md").read_text()


@pytest.fixture
def project(pytester):
    settle(pytester.path, {"kernels.py": THEIRS["kernels.py"], "tests/test_laws.py": FILES["tests/test_laws.py"]})
    pytester.makeini("[pytest]\npythonpath = .\nfilterwarnings = error")
    return pytester


def test_without_the_plugin_the_laws_are_tests_all_the_same(project):
    outcome = project.runpytest_inprocess("-q", "-p", "no:lla_spec.testing.plugin", "-k", "safe")
    outcome.assert_outcomes(passed=1, deselected=9)
    outcome.stdout.no_fnmatch_line("*rows:*")


@pytest.mark.parametrize("explicit", [[], ["-p", "lla_spec.testing.plugin"]], ids=["not asked for", "asked for"])
def test_without_autoload_the_plugin_is_there_when_it_is_asked_for(project, monkeypatch, explicit):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    outcome = project.runpytest_inprocess("-q", *explicit, "-k", "safe")
    outcome.assert_outcomes(passed=1, deselected=9)
    assert bool(explicit) == any("1 rows: 1 pass" in line for line in outcome.outlines)


def test_a_conftest_that_names_the_plugin_as_well_loads_it_once(project):
    project.makeconftest('pytest_plugins = ["lla_spec.testing.plugin"]')
    outcome = project.runpytest_inprocess("-q", "-k", "shift")
    outcome.assert_outcomes(passed=1, deselected=9)


START_UP = """
import sys, time
import pytest, _pytest.config
before = set(sys.modules)
began = time.process_time()
import lla_spec.testing.plugin
took = time.process_time() - began
ours = {"lla_spec", "lla_spec.testing", "lla_spec.testing.plugin"}
print(took, *sorted(set(sys.modules) - before - ours - set(sys.stdlib_module_names)))
"""


def test_the_plugin_costs_a_start_up_less_than_50_ms_and_imports_nothing_but_itself():
    """The least of three: what else runs here only adds."""
    runs = [
        subprocess.run([sys.executable, "-c", START_UP], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    told = [run.stdout.split() for run in runs]
    assert all(len(words) == 1 for words in told), told
    assert min(float(words[0]) for words in told) < 0.050


def test_the_page_tells_how_large_is_too_large():
    text = PAGE.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789"))
    told = re.search(r"up to 2(\d+) entries and 2(\d+) multiplications \(float64: 2(\d+) and 2(\d+)\)", text)
    limits = [effort.times(sampled.WHOLE) for effort in (sampled.SAMPLED, sampled.SAMPLED_EXACT)]
    assert told is not None
    assert [2 ** int(power) for power in told.groups()] == [n for each in limits for n in (each.entries, each.products)]


def test_installing_keeps_a_torch_that_is_there():
    """A lower bound alone: pip replaces nothing that meets it, whatever its build."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (torch_there,) = [line for line in needed if line.startswith("torch")]
    assert re.fullmatch(r"torch>=\d+\.\d+", torch_there)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"laws": ["vjp"], "ops": ["embedding"]}, "has no embedding"),
        ({"dtypes": ["fp8"]}, "fp8: no dtype of that name; there are fp64, fp32, bf16, fp16"),
        ({"laws": ["key_bias"]}, r"parametrize_with_laws: dict has no row with laws=\['key_bias'\]"),
        (
            {"laws": ["definition"], "dtypes": ["fp16"]},
            r"dict has no row with laws=\['definition'\], dtypes=\['fp16'\]",
        ),
    ],
)
def test_a_selection_of_nothing_is_an_error(options, message):
    def softmax(x):
        if str(x.dtype) == "torch.float16":
            raise TypeError("no half")
        return x.softmax(-1)

    with pytest.raises(TargetError, match=message):
        parametrize_with_laws({"softmax": softmax}, **options)


def test_the_tolerances_that_the_page_tells_are_those():
    """To the one digit that it shows."""
    import torch

    from lla_spec.testing import bound

    x = torch.tensor([8.0, 0.0])
    told = re.search(r"(\S+) for a probability\s+near 1 in bfloat16, (\S+) in float32", PAGE)
    coarse, fine = (float(bound("softmax", x, dtype=dtype)[0]) for dtype in (torch.bfloat16, torch.float32))
    assert told is not None and (coarse, fine) == (
        pytest.approx(float(told[1]), 0.25),
        pytest.approx(float(told[2]), 0.25),
    )


def checks_of(mark):
    return [check for check in mark.args[1] if isinstance(check, LawCheck)]


def test_a_row_is_judged_when_it_is_called_and_not_when_it_is_collected():
    calls = []

    def softmax(x):
        calls.append(x)
        return x.softmax(-1)

    claims = {"dtypes": ["fp32"]}
    mark = parametrize_with_laws({"softmax": softmax, "LLA_TARGET": claims}, laws=["definition"], examples=0).mark
    (check,) = checks_of(mark)
    assert not calls
    check()
    assert calls and check.result.verdict == "pass"
    assert assert_correct("softmax", softmax(calls[0]), calls[0]).ratio <= 1


def my_loss(logits, targets, *, ignore_index=-100, reduction="mean"):
    raise NotImplementedError


def my_loss_vjp(logits, targets, *, grad_output, ignore_index=-100, reduction="mean"):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("given", "operation", "told"),
    [
        ({"cross_entropy": my_loss}, "cross_entropy_sum", "my_loss --as cross_entropy_sum"),
        ({"softmax": functools.partial(my_loss, reduction="sum")}, "softmax", "FILE.py:FUNCTION --as softmax"),
        ({"softmax": lambda x: x}, "softmax", "FILE.py:FUNCTION --as softmax"),
        (
            {"cross_entropy": my_loss, "cross_entropy_vjp": my_loss_vjp},
            "cross_entropy",
            "FILE.py    # with cross_entropy and cross_entropy_vjp",
        ),
    ],
    ids=["function", "partial", "lambda", "two functions"],
)
def test_a_failure_is_replayed_by_a_name_that_the_command_finds(given, operation, told):
    found = address(given, load(given), operation)
    assert found == told or (found.endswith(f":{told}") and load(found.split()[0], operation).implements(operation))
