"""torch.compile, torch.func and double backward give what eager mode gives; norms among the operations."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

import impl
from lla_spec.testing import assert_correct
from tests.impl.cases import CASES, Case, normal
from tests.impl.test_normalization import CASES as NORMS
from tests.impl.test_normalization import Case as Norm

each_case = pytest.mark.parametrize("case", [*CASES, *NORMS], ids=str)
# Compiling takes a second: one case per operation, and attention with everything in it.
COMPILED = [CASES[1], CASES[4], CASES[6], CASES[8], CASES[9], CASES[14], NORMS[0], NORMS[4], NORMS[6]]


def same_bits(got: Sequence[Any], want: Sequence[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def filled(inputs: list[Tensor | None], given: Iterable[Tensor]) -> list[Tensor | None]:
    """The arguments of the operation with these floating ones."""
    remaining = iter(given)
    return [next(remaining) if x is not None and x.is_floating_point() else x for x in inputs]


def split(case: Case | Norm) -> tuple[Any, list[Tensor]]:
    """The operation as a function of its floating inputs alone, and those inputs in float64."""
    inputs, operation = case.inputs(torch.float64), getattr(impl, case.operation)

    def function(*given: Tensor) -> Tensor:
        return operation(*filled(inputs, given), **case.options)

    return function, [x for x in inputs if x is not None and x.is_floating_point()]


@each_case
def test_vmap_is_a_loop(case: Case | Norm) -> None:
    function, inputs = split(case)
    stacked = [torch.stack([x, 2 * x, -x]) for x in inputs]
    got = vmap(function)(*stacked)
    for i, result in enumerate(got):
        arguments = filled(case.inputs(torch.float64), (x[i] for x in stacked))
        assert_correct(case.operation, result, *arguments, **case.options)


@each_case
def test_vmap_of_grad_is_a_loop_of_backward(case: Case | Norm) -> None:
    """Per-example gradients: an own first argument in each example, the others shared."""
    function, (first, *others) = split(case)
    examples = torch.stack([first, 2 * first])
    upstream = normal(tuple(function(first, *others).shape), torch.float64, 9)

    def loss(*given: Tensor) -> Tensor:
        return (function(*given) * upstream).sum()

    gradients = grad(loss, tuple(range(1 + len(others))))
    per_example = vmap(gradients, (0, *(None for _ in others)))(examples, *others)
    for i, example in enumerate(examples):
        grads = tuple(x[i] for x in per_example)
        arguments = filled(case.inputs(torch.float64), (example, *others))
        assert_correct(f"{case.operation}_vjp", grads, *arguments, grad_output=upstream, **case.options)


@each_case
def test_func_vjp_equals_the_named_vjp(case: Case | Norm) -> None:
    function, inputs = split(case)
    out, pull = vjp(function, *inputs)[:2]
    upstream = normal(tuple(out.shape), torch.float64, 9)
    named = getattr(impl, case.operation + "_vjp")(*case.inputs(torch.float64), grad_output=upstream, **case.options)
    assert same_bits(pull(upstream), [x for x in named if x is not None])


def test_vmap_over_the_mask() -> None:
    q, k, v = (normal((4, 2), torch.float64, seed) for seed in range(3))
    masks = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5  # some rows are empty
    assert_correct("attention", vmap(impl.attention, in_dims=(None, None, None, 0))(q, k, v, masks), q, k, v, masks)


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_is_eager(case: Case | Norm) -> None:
    torch.compiler.reset()  # all of them are one function to the compiler, which takes eight variants of one
    function, inputs = split(case)
    leaves = [x.requires_grad_() for x in inputs]
    out = torch.compile(function, backend="aot_eager", fullgraph=True)(*leaves)
    want = function(*leaves)
    assert torch.equal(out, want)
    upstream = normal(tuple(want.shape), torch.float64, 9)
    assert same_bits(*(torch.autograd.grad(y, leaves, upstream) for y in (out, want)))


def test_compiled_once_for_all_shapes_and_scales() -> None:
    attention = torch.compile(impl.attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, m, d, scale in ((3, 5, 4, 0.3), (7, 6, 2, -2.0)):
        q, k, v = (normal((2, *shape), torch.float64, n) for shape in ((n, d), (m, d), (m, 3)))
        mask = torch.arange(m)[None] > 0
        options: Any = {"is_causal": True, "scale": scale}
        assert torch.equal(attention(q, k, v, mask, **options), impl.attention(q, k, v, mask, **options))


def test_compiled_once_for_all_shapes_and_eps() -> None:
    layer_norm = torch.compile(impl.layer_norm, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows, d, eps in ((3, 5, 1e-5), (7, 6, 0.25)):
        x, weight = normal((rows, d), torch.float64, d), normal((d,), torch.float64, 1)
        assert torch.equal(layer_norm(x, weight, eps=eps), impl.layer_norm(x, weight, eps=eps))


def test_inductor_keeps_the_accumulator() -> None:
    x = normal((3, 40), torch.bfloat16, 0) * 4
    assert_correct("log_softmax", torch.compile(impl.log_softmax, fullgraph=True)(x), x)


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
