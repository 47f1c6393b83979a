"""Rows are copied bit by bit and averaged with one rounding of the dtype; gradients are sums that do not stagnate.

The truth comes from mpmath (test_output.exactly); the bounds count the roundings of the accumulator.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.nn import functional as F

from impl.embedding import embedding, embedding_vjp, mean_pool, mean_pool_vjp
from lla_spec.testing import assert_correct
from tests.impl.cases import normal
from tests.impl.test_output import MP, accumulator, assert_within, exactly, roundings, tiny

NAN, INF = math.nan, math.inf
FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16
each_dtype = pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16, torch.float16], ids=str)

# --- embedding ---

IDS = {
    "rows": torch.tensor([[2, 0, 2], [4, 2, 1]]),
    "one": torch.tensor(3),
    "none": torch.zeros(2, 0, dtype=torch.int64),
    "transposed": torch.tensor([[0, 1], [1, 1], [4, 0]]).mT,
}
each_ids = pytest.mark.parametrize("ids", IDS.values(), ids=IDS)


@each_dtype
@each_ids
def test_rows_are_copied_bit_by_bit(ids: Tensor, dtype: torch.dtype) -> None:
    weight = normal((5, 3), dtype, 0)
    weight[0, 0], weight[1, 1] = -0.0, INF
    got = embedding(ids, weight)
    assert got.dtype == dtype and got.shape == (*ids.shape, 3)
    bits = torch.int64 if dtype == FLOAT64 else torch.int32 if dtype == FLOAT32 else torch.int16
    for row, i in zip(got.reshape(-1, 3), ids.reshape(-1).tolist(), strict=True):
        assert torch.equal(row.view(bits), weight[i].view(bits))


@each_dtype
@each_ids
def test_gradient_of_a_row_is_the_sum_of_what_its_positions_send(ids: Tensor, dtype: torch.dtype) -> None:
    weight, upstream = normal((5, 3), dtype, 0).requires_grad_(), normal((*ids.shape, 3), dtype, 1)
    (got,) = embedding_vjp(ids, weight, grad_output=upstream)
    assert torch.equal(got, torch.autograd.grad(embedding(ids, weight), weight, upstream)[0])
    want, size = (np.full((5, 3), MP.zero) for _ in range(2))
    for g, i in zip(exactly(upstream).reshape(-1, 3), ids.reshape(-1).tolist(), strict=True):
        want[i] += g
        size[i] += abs(g)
    assert_within(got, want, roundings(max(ids.numel() - 1, 0), dtype) * size, dtype)


def test_a_frequent_token_does_not_stagnate() -> None:
    # bfloat16 stalls at 256 when it adds ones.
    ids, weight = torch.ones(4096, dtype=torch.int64), torch.zeros(3, 2, dtype=BFLOAT16, requires_grad=True)
    embedding(ids, weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 0.0], [4096.0, 4096.0], [0.0, 0.0]]


def test_embedding_agrees_with_torch_on_integers() -> None:
    """Sums of small integers are exact in any order, so both are bitwise equal."""
    ids = torch.randint(7, (3, 50), generator=torch.Generator().manual_seed(0))
    weight = normal((7, 4), FLOAT32, 0).requires_grad_()
    upstream = torch.randint(-9, 9, (3, 50, 4), generator=torch.Generator().manual_seed(1)).float()
    ours, theirs = embedding(ids, weight), F.embedding(ids, weight)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(out, weight, upstream)[0] for out in (ours, theirs)))


@each_ids
def test_embedding_gradient_equals_finite_differences(ids: Tensor) -> None:
    weight = normal((5, 3), FLOAT64, 0).requires_grad_()
    assert gradcheck(lambda w: embedding(ids, w), weight)
    assert gradgradcheck(lambda w: embedding(ids, w), weight)


@pytest.mark.parametrize(("rows", "d"), [(0, 3), (5, 0), (1, 3)])
def test_tables_of_size_0_and_1(rows: int, d: int) -> None:
    ids, weight = torch.zeros(2 if rows else 0, dtype=torch.int64), torch.ones(rows, d)
    assert embedding(ids, weight).shape == (ids.numel(), d)
    (dweight,) = embedding_vjp(ids, weight, grad_output=torch.ones(ids.numel(), d))
    assert torch.equal(dweight, torch.full((rows, d), float(ids.numel())))


def test_nan_upstream_stays_in_its_row() -> None:
    upstream = torch.tensor([[NAN], [1.0], [1.0]])
    (dweight,) = embedding_vjp(torch.tensor([0, 1, 1]), torch.zeros(3, 1), grad_output=upstream)
    assert dweight[0].isnan() and dweight[1:].tolist() == [[2.0], [0.0]]


# --- mean_pool ---

POOLS: dict[str, tuple[tuple[int, ...], Tensor | None]] = {
    "all": ((2, 5, 3), None),
    "one_sentence": ((4, 3), torch.tensor([True, False, True, True])),
    "per_sentence": ((2, 3, 2), torch.tensor([[True, False, True], [False, False, True]])),
    "broadcast": ((2, 3, 2), torch.tensor([False, True, True])),
    "broadcast_tokens": ((2, 3, 2), torch.tensor([[True], [False]])),
    "empty_row": ((2, 3, 2), torch.tensor([[True, False, True], [False, False, False]])),
    "long": ((1, 1000, 2), None),
    "no_sentence": ((0, 3, 2), None),
}
each_pool = pytest.mark.parametrize(("shape", "mask"), POOLS.values(), ids=POOLS)


def kept(shape: tuple[int, ...], mask: Tensor | None) -> Any:
    """As a column beside x."""
    keep = torch.ones(shape[:-1], dtype=torch.bool) if mask is None else mask.expand(shape[:-1])
    return keep.numpy()[..., None]


@each_dtype
@each_pool
def test_mean_is_the_formula(shape: tuple[int, ...], mask: Tensor | None, dtype: torch.dtype) -> None:
    x, keep = normal(shape, dtype, 0), kept(shape, mask)
    terms, count = np.where(keep, exactly(x), MP.zero), np.maximum(keep.sum(-2), 1)
    error = roundings(shape[-2], dtype) * abs(terms).sum(-2) / count  # n - 1 additions and a division
    assert_within(mean_pool(x, mask), terms.sum(-2) / count, error, dtype)


@each_dtype
@each_pool
def test_mean_gradient_is_the_formula_s(shape: tuple[int, ...], mask: Tensor | None, dtype: torch.dtype) -> None:
    x, keep = normal(shape, dtype, 0).requires_grad_(), kept(shape, mask)
    upstream = normal((*shape[:-2], shape[-1]), dtype, 1)
    (got,) = mean_pool_vjp(x, mask, grad_output=upstream)
    assert torch.equal(got, torch.autograd.grad(mean_pool(x, mask), x, upstream)[0])
    share = exactly(upstream)[..., None, :] / np.maximum(keep.sum(-2, keepdims=True), 1)
    want = np.where(keep, share, MP.zero)
    assert_within(got, want, roundings(1, dtype) * abs(want) + tiny(accumulator(dtype)), dtype)
    assert got.is_contiguous()  # and no entry shares its memory with another


@each_pool
def test_mean_gradient_equals_finite_differences(shape: tuple[int, ...], mask: Tensor | None) -> None:
    x = normal((*shape[:-2], min(shape[-2], 5), shape[-1]), FLOAT64, 0).requires_grad_()
    assert gradcheck(lambda x: mean_pool(x, mask), x)
    assert gradgradcheck(lambda x: mean_pool(x, mask), x)


def test_mean_agrees_with_torch_where_it_is_exact() -> None:
    # Eight small integers: their sum is exact, and so is its eighth.
    x = torch.randint(-9, 9, (3, 8, 4), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(mean_pool(x), x.mean(-2))


def test_a_long_mean_does_not_stagnate() -> None:
    x = torch.full((4096, 1), 3.0, dtype=BFLOAT16)
    assert mean_pool(x).item() == mean_pool(x, torch.ones(4096, dtype=torch.bool)).item() == 3.0


def test_a_mean_is_rounded_once() -> None:
    # 257 is no bfloat16: rounded to 256 before it is divided by 5, it would give 51.25.
    x = torch.tensor([[256.0], [1.0], [0.0], [0.0], [0.0]], dtype=BFLOAT16)
    assert mean_pool(x).item() == torch.tensor(51.4).to(BFLOAT16).item() == 51.5


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_a_dropped_token_holds_reaches_nothing(bad: float) -> None:
    x, mask = normal((2, 3, 2), FLOAT32, 0), POOLS["per_sentence"][1]
    assert mask is not None
    clean = mean_pool(x, mask)
    x[~mask] = bad
    x.requires_grad_()
    got = mean_pool(x, mask)
    assert torch.equal(got, clean)
    (dx,) = torch.autograd.grad(got.sum(), x)
    assert dx.isfinite().all() and not dx[~mask].any()


@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (0,), ()], ids=str)
def test_a_sentence_that_keeps_nothing_is_zeros_forward_and_backward(shape: tuple[int, ...]) -> None:
    n, d = 3, 4
    x, upstream = torch.full((*shape, n, d), NAN), torch.full((*shape, d), NAN)
    mask = torch.zeros(n, dtype=torch.bool)
    assert torch.equal(mean_pool(x, mask), torch.zeros(*shape, d))
    assert torch.equal(mean_pool_vjp(x, mask, grad_output=upstream)[0], torch.zeros(*shape, n, d))


@pytest.mark.parametrize("mask", [None, torch.ones(2, 0, dtype=torch.bool)], ids=["all", "mask"])
def test_a_sentence_of_no_tokens_is_zeros(mask: Tensor | None) -> None:
    assert torch.equal(mean_pool(torch.ones(2, 0, 4), mask), torch.zeros(2, 4))
    assert mean_pool_vjp(torch.ones(2, 0, 4), mask, grad_output=torch.ones(2, 4))[0].shape == (2, 0, 4)


def test_nan_and_inf_in_kept_tokens_are_seen() -> None:
    x = torch.tensor([[NAN, INF, INF, 1.0], [1.0, 1.0, -INF, 1.0]])
    got = mean_pool(x, torch.tensor([True, True]))
    assert got[0].isnan() and got[1] == INF and got[2].isnan() and got[3] == 1


# --- transforms, both ---


def test_vmap_is_a_loop() -> None:
    ids, weight, x = IDS["rows"], normal((2, 5, 3), FLOAT64, 0), normal((2, 3, 2), FLOAT64, 1)
    mask = POOLS["empty_row"][1]
    assert mask is not None
    each = [embedding(ids[i], weight[i]) for i in range(2)]
    assert torch.equal(vmap(embedding)(ids, weight), torch.stack(each))
    assert torch.equal(vmap(mean_pool)(x, mask), mean_pool(x, mask))
    assert torch.equal(vmap(mean_pool, (0, None))(x, mask[0]), mean_pool(x, mask[0]))

    upstream = normal((3,), FLOAT64, 9)

    def worth(ids: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return (mean_pool(embedding(ids, weight), mask) * upstream).sum()

    per_example = vmap(grad(worth, argnums=1), (0, None, 0))(ids, weight[0], mask)
    for i in range(2):
        (dx,) = mean_pool_vjp(embedding(ids[i], weight[0]), mask[i], grad_output=upstream)
        assert_correct("embedding_vjp", (per_example[i],), ids[i], weight[0], grad_output=dx)


def test_compiled_is_eager() -> None:
    ids, weight, mask = IDS["rows"], normal((5, 3), FLOAT64, 0).requires_grad_(), POOLS["empty_row"][1]

    def pooled(ids: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return mean_pool(embedding(ids, weight), mask)

    got, want = torch.compile(pooled, backend="aot_eager", fullgraph=True)(ids, weight, mask), pooled(ids, weight, mask)  # type: ignore[arg-type]
    assert torch.equal(got, want)
    upstream = normal((2, 3), FLOAT64, 9)
    assert torch.equal(*(torch.autograd.grad(out, weight, upstream)[0] for out in (got, want)))


def test_a_call_leaves_its_arguments_alone() -> None:
    ids, weight, x, mask = (
        IDS["rows"].clone(),
        normal((5, 3), FLOAT32, 0),
        normal((2, 3, 2), FLOAT32, 1),
        torch.ones(3) > 0,
    )
    before = [y.clone() for y in (ids, weight, x, mask)]
    for out in (embedding(ids, weight), *embedding_vjp(ids, weight, grad_output=torch.ones(2, 3, 3))):
        out.fill_(7.0)  # results have memory of their own
    for out in (mean_pool(x, mask), *mean_pool_vjp(x, mask, grad_output=torch.ones(2, 2))):
        out.fill_(7.0)
    assert all(torch.equal(y, z) for y, z in zip((ids, weight, x, mask), before, strict=True))


# --- messages ---


def t(*shape: int, dtype: torch.dtype = FLOAT32, device: str = "cpu") -> Any:
    return torch.zeros(shape, dtype=dtype, device=device)


def keep(*shape: int) -> Any:
    return torch.ones(shape, dtype=torch.bool)


REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: embedding(torch.tensor([0, 5]), t(5, 3)), "embedding: ids holds 5 but weight has 5 rows (axis 0)"),
    (lambda: embedding(torch.tensor(-1), t(5, 3)), "embedding: ids holds -1 but weight has 5 rows (axis 0)"),
    (
        lambda: embedding_vjp(torch.tensor([7]), t(5, 3), grad_output=t(1, 3)),
        "embedding_vjp: ids holds 7 but weight has 5 rows (axis 0)",
    ),
    (lambda: embedding(t(2), t(5, 3)), "embedding: ids must be int64, got torch.float32"),
    (lambda: embedding(t(2, dtype=torch.int32), t(5, 3)), "embedding: ids must be int64, got torch.int32"),
    (
        lambda: embedding([0, 1], t(5, 3)),  # type: ignore[arg-type]
        "embedding: ids must be a torch.Tensor, got list",
    ),
    (
        lambda: embedding(t(2, dtype=torch.int64, device="meta"), t(5, 3)),
        "embedding: ids is on meta but weight is on cpu; all arguments share one device",
    ),
    (
        lambda: embedding(torch.tensor(0), t(1, 5, 3)),
        "embedding: weight must have exactly 2 axes (V, d), got shape (1, 5, 3)",
    ),
    (
        lambda: embedding(torch.tensor(0), t(5, 3, dtype=torch.int64)),
        "embedding: weight must be float64, float32, bfloat16 or float16, got torch.int64",
    ),
    (
        lambda: embedding_vjp(torch.tensor([0, 1]), t(5, 3), grad_output=t(2, 4)),
        "embedding_vjp: grad_output has shape (2, 4) but the result has (2, 3)",
    ),
    (lambda: mean_pool(t(3)), "mean_pool: x must have at least 2 axes (..., n, d), got shape (3,)"),
    (lambda: mean_pool(t(2, 3, 4), t(2, 3)), "mean_pool: mask must be bool, got torch.float32; True = keep"),
    (
        lambda: mean_pool(t(2, 3, 4), keep(2, 4)),
        "mean_pool: mask has shape (2, 4), which does not broadcast to (..., n) = (2, 3)",
    ),
    (  # a mask does not add batch axes
        lambda: mean_pool(t(3, 4), keep(2, 3)),
        "mean_pool: mask has shape (2, 3), which does not broadcast to (..., n) = (3,)",
    ),
    (lambda: mean_pool(t(3, 4), keep()), "mean_pool: mask must have at least 1 axis (..., n), got shape ()"),
    (
        lambda: mean_pool(t(3, 4), keep(3).to("meta")),
        "mean_pool: mask is on meta but x is on cpu; all arguments share one device",
    ),
    (
        lambda: mean_pool_vjp(t(2, 3, 4), grad_output=t(2, 3)),
        "mean_pool_vjp: grad_output has shape (2, 3) but the result has (2, 4)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value) == message
