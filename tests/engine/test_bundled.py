"""Targets that come with lla-spec: each is a target in good order, and a missing package is one line."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lla_spec.testing import bundled
from lla_spec.testing.bundled import shapes
from lla_spec.testing.errors import TargetError
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from tests.engine.in_process import commands

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "lla_spec" / "testing" / "bundled"
QUICK = {  # an operation that each of them has right, and in which dtype
    "torch_native": ("softmax", "fp32"),
    "transformers": ("attention", "fp32"),
    "jax": ("matmul", "fp32"),
    "sklearn": ("pca_inverse", "fp32"),
    "onnxruntime": ("softmax", "fp32"),
}


def needs(name):
    for module in bundled.PACKAGES[name]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"target {name} is not tested: no {module}")


@pytest.mark.parametrize("name", QUICK)
def test_a_target_computes_what_it_claims(name):
    needs(name)
    op, dtype = QUICK[name]
    session = Session(load(name), Options(ops=(op,), laws=("definition",), dtypes=(dtype,), examples=2))
    (result,) = [session.run(row) for row in session.rows()]
    assert result.verdict == "pass"


def test_liger_runs_in_the_interpreter_and_says_when_it_cannot():
    needs("liger")
    path = [ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    line = "verify liger --op softmax --law definition --dtype fp32 --examples 2"
    ((status, text),) = commands(line, cwd=ROOT, path=path)
    assert status == 0 and "1 pass" in text, text
    if not torch.cuda.is_available():
        code = "import triton; from lla_spec.testing.targets import load; load('liger')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.stderr.splitlines()[-1].endswith("set TRITON_INTERPRET=1 in the environment")


@pytest.mark.parametrize("name", [name for name, modules in bundled.PACKAGES.items() if modules])
def test_a_missing_package_is_one_line_that_says_how_to_get_it(name, monkeypatch):
    monkeypatch.delitem(sys.modules, bundled.module_of(name), raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for module in bundled.PACKAGES[name]:
        monkeypatch.setitem(sys.modules, module, None)  # an import of it raises ModuleNotFoundError
    with pytest.raises(TargetError) as raised:
        load(name)
    assert str(raised.value) in {
        f'target {name}: the package {package} is not installed; pip install "lla-spec[{name}]"'
        for package in bundled.PACKAGES[name].values()
    }


def test_without_a_compiler_torch_compile_says_so_in_one_line(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none_found():
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    monkeypatch.delitem(sys.modules, bundled.module_of("torch_compile"), raising=False)
    with pytest.raises(TargetError, match=r"^target torch_compile: inductor finds no C\+\+ compiler; install"):
        load("torch_compile")


def test_every_name_has_a_file_and_an_extra():
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, modules in bundled.PACKAGES.items():
        assert (FOLDER / f"{name}.py").is_file()
        for package in modules.values():
            assert package in next(line for line in extras.splitlines() if line.startswith(f"{name} = ")), name
    # Triton is left to torch, which asks for a version of its own where it is built for a GPU.
    for package in {p for modules in bundled.PACKAGES.values() for p in modules.values()} - {"triton"}:
        assert f"\n{package}==" in (ROOT / "constraints.txt").read_text(encoding="utf-8"), package


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_adapter_is_under_ten_lines_an_operation(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and path.stem in bundled.PACKAGES and not node.name.startswith("_"):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1
            assert lines < 10, f"{path.name}: {node.name} has {lines}"


def test_naming_a_target_imports_no_other():
    code = (
        "import sys; from lla_spec.testing.targets import load; load('torch_native');"
        "print([m for m in ('jax', 'sklearn', 'onnxruntime', 'liger_kernel', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_mask_is_spread_over_the_batch():
    q, k = torch.zeros(2, 5, 3, 4), torch.zeros(2, 5, 6, 4)
    mask = torch.rand(5, 3, 6) < 0.5
    seen = shapes.visible(q, k, mask, True)
    assert seen is not None and seen.shape == (5, 3, 6) and not seen[:, 0, 4:].any()
    rows = shapes.mask_of_rows(seen, q)
    assert rows is not None and rows.shape == (10, 1, 3, 6) and torch.equal(rows[7, 0], seen[2])
    heads = shapes.mask_of_heads(seen, q)
    assert heads is not None and heads.shape == (2, 5, 3, 6) and torch.equal(heads[1, 2], seen[2])


def test_the_loss_of_no_rows_is_that_of_the_reduction():
    logits, targets = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert shapes.loss_of_no_rows(logits, targets, "mean").isnan()
    assert shapes.loss_of_no_rows(logits, targets, "sum") == 0
    assert shapes.loss_of_no_rows(logits, targets, "none").shape == (0,)
