"""Principal component analysis (Pearson 1901; Hotelling 1933): the SVD of centred data.

X - 1μᵀ = U diag(s) Vᵀ        components C = V_kᵀ        explained variance s²/(n - 1)        Z = (X - 1μᵀ) Cᵀ

X ∈ ℝⁿˣᵈ one sample a row, n ≥ 2    μ ∈ ℝᵈ the mean of the rows    C ∈ ℝᵏˣᵈ orthonormal rows    Z ∈ ℝⁿˣᵏ scores

`pca` answers with a witness (low_rank.py) of the centred data: the laws about it speak of every witness.
"""

from lla_spec.calculus import vjp
from lla_spec.certified import certified
from lla_spec.formulas.linear import linear
from lla_spec.formulas.low_rank import (
    a,
    b,
    cut_below,
    kept_above,
    minus,
    projected,
    q,
    s1,
    s2,
    squared,
    t,
    weight,
    whole,
    with_orthonormal_columns,
    σ,
)
from lla_spec.language import Eq, Le, assume, formula, identity, theorem
from lla_spec.symbols import Sum, centred, concat, define, delta, dims, index, orthonormal, tensor

n, d = dims("n d")
i, j = index("i", n), index("j", d)
X, Z = tensor("X", i, j), tensor("Z", i, a)
μ, C = tensor("μ", j, argument="mean"), tensor("C", a, j, argument="components")  # for all rows, or each matrix
dX, dZ = tensor("dX", i, j), tensor("dZ", i, a)  # cotangents
offset = tensor("o", j)
U, V, s = tensor("U", i, t), tensor("V", j, t), tensor("s", t)  # a witness of the centred data


λ, a2, T = tensor("λ", a, argument="explained_variance"), index("a'", a.dim), tensor("T", a, j)


@certified(returns=(μ, C, λ), counts={"k": (a,)}, least={n: 2})
def pca(X):
    """The mean of n samples, the k orthonormal directions of largest variance, and these variances (divisor n - 1)."""
    centre = define("Xc", (i, j), X[i, j] - μ[j])
    score, j2 = define("S", (i, a), Sum(centre[i, j] * C[a, j], j)), index("j'", d)
    return (
        Eq(μ[j], Sum(X[i, j], i) / n),
        Eq(Sum(C[a, j] * C[a2, j], j), delta(a, a2)),
        Eq(Sum(centre[i, j2] * score[i, a], i), (n - 1) * λ[a] * C[a, j2]),
        Le(
            squared(define("R", (i, j), centre[i, j] - Sum(score[i, a] * C[a, j], a))),
            squared(define("D", (i, j), centre[i, j] - Sum(Z[i, a] * T[a, j], a))),
        ),
    )


@formula(rows=i)
def pca_transform(X, μ, C):
    return define("Z", (i, a), Sum((X[i, j] - μ[j]) * C[a, j], j))


@formula(rows=i)
def pca_inverse(Z, μ, C):
    return define("X̂", (i, j), Sum(Z[i, a] * C[a, j], a) + μ[j])


def mean_of(data):
    return define("mean", (j,), Sum(data[i, j], i) / n)


def with_orthonormal_rows(C):
    along, j = C.axes
    other = index(f"{along}'", along.dim)
    assume(Eq(Sum(C[along, j] * C[other, j], j), delta(along, other)), by={C: orthonormal(C, j)})


def with_centred_columns(U):
    _, along = U.axes
    assume(Eq(Sum(U[i, along], i), 0), by={U: centred(U, i)})


def data_of(U, spectrum, V):
    """1μᵀ + U diag(s) Vᵀ, with orthonormal columns and Σ_i U = 0: any data, by the witness of what is left of it."""
    with_orthonormal_columns(U, V)
    with_centred_columns(U)
    _, along = U.axes
    return define("X", (i, j), μ[j] + Sum(U[i, along] * spectrum[along] * V[j, along], along))


# The two maps


@identity
def transform_as_linear():
    """Z = linear(X, C, -Cμ): the mean folded into a bias. Catches scores of data that were never centred."""
    bias = define("-Cμ", (a,), -Sum(C[a, j] * μ[j], j))
    return Eq(pca_transform(X, μ, C), linear(X, C, bias))


@identity
def inverse_as_linear():
    """X̂ = linear(Z, Cᵀ, μ). Catches a mean that is not added back, and components that are read the other way round."""
    return Eq(pca_inverse(Z, μ, C), linear(Z, define("Cᵀ", (j, a), C[a, j]), μ))


@identity
def scores_are_centred():
    """Σ_i Z_i = 0 where μ is the mean of X. Catches a mean over features in the place of one over samples."""
    return Eq(Sum(pca_transform(X, mean_of(X), C)[i, a], i), 0)


@identity
def translation():
    """X + 1vᵀ with the mean μ + v has the scores of X. Catches scores that depend on where the origin lies."""
    v = tensor("v", j)
    moved = pca_transform(define("X+v", (i, j), X[i, j] + v[j]), define("μ+v", (j,), μ[j] + v[j]), C)
    return Eq(moved, pca_transform(X, μ, C))


@identity
def rotation():
    """Data, mean and components rotated alike have the scores of X. Catches a feature that is treated apart."""
    h, j2 = index("h", d), index("j'", d)
    R = tensor("R", h, j)
    assume(Eq(Sum(R[h, j] * R[h, j2], h), delta(j, j2)), by={R: orthonormal(R, h)})
    turned = pca_transform(
        define("XRᵀ", (i, h), Sum(X[i, j] * R[h, j], j)),
        define("Rμ", (h,), Sum(R[h, j] * μ[j], j)),
        define("CRᵀ", (a, h), Sum(C[a, j] * R[h, j], j)),
    )
    return Eq(turned, pca_transform(X, μ, C))


@identity
def transform_of_inverse():
    """Scores survive the way back and forth. Catches components that are scaled (whitened) on one of the two ways."""
    with_orthonormal_rows(C)
    return Eq(pca_transform(pca_inverse(Z, μ, C), μ, C), Z)


@identity
def inverse_of_transform():
    """The way forth and back is the projection μ + (X - μ) CᵀC. Catches a projection of X itself."""
    j2 = index("j'", d)
    P = define("CᵀC", (j, j2), Sum(C[a, j] * C[a, j2], a))
    projection = μ[j] + Sum((X[i, j2] - μ[j2]) * P[j2, j], j2)
    return Eq(pca_inverse(pca_transform(X, μ, C), μ, C), define("X̂", (i, j), projection))


@identity(corollary_of="low_rank.projection_error")
def reconstruction_error():
    """‖Z‖² + ‖X - X̂‖² = ‖X - μ‖²: captured variance and reconstruction error make up the whole."""
    with_orthonormal_rows(C)
    scores = pca_transform(X, μ, C)
    rest = minus(X, pca_inverse(scores, μ, C))
    return Eq(squared(scores) + squared(rest), Sum((X[i, j] - μ[j]) ** 2, i, j))


@identity
def transform_gradient_x():
    """dX = dZ C. Catches a gradient that is multiplied by Cᵀ, or centred once more."""
    return Eq(vjp(pca_transform(X, μ, C), X, dZ), define("dX", (i, j), Sum(dZ[i, a] * C[a, j], a)))


@identity
def transform_gradient_mean():
    """dμ = -Σ_i dZ_i C. Catches the sign, and a mean over the samples in the place of their sum."""
    return Eq(vjp(pca_transform(X, μ, C), μ, dZ), define("dμ", (j,), -Sum(dZ[i, a] * C[a, j], i, a)))


@identity
def transform_gradient_components():
    """dC = dZᵀ (X - μ). Catches a gradient by data that were not centred."""
    centred_data = Sum(dZ[i, a] * (X[i, j] - μ[j]), i)
    return Eq(vjp(pca_transform(X, μ, C), C, dZ), define("dC", (a, j), centred_data))


@identity
def inverse_gradient_scores():
    """dZ = dX Cᵀ. Catches a gradient that lacks the sum over features."""
    return Eq(vjp(pca_inverse(Z, μ, C), Z, dX), define("dZ", (i, a), Sum(dX[i, j] * C[a, j], j)))


@identity
def inverse_gradient_components():
    """dC = Zᵀ dX. Catches a gradient that forgets that C is used by its rows."""
    return Eq(vjp(pca_inverse(Z, μ, C), C, dX), define("dC", (a, j), Sum(Z[i, a] * dX[i, j], i)))


# The decomposition


@identity(of="pca")
def principal_axes():
    """Cov(X) v_t = s_t²/(n - 1) v_t. Catches the divisor n, s for s², and data that were not centred."""
    data = data_of(U, s, V)
    mean, j2 = mean_of(data), index("j'", d)
    covariance = Sum((data[i, j] - mean[j]) * (data[i, j2] - mean[j2]), i) / (n - 1)
    return Eq(
        define("Cov·v", (j, t), Sum(covariance * V[j2, t], j2)), define("λv", (j, t), s[t] ** 2 / (n - 1) * V[j, t])
    )


@identity(of="pca")
def score_covariance():
    """Scores are uncorrelated, of variance s_t²/(n - 1): the explained variance. Catches components that are not axes."""
    data = data_of(U, s, V)
    scores, other = pca_transform(data, mean_of(data), define("Vᵀ", (t, j), V[j, t])), index("t'", t.dim)
    covariance = Sum(scores[i, t] * scores[i, other], i) / (n - 1)
    return Eq(covariance, delta(t, other) * s[t] ** 2 / (n - 1))


@identity(of="pca")
def total_variance():
    """Σ_j Var(X_j) = Σ_t s_t²/(n - 1). Catches ratios of explained variance that do not sum to 1."""
    data = data_of(U, s, V)
    mean = mean_of(data)
    return Eq(Sum((data[i, j] - mean[j]) ** 2, i, j) / (n - 1), Sum(s[t] ** 2, t) / (n - 1))


def missed(data, Q):
    """(I - QQᵀ) data, for data by columns."""
    return minus(data, projected(Q, data))


@identity(of="pca")
def best_offset():
    """Σ_i ‖(I-P)(x_i - o)‖² = Σ_i ‖(I-P)(x_i - μ)‖² + n‖(I-P)(μ - o)‖², P = QQᵀ: the mean is the best offset."""
    Q, mean, j2 = tensor("Q", j, a), mean_of(X), index("j'", d)
    from_offset = define("x-o", (j, i), X[i, j] - offset[j])
    from_mean = define("x-μ", (j, i), X[i, j] - mean[j])
    between = define("μ-o", (j,), mean[j] - offset[j])
    rest = between[j] - Sum(Q[j, a] * Q[j2, a] * between[j2], j2, a)
    return Eq(squared(missed(from_offset, Q)), squared(missed(from_mean, Q)) + n * Sum(rest**2, j))


@theorem(of="pca")
def pca_is_optimal():
    """No affine subspace of dimension k is nearer to the data, wherever it lies: Σ_{t > k} s_t² ≤ Σ_i ‖(I-P)(x_i - o)‖².

    x and o are measured from the mean (`translation`). Catches components of data that were not centred, and the k axes
    of least variance.
    """
    Q, Uq, Vq = tensor("Q", j, a), tensor("U", i, q), tensor("V", j, q)
    with_orthonormal_columns(Q, Uq, Vq)
    with_centred_columns(Uq)
    above, below = kept_above(), cut_below()
    from_offset = define("x-o", (j, i), Sum(Vq[j, q] * whole[q] * Uq[i, q], q) - offset[j])
    held = define("Qᵀo", (a,), Sum(Q[j, a] * offset[j], j))
    over = concat("s²-σ²", (q,), above[a] * (s1[a] + σ), 0)
    under = concat("σ²-s²", (q,), 0, below[b] * (σ + s2[b]))
    return Le(
        Sum(s2[b] ** 2, b),
        squared(missed(from_offset, Q)),
        because=n * Sum((offset[j] - Sum(Q[j, a] * held[a], a)) ** 2, j)
        + Sum(over[q] * Sum(missed(Vq, Q)[j, q] ** 2, j), q)
        + Sum(under[q] * weight(Q, Vq)[q], q)
        + σ**2 * squared(minus(Q, projected(Vq, Q))),
    )
