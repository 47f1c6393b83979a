"""The operations in NumPy, forward and backward, in the accumulator's precision with one rounding at the end.

`lla-spec verify tests/targets/right_numpy.py`
"""

import math
from typing import Any

import numpy as np
import torch

LLA_TARGET = {"name": "NumPy", "dtypes": ["fp32", "bf16"]}


def wide(x):
    """A tensor as an array of the accumulator's precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).numpy() if x.is_floating_point() else x.numpy()


def tensor(values, like):
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype).reshape(np.shape(values))


def rows(x):
    return x.reshape(-1, x.shape[-1])


# ---- softmax, its logarithm, the log-sum-exp


def probabilities(z):
    with np.errstate(all="ignore"):
        p = np.exp(z - z.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)


def log_sum(z):
    with np.errstate(all="ignore"):
        peak = z.max(-1, keepdims=True)
        return peak + np.log(np.exp(z - np.where(np.isinf(peak), 0, peak)).sum(-1, keepdims=True))


def centred(p, g):
    return p * (g - (p * g).sum(-1, keepdims=True))


def softmax(x):
    return tensor(probabilities(wide(x)), x)


def softmax_vjp(x, *, grad_output):
    return (tensor(centred(probabilities(wide(x)), wide(grad_output)), x),)


def logsumexp(x):
    return tensor(log_sum(wide(x))[..., 0], x)


def logsumexp_vjp(x, *, grad_output):
    return (tensor(probabilities(wide(x)) * wide(grad_output)[..., None], x),)


def log_softmax(x):
    with np.errstate(all="ignore"):
        return tensor(wide(x) - log_sum(wide(x)), x)


def log_softmax_vjp(x, *, grad_output):
    g = wide(grad_output)
    return (tensor(g - probabilities(wide(x)) * g.sum(-1, keepdims=True), x),)


# ---- products


def matmul(a, b):
    return tensor(np.einsum("...nd,...dm->...nm", wide(a), wide(b)), a)


def matmul_vjp(a, b, *, grad_output):
    da = np.einsum("...nm,...dm->...nd", wide(grad_output), wide(b))
    return tensor(da, a), tensor(np.einsum("...nd,...nm->...dm", wide(a), wide(grad_output)), b)


def weighted_average(weights, v):
    return matmul(weights, v)


def weighted_average_vjp(weights, v, *, grad_output):
    return matmul_vjp(weights, v, grad_output=grad_output)


def affine(x, weight, bias):
    with np.errstate(all="ignore"):
        y = np.tensordot(x, weight, (-1, -1))
        return y if bias is None else y + wide(bias)


def through(g, x, weight, bias):
    """The gradients of x, weight and bias from that of x Wᵀ + b."""
    return (rows(g) @ weight).reshape(x.shape), rows(g).T @ rows(x), None if bias is None else rows(g).sum(0)


def tensors(parts: Any, like: torch.Tensor) -> tuple[Any, ...]:
    return tuple(None if part is None else tensor(part, like) for part in parts)


def linear(x, weight, bias=None):
    return tensor(affine(wide(x), wide(weight), bias), x)


def linear_vjp(x, weight, bias=None, *, grad_output):
    return tensors(through(wide(grad_output), wide(x), wide(weight), bias), x)


def by_matrix(function):
    """`function` of each matrix of rows where each has a mean and components of its own; of all rows otherwise."""

    def apart(x, mean, components, **given):
        if mean.dim() == 1:
            return function(x, mean, components, **given)
        parts = (x, mean, components, *given.values())
        flat = [part.flatten(0, mean.dim() - 2) for part in parts]
        found = [function(*one[:3], **dict(zip(given, one[3:], strict=True))) for one in zip(*flat, strict=True)]
        if not found:  # no matrix: the shapes of one
            found = [function(*(part.new_zeros(part.shape[1:]) for part in flat[:3]), **_zeros(given, flat[3:]))]
        several = isinstance(found[0], tuple)
        each = zip(*found, strict=True) if several else (found,)
        lead = mean.shape[:-1]
        made = tuple(torch.stack(same)[: math.prod(lead)].reshape(*lead, *same[0].shape) for same in each)
        return made if several else made[0]

    return apart


def _zeros(given, flat):
    return {name: part.new_zeros(part.shape[1:]) for name, part in zip(given, flat, strict=True)}


@by_matrix
def pca_transform(x, mean, components):
    return tensor(affine(wide(x) - wide(mean), wide(components), None), x)


@by_matrix
def pca_transform_vjp(x, mean, components, *, grad_output):
    dx, dc, _ = through(wide(grad_output), wide(x) - wide(mean), wide(components), None)
    return tensors((dx, -rows(dx).sum(0), dc), x)


@by_matrix
def pca_inverse(z, mean, components):
    return tensor(affine(wide(z), wide(components).T, mean), z)


@by_matrix
def pca_inverse_vjp(z, mean, components, *, grad_output):
    g = wide(grad_output)
    return tensors((g @ wide(components).T, rows(g).sum(0), rows(wide(z)).T @ rows(g)), z)


# ---- words


def embedding(ids, weight):
    return tensor(np.take(wide(weight), ids.numpy(), 0), weight)


def embedding_vjp(ids, weight, *, grad_output):
    total = np.zeros(weight.shape, wide(weight).dtype)
    np.add.at(total, ids.numpy().reshape(-1), rows(wide(grad_output)))
    return (tensor(total, weight),)


def kept(x, mask):
    """Which tokens are kept (..., n, 1), and how many of each sentence (..., 1)."""
    keep = np.broadcast_to(True if mask is None else mask.numpy(), x.shape[:-1])[..., None]
    return keep, np.maximum(keep.sum(-2), 1).astype(wide(x).dtype)


def mean_pool(x, mask=None):
    keep, count = kept(x, mask)
    return tensor(np.where(keep, wide(x), 0).sum(-2) / count, x)


def mean_pool_vjp(x, mask=None, *, grad_output):
    keep, count = kept(x, mask)
    share = (wide(grad_output) / count)[..., None, :]
    return (tensor(np.where(keep, share, 0), x),)


# ---- losses


def loss(z, targets, ignore_index, reduction):
    t = targets.numpy()
    keep = t != ignore_index
    z = np.where(keep[..., None], z, 0)
    with np.errstate(all="ignore"):
        losses = (log_sum(z) - np.take_along_axis(z, np.where(keep, t, 0)[..., None], -1))[..., 0]
        losses = np.where(keep, losses, 0)
        if reduction == "none":
            return losses
        return losses.sum() / (z.dtype.type(keep.sum()) if reduction == "mean" else 1)


def loss_slope(z, targets, ignore_index, reduction, g):
    t = targets.numpy()
    keep = (t != ignore_index)[..., None]
    count = max(keep.sum(), 1) if reduction == "mean" else 1
    share = g[..., None] if reduction == "none" else g / z.dtype.type(count)
    hot = (np.arange(z.shape[-1]) == t[..., None]).astype(z.dtype)
    return np.where(keep, (probabilities(np.where(keep, z, 0)) - hot) * share, 0)


def cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean"):
    return tensor(loss(wide(logits), targets, ignore_index, reduction), logits)


def cross_entropy_vjp(logits, targets, *, grad_output, ignore_index=-100, reduction="mean"):
    return (tensor(loss_slope(wide(logits), targets, ignore_index, reduction, wide(grad_output)), logits),)


def linear_cross_entropy(h, w_out, targets, bias=None, *, ignore_index=-100, reduction="mean"):
    return tensor(loss(affine(wide(h), wide(w_out), bias), targets, ignore_index, reduction), h)


def linear_cross_entropy_vjp(h, w_out, targets, bias=None, *, grad_output, ignore_index=-100, reduction="mean"):
    z = affine(wide(h), wide(w_out), bias)
    dz = loss_slope(z, targets, ignore_index, reduction, wide(grad_output))
    return tensors(through(dz, wide(h), wide(w_out), bias), h)


def output_softmax(h, w_out, bias=None):
    return tensor(probabilities(affine(wide(h), wide(w_out), bias)), h)


def output_softmax_vjp(h, w_out, bias=None, *, grad_output):
    dz = centred(probabilities(affine(wide(h), wide(w_out), bias)), wide(grad_output))
    return tensors(through(dz, wide(h), wide(w_out), bias), h)


# ---- normalisation


def normalised(x, eps, centre):
    """x̂, and 1/√(v + ε)."""
    c = x - x.mean(-1, keepdims=True) if centre else x
    root = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + x.dtype.type(eps))
    return c * root, root


def norm(x, weight, bias, eps, *, centre):
    with np.errstate(all="ignore"):
        y, _ = normalised(x, eps, centre)
        y = y if weight is None else y * wide(weight)
        return y if bias is None else y + wide(bias)


def norm_slopes(x, weight, bias, g, eps, *, centre):
    """dx = (ĝ - m₁ - x̂ m₂) / √(v + ε), m₁ where the rows are centred; those of weight and bias."""
    with np.errstate(all="ignore"):
        y, root = normalised(x, eps, centre)
        slope = g if weight is None else g * wide(weight)
        dx = slope - (slope.mean(-1, keepdims=True) if centre else 0) - y * (slope * y).mean(-1, keepdims=True)
        dweight = None if weight is None else rows(g * y).sum(0)
        return root * dx, dweight, None if bias is None else rows(g).sum(0)


def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    return tensor(norm(wide(x), weight, bias, eps, centre=True), x)


def layer_norm_vjp(x, weight=None, bias=None, *, grad_output, eps=1e-5):
    return tensors(norm_slopes(wide(x), weight, bias, wide(grad_output), eps, centre=True), x)


def rms_norm(x, weight=None, *, eps=1e-6):
    return tensor(norm(wide(x), weight, None, eps, centre=False), x)


def rms_norm_vjp(x, weight=None, *, grad_output, eps=1e-6):
    return tensors(norm_slopes(wide(x), weight, None, wide(grad_output), eps, centre=False)[:2], x)


def residual_layer_norm(h, sublayer, weight=None, bias=None, *, eps=1e-5):
    return tensor(norm(wide(h) + wide(sublayer), weight, bias, eps, centre=True), h)


def residual_layer_norm_vjp(h, sublayer, weight=None, bias=None, *, grad_output, eps=1e-5):
    dx, *rest = norm_slopes(wide(h) + wide(sublayer), weight, bias, wide(grad_output), eps, centre=True)
    return tensors((dx, dx, *rest), h)


# ---- attention


def attention_weights(q, k, mask, is_causal, scale):
    n, m = q.shape[-2], k.shape[-2]
    visible = np.broadcast_to(True if mask is None else mask.numpy(), (*q.shape[:-2], n, m))
    visible = visible & np.tri(n, m, m - n, dtype=bool) if is_causal else visible
    factor = q.dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)
    with np.errstate(all="ignore"):
        scores = np.where(visible, q @ np.swapaxes(k, -1, -2) * factor, -np.inf)
        peak = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), np.finfo(q.dtype).min)
        w = np.exp(scores - peak)
        return w / np.maximum(w.sum(-1, keepdims=True), np.finfo(q.dtype).tiny)


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    with np.errstate(all="ignore"):
        return tensor(attention_weights(wide(q), wide(k), mask, is_causal, scale) @ wide(v), q)


def attention_vjp(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None):
    factor = wide(q).dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)
    with np.errstate(all="ignore"):
        p, g = attention_weights(wide(q), wide(k), mask, is_causal, scale), wide(grad_output)
        ds = centred(p, g @ np.swapaxes(wide(v), -1, -2)) * factor
        dk, dv = np.swapaxes(ds, -1, -2) @ wide(q), np.swapaxes(p, -1, -2) @ g
        return tensors((ds @ wide(k), dk, dv), q)


def grouped_query_attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    shared = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(shared, -3) for x in (k, v))
    return attention(q, k, v, mask, is_causal=is_causal, scale=scale)


def grouped_query_attention_vjp(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None):
    shared = q.shape[-3] // k.shape[-3]
    keys, values = (wide_tensor(x).repeat_interleave(shared, -3) for x in (k, v))
    options = {"grad_output": grad_output, "is_causal": is_causal, "scale": scale}
    dq, *heads = attention_vjp(wide_tensor(q), keys, values, mask, **options)
    dk, dv = (x.unflatten(-3, (k.shape[-3], shared)).numpy().sum(-3) for x in heads)
    return dq.to(q.dtype), tensor(dk, k), tensor(dv, v)


def wide_tensor(x):
    return torch.from_numpy(wide(x))


def multi_head_attention(
    x, w_q, w_k, w_v, w_o, b_q=None, b_k=None, b_v=None, b_o=None, *, num_heads, num_kv_heads=None, mask=None,
    is_causal=False,
):  # fmt: skip
    def split(weight, bias, heads):
        y = affine(wide(x), wide(weight), bias)
        return torch.from_numpy(y).unflatten(-1, (heads, -1)).transpose(-3, -2).contiguous()

    groups = num_heads if num_kv_heads is None else num_kv_heads
    q, k, v = split(w_q, b_q, num_heads), split(w_k, b_k, groups), split(w_v, b_v, groups)
    heads = grouped_query_attention(q, k, v, None if mask is None else mask.unsqueeze(-3), is_causal=is_causal)
    return tensor(affine(heads.transpose(-3, -2).flatten(-2).numpy(), wide(w_o), b_o), x)


# ---- factorisations


def truncated_svd(w, k):
    U, s, Vh = np.linalg.svd(wide(w), full_matrices=False)
    return tensors((U[..., :k], s[..., :k], Vh[..., :k, :]), w)


def low_rank(w, k):
    U, s, Vh = np.linalg.svd(wide(w), full_matrices=False)
    return tensor((U[..., :k] * s[..., None, :k]) @ Vh[..., :k, :], w)


def pca(x, k):
    mean = wide(x).mean(-2, keepdims=True)
    _, s, Vh = np.linalg.svd(wide(x) - mean, full_matrices=False)
    return tensors((mean[..., 0, :], Vh[..., :k, :], s[..., :k] ** 2 / wide(x).dtype.type(x.shape[-2] - 1)), x)
