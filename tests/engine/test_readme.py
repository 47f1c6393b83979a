"""What the README says is so: its table, its figures, its examples."""

import re
from pathlib import Path

import torch

import lla_spec.formulas  # noqa: F401  (declares the laws)
from lla_spec import catalogue
from lla_spec.testing import assert_correct, bound

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
MAKE = "run `python -m lla_spec.catalogue` and commit README.md and docs/laws.md"


def test_the_table_of_operations_is_the_registrys():
    """Structure, counts and statuses; the ratios are those of a dated run."""
    text = README.read_text(encoding="utf-8")
    made = catalogue.operations_table(catalogue.ratios_in(text))
    assert catalogue.between(text, catalogue.OPERATIONS, made) == text, MAKE


def test_every_operation_has_a_ratio_in_each_dtype():
    found = catalogue.ratios_in(README.read_text(encoding="utf-8"))
    assert {op: sorted(own) for op, own in found.items() if not all(own.values())} == {}


def test_the_table_of_laws_is_the_registrys():
    text = (ROOT / catalogue.LAWS).read_text(encoding="utf-8")
    assert catalogue.between(text, catalogue.ALL_LAWS, catalogue.laws_table()) == text, MAKE


def test_the_first_example_holds():
    import impl

    q, k, v = (torch.randn(2, 8, 64, dtype=torch.bfloat16) for _ in range(3))
    assert_correct("attention", impl.attention(q, k, v, is_causal=True), q, k, v, is_causal=True)


def test_the_surprise_is_as_large_as_it_says():
    """log_softmax([7, 0]) in bfloat16: the error against the bound, in the torch that constraints.txt names."""
    x = torch.tensor([7.0, 0.0], dtype=torch.bfloat16)
    given = torch.log_softmax(x, -1)
    exact = torch.log_softmax(x.double(), -1)
    ratio = float((given.double() - exact).abs()[0] / bound("log_softmax", x)[0])
    told = re.search(r"(\d+) times the most that rounding allows", README.read_text(encoding="utf-8"))
    assert told is not None
    if torch.__version__.startswith("2.13"):
        assert given.tolist() == [0.0, -7.0] and round(ratio) == int(told[1])


def test_python_blocks_are_python():
    for code in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        compile(code, "README.md", "exec")
