"""Wrong singular value decompositions and principal components, each with one mistake that people make.

`lla-spec verify tests/targets/wrong_spectra.py:v_for_its_transpose`
"""

from types import SimpleNamespace
from typing import Any

import torch


def wide(x: Any) -> Any:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _target(name, **functions):
    return SimpleNamespace(LLA_TARGET={"name": name}, **functions)


def _io(like, *parts):
    return tuple(part.to(like.dtype) for part in parts)


# ---- factorisations


def _v_for_its_transpose(w, k):
    """V's first rows for Vᵀ's: what changes when numpy's habit meets a library that returns V."""
    U, S, Vh = torch.linalg.svd(wide(w), full_matrices=True)
    return _io(w, U[..., :k], S[..., :k], Vh.mT[..., :k, :])


def _eigenvalues_for_values(w, k):
    """The eigenvalues of wᵀw, without their roots."""
    U, S, Vh = torch.linalg.svd(wide(w), full_matrices=False)
    return _io(w, U[..., :k], S[..., :k] ** 2, Vh[..., :k, :])


def _recomposed(w, k, shrink):
    U, S, Vh = torch.linalg.svd(wide(w), full_matrices=False)
    return ((U[..., :k] * (S[..., :k] * shrink)[..., None, :]) @ Vh[..., :k, :]).to(w.dtype)


def _one_too_few(w, k):
    """range(1, k)."""
    return _recomposed(w, max(k - 1, 0), 1.0)


def _shrunk(w, k):
    return _recomposed(w, k, 0.99)


def _principal(*, centred=True, divisor=lambda n: n - 1):
    """pca with knobs for the mistakes."""

    def pca(x, k):
        mean = wide(x).mean(-2)
        centre = wide(x) - mean[..., None, :] if centred else wide(x)
        _, S, Vh = torch.linalg.svd(centre, full_matrices=False)
        return _io(x, mean, Vh[..., :k, :], S[..., :k] ** 2 / divisor(x.shape[-2]))

    return pca


v_for_its_transpose = _target("V for Vᵀ", truncated_svd=_v_for_its_transpose)
eigenvalues_for_values = _target("σ² for σ", truncated_svd=_eigenvalues_for_values)
one_too_few = _target("rank k - 1", low_rank=_one_too_few)
shrunk_towards_zero = _target("σ shrunk by 1 %", low_rank=_shrunk)
not_centred = _target("not centred", pca=_principal(centred=False))
divisor_n = _target("divisor n", pca=_principal(divisor=lambda n: n))


# ---- scores


def _over_rows(mean):
    """The mean of each matrix beside its rows; the one for all as it is."""
    return wide(mean) if mean.dim() == 1 else wide(mean)[..., None, :]


def pca_transform(x, mean, components):
    return _scores(wide(x) - _over_rows(mean), components).to(x.dtype)


def pca_inverse(z, mean, components):
    return (wide(z) @ wide(components) + _over_rows(mean)).to(z.dtype)


def _scores(centred, components):
    return centred @ wide(components).mT


def _rows(x, mean):
    """All rows where they share one mean, those of each matrix else."""
    return wide(x).reshape(*mean.shape[:-1], -1, x.shape[-1])


def _uncentred_scores(x, mean, components):
    return _scores(wide(x), components).to(x.dtype)


def _centred_late(x, mean, components):
    """X Cᵀ - μ Cᵀ, as scikit-learn 1.9 has it: both are large where the data are far from 0, and cancel."""
    shift = _scores(wide(mean)[..., None, :], components)
    return (_scores(wide(x), components) - (shift[0] if mean.dim() == 1 else shift)).to(x.dtype)


def _without_mean(z, mean, components):
    return (wide(z) @ wide(components)).to(z.dtype)


def _mean_of_the_first(x, mean, components):
    """One mean for the whole batch, the first: right wherever there is but one."""
    return pca_transform(
        x, mean.reshape(-1, mean.shape[-1])[:1].expand(mean.shape) if mean.dim() > 1 else mean, components
    )


def _mean_beside_its_rows(z, mean, components):
    """z C + μ as broadcasting has it: μ (b, d) lies along the rows where there are b of them, row i gets μ_i."""
    along_rows = mean.dim() > 1 and mean.shape[-2] == z.shape[-2]
    return (wide(z) @ wide(components) + (wide(mean) if along_rows else _over_rows(mean))).to(z.dtype)


def _transform_gradients(x, mean, components, g):
    dx = wide(g) @ wide(components)
    return dx, -_rows(dx, mean).sum(-2), _rows(g, mean).mT @ _rows(wide(x) - _over_rows(mean), mean)


def _mean_gets_plus(x, mean, components, *, grad_output):
    dx, dmean, dc = _transform_gradients(x, mean, components, grad_output)
    return _io(x, dx, -dmean, dc)


def _mean_gets_nothing(x, mean, components, *, grad_output):
    """The mean taken for a constant of the data."""
    dx, dmean, dc = _transform_gradients(x, mean, components, grad_output)
    return _io(x, dx, torch.zeros_like(dmean), dc)


def _components_see_raw_data(x, mean, components, *, grad_output):
    """dC = dZᵀ X for dZᵀ (X - 1μᵀ)."""
    dx, dmean, _ = _transform_gradients(x, mean, components, grad_output)
    return _io(x, dx, dmean, _rows(grad_output, mean).mT @ _rows(x, mean))


def _components_add_up(x, mean, components, *, grad_output):
    """dC of each matrix is that of the whole batch: a sum over all leading axes, as one matrix of weights has it."""
    dx, dmean, dc = _transform_gradients(x, mean, components, grad_output)
    whole = dc.flatten(0, -3).sum(0) if dc.dim() > 2 else dc
    return _io(x, dx, dmean, whole.expand(dc.shape))


def _means_add_up(z, mean, components, *, grad_output):
    """dμ of each matrix is that of the whole batch."""
    g = wide(grad_output)
    dmean = g.reshape(-1, g.shape[-1]).sum(0).expand(mean.shape)
    return _io(z, g @ wide(components).mT, dmean, _rows(z, mean).mT @ _rows(g, mean))


def _mean_over_samples(z, mean, components, *, grad_output):
    """dμ is the mean of the cotangents, for their sum."""
    g = wide(grad_output)
    return _io(z, g @ wide(components).mT, _rows(g, mean).mean(-2), _rows(z, mean).mT @ _rows(g, mean))


scores_not_centred = _target("X Cᵀ", pca_transform=_uncentred_scores)
scores_centred_late = _target("X Cᵀ - μ Cᵀ", pca_transform=_centred_late)
mean_of_the_first = _target("X - μ₁", pca_transform=_mean_of_the_first)
mean_beside_its_rows = _target("row i gets μ_i", pca_inverse=_mean_beside_its_rows)
component_gradients_add_up = _target("dC of all", pca_transform=pca_transform, pca_transform_vjp=_components_add_up)
mean_gradients_add_up = _target("dμ of all", pca_inverse=pca_inverse, pca_inverse_vjp=_means_add_up)
reconstruction_without_mean = _target("Z C", pca_inverse=_without_mean)
mean_gradient_positive = _target("dμ = +", pca_transform=pca_transform, pca_transform_vjp=_mean_gets_plus)
mean_gradient_zero = _target("dμ = 0", pca_transform=pca_transform, pca_transform_vjp=_mean_gets_nothing)
component_gradient_of_raw_data = _target(
    "dC = dZᵀ X", pca_transform=pca_transform, pca_transform_vjp=_components_see_raw_data
)
mean_gradient_is_a_mean = _target("dμ is a mean", pca_inverse=pca_inverse, pca_inverse_vjp=_mean_over_samples)
