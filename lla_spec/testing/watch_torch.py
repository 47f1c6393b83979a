"""Which of torch's functions compute a declared operation, and how their arguments map to it.

Each reader has its function's own parameters. Nothing here depends on module classes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lla_spec.testing.watch_calls import Call, NotJudged, Operand, Reader, View, call_of, same

# ---- products


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
    return call_of("linear", x=input, weight=weight, bias=bias)


def _matmul(input: Tensor, other: Tensor) -> Call:
    if input.dim() < 2 or other.dim() < 2:
        raise NotJudged("a vector among the factors")
    return call_of("matmul", a=input, b=other)


def _rmatmul(input: Tensor, other: Tensor) -> Call:
    return _matmul(other, input)


def _bmm(input: Tensor, mat2: Tensor) -> Call:
    return _matmul(input, mat2)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Call:
    """GPT-2's Conv1D: a linear layer whose weight is stored (in, out)."""
    if beta != 1 or alpha != 1:
        raise NotJudged(f"beta {beta}, alpha {alpha}")
    if tuple(input.shape) != tuple(mat2.shape[-1:]):
        raise NotJudged(f"what is added has shape {tuple(input.shape)}, no bias of the output features")
    return call_of("linear", x=mat1, weight=Operand(mat2, lambda t: t.mT), bias=input)


# ---- softmax


def _over_last(name: str, input: Tensor, dim: int | None, dtype: torch.dtype | None) -> Call:
    if input.dim() == 0 or dim is None or dim % input.dim() != input.dim() - 1:
        raise NotJudged(f"over dim {dim}, the declaration is over the last")
    if dtype is not None and torch.finfo(dtype).eps > torch.finfo(input.dtype).eps:
        raise NotJudged(f"dtype={dtype} rounds the argument first")
    return call_of(name, x=input)


def _softmax(name: str, input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Call:
    return _over_last(name, input, dim, dtype)


def _softmax_method(name: str, input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Call:
    return _over_last(name, input, dim, dtype)


def _logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Call:
    (axis,) = dim if isinstance(dim, tuple | list) and len(dim) == 1 else (dim,)
    if not isinstance(axis, int):
        raise NotJudged(f"over dims {dim}, the declaration is over the last")
    found = _over_last("logsumexp", input, axis, None)
    return replace(found, result=lambda t: t.squeeze(-1)) if keepdim else found


# ---- attention


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    if dropout_p:
        raise NotJudged(f"dropout {dropout_p:g}")
    if min(t.dim() for t in (query, key, value)) < 2:
        raise NotJudged("a vector among the arguments")
    mask = None if attn_mask is None else as_mask(attn_mask, query.dtype)
    grouped = enable_gqa and query.shape[-3] != key.shape[-3]
    if grouped and mask is not None and mask.dim() == 2:
        mask = mask[None]  # the declaration has an axis for the heads
    options = {"is_causal": is_causal, "scale": None if scale is None else float(scale)}
    found = call_of("grouped_query_attention" if grouped else "attention", options, q=query, k=key, v=value, mask=mask)
    return replace(found, alignment="top_left")


def as_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The bool mask of an additive one, where it holds 0 and -inf (or the dtype's lowest number) and nothing else."""
    if mask.dtype == torch.bool:
        return mask
    lowest = mask <= torch.finfo(dtype).min
    if not bool((lowest | (mask == 0)).all()):
        raise NotJudged("an additive mask with other values than 0 and -inf")
    if bool((lowest.all(-1) & ~torch.isinf(mask).all(-1)).any()):
        raise NotJudged("an additive mask of the lowest finite number in a whole row")
    return ~lowest


# ---- normalisation, embedding, loss


def _normalized(name: str, input: Tensor, shape: Any, eps: float | None, **affine: Tensor | None) -> Call:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(sizes) != 1:
        raise NotJudged(f"over {len(sizes)} axes, the declaration is over the last")
    given = torch.finfo(input.dtype).eps if eps is None else float(eps)
    return call_of(name, {"eps": given}, x=input, **affine)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Call:
    return _normalized("layer_norm", input, normalized_shape, eps, weight=weight, bias=bias)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Call:
    return _normalized("rms_norm", input, normalized_shape, eps, weight=weight)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Call:
    options = {"max_norm": max_norm, "scale_grad_by_freq": scale_grad_by_freq, "sparse": sparse}
    wanted = [key for key, value in options.items() if value]
    if wanted:
        raise NotJudged(", ".join(wanted))
    ids, table = _rows_in_use(input.detach(), weight)
    found = call_of("embedding", ids=ids, weight=table)
    if padding_idx is None:
        return found
    padding = (input == padding_idx % weight.shape[0])[..., None]  # these positions send nothing to their row
    return replace(found, cotangent=lambda grad: grad.masked_fill(padding, 0))


def _rows_in_use(ids: Tensor, weight: Tensor) -> tuple[Tensor, Operand]:
    """A table of the rows that occur and as many others, with the ids in it: a vocabulary is large, a batch is not."""
    used, inverse = ids.unique(return_inverse=True)
    size, count = weight.shape[0], used.numel()
    if size <= 4 * count:
        return ids, Operand(weight)
    others = torch.linspace(0, size - 1, count + 1, device=ids.device).long()  # the first and the last among them
    rows = torch.cat([used, others[~torch.isin(others, used)]])
    return inverse, Operand(weight, lambda table: table.index_select(0, rows), rows)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Call:
    if weight is not None or label_smoothing or size_average is not None or reduce is not None:
        raise NotJudged("class weights, label smoothing or a deprecated reduction")
    if target.is_floating_point():
        raise NotJudged("targets that are probabilities")
    classes: View = same if input.dim() < 3 else lambda t: t.movedim(1, -1)
    options = {"ignore_index": ignore_index, "reduction": reduction}
    return call_of("cross_entropy", options, logits=Operand(input, classes), targets=target)


def _unread(reason: str) -> Reader:
    def reader(*args: Any, **kwargs: Any) -> Call:
        raise NotJudged(reason)

    return reader


READERS: dict[Any, Reader] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.__rmatmul__: _rmatmul,
    torch.bmm: _bmm,
    Tensor.bmm: _bmm,
    torch.mm: _bmm,
    Tensor.mm: _bmm,
    F.softmax: partial(_softmax, "softmax"),
    F.log_softmax: partial(_softmax, "log_softmax"),
    torch.softmax: partial(_softmax_method, "softmax"),
    torch.log_softmax: partial(_softmax_method, "log_softmax"),
    Tensor.softmax: partial(_softmax_method, "softmax"),
    Tensor.log_softmax: partial(_softmax_method, "log_softmax"),
    torch.special.softmax: partial(_softmax_method, "softmax"),
    torch.special.log_softmax: partial(_softmax_method, "log_softmax"),
    torch.logsumexp: _logsumexp,
    Tensor.logsumexp: _logsumexp,
    torch.special.logsumexp: _logsumexp,
    F.scaled_dot_product_attention: _scaled_dot_product_attention,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.embedding: _embedding,
    F.cross_entropy: _cross_entropy,
    # Known to hold linear algebra, and not declared: seen, so that no call is dropped in silence.
    torch.einsum: _unread("no declaration of a general contraction"),
    torch.baddbmm: _unread("no declaration of a product that is added to"),
    Tensor.baddbmm: _unread("no declaration of a product that is added to"),
    F.bilinear: _unread("not declared"),
    F.nll_loss: _unread("not declared without its log_softmax"),
    F.group_norm: _unread("not declared"),
    F.batch_norm: _unread("not declared"),
    F.instance_norm: _unread("not declared"),
    F.embedding_bag: _unread("not declared"),
    F.multi_head_attention_forward: _unread("one call to torch: what it calls inside cannot be seen"),
}
"""Readers by torch function. An operation that the registry lacks is seen and not judged."""
