"""scikit-learn's PCA, TruncatedSVD and softmax as a target: `lla-spec verify sklearn`."""

# The package is optional, so it may be missing where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.decomposition import PCA
from sklearn.utils.extmath import randomized_svd
from sklearn.utils.extmath import softmax as softmax_of_rows
from torch import Tensor

# randomized_svd (which TruncatedSVD calls) is the scheme of Halko, Martinsson and Tropp, SIAM Review 53 (2011), with
# p = n_oversamples = 10: by their Theorem 10.5 the error of the subspace is on average at most sqrt(1 + k/(p - 1)) of
# the optimum, and the cut to rank k adds at most one optimum more (§9.4): together sqrt(2 + k/9) <= 1 + t for k <= 18
# with t = 1. Its power iterations make it better, never worse.
LLA_TARGET = {
    "name": "scikit-learn",
    "version": sklearn.__version__,
    "devices": ["cpu"],
    "dtypes": ["fp64", "fp32"],  # the tag preserves_dtype of PCA and of TruncatedSVD
    "differentiable": False,
    "ops": {"truncated_svd": {"contract": {"svd_excess": 1.0}, "supports": {"k": "at most 18"}}},
}


def _by_matrix(function: Callable[..., Any], x: Tensor) -> tuple[Tensor, ...]:
    """`function` of every matrix of a batch, its results with the batch axes in front."""
    matrices = x.numpy().reshape(-1, *x.shape[-2:])
    found = [function(matrix) for matrix in matrices] or [function(np.eye(*x.shape[-2:], dtype=matrices.dtype))]
    stacked = (np.stack(parts)[: len(matrices)] for parts in zip(*found, strict=True))
    return tuple(torch.from_numpy(part).reshape(*x.shape[:-2], *part.shape[1:]) for part in stacked)


def _by_rows(function: Callable[..., Any], x: Tensor, width: int) -> Tensor:
    """`function` of all rows (n, d) at once, giving (n, width); scikit-learn refuses arrays without any."""
    if not x.numel():
        return x.new_empty(*x.shape[:-1], width)
    with sklearn.config_context(assume_finite=True):  # else it refuses a NaN, which is to go where the formula says
        return torch.from_numpy(function(x.numpy().reshape(-1, x.shape[-1]))).reshape(*x.shape[:-1], width)


def softmax(x: Tensor) -> Tensor:
    return _by_rows(softmax_of_rows, x, x.shape[-1])


def pca(x: Tensor, k: int) -> tuple[Tensor, ...]:
    def fitted(matrix: np.ndarray) -> Any:
        model = PCA(n_components=k).fit(matrix)
        return model.mean_, model.components_, model.explained_variance_

    return _by_matrix(fitted, x)


def _fitted(mean: Tensor, components: Tensor) -> PCA:
    """A PCA that has learnt this mean and these components."""
    model = PCA(n_components=len(components))
    model.mean_, model.components_ = mean.numpy(), components.numpy()
    return model


def _by_model(method: str, x: Tensor, mean: Tensor, components: Tensor, width: int) -> Tensor:
    """That method of one PCA for all rows of x, or of the PCA that each matrix of them has."""
    if mean.dim() == 1:
        return _by_rows(getattr(_fitted(mean, components), method), x, width)
    matrices, means, axes = x.flatten(0, -3), mean.flatten(0, -2), components.flatten(0, -3)
    parts = [_by_model(method, *one, width) for one in zip(matrices, means, axes, strict=True)]
    return (torch.stack(parts) if parts else x.new_empty(0)).reshape(*x.shape[:-1], width)


def pca_transform(x: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    return _by_model("transform", x, mean, components, components.shape[-2])


def pca_inverse(z: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    return _by_model("inverse_transform", z, mean, components, mean.shape[-1])


def truncated_svd(w: Tensor, k: int) -> tuple[Tensor, ...]:
    return _by_matrix(lambda matrix: randomized_svd(matrix, k, random_state=0), w)
