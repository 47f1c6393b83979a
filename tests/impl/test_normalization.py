"""impl.normalization: the formula's value and gradients, one rounding, rows that torch gets wrong, every transform."""

import doctest
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import impl.normalization as norm
from lla_spec.testing import assert_correct, bound
from tests.impl.cases import assert_formula, normal

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Case:
    """A call: the operation, the shape of its rows, which of weight and bias are given, eps (None: the default)."""

    operation: str
    shape: tuple[int, ...]
    given: tuple[str, ...] = ()
    eps: float | None = None

    def __str__(self) -> str:
        return "-".join(
            [self.operation, "x".join(map(str, self.shape)), *self.given, *([str(self.eps)] * bool(self.eps))]
        )

    @property
    def options(self) -> dict[str, float]:
        return {} if self.eps is None else {"eps": self.eps}

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor | None]:
        rows = 2 if self.operation == "residual_layer_norm" else 1
        names = ("weight",) if self.operation == "rms_norm" else ("weight", "bias")
        found: list[Tensor | None] = [normal(self.shape, dtype, seed + i) for i in range(rows)]
        vectors = [normal(self.shape[-1:], dtype, seed + 5 + i) for i in range(2)]
        return [*found, *(v if name in self.given else None for name, v in zip(names, vectors, strict=False))]


BOTH = ("weight", "bias")
CASES = [
    Case("layer_norm", (2, 3, 5), BOTH),
    Case("layer_norm", (7,), BOTH, 0.25),
    Case("layer_norm", (3, 4), ("bias",)),
    Case("layer_norm", (3, 1), BOTH),
    Case("rms_norm", (2, 3, 5), ("weight",)),
    Case("rms_norm", (3, 1), (), 0.25),
    Case("residual_layer_norm", (2, 3, 5), BOTH),
    Case("residual_layer_norm", (4, 3), ("weight",), 0.25),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def formula(operation: str, *inputs: Tensor | None, eps: float | None = None) -> Tensor:
    """The textbook, in plain torch."""
    if operation == "rms_norm":
        x, weight, bias = inputs[0], inputs[1], None
        assert x is not None
        c, eps = x, 1e-6 if eps is None else eps
    else:
        *rows, weight, bias = inputs
        x = sum(rows)  # type: ignore[arg-type]
        assert isinstance(x, Tensor)
        c, eps = x - x.sum(-1, keepdim=True) / x.shape[-1], 1e-5 if eps is None else eps
    y = c / ((c * c).sum(-1, keepdim=True) / c.shape[-1] + eps).sqrt()
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


def call(case: Case, inputs: list[Tensor | None], suffix: str = "", **more: Any) -> Any:
    return getattr(norm, case.operation + suffix)(*inputs, **case.options, **more)


def split(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The operation as a function of the tensors that are given, and those."""
    inputs = case.inputs(dtype)

    def function(*given: Tensor) -> Tensor:
        remaining = iter(given)
        return call(case, [None if x is None else next(remaining) for x in inputs])

    return function, [x for x in inputs if x is not None]


# ---- values and gradients


@each_dtype
@each_case
def test_value_and_vjp_equal_the_formula(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    leaves = [None if x is None else x.double().requires_grad_() for x in inputs]
    want = formula(case.operation, *leaves, eps=case.eps)
    got = call(case, inputs)
    assert got.dtype == dtype
    assert_formula(case.operation, got, want, *inputs, **case.options)
    upstream = normal(case.shape, dtype, 9)
    named = call(case, inputs, "_vjp", grad_output=upstream)
    assert isinstance(named, tuple) and [x is None for x in named] == [x is None for x in inputs]
    exact = torch.autograd.grad(want, [x for x in leaves if x is not None], upstream.double())
    assert all(gradient.dtype == dtype for gradient in named if gradient is not None)
    assert_formula(f"{case.operation}_vjp", named, exact, *inputs, grad_output=upstream, **case.options)


@each_dtype
@each_case
def test_autograd_gives_the_named_vjp(case: Case, dtype: torch.dtype) -> None:
    function, inputs = split(case, dtype)
    leaves = [x.requires_grad_() for x in inputs]
    upstream = normal(case.shape, dtype, 9)
    behind = torch.autograd.grad(function(*leaves), leaves, upstream)
    named = [x for x in call(case, case.inputs(dtype), "_vjp", grad_output=upstream) if x is not None]
    assert all(torch.equal(a, b) for a, b in zip(behind, named, strict=True))


@each_case
def test_gradients_equal_finite_differences(case: Case) -> None:
    function, inputs = split(case)
    leaves = [x.requires_grad_() for x in inputs]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_case
def test_sixteen_bits_are_the_float32_result_rounded_once(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    wide = [None if x is None else x.float() for x in inputs]
    assert torch.equal(call(case, inputs), call(case, wide).to(dtype))
    upstream = normal(case.shape, dtype, 9)
    narrow = call(case, inputs, "_vjp", grad_output=upstream)
    for got, want in zip(narrow, call(case, wide, "_vjp", grad_output=upstream.float()), strict=True):
        assert got is want is None or torch.equal(got, want.to(dtype))


# ---- rows that torch gets wrong


@pytest.mark.parametrize("power", [66, 100, 124])
def test_squares_that_overflow_float32(power: int) -> None:
    """The bound is infinite where a square overflows, so it judges the rows before they are scaled.

    A power of two scales every step exactly. Beside these variances no eps is seen: not 1e-5, and not 1e-30 before.
    """
    x, scale = normal((4, 9), torch.float32, 0), 2.0**power
    weight, bias, upstream = (normal(shape, torch.float32, 1) for shape in ((9,), (9,), (4, 9)))
    assert not bound("layer_norm", x * scale, weight, bias).isfinite().any()
    y, z = norm.layer_norm(x, weight, bias, eps=1e-30), norm.rms_norm(x, weight, eps=1e-30)
    assert_correct("layer_norm", y, x, weight, bias, eps=1e-30)
    assert_correct("rms_norm", z, x, weight, eps=1e-30)
    assert torch.equal(norm.layer_norm(x * scale, weight, bias), y) and torch.equal(norm.rms_norm(x * scale, weight), z)
    grads = norm.layer_norm_vjp(x, weight, bias, eps=1e-30, grad_output=upstream)
    assert_correct("layer_norm_vjp", grads, x, weight, bias, eps=1e-30, grad_output=upstream)
    dx, *others = norm.layer_norm_vjp(x * scale, weight, bias, grad_output=upstream)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(others, grads[1:], strict=True))
    # At 2^124 some are subnormal, 2^-149 apart: theirs is rounded twice, a half each (elsewhere nothing is lost).
    lost = 2.0**-149 if power == 124 else 0.0
    assert bool(((dx.double() * scale - grads[0].double()).abs() <= lost * scale).all())


def test_a_large_constant_row_gives_the_bias() -> None:
    bias = normal((4,), torch.float32, 0)
    for value in (0.0, 1.0, 2.0**60, 2.0**100):
        assert torch.equal(norm.layer_norm(torch.full((3, 4), value), None, bias), bias.expand(3, 4))


def test_an_offset_does_not_eat_the_variance() -> None:
    """E[x²] - μ² would be negative here."""
    x = torch.tensor([4096.0, 4096.5, 4097.0, 4097.5])
    assert torch.equal(norm.layer_norm(x), norm.layer_norm(x - 4096))  # float32 holds the sum, the mean and x - mean


def test_gradients_of_weight_and_bias_do_not_stagnate() -> None:
    """torch's bfloat16 sums of 4096 ones stop at 256."""
    x = torch.tensor([1.0, -1.0], dtype=torch.bfloat16).expand(4096, 2)
    weight, upstream = torch.ones(2, dtype=torch.bfloat16), torch.ones(4096, 2, dtype=torch.bfloat16)
    _, dweight, dbias = norm.layer_norm_vjp(x, weight, weight, grad_output=upstream)
    assert dweight is not None and dbias is not None
    assert dweight.tolist() == [4096.0, -4096.0] and dbias.tolist() == [4096.0, 4096.0]


def test_a_last_axis_of_one_has_no_gradient() -> None:
    x, weight, bias = normal((5, 1), torch.float32, 0) * 1e6, torch.full((1,), 3.0), torch.full((1,), 2.0)
    assert torch.equal(norm.layer_norm(x, weight, bias), bias.expand(5, 1))
    dx, dweight, _ = norm.layer_norm_vjp(x, weight, bias, grad_output=normal((5, 1), torch.float32, 1))
    assert not dx.any() and dweight is not None and not dweight.any()


@each_dtype
def test_empty_rows_and_no_rows(dtype: torch.dtype) -> None:
    empty = torch.empty(0, dtype=dtype)
    assert norm.layer_norm(torch.empty(3, 0, dtype=dtype), empty).shape == (3, 0)
    none = torch.empty(0, 4, dtype=dtype)
    dx, dweight, _ = norm.layer_norm_vjp(none, torch.ones(4, dtype=dtype), grad_output=none)
    assert dx.shape == (0, 4) and dweight is not None and dweight.tolist() == [0.0] * 4


@pytest.mark.parametrize("operation", [norm.layer_norm, norm.rms_norm])
def test_a_nan_stays_in_its_row(operation: Callable[..., Tensor]) -> None:
    x = normal((3, 4), torch.float32, 0)
    x[1, 2] = math.nan
    y = operation(x)
    assert y[1].isnan().all() and not y[[0, 2]].isnan().any()


def test_the_residual_sum_is_not_rounded() -> None:
    """256 + 1 is 256 in bfloat16."""
    h, s = torch.full((2,), 256.0, dtype=torch.bfloat16), torch.tensor([0.0, 1.0], dtype=torch.bfloat16)
    assert norm.residual_layer_norm(h, s).tolist() == [-1.0, 1.0]
    dh, ds, *_ = norm.residual_layer_norm_vjp(h, s, grad_output=s)
    assert torch.equal(dh, ds) and dh.data_ptr() != ds.data_ptr()


def test_only_the_gradients_asked_for_are_given() -> None:
    x, weight = normal((3, 4), torch.float32, 0), normal((4,), torch.float32, 1).requires_grad_()
    norm.layer_norm(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None


# ---- the other transforms: test_transforms.py


def test_inductor_keeps_the_accumulator() -> None:
    x = normal((3, 40), torch.bfloat16, 0) * 4 + 100
    got = torch.compile(norm.layer_norm, fullgraph=True)(x)
    assert_correct("layer_norm", got, x)


# ---- refusals


def t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: norm.layer_norm(t()), "layer_norm: x must have at least 1 axis (..., d), got shape ()"),
    (lambda: norm.rms_norm(t(2, 3), t(4)), "rms_norm: weight has features 4 but x has 3 (axis -1)"),
    (lambda: norm.layer_norm(t(2, 3), t(3), t(1)), "layer_norm: bias has features 1 but x has 3 (axis -1)"),
    (lambda: norm.layer_norm(t(2, 3), t(2, 3)), "layer_norm: weight must have exactly 1 axis (d,), got shape (2, 3)"),
    (
        lambda: norm.layer_norm(t(2, 3), t(3, dtype=torch.float64)),
        "layer_norm: weight has dtype torch.float64 but x has torch.float32; all floating arguments share one dtype",
    ),
    (lambda: norm.layer_norm(t(3), eps=0.0), "layer_norm: eps must be a positive finite float, got 0.0"),
    (lambda: norm.rms_norm(t(3), eps=-1e-6), "rms_norm: eps must be a positive finite float, got -1e-06"),
    (lambda: norm.rms_norm(t(3), eps=math.inf), "rms_norm: eps must be a positive finite float, got inf"),
    (lambda: norm.layer_norm(t(3), eps=math.nan), "layer_norm: eps must be a positive finite float, got nan"),
    (
        lambda: norm.layer_norm(t(3), eps=None),  # type: ignore[arg-type]
        "layer_norm: eps must be a positive finite float, got None",
    ),
    (
        lambda: norm.residual_layer_norm(t(2, 3), t(3)),
        "residual_layer_norm: sublayer has shape (3,) but h has (2, 3)",
    ),
    (
        lambda: norm.layer_norm_vjp(t(2, 3), grad_output=t(3)),
        "layer_norm_vjp: grad_output has shape (3,) but the result has (2, 3)",
    ),
    (
        lambda: norm.residual_layer_norm_vjp(t(2, 3), t(2, 3), grad_output=t(2, 3).double()),
        "residual_layer_norm_vjp: grad_output has dtype torch.float64 but h has torch.float32; "
        "all floating arguments share one dtype",
    ),
]


@pytest.mark.parametrize(("refused", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(refused: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        refused()


def test_the_examples_are_true() -> None:
    assert doctest.testmod(norm).failed == 0


def test_every_law_that_is_cited_is_stated() -> None:
    import lla_spec.formulas.normalization  # noqa: F401  (states them)
    from lla_spec.language import registry

    source = Path(str(norm.__file__)).read_text(encoding="utf-8")
    cited = set(re.findall(r"normalization\.[a-z_]+", source))
    assert len(cited) >= 5 and cited <= set(registry.laws)
