# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""The best approximation of a matrix by one of rank k (Eckart and Young 1936, Mirsky 1960).

    W = U Σ Vᵀ,  σ₁ ≥ σ₂ ≥ … ≥ 0        W_k = Σ_{r ≤ k} σ_r u_r v_rᵀ

No matrix of rank k is nearer to W than W_k, in the Frobenius norm and in the spectral one: √(σ²_{k+1} + …) and σ_{k+1}.
Factors are computed in at least float32 and rounded once. Their signs are free, and so is the basis of equal singular
values: neither is promised from one device or version to another.
"""

from jaxtyping import Float
from torch import Tensor, linalg

from impl.arguments import check_axes, check_floating
from impl.precision import product, widened


def truncated_svd(
    w: Float[Tensor, "*batch m n"], k: int
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
    """(U, S, Vh): the k largest singular values of w in descending order, with their singular vectors.

    Raises ValueError where k does not lie in 1 … min(m, n), and torch's LinAlgError where w is not finite. Gradients
    are torch's: they exist where the singular values are distinct, and for what does not depend on the free signs.

    >>> import torch
    >>> U, S, Vh = truncated_svd(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 1)
    >>> S, U.abs(), Vh.abs()
    (tensor([4.]), tensor([[0.],
            [1.]]), tensor([[0., 1.]]))
    """
    U, S, Vh = _leading("truncated_svd", w, k)
    return U.to(w.dtype), S.to(w.dtype), Vh.to(w.dtype)


def low_rank(w: Float[Tensor, "*batch m n"], k: int) -> Float[Tensor, "*batch m n"]:
    """W_k = U_k Σ_k V_kᵀ, the matrix of rank at most k that is nearest to w. Raises as truncated_svd does.

    >>> import torch
    >>> low_rank(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 1)
    tensor([[0., 0.],
            [0., 4.]])
    """
    U, S, Vh = _leading("low_rank", w, k)
    # The factors stay in the accumulator's dtype: rounded to 16 bits, their product would not have rank k.
    return product(U * S[..., None, :], Vh).to(w.dtype)


def _leading(operation: str, w: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    check_floating(operation, w=w)
    check_axes(operation, "w", w, "m, n")
    check_rank(operation, k, "m", w.shape[-2], "n", w.shape[-1])
    U, S, Vh = linalg.svd(widened(w), full_matrices=False)  # torch sorts them in descending order
    return U[..., :k], S[..., :k], Vh[..., :k, :]


def check_rank(operation: str, k: int, rows: str, m: int, columns: str, n: int) -> None:
    """k is an integer in 1 … min(m, n)."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= min(m, n):
        raise ValueError(
            f"{operation}: k must be an integer in 1 ... min({rows}, {columns}) = {min(m, n)}, "
            f"got k {k!r} with {rows} {m} and {columns} {n}"
        )
