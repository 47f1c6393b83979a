"""Kernels for certified operations: right ones by other routes, and wrong ones with the certificate that names them."""

import numpy as np
import torch


def wide(x):
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def each_matrix(x, function):
    """A numpy function of one matrix on every matrix of a batch; its results in x's dtype."""
    flat = wide(x).reshape(-1, *x.shape[-2:])
    found = [function(matrix.numpy().copy()) for matrix in flat]
    if not found:
        found = [function(np.eye(*x.shape[-2:], dtype=flat.numpy().dtype))]
    stacked = [torch.from_numpy(np.stack(parts)).to(x.dtype) for parts in zip(*found, strict=True)]
    return [part[: len(flat)].reshape(*x.shape[:-2], *part.shape[1:]) for part in stacked]


# ---- factorisations of one matrix (m, n) in its own dtype: U (m, r), s (r,), Vh (r, n)


def numpy_svd(a):
    return np.linalg.svd(a, full_matrices=False)


def full_svd(a):
    """As scikit-learn does it: all of U and V, cut, signs fixed by the largest entry of each column of U."""
    U, s, Vh = np.linalg.svd(a, full_matrices=True)
    U, Vh = U[:, : s.size], Vh[: s.size]
    signs = np.where(U[np.abs(U).argmax(0), np.arange(s.size)] < 0, -1, 1).astype(a.dtype)
    return U * signs, s, Vh * signs[:, None]


def jacobi_svd(a, sweeps=30):
    """One-sided Jacobi (Hestenes 1958): columns are rotated until they are orthogonal, in a's own dtype."""
    if a.shape[0] < a.shape[1]:
        U, s, Vh = jacobi_svd(a.T.copy(), sweeps)
        return Vh.T, s, U.T
    n, scale = a.shape[1], np.abs(a).max(initial=0) or a.dtype.type(1)
    work, V = a / scale, np.eye(n, dtype=a.dtype)
    for _ in range(sweeps):
        turned = False
        for p in range(n - 1):
            for q in range(p + 1, n):
                x, y, z = work[:, p] @ work[:, p], work[:, q] @ work[:, q], work[:, p] @ work[:, q]
                if np.abs(z) <= np.finfo(a.dtype).eps * np.sqrt(x * y) or z == 0:
                    continue
                turned, d = True, y - x  # t = tan of the angle: the smaller root of t² + t·d/z = 1
                t = 2 * z * (1 if d >= 0 else -1) / (np.abs(d) + np.hypot(d, 2 * z))
                c = 1 / np.sqrt(1 + t * t)
                turn = np.array([[c, c * t], [-c * t, c]], dtype=a.dtype)
                work[:, [p, q]], V[:, [p, q]] = work[:, [p, q]] @ turn, V[:, [p, q]] @ turn
        if not turned:
            break
    s = np.sqrt((work * work).sum(0))
    order = np.argsort(-s, kind="stable")
    work, s, V = work[:, order], s[order], V[:, order]
    return _completed(work, s), s * scale, V.T


def _completed(work, s):
    """The columns of `work` over their norms; those too short to point anywhere are replaced by what QR completes."""
    short = s <= np.finfo(work.dtype).eps * 4 * len(work) * (s[0] if s.size else 0)
    unit = np.where(short, 0, work / np.where(s > 0, s, 1))
    rest = np.where(short, 1, 0)
    if not rest.any():
        return unit
    kept = unit[:, ~short]
    basis, _ = np.linalg.qr(np.hstack([kept, np.eye(len(work), dtype=work.dtype)]))
    unit[:, short] = basis[:, kept.shape[1] : kept.shape[1] + int(rest.sum())]
    return unit


def gram_svd(a):
    """eigh of AᵀA: right where singular values are not small; it squares the condition."""
    values, V = np.linalg.eigh(a.T @ a)
    size = min(a.shape)
    values, V = values[::-1][:size], V[:, ::-1][:, :size]
    s = np.sqrt(np.maximum(values, 0))
    return (a @ V) / np.where(s > 0, s, 1), s, V.T


def randomised_svd(a, k, power, over=2):
    """Halko, Martinsson and Tropp (2011), algorithm 4.4, with a fixed sketch."""
    sketch = np.random.default_rng(0).normal(size=(a.shape[1], min(k + over, *a.shape))).astype(a.dtype)
    Q, _ = np.linalg.qr(a @ sketch)
    for _ in range(power):
        Q, _ = np.linalg.qr(a @ np.linalg.qr(a.T @ Q)[0])
    U, s, Vh = np.linalg.svd(Q.T @ a, full_matrices=False)
    return (Q @ U)[:, :k], s[:k], Vh[:k]


# ---- operations made of a factorisation


def operations(factorise):
    """truncated_svd, low_rank and pca by `factorise`."""

    def truncated_svd(w, k):
        def cut(a):
            U, s, Vh = factorise(a)
            return U[:, :k], s[:k], Vh[:k]

        return tuple(each_matrix(w, cut))

    def low_rank(w, k):
        def cut(a):
            U, s, Vh = factorise(a)
            return ((U[:, :k] * s[:k]) @ Vh[:k],)

        return each_matrix(w, cut)[0]

    def pca(x, k):
        def cut(a):
            mean = a.mean(0)
            _, s, Vh = factorise(a - mean)
            return mean, Vh[:k], s[:k] ** 2 / np.asarray(len(a) - 1, a.dtype)

        return tuple(each_matrix(x, cut))

    return {"truncated_svd": truncated_svd, "low_rank": low_rank, "pca": pca}


RIGHT = {f.__name__: operations(f) for f in (numpy_svd, full_svd, jacobi_svd)}


# ---- wrong kernels: (operation, what its failure is called)

WRONG = {}


def wrong(operation, name):
    def mark(function):
        WRONG[function.__name__] = (operation, function, name)
        return function

    return mark


def factors(w):
    return torch.linalg.svd(wide(w), full_matrices=False)


def io(like, *parts):
    return tuple(part.to(like.dtype) for part in parts)


@wrong("truncated_svd", "singular pairs")
def v_is_not_transposed(w, k):
    U, S, Vh = torch.linalg.svd(wide(w), full_matrices=True)
    return io(w, U[..., :k], S[..., :k], Vh.mT[..., :k, :])


@wrong("truncated_svd", "singular values")
def values_are_squared(w, k):
    U, S, Vh = factors(w)
    return io(w, U[..., :k], S[..., :k] ** 2, Vh[..., :k, :])


@wrong("truncated_svd", "sorted")
def ascending(w, k):
    U, S, Vh = factors(w)
    return io(w, U[..., :k].flip(-1), S[..., :k].flip(-1), Vh[..., :k, :].flip(-2))


@wrong("truncated_svd", "singular values")
def smallest_instead_of_largest(w, k):
    U, S, Vh = factors(w)
    return io(w, U[..., -k:], S[..., -k:], Vh[..., -k:, :])


@wrong("truncated_svd", "nonnegative")
def sign_kept_in_the_values(w, k):
    U, S, Vh = factors(w)
    sign = torch.where(U[..., :1, :k] < 0, -1.0, 1.0)
    return io(w, U[..., :k] * sign, S[..., :k] * sign[..., 0, :], Vh[..., :k, :])


@wrong("truncated_svd", "singular pairs")
def signs_of_u_alone_are_fixed(w, k):
    U, S, Vh = factors(w)
    return io(w, U[..., :k] * torch.where(U[..., :1, :k] < 0, -1, 1), S[..., :k], Vh[..., :k, :])


@wrong("truncated_svd", "singular pairs")
def basis_turned_inside_the_subspace(w, k):
    U, S, Vh = factors(w)
    turn = torch.eye(k, dtype=U.dtype)
    if k > 1:
        turn[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=U.dtype)
    return io(w, U[..., :k] @ turn, S[..., :k], turn.mT @ Vh[..., :k, :])


@wrong("truncated_svd", "orthonormal")
def values_multiplied_into_u(w, k):
    U, S, Vh = factors(w)
    return io(w, U[..., :k] * S[..., None, :k], S[..., :k], Vh[..., :k, :])


@wrong("truncated_svd", "finite")
def not_a_number(w, k):
    U, S, Vh = factors(w)
    return io(w, U[..., :k] / 0 * 0, S[..., :k], Vh[..., :k, :])


@wrong("truncated_svd", "singular values")
def no_power_iterations(w, k):
    return tuple(each_matrix(w, lambda a: randomised_svd(a, k, power=0)))


@wrong("truncated_svd", "singular values")
def jacobi_stopped_after_one_sweep(w, k):
    return operations(lambda a: jacobi_svd(a, sweeps=1))["truncated_svd"](w, k)


def recomposed(w, keep):
    U, S, Vh = factors(w)
    return ((U * (S * keep)[..., None, :]) @ Vh).to(w.dtype)


@wrong("low_rank", "rank")
def one_too_many(w, k):
    return recomposed(w, torch.arange(min(w.shape[-2:])) <= k)


@wrong("low_rank", "distance")
def one_too_few(w, k):
    return recomposed(w, torch.arange(min(w.shape[-2:])) < k - 1)


@wrong("low_rank", "rank")
def copy_of_the_input(w, k):
    return w.clone()


@wrong("low_rank", "distance")
def first_rows(w, k):
    return torch.where(torch.arange(w.shape[-2])[:, None] < k, w, 0)


@wrong("low_rank", "orthogonal residual")
def slightly_turned(w, k):
    """v_k mixed with the next by 6√u: the distance is at its minimum and does not see it in first order."""
    U, S, Vh = factors(w)
    c, after = torch.tensor(6 * torch.finfo(S.dtype).eps ** 0.5, dtype=S.dtype), min(k, S.shape[-1] - 1)
    V = Vh[..., :k, :].clone()
    V[..., k - 1, :] = c.cos() * Vh[..., k - 1, :] + c.sin() * Vh[..., after, :]
    return (wide(w) @ V.mT @ V).to(w.dtype)


@wrong("low_rank", "distance")
def shrunk_towards_zero(w, k):
    U, S, Vh = factors(w)
    return ((U[..., :k] * (S[..., :k] * 0.99)[..., None, :]) @ Vh[..., :k, :]).to(w.dtype)


def principal(x, centred, mean, k, divisor):
    _, S, Vh = torch.linalg.svd(centred, full_matrices=False)
    return io(x, mean, Vh[..., :k, :], S[..., :k] ** 2 / divisor)


@wrong("pca", "explained variance")
def not_centred(x, k):
    return principal(x, wide(x), wide(x).mean(-2), k, x.shape[-2] - 1)


@wrong("pca", "explained variance")
def divisor_n(x, k):
    mean = wide(x).mean(-2)
    return principal(x, wide(x) - mean[..., None, :], mean, k, x.shape[-2])


@wrong("pca", "explained variance")
def values_for_variances(x, k):
    mean = wide(x).mean(-2)
    _, S, Vh = torch.linalg.svd(wide(x) - mean[..., None, :], full_matrices=False)
    return io(x, mean, Vh[..., :k, :], S[..., :k])


@wrong("pca", "shape")
def components_as_columns(x, k):
    mean, components, variance = divisor_n(x, k)
    return mean, components.mT, variance


@wrong("pca", "orthonormal")
def columns_laid_out_as_rows(x, k):
    mean = wide(x).mean(-2)
    mean, components, variance = principal(x, wide(x) - mean[..., None, :], mean, k, x.shape[-2] - 1)
    return mean, components.mT.reshape(components.shape), variance


@wrong("pca", "mean")
def mean_over_the_wrong_axis(x, k):
    """Of a square x, where the shape does not tell."""
    mean = wide(x).mean(-1)
    return principal(x, wide(x) - wide(x).mean(-2, keepdim=True), mean, k, x.shape[-2] - 1)


@wrong("pca", "principal directions")
def directions_of_the_uncentred_data(x, k):
    centred = wide(x) - wide(x).mean(-2, keepdim=True)
    mean, _, variance = principal(x, centred, wide(x).mean(-2), k, x.shape[-2] - 1)
    return mean, principal(x, wide(x), wide(x).mean(-2), k, 1)[1], variance


@wrong("pca", "orthonormal")
def components_times_deviation(x, k):
    """Loadings instead of components."""
    mean = wide(x).mean(-2)
    mean, components, variance = principal(x, wide(x) - mean[..., None, :], mean, k, x.shape[-2] - 1)
    return mean, components * variance.sqrt()[..., None], variance
