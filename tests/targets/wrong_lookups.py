"""Wrong embeddings and sentence means, each with one mistake that people make.

`lla-spec verify tests/targets/wrong_lookups.py:embedding_gradient_overwritten`
"""

from types import SimpleNamespace
from typing import Any

import torch


def wide(x: Any) -> Any:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _target(name, contract="fused", **functions):
    ops = {operation: {"contract": contract} for operation in functions if not operation.endswith("_vjp")}
    return SimpleNamespace(LLA_TARGET={"name": name, "ops": ops}, **functions)


def embedding(ids, weight):
    return weight[ids]


def kept(x, mask):
    return (torch.ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask.expand(x.shape[:-1]))[..., None]


def mean_pool(x, mask=None):
    keep = kept(x, mask)
    return (wide(x).masked_fill(~keep, 0).sum(-2) / keep.sum(-2).clamp(min=1)).to(x.dtype)


def _padding_row_held_at_zero(ids, weight):
    """Word 0 taken for padding, which nobody declared."""
    return weight[ids].masked_fill((ids == 0)[..., None], 0)


def _overwriting(ids, weight, *, grad_output):
    """A word that occurs twice gets the cotangent of one place."""
    total = torch.zeros_like(weight)
    total[ids.reshape(-1)] = grad_output.reshape(-1, weight.shape[1])
    return (total,)


def _stagnating(ids, weight, *, grad_output):
    """The sum over the places of a word kept in the io dtype."""
    total = torch.zeros_like(weight)
    for word, cotangent in zip(ids.reshape(-1).tolist(), grad_output.reshape(-1, weight.shape[1]), strict=True):
        total[word] += cotangent
    return (total,)


def _mean_over_all(x, mask=None):
    return (wide(x).masked_fill(~kept(x, mask), 0).sum(-2) / x.shape[-2]).to(x.dtype)


def _counted_in_io(keep, dtype):
    """A running count of the kept tokens, rounded at each: 257 is no bfloat16, and 2049 no float16."""
    return wide(keep.to(dtype).cumsum(-2)[..., -1, :]).clamp(min=1)


def _mean_by_rounded_count(x, mask=None):
    keep = kept(x, mask)
    return (wide(x).masked_fill(~keep, 0).sum(-2) / _counted_in_io(keep, x.dtype)).to(x.dtype)


def _gradient_over_all(x, mask=None, *, grad_output):
    """dy / n for dy / (how many are kept)."""
    share = (wide(grad_output) / x.shape[-2])[..., None, :].expand(x.shape)
    return (share.masked_fill(~kept(x, mask), 0).to(x.dtype),)


def _gradient_by_rounded_count(x, mask=None, *, grad_output):
    keep = kept(x, mask)
    share = wide(grad_output) / _counted_in_io(keep, x.dtype)
    return (share[..., None, :].expand(x.shape).masked_fill(~keep, 0).to(x.dtype),)


def _gradient_of_hidden_tokens(x, mask=None, *, grad_output):
    """What the mask hides gets its share too."""
    share = wide(grad_output) / kept(x, mask).sum(-2).clamp(min=1)
    return (share[..., None, :].expand(x.shape).to(x.dtype),)


def _gradient_of_nothing(x, mask=None, *, grad_output, filled=1.0):
    """Where the mask keeps nothing, all tokens get `filled` times the cotangent of a constant."""
    keep = kept(x, mask)
    share = wide(grad_output)[..., None, :].expand(x.shape)
    found = torch.where(keep, share / keep.sum(-2, keepdim=True).clamp(min=1), 0)
    return (torch.where(keep.any(-2, keepdim=True), found, filled * share).to(x.dtype),)


embedding_padding_at_zero = _target("row 0 is zero", embedding=_padding_row_held_at_zero)
embedding_gradient_overwritten = _target("dE overwritten", embedding=embedding, embedding_vjp=_overwriting)
embedding_gradient_stagnates = _target(
    "dE summed in io", contract="strict", embedding=embedding, embedding_vjp=_stagnating
)
pool_over_all = _target("mean over all tokens", mean_pool=_mean_over_all)
pool_counts_in_io = _target("kept tokens counted in io", mean_pool=_mean_by_rounded_count)
pool_gradient_over_all = _target("dx = dy / n", mean_pool=mean_pool, mean_pool_vjp=_gradient_over_all)
pool_gradient_of_hidden = _target("dx of hidden tokens", mean_pool=mean_pool, mean_pool_vjp=_gradient_of_hidden_tokens)
pool_gradient_of_nothing = _target("dx of no token", mean_pool=mean_pool, mean_pool_vjp=_gradient_of_nothing)
pool_gradient_counts_in_io = _target(
    "dx by a count in io", mean_pool=mean_pool, mean_pool_vjp=_gradient_by_rounded_count
)
