"""Correct kernels by routes that are not the reference's: torch.linalg, loops in Python, scikit-learn.

What is made of torch operations is differentiated by torch. NumPy has a file of its own, right_numpy.py.
"""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

BOTH = ["fp32", "bf16"]


def wide(x: Any) -> Any:
    return x.to(torch.promote_types(x.dtype, torch.float32)) if torch.is_tensor(x) and x.is_floating_point() else x


def _target(name, *functions, **claims):
    named = {function.__name__.lstrip("_"): function for function in functions}
    return SimpleNamespace(LLA_TARGET={"name": name, "dtypes": BOTH, **claims}, **named)


def _io(like, *parts):
    return tuple(part.to(like.dtype) for part in parts)


# ---- torch.linalg


def _by_linalg():
    """Factorisations through QR first, norms by vector_norm, products by vecdot."""

    def svd(w):
        """R's singular vectors, turned by Q: of the taller of w and wᵀ."""
        if w.shape[-2] < w.shape[-1]:
            V, S, Uh = svd(w.mT)
            return Uh.mT, S, V.mT
        Q, R = torch.linalg.qr(w)
        U, S, Vh = torch.linalg.svd(R, full_matrices=False)
        return Q @ U, S, Vh

    def truncated_svd(w, k):
        U, S, Vh = svd(wide(w))
        return _io(w, U[..., :k], S[..., :k], Vh[..., :k, :])

    def low_rank(w, k):
        """W V_k V_kᵀ."""
        V = svd(wide(w))[2][..., :k, :]
        return (wide(w) @ V.mT @ V).to(w.dtype)

    def pca(x, k):
        mean = wide(x).mean(-2)
        _, S, Vh = svd(wide(x) - mean[..., None, :])
        return _io(x, mean, Vh[..., :k, :], S[..., :k] ** 2 / (x.shape[-2] - 1))

    def pca_transform(x, mean, components):
        if mean.dim() > 1:  # one for each matrix
            mean, components = mean[..., None, :], components[..., None, :, :]
        return torch.linalg.vecdot((wide(x) - wide(mean))[..., None, :], wide(components), dim=-1).to(x.dtype)

    def rms_norm(x, weight=None, *, eps=1e-6):
        xf = wide(x)  # once: each cast sends its own gradient, and autograd adds those in x's dtype
        length = torch.linalg.vector_norm(xf, dim=-1, keepdim=True)
        y = xf / torch.sqrt(length.square() / x.shape[-1] + eps)
        return (y if weight is None else y * wide(weight)).to(x.dtype)

    def matmul(a, b):
        return torch.linalg.vecdot(wide(a)[..., :, None, :], wide(b).mT[..., None, :, :], dim=-1).to(a.dtype)

    return truncated_svd, low_rank, pca, pca_transform, rms_norm, matmul


by_linalg = _target("torch.linalg", *_by_linalg())


# ---- loops in Python


def in_turn(terms):
    """One after the other, from the last."""
    total = terms[-1]
    for term in reversed(terms[:-1]):
        total = total + term
    return total


def exponentials(z):
    """exp(z - maximum), entry by entry of each row; the maximum is a gauge, which no gradient passes."""
    peak = z.detach().amax(-1)
    return peak, [torch.exp(entry - peak) for entry in z.unbind(-1)]


def log_sum(z):
    peak, terms = exponentials(z)
    return peak + in_turn(terms).log()


def _loops():
    """Entries, positions and heads one after the other, as one would on paper."""

    def softmax(x):
        _, terms = exponentials(wide(x))
        return (torch.stack(terms, -1) / in_turn(terms)[..., None]).to(x.dtype)

    def log_softmax(x):
        return (wide(x) - log_sum(wide(x))[..., None]).to(x.dtype)

    def logsumexp(x):
        return log_sum(wide(x)).to(x.dtype)

    def weighted_average(weights, v):
        columns = wide(weights).unbind(-1)
        return in_turn(
            [w[..., :, None] * value[..., None, :] for w, value in zip(columns, wide(v).unbind(-2), strict=True)]
        ).to(v.dtype)

    def linear(x, weight, bias=None):
        terms = [wide(x)[..., k, None] * wide(weight)[:, k] for k in range(x.shape[-1])]
        y = in_turn(terms)
        return (y if bias is None else y + wide(bias)).to(x.dtype)

    def embedding(ids, weight):
        table = wide(weight)  # once, so that autograd adds the words' gradients in float32
        found = [table[word] for word in ids.reshape(-1).tolist()]
        return (torch.stack(found).reshape(*ids.shape, -1) if found else table[ids]).to(weight.dtype)

    def mean_pool(x, mask=None):
        keep = torch.ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask.expand(x.shape[:-1])
        total = in_turn(
            [
                token.masked_fill(~own[..., None], 0)
                for token, own in zip(wide(x).unbind(-2), keep.unbind(-1), strict=True)
            ]
        )
        return (total / keep.sum(-1, keepdim=True).clamp(min=1)).to(x.dtype)

    def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
        """Welford's mean and variance, entry by entry."""
        xf = wide(x)
        mean, total = torch.zeros_like(xf[..., :1]), torch.zeros_like(xf[..., :1])
        for count, entry in enumerate(xf.split(1, -1), 1):
            difference = entry - mean
            mean = mean + difference / count
            total = total + difference * (entry - mean)
        y = (xf - mean) / torch.sqrt(total / x.shape[-1] + eps)
        y = y if weight is None else y * wide(weight)
        return (y if bias is None else y + wide(bias)).to(x.dtype)

    def cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean"):
        zs, found = wide(logits).reshape(-1, logits.shape[-1]), targets.reshape(-1).tolist()
        losses = [
            whole - z[t] if t != ignore_index else z.masked_fill(z == z, 0).sum()
            for whole, z, t in zip(log_sum(zs), zs, found, strict=True)
        ]
        if reduction == "none":
            return (torch.stack(losses).reshape(targets.shape) if losses else zs.sum(-1)).to(logits.dtype)
        kept = len(found) - found.count(ignore_index)
        total = torch.stack(losses).sum() if losses else zs.sum()
        mean = total / kept if kept else total + math.nan
        return (mean if reduction == "mean" else total).to(logits.dtype)

    def grouped_query_attention(q, k, v, mask=None, *, is_causal=False, scale=None):
        """Head by head, each against the keys of its group."""
        n, m, shared = q.shape[-2], k.shape[-2], q.shape[-3] // k.shape[-3]
        visible = torch.ones(n, m, dtype=torch.bool) if mask is None else mask
        visible = visible & torch.ones(n, m, dtype=torch.bool).tril(m - n) if is_causal else visible
        visible, heads = visible.expand(*q.shape[:-1], m), []
        for p in range(q.shape[-3]):
            own, key, value = visible[..., p, :, :], wide(k)[..., p // shared, :, :], wide(v)[..., p // shared, :, :]
            s = wide(q)[..., p, :, :] @ key.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
            s = s.masked_fill(~own, -math.inf).masked_fill(~own.any(-1, keepdim=True), 0)
            heads.append(torch.softmax(s, -1).masked_fill(~own, 0) @ value)
        return torch.stack(heads, -3).to(q.dtype)

    def multi_head_attention(
        x, w_q, w_k, w_v, w_o, b_q=None, b_k=None, b_v=None, b_o=None, *, num_heads, num_kv_heads=None, mask=None,
        is_causal=False,
    ):  # fmt: skip
        """What each head adds to the output, one after the other."""
        groups, xf = num_heads if num_kv_heads is None else num_kv_heads, wide(x)
        queries, outputs = wide(w_q).chunk(num_heads), wide(w_o).chunk(num_heads, -1)
        keys, values = wide(w_k).chunk(groups), wide(w_v).chunk(groups)
        b_q, b_k, b_v = (
            None if b is None else wide(b).chunk(h) for b, h in ((b_q, num_heads), (b_k, groups), (b_v, groups))
        )
        parts = []
        for p in range(num_heads):
            c = p // (num_heads // groups)
            q = F.linear(xf, queries[p], None if b_q is None else b_q[p])
            k = F.linear(xf, keys[c], None if b_k is None else b_k[c])
            v = F.linear(xf, values[c], None if b_v is None else b_v[c])
            head = grouped_query_attention(
                *(t.unsqueeze(-3) for t in (q, k, v)), None if mask is None else mask.unsqueeze(-3), is_causal=is_causal
            )
            parts.append(F.linear(head.squeeze(-3), outputs[p]))
        y = in_turn(parts)
        return (y if b_o is None else y + wide(b_o)).to(x.dtype)

    return (
        softmax, log_softmax, logsumexp, weighted_average, linear, embedding, mean_pool, layer_norm, cross_entropy,
        grouped_query_attention, multi_head_attention,
    )  # fmt: skip


in_loops = _target("loops", *_loops(), supports={"v": "at most 5000"})  # 30 µs a class


# ---- scikit-learn


def _by_scikit_learn():
    """Each matrix of a batch given to sklearn.decomposition.PCA, with its full SVD.

    Its `transform` is X Cᵀ - μ Cᵀ, which loses digits of data far from 0: wrong_spectra.scores_centred_late.
    """

    def fitted(x, k):
        from sklearn.decomposition import PCA  # pyright: ignore[reportMissingImports]

        with np.errstate(invalid="ignore"):  # the share of a variance that is 0
            return PCA(n_components=k, svd_solver="full").fit(x)

    def pca(x, k):
        flat = wide(x).reshape(-1, *x.shape[-2:])
        found = [fitted(matrix.numpy(), k) for matrix in flat]
        shapes = {"mean_": (x.shape[-1],), "components_": (k, x.shape[-1]), "explained_variance_": (k,)}
        parts = []
        for name, shape in shapes.items():
            each = [torch.from_numpy(getattr(model, name)) for model in found]
            stacked = torch.stack(each) if each else torch.empty(0, *shape)
            parts.append(stacked.reshape(*x.shape[:-2], *shape).to(x.dtype))
        return tuple(parts)

    def model(mean, components):
        from sklearn.decomposition import PCA  # pyright: ignore[reportMissingImports]

        made = PCA()
        made.mean_, made.components_, made.whiten = wide(mean).numpy(), wide(components).numpy(), False
        made.n_features_in_, made.explained_variance_ = len(mean), wide(mean).numpy()[:0]
        return made

    def pca_inverse(z, mean, components):
        if mean.dim() == 1:
            return each_row(model(mean, components).inverse_transform, z, len(mean))
        flat = zip(z.flatten(0, -3), mean.flatten(0, -2), components.flatten(0, -3), strict=True)
        parts = [pca_inverse(*one) for one in flat]
        return (torch.stack(parts) if parts else z.new_empty(0)).reshape(*z.shape[:-1], mean.shape[-1])

    def each_row(function, x, size):
        """scikit-learn takes a matrix with at least one row, and looks for NaN unless it is told not to."""
        from sklearn import config_context  # pyright: ignore[reportMissingImports]

        if not x.numel():
            return x.new_empty(*x.shape[:-1], size)
        with config_context(assume_finite=True), np.errstate(invalid="ignore"):
            rows = function(wide(x).reshape(-1, x.shape[-1]).numpy())
        return torch.from_numpy(rows).reshape(*x.shape[:-1], size).to(x.dtype)

    return pca, pca_inverse


by_scikit_learn = _target("scikit-learn", *_by_scikit_learn(), differentiable=False)
