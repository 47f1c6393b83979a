# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""From token ids to vectors, and from a sentence's vectors to one: embedding and mean_pool, each with its VJP.

    embedding    x_i = E_{t_i}, row t_i of the table; its gradient adds up what every position sends to its row
    mean_pool    s_c = Σ_i m_i x_ic / Σ_i m_i, over the tokens that the mask keeps

Embedding rounds nothing. Its gradient is a sum with as many terms as the id has positions, and a frequent token has
thousands: it is held in at least float32 and rounded once. In bfloat16 a sum of ones stops growing at 256.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from impl.arguments import check_axes, check_floating, check_grad_output, check_ids, check_mask, check_range
from impl.autograd import KeepsArguments, arguments_of
from impl.linear import _as_rows
from impl.precision import accumulator, widened


def embedding(ids: Int64[Tensor, "*shape"], weight: Float[Tensor, "V d"]) -> Float[Tensor, "*shape d"]:
    """weight[ids]: row ids[…] of the table, for ids of any shape.

    Raises ValueError where ids are not int64 or weight is not (V, d), and in eager mode on a CPU where an id is
    outside 0 … V-1. On CUDA and under torch.compile ids are not read: one out of range is undefined there.

    >>> embedding(torch.tensor([2, 0]), torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
    tensor([[4., 5.],
            [0., 1.]])
    """
    _check_embedding("embedding", ids, weight)
    return _Embedding.apply(ids, weight)


def embedding_vjp(
    ids: Int64[Tensor, "*shape"], weight: Float[Tensor, "V d"], *, grad_output: Float[Tensor, "*shape d"]
) -> tuple[Float[Tensor, "V d"]]:
    """(dE,) with dE_v = Σ of grad_output over the positions whose id is v; zeros for an id that does not occur.

    >>> embedding_vjp(torch.tensor([2, 2]), torch.zeros(3, 1), grad_output=torch.tensor([[1.0], [10.0]]))
    (tensor([[ 0.],
            [ 0.],
            [11.]]),)
    """
    _check_embedding("embedding_vjp", ids, weight)
    check_grad_output("embedding_vjp", grad_output, (*ids.shape, weight.shape[1]), "weight", weight)
    return (_embedding_backward(ids, weight, grad_output),)


def mean_pool(
    x: Float[Tensor, "*batch n d"], mask: Bool[Tensor, "*#batch n"] | None = None
) -> Float[Tensor, "*batch d"]:
    """The mean over the n tokens that `mask` keeps (True = keep); over all of them where it is None.

    `mask` has at least the axis n and broadcasts to (…, n). Where it keeps nothing, or n is 0, the mean is zeros and
    sends zeros backward, as a query of attention does that sees no key. What a dropped token holds, NaN and inf
    included, reaches no result and no gradient. The sum is formed before it is divided, so it may overflow to inf.
    Raises ValueError where shapes or devices disagree, or the mask is not bool.

    >>> mean_pool(torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([True, True, False]))
    tensor([2.])
    """
    _check_mean_pool("mean_pool", x, mask)
    return _MeanPool.apply(x, mask)


def mean_pool_vjp(
    x: Float[Tensor, "*batch n d"],
    mask: Bool[Tensor, "*#batch n"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch d"],
) -> tuple[Float[Tensor, "*batch n d"]]:
    """(dx,): every kept token gets grad_output divided by their number, every other one exactly 0.

    >>> mean_pool_vjp(torch.zeros(3, 1), torch.tensor([True, True, False]), grad_output=torch.ones(1))
    (tensor([[0.5000],
            [0.5000],
            [0.0000]]),)
    """
    _check_mean_pool("mean_pool_vjp", x, mask)
    check_grad_output("mean_pool_vjp", grad_output, (*x.shape[:-2], x.shape[-1]), "x", x)
    return (_mean_pool_backward(x, mask, grad_output),)


def _check_embedding(operation: str, ids: Tensor, weight: Tensor) -> None:
    check_floating(operation, weight=weight)
    check_ids(operation, "ids", ids, "weight", weight)
    check_axes(operation, "weight", weight, "V, d", exactly=True)
    check_range(operation, "ids", ids, "rows", "weight", weight, 0)


def _check_mean_pool(operation: str, x: Tensor, mask: Tensor | None) -> None:
    check_floating(operation, x=x)
    check_axes(operation, "x", x, "n, d")
    check_mask(operation, mask, tuple(x.shape[:-1]), x, beside="x", layout="n", true="keep")


class _Embedding(KeepsArguments):
    @staticmethod
    def forward(ids: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(ids, weight)  # weight[ids], without the meaning that indexing gives to negative numbers

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        ids, weight = arguments_of(ctx)
        return None, _embedding_backward(ids, weight, grad_output)


def _embedding_backward(ids: Tensor, weight: Tensor, grad_output: Tensor) -> Tensor:
    total = torch.zeros_like(weight, dtype=accumulator(weight.dtype))
    return total.index_add(0, ids.reshape(-1), _as_rows(widened(grad_output))).to(weight.dtype)


class _MeanPool(KeepsArguments):
    @staticmethod
    def forward(x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # not a product with the mask: 0·NaN is NaN
        return (x.sum(-2, dtype=accumulator(x.dtype)) / _kept(x, mask)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        x, mask = arguments_of(ctx)
        return _mean_pool_backward(x, mask, grad_output), None


def _mean_pool_backward(x: Tensor, mask: Tensor | None, grad_output: Tensor) -> Tensor:
    share = (widened(grad_output) / _kept(x, mask)).to(x.dtype).unsqueeze(-2).expand(x.shape)
    return share.contiguous() if mask is None else share.masked_fill(~mask.unsqueeze(-1), 0.0)


def _kept(x: Tensor, mask: Tensor | None) -> Tensor | int:
    """How many tokens each mean is over, to divide by: at least 1, since a sum of nothing is 0 already."""
    if mask is None:
        return max(x.shape[-2], 1)
    return mask.expand(*mask.shape[:-1], x.shape[-2]).sum(-1, keepdim=True).clamp(min=1)
