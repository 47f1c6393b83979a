"""truncated_svd and low_rank of impl: certificates judge them against the spec; here is what a torch user expects."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from impl.low_rank import low_rank, truncated_svd
from lla_spec.testing import assert_correct

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@each_dtype
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize(("m", "n"), [(5, 7), (7, 5), (4, 4), (1, 6), (6, 1)])
def test_shapes_and_dtype(dtype: torch.dtype, batch: tuple[int, ...], m: int, n: int) -> None:
    w = normal(*batch, m, n, dtype=dtype)
    for k in (1, min(m, n)):
        U, S, Vh = truncated_svd(w, k)
        assert (U.shape, S.shape, Vh.shape) == ((*batch, m, k), (*batch, k), (*batch, k, n))
        W_k = low_rank(w, k)
        assert W_k.shape == w.shape
        assert {x.dtype for x in (U, S, Vh, W_k)} == {dtype}


def test_a_diagonal_matrix_is_cut_at_its_largest_entries() -> None:
    w = torch.diag(torch.tensor([2.0, -7.0, 0.5, 3.0]))
    assert truncated_svd(w, 3)[1].tolist() == [7.0, 3.0, 2.0]
    assert torch.equal(low_rank(w, 2), torch.diag(torch.tensor([0.0, -7.0, 0.0, 3.0])))


def test_the_error_is_the_tail_of_the_spectrum() -> None:
    w = normal(9, 6)
    for k in range(1, 7):
        assert_correct("low_rank", low_rank(w, k), w, k)  # its certificates: the distance, and what lies beyond rank k
        assert torch.linalg.matrix_rank(low_rank(w, k)).item() == k


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_sixteen_bits_are_the_float32_result_rounded_once(dtype: torch.dtype) -> None:
    w = normal(2, 8, 5, dtype=dtype)
    assert torch.equal(low_rank(w, 3), low_rank(w.float(), 3).to(dtype))
    for narrow, broad in zip(truncated_svd(w, 3), truncated_svd(w.float(), 3), strict=True):
        assert torch.equal(narrow, broad.to(dtype))


def test_rounded_factors_would_not_do() -> None:
    """Why low_rank is no product of truncated_svd's results in 16 bits: each product would round twice."""
    w = normal(40, 30, dtype=torch.bfloat16)
    U, S, Vh = truncated_svd(w, 10)
    exact = low_rank(w.double(), 10)
    worse = (U.double() * S.double()) @ Vh.double() - exact
    assert torch.linalg.matrix_norm(low_rank(w, 10).double() - exact) < torch.linalg.matrix_norm(worse)


def test_layout_does_not_matter_and_the_argument_stays() -> None:
    w = normal(6, 4, dtype=torch.float32)
    before, sliced = w.clone(), torch.full((9, 11), math.nan)[1:7, 2:10:2]
    sliced.copy_(w)
    strided = [w.mT.contiguous().mT, sliced]
    for other in strided:
        assert torch.equal(low_rank(other, 2), low_rank(w, 2))
    assert torch.equal(w, before)


def test_gradients() -> None:
    w = normal(4, 3).requires_grad_()
    assert gradcheck(lambda w: low_rank(w, 2), [w])
    assert gradcheck(lambda w: truncated_svd(w, 2)[1], [w])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_and_vmap() -> None:
    w = normal(3, 6, 4, dtype=torch.float32)
    compiled: Any = torch.compile(lambda w: (low_rank(w, 2), *truncated_svd(w, 2)), backend="aot_eager", fullgraph=True)
    for got, want in zip(compiled(w), (low_rank(w, 2), *truncated_svd(w, 2)), strict=True):
        assert torch.equal(got, want)
    assert_correct("low_rank", torch.func.vmap(lambda w: low_rank(w, 2))(w), w, 2)
    assert torch.func.grad(lambda w: low_rank(w, 2).sum())(w[0]).shape == w[0].shape


def test_autocast_does_not_lower_the_accumulator() -> None:
    w = normal(30, 20, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = low_rank(w, 5)
    assert torch.equal(inside, low_rank(w, 5))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_factors(bad: float) -> None:
    w = normal(4, 3, dtype=torch.float32)
    w[1, 1] = bad
    with pytest.raises(torch.linalg.LinAlgError):
        truncated_svd(w, 1)


W = torch.zeros(3, 7)
REFUSALS: list[tuple[Any, str]] = [
    (
        lambda: truncated_svd(W, 4),
        "truncated_svd: k must be an integer in 1 ... min(m, n) = 3, got k 4 with m 3 and n 7",
    ),
    (lambda: low_rank(W, 0), "low_rank: k must be an integer in 1 ... min(m, n) = 3, got k 0 with m 3 and n 7"),
    (lambda: low_rank(W, -1), "low_rank: k must be an integer in 1 ... min(m, n) = 3, got k -1 with m 3 and n 7"),
    (lambda: low_rank(W, True), "low_rank: k must be an integer in 1 ... min(m, n) = 3, got k True with m 3 and n 7"),
    (lambda: low_rank(W, 2.0), "low_rank: k must be an integer in 1 ... min(m, n) = 3, got k 2.0 with m 3 and n 7"),  # type: ignore[arg-type]
    (lambda: low_rank(W[0], 1), "low_rank: w must have at least 2 axes (..., m, n), got shape (7,)"),
    (lambda: low_rank(W.long(), 1), "low_rank: w must be float64, float32, bfloat16 or float16, got torch.int64"),
    (lambda: truncated_svd([1.0], 1), "truncated_svd: w must be a torch.Tensor, got list"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value) == message
