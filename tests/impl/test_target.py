"""What impl exports, declares and depends on; and its docstrings' examples."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
import tokenize
from pathlib import Path

import pytest
import torch

import impl

MODULES = ["impl", *(f"impl.{module.name}" for module in pkgutil.iter_modules(impl.__path__))]
OPERATIONS = [
    "attention", "cross_entropy", "embedding", "grouped_query_attention", "layer_norm", "linear",
    "linear_cross_entropy", "log_softmax", "logsumexp", "matmul", "mean_pool", "multi_head_attention", "output_softmax",
    "pca_inverse", "pca_transform", "residual_layer_norm", "rms_norm", "softmax", "weighted_average",
]  # fmt: skip
WITNESSES = ["low_rank", "pca", "truncated_svd"]  # have no VJP


def test_every_operation_has_its_vjp_and_its_claim() -> None:
    names = [name for name in impl.__all__ if name not in ("LLA_TARGET", "__version__")]
    assert names == sorted([*OPERATIONS, *WITNESSES, *(f"{name}_vjp" for name in OPERATIONS)])
    assert sorted(impl.LLA_TARGET["ops"]) == sorted([*OPERATIONS, *WITNESSES])


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_vjp_takes_what_its_operation_takes_and_grad_output(name: str) -> None:
    own = dict(inspect.signature(getattr(impl, f"{name}_vjp")).parameters)
    grad_output = own.pop("grad_output")
    assert grad_output.kind is inspect.Parameter.KEYWORD_ONLY
    operation = inspect.signature(getattr(impl, name)).parameters
    assert [(p.name, p.kind, p.default) for p in own.values()] == [
        (p.name, p.kind, p.default) for p in operation.values()
    ]


def test_attention_declares_its_policies() -> None:
    assert impl.LLA_TARGET["ops"]["attention"]["policies"] == {
        "fully_masked_row": "zeros",
        "causal_alignment": "bottom_right",
        "nan_in_masked": "ignored",
        "overflow": "inf",
    }


@pytest.mark.parametrize("module", MODULES)
def test_impl_imports_torch_jaxtyping_and_the_standard_library(module: str) -> None:
    tree = ast.parse(Path(str(importlib.import_module(module).__file__)).read_text())
    roots = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    roots |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {root.split(".")[0] for root in roots} - set(sys.stdlib_module_names)
    assert foreign <= {"impl", "torch", "jaxtyping"}


def test_every_law_that_impl_cites_is_stated() -> None:
    import lla_spec.formulas  # noqa: F401  (states them)
    from lla_spec.language import registry

    topics = {law.topic for law in registry.laws.values()}
    cited = set()
    for module in MODULES:
        with tokenize.open(str(importlib.import_module(module).__file__)) as source:
            for token in tokenize.generate_tokens(source.readline):
                if token.type in (tokenize.COMMENT, tokenize.STRING):
                    cited |= set(re.findall(rf"(?<![\w.])(?:{'|'.join(topics)})\.[a-z_]+", token.string))
    assert len(cited) >= 10
    assert cited <= set(registry.laws)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_are_true(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module), extraglobs={"torch": torch})
    assert results.failed == 0
