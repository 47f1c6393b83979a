"""What is given where the formula says nothing: empty rows, masked slots, NaN, -inf and axes of size 0."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradgradcheck

import impl
from lla_spec.testing import assert_correct
from tests.impl.cases import normal

NAN, INF = math.nan, math.inf
FLOAT32 = torch.float32


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """As torch.compile runs it, where no value can be read: the clear path throughout."""
    return torch.compile(function, backend="eager", fullgraph=True)


either_way = pytest.mark.parametrize("run", [lambda f: f, compiled], ids=["eager", "compiled"])


def qkv(n: int, m: int, d: int = 4, e: int = 4, dtype: torch.dtype = FLOAT32) -> tuple[Tensor, Tensor, Tensor]:
    return normal((n, d), dtype, 0), normal((m, d), dtype, 1), normal((m, e), dtype, 2)


def attention_and_gradients(*inputs: Any, grad_output: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return (impl.attention(*inputs, **options), *impl.attention_vjp(*inputs, grad_output=grad_output, **options))


def all_nan(x: Tensor) -> bool:
    return bool(x.isnan().all())


# --- who may look ---


def test_causal_is_bottom_right() -> None:
    q, k, v = qkv(2, 4)
    out = impl.attention(q, k, v, is_causal=True)
    assert_correct("attention", out[1:], q[1:], k, v)  # the last query sees every key
    assert_correct("attention", out[:1], q[:1], k[:3], v[:3])  # the one before, all but the last


def test_masked_is_deleted() -> None:
    q, k, v = qkv(3, 5)
    keep = torch.tensor([True, False, True, True, False])
    assert_correct("attention", impl.attention(q, k, v, keep[None]), q, k[keep], v[keep])


@either_way
def test_an_empty_row_is_zeros_forward_and_backward(run: Any) -> None:
    q, k, v = qkv(3, 5)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    out, dq, dk, dv = run(attention_and_gradients)(q, k, v, mask, grad_output=torch.ones(3, 4))
    assert torch.equal(out[1], torch.zeros(4)) and torch.equal(dq[1], torch.zeros(4))
    rest = torch.tensor([0, 2])
    assert_correct("attention", out[rest], q[rest], k, v)
    assert_correct("attention_vjp", (dq[rest], dk, dv), q[rest], k, v, grad_output=torch.ones(2, 4))


def test_causal_with_more_queries_than_keys_begins_with_empty_rows() -> None:
    q, k, v = qkv(5, 2)
    out, dq, dk, dv = attention_and_gradients(q, k, v, grad_output=torch.ones(5, 4), is_causal=True)
    assert torch.equal(out[:3], torch.zeros(3, 4)) and torch.equal(dq[:3], torch.zeros(3, 4))
    assert torch.equal(out[3], v[0])  # the only key that it sees has weight 1
    assert dk.isfinite().all() and dv.isfinite().all()


def test_an_empty_row_has_a_second_derivative() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(3, 5, dtype=torch.float64))
    mask = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
    assert gradgradcheck(lambda q, k, v: impl.attention(q, k, v, mask), (q, k, v))


@either_way
def test_a_mask_that_keeps_nothing_gives_zeros_whatever_the_values_are(run: Any) -> None:
    q, k, v = (torch.full_like(x, NAN) for x in qkv(3, 5))
    mask = torch.zeros(1, 5, dtype=torch.bool)
    results = run(attention_and_gradients)(q, k, v, mask, grad_output=torch.full((3, 4), NAN))
    assert all(torch.equal(x, torch.zeros_like(x)) for x in results)


# --- NaN and inf ---


@either_way
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_a_masked_slot_holds_reaches_nothing(bad: float, run: Any) -> None:
    q, k, v = qkv(3, 5)
    mask = torch.tensor([[True, False, True, True, False]]).expand(3, 5)
    upstream = normal((3, 4), FLOAT32, 3)
    clean = attention_and_gradients(q, k, v, mask, grad_output=upstream)
    k[1], v[1], k[4, 2], v[4, 0] = bad, bad, bad, bad
    for got, want in zip(run(attention_and_gradients)(q, k, v, mask, grad_output=upstream), clean, strict=True):
        assert torch.equal(got, want)


@either_way
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_future_reaches_no_earlier_row(bad: float, run: Any) -> None:
    q, k, v = qkv(4, 4)
    upstream = normal((4, 4), FLOAT32, 3)
    clean = attention_and_gradients(q, k, v, grad_output=upstream, is_causal=True)
    k[3], v[3] = bad, bad
    out, dq, _, _ = run(attention_and_gradients)(q, k, v, grad_output=upstream, is_causal=True)
    assert torch.equal(out[:3], clean[0][:3]) and torch.equal(dq[:3], clean[1][:3])


@either_way
@pytest.mark.parametrize("masked", [False, True])
def test_a_live_nan_reaches_all_that_depends_on_it(masked: bool, run: Any) -> None:
    mask = torch.tensor([[True, True, False], [False, True, True]]) if masked else None
    upstream = torch.ones(2, 4)
    q, k, v = qkv(2, 3)
    q[0, 1] = NAN
    out, dq, dk, dv = run(attention_and_gradients)(q, k, v, mask, grad_output=upstream)
    assert all_nan(out[0]) and out[1].isfinite().all()
    assert all_nan(dq[0]) and dq[1].isfinite().all()
    assert all_nan(dk[0]) and all_nan(dv[0])
    q, k, v = qkv(2, 3)
    v[0, 1] = NAN
    out = run(attention_and_gradients)(q, k, v, mask, grad_output=upstream)[0]
    assert all_nan(out[0, 1]) and out[:, 0].isfinite().all()
    assert out[1, 1].isfinite() if masked else all_nan(out[1, 1])


def test_a_live_infinity_among_the_values_keeps_its_sign() -> None:
    q, k, v = qkv(1, 4)
    mask = torch.tensor([[True, True, True, False]])
    v[0, 0], v[0, 1], v[0, 2], v[1, 2], v[3, 3] = INF, -INF, INF, -INF, INF
    out = impl.attention(q, k, v, mask)[0]
    assert out[0] == INF and out[1] == -INF and out[2].isnan() and out[3].isfinite()
    q[0, 0] = NAN
    assert all_nan(impl.attention(q, k, v, mask))  # and never hides a NaN


def test_a_weight_of_zero_is_a_number_and_no_mask() -> None:
    assert impl.weighted_average(torch.tensor([[0.0, 1.0]]), torch.tensor([[NAN], [1.0]])).isnan()


# --- the three softmaxes ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_logit_of_minus_infinity_has_probability_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -INF, 0.0], dtype=dtype)
    assert impl.softmax(x).tolist() == [0.5, 0.0, 0.5]
    assert impl.log_softmax(x)[1] == -INF
    assert impl.softmax_vjp(x, grad_output=torch.ones_like(x))[0][1] == 0
    assert impl.logsumexp_vjp(x, grad_output=torch.ones_like(x[0]))[0].tolist() == [0.5, 0.0, 0.5]


def test_a_row_of_minus_infinity() -> None:
    x = torch.tensor([[-INF, -INF], [0.0, 0.0]])
    assert all_nan(impl.softmax(x)[0]) and all_nan(impl.log_softmax(x)[0])
    assert impl.logsumexp(x)[0] == -INF
    assert impl.logsumexp_vjp(x, grad_output=torch.ones(2))[0].tolist() == [[0.0, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize("operation", [impl.softmax, impl.log_softmax, impl.logsumexp])
def test_a_nan_reaches_its_row_and_no_other(operation: Callable[[Tensor], Tensor]) -> None:
    out = operation(torch.tensor([[0.0, NAN, 1.0], [0.0, 1.0, 2.0]]))
    assert all_nan(out[0]) and out[1].isfinite().all()


@pytest.mark.parametrize("operation", [impl.softmax, impl.log_softmax, impl.logsumexp])
@pytest.mark.parametrize("offset", [-400.0, 400.0])
def test_a_large_common_offset_does_not_overflow(operation: Callable[[Tensor], Tensor], offset: float) -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    assert_correct(operation.__name__, operation(x + offset), x + offset)
    if operation is not impl.logsumexp:  # the others see x less its maximum and nothing else
        assert torch.equal(operation(x + offset), operation(x))


# --- tensors without values ---


def test_shapes_are_inferred_on_the_meta_device() -> None:
    q, k, v = (x.to("meta") for x in qkv(3, 5))
    out = impl.attention(q, k, v, torch.ones(1, 5, dtype=torch.bool, device="meta"), is_causal=True)
    assert out.shape == (3, 4) and out.is_meta


# --- axes of size 0 ---


def test_a_sum_over_no_terms_is_zero() -> None:
    assert torch.equal(impl.matmul(torch.ones(2, 0), torch.ones(0, 3)), torch.zeros(2, 3))
    assert torch.equal(impl.weighted_average(torch.ones(2, 0), torch.ones(0, 3)), torch.zeros(2, 3))
    assert torch.equal(impl.linear(torch.ones(2, 0), torch.ones(3, 0), torch.ones(3)), torch.ones(2, 3))
    assert impl.logsumexp(torch.ones(2, 0)).tolist() == [-INF, -INF]
    assert impl.softmax(torch.ones(2, 0)).shape == impl.log_softmax(torch.ones(2, 0)).shape == (2, 0)


def test_gradients_over_no_rows_are_zero() -> None:
    dx, dweight, dbias = impl.linear_vjp(
        torch.ones(0, 4), torch.ones(3, 4), torch.ones(3), grad_output=torch.ones(0, 3)
    )
    assert dx.shape == (0, 4)
    assert torch.equal(dweight, torch.zeros(3, 4)) and dbias is not None and torch.equal(dbias, torch.zeros(3))
    assert [x.shape for x in impl.linear_vjp(torch.ones(2, 0), torch.ones(0, 0), grad_output=torch.ones(2, 0))[:2]] == [
        (2, 0),
        (0, 0),
    ]
    da, db = impl.matmul_vjp(torch.ones(2, 0), torch.ones(0, 3), grad_output=torch.ones(2, 3))
    assert da.shape == (2, 0) and db.shape == (0, 3)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("n", "m", "d", "e", "batch"), [(3, 0, 2, 4, 2), (0, 3, 2, 4, 2), (3, 5, 2, 0, 2), (3, 5, 0, 4, 2), (3, 5, 2, 4, 0)]
)
def test_attention_over_an_axis_of_size_0(
    n: int, m: int, d: int, e: int, batch: int, masked: bool, is_causal: bool
) -> None:
    q, k, v = torch.ones(batch, n, d), torch.ones(batch, m, d), normal((batch, m, e), FLOAT32, 0)
    mask = torch.ones(n, m, dtype=torch.bool) if masked else None
    results = attention_and_gradients(q, k, v, mask, grad_output=torch.ones(batch, n, e), is_causal=is_causal)
    assert [tuple(x.shape) for x in results] == [(batch, n, e), (batch, n, d), (batch, m, d), (batch, m, e)]
    assert all(x.isfinite().all() for x in results)
    if m == 0:
        assert torch.equal(results[0], torch.zeros(batch, n, e))  # no key to look at
    if d == 0 and not is_causal:  # all scores are 0, as they are at a feature that is 0
        assert_correct("attention", results[0], torch.zeros(batch, n, 1), torch.zeros(batch, m, 1), v)
