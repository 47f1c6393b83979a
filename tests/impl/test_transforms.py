"""torch.compile, torch.func and double backward give what eager mode gives; norms among the operations."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

import impl
from tests.impl.cases import CASES, Case, normal
from tests.impl.naive import OPERATIONS
from tests.impl.test_normalization import CASES as NORMS
from tests.impl.test_normalization import Case as Norm

each_case = pytest.mark.parametrize("case", [*CASES, *NORMS], ids=str)
# Compiling takes a second: one case per operation, and attention with everything in it.
COMPILED = [CASES[1], CASES[4], CASES[6], CASES[8], CASES[9], CASES[14], NORMS[0], NORMS[4], NORMS[6]]


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def split(case: Case | Norm) -> tuple[Any, list[Tensor]]:
    """The operation as a function of its floating inputs alone, and those inputs in float64."""
    inputs = case.inputs(torch.float64)
    operation = getattr(impl, case.operation)

    def function(*given: Tensor) -> Tensor:
        remaining = iter(given)
        return operation(
            *(next(remaining) if x is not None and x.is_floating_point() else x for x in inputs), **case.options
        )

    return function, [x for x in inputs if x is not None and x.is_floating_point()]


@each_case
def test_vmap_is_a_loop(case: Case | Norm) -> None:
    function, inputs = split(case)
    stacked = [torch.stack([x, 2 * x, -x]) for x in inputs]
    close(vmap(function)(*stacked), torch.stack([function(*(x[i] for x in stacked)) for i in range(3)]))


@each_case
def test_vmap_of_grad_is_a_loop_of_backward(case: Case | Norm) -> None:
    """Per-example gradients in the first argument, the others shared."""
    function, (first, *others) = split(case)
    examples = torch.stack([first, 2 * first])

    def loss(x: Tensor) -> Tensor:
        return function(x, *others).square().sum()

    leaf = examples.clone().requires_grad_()
    sum(loss(x) for x in leaf).backward()  # type: ignore[union-attr]
    close(vmap(grad(loss))(examples), leaf.grad)


@each_case
def test_func_vjp_equals_the_named_vjp(case: Case | Norm) -> None:
    function, inputs = split(case)
    out, pull = vjp(function, *inputs)[:2]
    upstream = normal(tuple(out.shape), torch.float64, 9)
    named = getattr(impl, case.operation + "_vjp")(*case.inputs(torch.float64), grad_output=upstream, **case.options)
    close(list(pull(upstream)), [x for x in named if x is not None])


def test_vmap_over_the_mask() -> None:
    q, k, v = (normal((4, 2), torch.float64, seed) for seed in range(3))
    masks = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5  # some rows are empty
    want = torch.stack([impl.attention(q, k, v, mask) for mask in masks])
    close(vmap(impl.attention, in_dims=(None, None, None, 0))(q, k, v, masks), want)


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_is_eager(case: Case | Norm) -> None:
    torch.compiler.reset()  # all of them are one function to the compiler, which takes eight variants of one
    function, inputs = split(case)
    leaves = [x.requires_grad_() for x in inputs]
    out = torch.compile(function, backend="aot_eager", fullgraph=True)(*leaves)
    want = function(*leaves)
    close(out, want)
    upstream = normal(tuple(want.shape), torch.float64, 9)
    close(torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(want, leaves, upstream))


def test_compiled_once_for_all_shapes_and_scales() -> None:
    attention = torch.compile(impl.attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, m, d, scale in ((3, 5, 4, 0.3), (7, 6, 2, -2.0)):
        q, k, v = (normal((2, *shape), torch.float64, n) for shape in ((n, d), (m, d), (m, 3)))
        mask = torch.arange(m)[None] > 0
        close(
            attention(q, k, v, mask, is_causal=True, scale=scale),
            impl.attention(q, k, v, mask, is_causal=True, scale=scale),
        )


def test_compiled_once_for_all_shapes_and_eps() -> None:
    layer_norm = torch.compile(impl.layer_norm, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows, d, eps in ((3, 5, 1e-5), (7, 6, 0.25)):
        x, weight = normal((rows, d), torch.float64, d), normal((d,), torch.float64, 1)
        close(layer_norm(x, weight, eps=eps), impl.layer_norm(x, weight, eps=eps))


def test_inductor_keeps_the_accumulator() -> None:
    x = normal((3, 40), torch.bfloat16, 0) * 4
    got = torch.compile(impl.log_softmax, fullgraph=True)(x)
    want = OPERATIONS["log_softmax"](x.double())
    assert not bool((~((got.double() - want).abs() <= 2**-8 * want.abs() * 1.001)).any())


def test_compiling_keeps_the_refusals() -> None:
    refuse = torch.compile(impl.matmul, backend="eager")
    with pytest.raises(ValueError, match="matmul: b has inner size 4 but a has 3"):
        refuse(torch.ones(2, 3), torch.ones(4, 5))


def test_a_second_derivative_is_right_or_refused() -> None:
    """The clear path differentiates twice (test_values); torch's kernel refuses rather than answer wrongly."""
    q = normal((1, 128, 8), torch.float32, 0).requires_grad_()
    (dq,) = torch.autograd.grad(impl.attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(dq.sum(), q)
