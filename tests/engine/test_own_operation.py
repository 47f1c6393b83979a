"""A new user's own operation, RMSNorm with a gate: stated, implemented and tested in 40 lines over two files."""

import shutil
from pathlib import Path

import pytest

from tests.engine.in_process import commands, run_pytest

ROOT = Path(__file__).resolve().parents[2]

PAGE = '''"""RMSNorm with a gate: y = γ ∘ x/√(mean x² + ε) ∘ σ(z), σ(z) = 1/(1 + exp(-z))."""

from lla_spec.formulas.normalization import eps_rms, i, k, rms_norm, x, γ
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import define, exp, tensor

z = tensor("z", i, k, argument="gate")


@formula(rows=i)
def gated_rms_norm(x, z, γ, eps_rms):
    y = rms_norm(x, γ, eps_rms)
    return define("g", (i, k), y[i, k] / (1 + exp(-z[i, k])))


@identity
def opposite_gates():
    """σ(z) + σ(-z) = 1: opposite gates add up to the norm. Catches a gate that enters the statistics."""
    gated, opposite = gated_rms_norm(x, z, γ), gated_rms_norm(x, define("-z", (i, k), -z[i, k]), γ)
    return Eq(define("sum", (i, k), gated[i, k] + opposite[i, k]), rms_norm(x, γ))
'''

TARGET = """import torch
from torch.nn import functional as F


def gated_rms_norm(x, gate, weight=None, *, eps=1e-6):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = y * F.logsigmoid(gate.to(wide.dtype)).exp()  # the gradient of sigmoid, s(1 - s), is 0 where s rounds to 1
    return (y if weight is None else y * weight).to(x.dtype)
"""

TEST = """from lla_spec.testing import parametrize_with_laws


@parametrize_with_laws("mine.py", ops=["gated_rms_norm"], dtypes=["bf16"], examples=5)
def test_mine(law_check):
    law_check()
"""

GATE_BEFORE_THE_STATISTICS = TARGET.replace("    wide = x", "    x = x * torch.sigmoid(gate)\n    wide = x", 1).replace(
    "    y = y * F.logsigmoid(gate.to(wide.dtype)).exp()", "    y = y", 1
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout to which the two files, and no other edit, were added."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("lla_spec", "impl"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "lla_spec" / "formulas" / "gated.py").write_text(PAGE, encoding="utf-8")
    (folder / "mine.py").write_text(TARGET, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder of one's own beside an installed lla-spec: the target imports the page."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "gated.py").write_text(PAGE, encoding="utf-8")
    (folder / "mine.py").write_text(f"import gated  # noqa: F401  (declares it)\n{TARGET}", encoding="utf-8")
    (folder / "test_mine.py").write_text(TEST, encoding="utf-8")
    return folder


def test_two_files_of_at_most_forty_lines():
    assert PAGE.count("\n") + TARGET.count("\n") + 1 <= 40


LISTED, SHOWN, PROVED = "list", "show gated_rms_norm", "prove opposite_gates"
RIGHT, WRONG = (f"verify {target}.py --op gated_rms_norm --examples 5" for target in ("mine", "wrong"))


@pytest.fixture(scope="module")
def said(checkout):
    """(exit status, output) by command, in the checkout."""
    (checkout / "wrong.py").write_text(GATE_BEFORE_THE_STATISTICS, encoding="utf-8")
    lines = (LISTED, SHOWN, PROVED, RIGHT, WRONG)
    return dict(zip(lines, commands(*lines, cwd=checkout, path=(checkout, ROOT)), strict=True))


def test_the_law_is_listed_shown_and_proved(said):
    status, listed = said[LISTED]
    assert status == 0 and "gated_rms_norm(x, gate, weight=None, *, eps=1e-06)" in listed
    status, shown = said[SHOWN]
    assert status == 0 and "opposite_gates" in shown and "r[i] = Σ_k x[i, k]^2/d" in shown
    status, proved = said[PROVED]
    assert status == 0 and "gated.opposite_gates: proved (all dimensions)" in proved, proved
    assert "0 survived" in proved


def test_every_row_passes(said):
    """Its bound, its cases and its gradient come from the declaration: three rows in each of four dtypes."""
    status, told = said[RIGHT]
    assert status == 0 and "12 rows: 12 pass" in told, told


def test_a_gate_before_the_statistics_is_refused(said):
    """Its definition fails, and so does the law that was written against it, in each dtype."""
    status, told = said[WRONG]
    assert status == 1 and "FAIL gated_rms_norm / definition" in told, told
    for law in ("definition", "opposite_gates"):
        (row,) = (line for line in told.splitlines() if f" {law} " in line and "│" in line)
        assert row.count("fail") == 4, told


def test_a_folder_of_ones_own_needs_no_checkout(project):
    ((status, told),) = commands(f"{RIGHT} --dtype fp32", cwd=project, path=(project, ROOT))
    assert status == 0 and "3 rows: 3 pass" in told, told
    status, told = run_pytest("test_mine.py", cwd=project, path=(project, ROOT))
    assert status == 0 and "3 passed" in told, told
