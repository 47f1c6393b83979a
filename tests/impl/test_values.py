"""impl's values and gradients equal the float64 formula: to float64's rounding, and in 16 bits after one rounding."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import impl
from lla_spec.testing import assert_correct
from tests.impl.cases import CASES, Case, assert_formula, normal
from tests.impl.naive import exact

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)


def call(case: Case, inputs: list[Tensor | None], suffix: str = "", **more: Any) -> Any:
    return getattr(impl, case.operation + suffix)(*inputs, **case.options, **more)


def floating(inputs: list[Tensor | None]) -> list[Tensor]:
    return [x for x in inputs if x is not None and x.is_floating_point()]


@each_dtype
@each_case
def test_value_equals_the_formula(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    got = call(case, inputs)
    assert got.dtype == dtype
    assert_formula(case.operation, got, exact(case.operation, *inputs, **case.options), *inputs, **case.options)


@each_dtype
@each_case
def test_vjp_equals_autograd_of_the_formula_and_impls_own(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    leaves = [x.requires_grad_() for x in floating(inputs)]
    out = call(case, inputs)
    grad_output = normal(tuple(out.shape), dtype, seed=99)
    behind_autograd = torch.autograd.grad(out, leaves, grad_output)
    named = call(case, inputs, "_vjp", grad_output=grad_output)
    assert isinstance(named, tuple)
    assert [x is None for x in named] == [x is None for x in inputs[: len(named)]]
    want = exact(case.operation, *inputs, grad_output=grad_output, **case.options)
    given = [x for x in named if x is not None]
    for grad, also, leaf in zip(given, behind_autograd, leaves, strict=True):
        assert grad.dtype == dtype and grad.shape == leaf.shape
        assert torch.equal(grad, also)
    assert_formula(f"{case.operation}_vjp", named, want, *inputs, grad_output=grad_output, **case.options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_case
def test_sixteen_bits_are_the_float32_result_rounded_once(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    wide = [x if x is None or x.dtype == torch.bool else x.float() for x in inputs]
    out = call(case, inputs)
    assert torch.equal(out, call(case, wide).to(dtype))
    upstream = normal(tuple(out.shape), dtype, seed=99)
    narrow_grads = call(case, inputs, "_vjp", grad_output=upstream)
    for got, want in zip(narrow_grads, call(case, wide, "_vjp", grad_output=upstream.float()), strict=True):
        assert got is want is None or torch.equal(got, want.to(dtype))


@each_case
def test_gradients_equal_finite_differences(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    leaves = [x.requires_grad_() for x in floating(inputs)]

    def function(*given: Tensor) -> Tensor:
        remaining = iter(given)
        return call(case, [next(remaining) if x is not None and x.is_floating_point() else x for x in inputs])

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@each_case
def test_a_call_leaves_its_arguments_alone(case: Case) -> None:
    inputs = case.inputs(torch.float32)
    before = [None if x is None else x.clone() for x in inputs]
    out = call(case, inputs)
    call(case, inputs, "_vjp", grad_output=torch.ones_like(out))
    for x, y in zip(inputs, before, strict=True):
        assert x is y is None or (x is not None and y is not None and torch.equal(x, y))
    assert all(out.data_ptr() != x.data_ptr() for x in floating(inputs))


def test_only_the_gradients_asked_for_are_given() -> None:
    x, weight = normal((3, 4), torch.float32, 0), normal((5, 4), torch.float32, 1).requires_grad_()
    impl.linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None


def test_a_sum_of_sixteen_bit_numbers_is_held_in_float32() -> None:
    # bfloat16 stalls at 256 when it adds ones; the bias gradient, the weight gradient and a product all add 4096.
    ones, weight, bias = (torch.ones(shape, dtype=torch.bfloat16) for shape in [(4096, 1), (1, 1), (1,)])
    assert impl.matmul(ones.mT, ones).item() == 4096
    _, dweight, dbias = impl.linear_vjp(ones, weight, bias, grad_output=ones)
    assert dweight.item() == 4096 and dbias is not None and dbias.item() == 4096


def test_a_gradient_summed_over_broadcast_axes_is_rounded_once() -> None:
    ones = torch.ones(4096, 1, 1, dtype=torch.bfloat16)
    _, db = impl.matmul_vjp(ones, ones[0], grad_output=ones)
    assert db.item() == 4096


def test_linear_adds_its_bias_before_it_rounds() -> None:
    # 256 + 1 rounds to 256 in bfloat16, and 256 - 256 would be 0.
    x, weight, bias = (torch.tensor(v, dtype=torch.bfloat16) for v in ([256.0, 1.0], [[1.0, 1.0]], [-256.0]))
    assert impl.linear(x, weight, bias).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_log_softmax_takes_the_log_of_an_unrounded_sum(dtype: torch.dtype) -> None:
    # 1 + exp(-7) is 1 in 16 bits: torch 2.13's own CPU kernel gives a cross-entropy of 0 here.
    logits = torch.tensor([7.0, 0.0], dtype=dtype)
    assert_correct("log_softmax", impl.log_softmax(logits), logits, contract="strict")  # -9.1e-4, and it less 7
    with pytest.raises(AssertionError):
        assert_correct("log_softmax", torch.tensor([0.0, -7.0], dtype=dtype), logits, contract="strict")


def test_autocast_does_not_lower_the_accumulator() -> None:
    q = normal((1, 2, 256, 16), torch.float32, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        products = impl.matmul(q, q.mT), impl.attention(q, q, q)
    assert torch.equal(products[0], impl.matmul(q, q.mT))
    assert_correct("attention", products[1], q, q, q)
