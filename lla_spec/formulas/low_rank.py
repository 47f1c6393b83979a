"""Compression: the truncated SVD and the best approximation of rank k (Eckart & Young 1936; Mirsky 1960).

W = U diag(s) Vᵀ        W_k = U_k diag(s_k) V_kᵀ        ‖W - W_k‖²_F = Σ_{t > k} s_t²        ‖W - W_k‖₂ = s_{k+1}

W ∈ ℝᵐˣⁿ    U ∈ ℝᵐˣʳ, V ∈ ℝⁿˣʳ with orthonormal columns    s = (s₁, s₂) ≥ 0: the k that are kept, and the l that are cut

(U, s, V) is a witness and not a function of W (`ties`), so `truncated_svd` and `low_rank` are no formulas: the laws
speak of every witness, and a result is judged by whether it is one. σ stands between: s₂ ≤ σ ≤ s₁.
"""

from lla_spec.certified import certified
from lla_spec.formulas.linear import linear
from lla_spec.language import Eq, Le, assume, identity, theorem
from lla_spec.symbols import Max, Sum, concat, define, delta, dims, index, orthonormal, split, tensor

m, n, r, k, l, e, p = dims("m n r k l e p")
i, j, t, a, b = index("i", m), index("j", n), index("t", r), index("a", k), index("b", l)
x, c = tensor("x", j), index("c", k)
A, Q, C = tensor("A", i, j), tensor("Q", i, c), tensor("C", c, j)  # any matrix; any B = QC of rank ≤ k

U, V, s = tensor("U", i, t), tensor("V", j, t), tensor("s", t)
σ = tensor("σ", nonnegative=True)
s1, s2 = tensor("s1", a, nonnegative=True), tensor("s2", b, nonnegative=True)
q = split(t, a, b)  # r = k + l: the same witness, of which k columns are kept
Uq, Vq = tensor("U", i, q), tensor("V", j, q)
whole, kept, cut = concat("s", (q,), s1[a], s2[b]), concat("s_k", (q,), s1[a], 0), concat("s_cut", (q,), 0, s2[b])


def witness(left, spectrum, right, name="W"):
    """U diag(s) Vᵀ."""
    (row, along), (column, _) = left.axes, right.axes
    return define(name, (row, column), Sum(left[row, along] * spectrum[along] * right[column, along], along))


def squared(matrix):
    """‖·‖²_F."""
    return Sum(matrix.entry**2, *matrix.axes)


def minus(first, second):
    return define(f"{first.name}-{second.name}", first.axes, first.entry - second[first.axes])


def onto(columns, matrix):
    """columnsᵀ · matrix: the coefficients of the projection onto their span."""
    (row, along), (_, column) = columns.axes, matrix.axes
    return define("coefficients", (along, column), Sum(columns[row, along] * matrix[row, column], row))


def projected(columns, matrix):
    """columns · columnsᵀ · matrix."""
    coefficients = onto(columns, matrix)
    (row, along), (_, column) = columns.axes, matrix.axes
    return define("projected", (row, column), Sum(columns[row, along] * coefficients[along, column], along))


def with_orthonormal_columns(*matrices):
    for matrix in matrices:
        row, along = matrix.axes
        other = index(f"{along}'", along.dim)
        unit = Eq(Sum(matrix[row, along] * matrix[row, other], row), delta(along, other))
        assume(unit, by={matrix: orthonormal(matrix, row)})


def cut_below():
    """s₂ ≤ σ; returns σ - s₂ ≥ 0."""
    return assume(Le(s2[b], σ), by={σ: Max(s2[b], b)})


def kept_above():
    """σ ≤ s₁; returns s₁ - σ ≥ 0."""
    gap = tensor("g", a, nonnegative=True)
    return assume(Le(σ, s1[a]), by={s1: σ + gap[a]})


W, B = tensor("W", i, j), tensor("B", i, j, argument="W_k")
U_k, S_k = tensor("U", i, a, argument="U"), tensor("S", a, argument="S")
Vh_k, D = tensor("Vh", a, j, argument="Vh"), define("D", (i, j), W[i, j] - Sum(Q[i, c] * C[c, j], c))


@certified(returns=(U_k, S_k, Vh_k), counts={"k": (a,)})
def truncated_svd(W):
    """The k largest singular values, in descending order, and orthonormal singular vectors that go with them."""
    return (
        Eq(Sum(U_k[i, a] * U_k[i, c], i), delta(a, c)),
        Eq(Sum(Vh_k[a, j] * Vh_k[c, j], j), delta(a, c)),
        Eq(Sum(W[i, j] * Vh_k[a, j], j), U_k[i, a] * S_k[a]),
        Eq(Sum(W[i, j] * U_k[i, a], i), S_k[a] * Vh_k[a, j]),
        Le(0, S_k[a]),
        Le(squared(define("R", (i, j), W[i, j] - Sum(U_k[i, a] * S_k[a] * Vh_k[a, j], a))), squared(D)),
    )


@certified(returns=(B,), counts={"k": (a,)})
def low_rank(W):
    """A matrix of rank at most k, and none of these is nearer to W."""
    product, R = Sum(U_k[i, a] * S_k[a] * Vh_k[a, j], a), define("R", (i, j), W[i, j] - B[i, j])
    return Eq(B[i, j], product), Le(squared(R), squared(D))


# The factors


@identity(of="truncated_svd")
def energy():
    """‖W‖²_F = Σ_t s_t². Catches singular values that are returned squared, or scaled."""
    with_orthonormal_columns(U, V)
    return Eq(squared(witness(U, s, V)), Sum(s[t] ** 2, t))


@identity(of="truncated_svd")
def singular_pairs():
    """W v_t = s_t u_t. Catches V returned for Vᵀ, and factors whose columns are not in one order."""
    with_orthonormal_columns(V)
    W = witness(U, s, V)
    return Eq(define("Wv", (i, t), Sum(W[i, j] * V[j, t], j)), define("su", (i, t), s[t] * U[i, t]))


@identity(of="truncated_svd")
def gram():
    """WᵀW = V diag(s²) Vᵀ. Catches eigenvalues of the Gram matrix that are returned as singular values."""
    with_orthonormal_columns(U)
    W, j2 = witness(U, s, V), index("j'", n)
    return Eq(Sum(W[i, j] * W[i, j2], i), Sum(V[j, t] * s[t] ** 2 * V[j2, t], t))


@identity(of="truncated_svd")
def ties():
    """Where singular values are equal, (UR, s, VR) is a witness as well, R any rotation. Why no entry of U is compared."""
    u = index("u", r)
    R, v = tensor("R", t, u), index("v", r)
    assume(Eq(Sum(R[t, u] * R[v, u], u), delta(t, v)), by={R: orthonormal(R, u)})
    UR = define("UR", (i, u), Sum(U[i, t] * R[t, u], t))
    VR = define("VR", (j, u), Sum(V[j, t] * R[t, u], t))
    return Eq(Sum(UR[i, u] * σ * VR[j, u], u), Sum(U[i, t] * σ * V[j, t], t))


@identity(of="truncated_svd")
def rotated_rows():
    """The witness of RW is (RU, s, V): its columns stay orthonormal. Catches a factorisation that depends on the basis."""
    h, u = index("h", m), index("u", r)
    R, i2 = tensor("R", h, i), index("i'", m)
    assume(Eq(Sum(R[h, i] * R[h, i2], h), delta(i, i2)), by={R: orthonormal(R, h)})
    with_orthonormal_columns(U)
    RU = define("RU", (h, t), Sum(R[h, i] * U[i, t], i))
    return Eq(Sum(RU[h, t] * RU[h, u], h), delta(t, u))


# Truncation attains


@identity(of="low_rank")
def attainment():
    """‖W - W_k‖²_F = Σ_{t > k} s_t². Catches a column too many or too few, and a tail of s where s² is meant."""
    with_orthonormal_columns(Uq, Vq)
    return Eq(squared(minus(witness(Uq, whole, Vq), witness(Uq, kept, Vq, "W_k"))), Sum(s2[b] ** 2, b))


@identity(of="low_rank")
def cut_is_orthogonal():
    """W_kᵀ (W - W_k) = 0: what is cut is orthogonal to what is kept. Catches W_k scaled, or shrunk towards 0."""
    with_orthonormal_columns(Uq)
    W_k = witness(Uq, kept, Vq, "W_k")
    rest, j2 = minus(witness(Uq, whole, Vq), W_k), index("j'", n)
    return Eq(Sum(W_k[i, j] * rest[i, j2], i), 0)


@identity(of="low_rank")
def next_error():
    """err_k² - err_{k+e}² is the energy of the e singular values between (e = 1: σ²_{k+1}). Catches k off by one."""
    between = index("d", e)
    s3 = tensor("s3", between)
    three = split(t, a, between, b)
    U3, V3 = tensor("U", i, three), tensor("V", j, three)
    with_orthonormal_columns(U3, V3)
    W = witness(U3, concat("s", (three,), s1[a], s3[between], s2[b]), V3)
    W_k = witness(U3, concat("s_k", (three,), s1[a], 0, 0), V3, "W_k")
    W_ke = witness(U3, concat("s_k+e", (three,), s1[a], s3[between], 0), V3, "W_k+e")
    return Eq(squared(minus(W, W_k)) - squared(minus(W, W_ke)), Sum(s3[between] ** 2, between))


@identity(of="low_rank")
def rotated_columns():
    """‖WRᵀ - U diag(s_k)(RV)ᵀ‖²_F = Σ_{t > k} s_t²: the error does not depend on the basis of the inputs."""
    h, j2 = index("h", n), index("j'", n)
    R = tensor("R", h, j)
    assume(Eq(Sum(R[h, j] * R[h, j2], h), delta(j, j2)), by={R: orthonormal(R, h)})
    with_orthonormal_columns(Uq, Vq)
    W, RV = witness(Uq, whole, Vq), define("RV", (h, q), Sum(R[h, j] * Vq[j, q], j))
    WR = define("WRᵀ", (i, h), Sum(W[i, j] * R[h, j], j))
    return Eq(squared(minus(WR, witness(Uq, kept, RV, "W_k"))), Sum(s2[b] ** 2, b))


@identity(of="low_rank")
def projection_of_rows():
    """W_k = U_k U_kᵀ W. Justifies compressing by one factor only; catches the projection on the wrong side."""
    with_orthonormal_columns(Uq)
    W, one = witness(Uq, whole, Vq), concat("1_k", (q,), 1, 0)
    coefficients = onto(Uq, W)
    W_k = Sum(Uq[i, q] * one[q] * coefficients[q, j], q)
    return Eq(witness(Uq, kept, Vq, "W_k"), define("UUᵀW", (i, j), W_k))


@identity(of="low_rank", corollary_of="low_rank.projection_of_rows")
def projection_of_columns():
    """W_k = W V_k V_kᵀ: the other side, of the transpose."""
    with_orthonormal_columns(Vq)
    W, one = witness(Uq, whole, Vq), concat("1_k", (q,), 1, 0)
    coefficients = define("WV", (i, q), Sum(W[i, j] * Vq[j, q], j))
    return Eq(witness(Uq, kept, Vq, "W_k"), define("WVVᵀ", (i, j), Sum(coefficients[i, q] * one[q] * Vq[j, q], q)))


@identity(of="low_rank")
def full_rank():
    """k = r, where nothing is cut: U Uᵀ W = W. Catches a truncation that loses the last column."""
    with_orthonormal_columns(U)
    W = witness(U, s, V)
    return Eq(projected(U, W), W)


@identity(of="low_rank", corollary_of="linear.associativity")
def factored_product():
    """(U_k diag(s_k)) (V_kᵀ x) = W_k x: a compressed layer is two thin ones, (m + n) k products for m n."""
    row = index("h", p)
    X, Uk, Vk = tensor("X", row, j), tensor("U_k", i, a), tensor("V_k", j, a)
    thin = linear(X, define("Vᵀ", (a, j), Vk[j, a]))
    return Eq(linear(thin, define("US", (i, a), Uk[i, a] * s1[a])), linear(X, witness(Uk, s1, Vk, "W_k")))


# No matrix of rank k is nearer in Frobenius' norm: B = QC, Q with k orthonormal columns


@identity(of="low_rank")
def best_coefficients():
    """‖A - QC‖² = ‖A - QQᵀA‖² + ‖QᵀA - C‖²: of the matrices with these columns, the projection of A is nearest."""
    with_orthonormal_columns(Q)
    B = define("B", (i, j), Sum(Q[i, c] * C[c, j], c))
    return Eq(squared(minus(A, B)), squared(minus(A, projected(Q, A))) + squared(minus(onto(Q, A), C)))


@identity(of="low_rank")
def projection_error():
    """‖A - QQᵀA‖² = ‖A‖² - ‖QᵀA‖². Lets the error be told from the coefficients alone."""
    with_orthonormal_columns(Q)
    return Eq(squared(minus(A, projected(Q, A))), squared(A) - squared(onto(Q, A)))


def weight(columns, left):
    """w_t = ‖Qᵀ u_t‖²: how much of u_t the columns hold."""
    held = onto(columns, left)
    along, which = held.axes
    return define("w", (which,), Sum(held.entry**2, along))


@identity(of="low_rank")
def captured_energy():
    """‖QᵀW‖² = Σ_t s_t² w_t with w_t = ‖Qᵀu_t‖²: what Q captures is a weighting of the spectrum."""
    with_orthonormal_columns(V)
    return Eq(squared(onto(Q, witness(U, s, V))), Sum(s[t] ** 2 * weight(Q, U)[t], t))


@theorem(of="low_rank")
def weights_at_most_one():
    """w_t ≤ 1: Q holds no more of u_t than there is."""
    with_orthonormal_columns(Q, U)
    return Le(weight(Q, U), 1, because=Sum(minus(U, projected(Q, U))[i, t] ** 2, i))


@theorem(of="low_rank")
def weights_sum_to_at_most_k():
    """Σ_t w_t ≤ k: k columns hold k directions. With `weights_at_most_one` this is Ky Fan's polytope."""
    with_orthonormal_columns(Q, U)
    return Le(Sum(weight(Q, U)[t], t), k, because=squared(minus(Q, projected(U, Q))))


@theorem(of="low_rank")
def ky_fan():
    """Σ_t s_t² w_t ≤ Σ_{t ≤ k} s_t² for 0 ≤ w ≤ 1 with Σ w ≤ k: the largest k are the best to keep (Fan 1949)."""
    w1, w2 = tensor("w1", a, nonnegative=True), tensor("w2", b, nonnegative=True)
    y1, y2 = tensor("y1", a, nonnegative=True), tensor("y2", b, nonnegative=True)
    above, below = kept_above(), cut_below()
    most = assume(Le(w1[a], 1), by={w1: y1[a] / (1 + y1[a])})
    left = assume(
        Le(Sum(w1[a], a) + Sum(w2[b], b), k),
        by={w2: (k - Sum(w1[a], a)) * y2[b] / (1 + Sum(y2[b], b))},
    )
    return Le(
        Sum(s1[a] ** 2 * w1[a], a) + Sum(s2[b] ** 2 * w2[b], b),
        Sum(s1[a] ** 2, a),
        because=Sum(above[a] * (s1[a] + σ) * most[a], a) + Sum(below[b] * (σ + s2[b]) * w2[b], b) + σ**2 * left,
    )


@theorem(of="low_rank")
def eckart_young():
    """Σ_{t > k} s_t² ≤ ‖W - QC‖²_F: no B of rank ≤ k is nearer than W_k. Catches the wrong k, and an unsorted spectrum."""
    with_orthonormal_columns(Q, Uq, Vq)
    above, below = kept_above(), cut_below()
    W, B, w = witness(Uq, whole, Vq), define("B", (i, j), Sum(Q[i, c] * C[c, j], c)), weight(Q, Uq)
    over = concat("s²-σ²", (q,), above[a] * (s1[a] + σ), 0)
    under = concat("σ²-s²", (q,), 0, below[b] * (σ + s2[b]))
    missed = minus(Uq, projected(Q, Uq))
    return Le(
        Sum(s2[b] ** 2, b),
        squared(minus(W, B)),
        because=squared(minus(onto(Q, W), C))
        + Sum(over[q] * Sum(missed[i, q] ** 2, i), q)
        + Sum(under[q] * w[q], q)
        + σ**2 * squared(minus(Q, projected(Uq, Q))),
    )


# The spectral norm


@theorem(of="low_rank")
def spectral_attainment():
    """‖(W - W_k) x‖ ≤ s_{k+1} ‖x‖ for every x. Bounds what compressing a layer does to any one activation."""
    with_orthonormal_columns(Uq, Vq)
    below = cut_below()
    rest = minus(witness(Uq, whole, Vq), witness(Uq, kept, Vq, "W_k"))
    along = define("Vᵀx", (q,), Sum(Vq[j, q] * x[j], j))
    outside = define("x-VVᵀx", (j,), x[j] - Sum(Vq[j, q] * along[q], q))
    under = concat("σ²-s²", (q,), σ**2, below[b] * (σ + s2[b]))
    return Le(
        Sum(Sum(rest[i, j] * x[j], j) ** 2, i),
        σ**2 * Sum(x[j] ** 2, j),
        because=σ**2 * Sum(outside[j] ** 2, j) + Sum(under[q] * along[q] ** 2, q),
    )


@identity(of="low_rank")
def spectral_equality():
    """‖(W - W_k) v_t‖² is s_t² beyond k, and 0 up to k: the bound is met at v_{k+1}. Catches a W_k that errs inside."""
    with_orthonormal_columns(Uq, Vq)
    rest = minus(witness(Uq, whole, Vq), witness(Uq, kept, Vq, "W_k"))
    return Eq(Sum(Sum(rest[i, j] * Vq[j, q], j) ** 2, i), cut[q] ** 2)


@theorem(of="low_rank")
def spectral_lower_bound():
    """Bx = 0 for x in span(v_1 … v_k) gives ‖(W - B) x‖ ≥ σ‖x‖ with σ ≤ s_k: no B of rank < k is nearer than s_k.

    Such an x ≠ 0 exists by rank and nullity. Catches a W_k that is compared with the wrong singular value.
    """
    with_orthonormal_columns(Uq, Vq)
    above = kept_above()
    y, B, B0 = tensor("y", a), tensor("B", i, j), tensor("B0", i, j)
    inside, j2 = concat("y", (q,), y[a], 0), index("j'", n)
    x = define("x", (j,), Sum(Vq[j, q] * inside[q], q))
    free = B0[i, j] * Sum(x[j2] ** 2, j2) - x[j] * Sum(B0[i, j2] * x[j2], j2)
    assume(Eq(Sum(B[i, j] * x[j], j), 0), by={B: free})
    rest = minus(witness(Uq, whole, Vq), B)
    return Le(
        σ**2 * Sum(x[j] ** 2, j),
        Sum(Sum(rest[i, j] * x[j], j) ** 2, i),
        because=Sum(above[a] * (s1[a] + σ) * y[a] ** 2, a),
    )
