"""Arrows point one way: tensors → language → calculus → formulas → proving, evaluating → testing; impl stands alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each part may import of lla_spec. A part may always import itself. The words of `symbols` are for declarations.
ALLOWED = {
    "tensors": "",
    "substituting": "tensors",
    "symbols": "tensors",
    "printing": "tensors substituting symbols",
    "calls": "tensors substituting printing",
    "mentions": "tensors calls",
    "language": "tensors calls printing mentions",
    "certified": "tensors calls language printing",
    "calculus": "tensors substituting language",
    "interface": "tensors calls certified",
    "formulas": "symbols language calculus certified printing",
    "proving": "tensors substituting language formulas",
    "evaluating": "tensors substituting language calculus interface formulas",
    "testing": "tensors substituting calls language calculus printing certified interface formulas evaluating",
    "showing": "substituting language printing certified interface",
    "catalogue": "language formulas proving",
    "cli": "tensors language formulas proving evaluating testing showing",
    "__main__": "cli",
    "__init__": "",
}


def imported(path):
    """(part of lla_spec, or another top-level module) for every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "lla_spec" else [f"lla_spec.{alias.name}" for alias in node.names]
        for name in names:
            yield name.split(".")


@pytest.mark.parametrize("path", sorted((ROOT / "lla_spec").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    part = path.relative_to(ROOT / "lla_spec").parts[0].removesuffix(".py")
    for name in imported(path):
        assert name[0] != "impl", f"{path.name} imports impl: the specification must not know it"
        if name[0] == "lla_spec" and len(name) > 1:
            assert name[1] == part or name[1] in ALLOWED[part].split(), f"{part} imports {'.'.join(name)}"


@pytest.mark.parametrize("path", sorted((ROOT / "impl").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_impl_imports_nothing_of_lla_spec(path):
    assert {name[0] for name in imported(path)} <= {"impl", "torch", "jaxtyping", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", sorted((ROOT / "lla_spec" / "evaluating").rglob("*.py")), ids=lambda p: p.name)
def test_evaluation_needs_no_torch(path):
    assert all(name[0] != "torch" for name in imported(path))


@pytest.mark.parametrize("module", ["lla_spec", "lla_spec.testing", "lla_spec.testing.plugin"])
def test_the_plugin_costs_other_peoples_pytest_no_torch_and_no_sympy(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'sympy', 'hypothesis') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_root_conftest_stays_small():
    assert len((ROOT / "conftest.py").read_text().splitlines()) <= 30
