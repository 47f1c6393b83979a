"""Scaled dot-product attention (Vaswani et al. 2017, §3.2.1).

Attention(Q, K, V) = softmax(Q Kᵀ / √d) V

Q ∈ ℝⁿˣᵈ queries    K ∈ ℝᵐˣᵈ keys    V ∈ ℝᵐˣᵉ values
"""

from lla_spec.calculus import vjp
from lla_spec.formulas.softmax import logsumexp, softmax
from lla_spec.language import Eq, Le, assume, formula, identity, theorem
from lla_spec.printing import row_softmax
from lla_spec.symbols import (
    Max,
    Sum,
    concat,
    define,
    delta,
    dims,
    exp,
    index,
    log,
    mask,
    orthonormal,
    permutation,
    scalar,
    split,
    sqrt,
    tensor,
)

n, m, d, e, m1, m2 = dims("n m d e m1 m2")
i, j, k, c = index("i", n), index("j", m), index("k", d), index("c", e)
j1, j2 = index("j1", m1), index("j2", m2)
i1 = index("i1", dims("n1"))

Q, K, V = tensor("Q", i, k), tensor("K", j, k), tensor("V", j, c)
M = mask("M", i, j, causal=True)  # who may look at whom; 1 everywhere when left out
scale = scalar("scale", default=1 / sqrt(d))

dO = tensor("dO", i, c)  # the cotangent of the output
K1, K2, V1, V2 = tensor("K1", j1, k), tensor("K2", j2, k), tensor("V1", j1, c), tensor("V2", j2, c)


@formula
def attention(Q, K, V, M, scale):
    S = define("S", (i, j), scale * Sum(Q[i, k] * K[j, k], k))
    P = softmax(S, M, over=j)
    return define("O", (i, c), Sum(P[i, j] * V[j, c], j))


@identity
def matrix_form():
    """The entries above are the textbook formula."""
    return Eq(attention(Q, K, V), row_softmax(Q.matrix * K.matrix.T / sqrt(d)) * V.matrix)


@identity
def key_bias():
    """Adding one vector to every key changes nothing. Catches a normalisation over the queries."""
    b = tensor("b", k)
    return Eq(attention(Q, define("K'", (j, k), K[j, k] + b[k]), V, M), attention(Q, K, V, M))


@identity
def key_permutation():
    """Keys and values may be permuted together. Catches a block that is read twice, and a tail that is dropped."""
    π = permutation("π", j)
    return Eq(
        attention(Q, define("K'", (j, k), K[π[j], k]), define("V'", (j, c), V[π[j], c])),
        attention(Q, K, V),
    )


@identity
def query_equivariance():
    """Permuting the queries permutes the outputs: no row depends on another query."""
    π = permutation("π", i)
    O = attention(Q, K, V)
    return Eq(attention(define("Q'", (i, k), Q[π[i], k]), K, V), define("O'", (i, c), O[π[i], c]))


@identity
def linear_in_values():
    """Attention is linear in V. Catches values that reach the weights."""
    U = tensor("U", j, c)
    both = attention(Q, K, define("V+U", (j, c), V[j, c] + U[j, c]), M)
    return Eq(both, define("sum", (i, c), attention(Q, K, V, M)[i, c] + attention(Q, K, U, M)[i, c]))


@identity
def constant_values():
    """Equal values come back unchanged. Catches weights that do not sum to 1."""
    u = tensor("u", c)
    return Eq(attention(Q, K, define("U", (j, c), u[c]), M), define("u'", (i, c), u[c]))


@identity
def scaled_queries():
    """The scale may be folded into the queries. Justifies the kernels that pre-scale q."""
    return Eq(attention(define("Q'", (i, k), Q[i, k] * scale), K, V, M, 1), attention(Q, K, V, M, scale))


@identity
def rotated_queries_and_keys():
    """One rotation of all queries and keys changes nothing: scores see angles only. Catches a rotation of one of them."""
    k2, l = index("k2", d), index("l", d)
    R = tensor("R", k, l)
    assume(Eq(Sum(R[k, l] * R[k2, l], l), delta(k, k2)), by={R: orthonormal(R, along=l)})
    turned = define("Q'", (i, l), Sum(Q[i, k] * R[k, l], k)), define("K'", (j, l), Sum(K[j, k] * R[k, l], k))
    return Eq(attention(*turned, V, M), attention(Q, K, V, M))


@identity
def absorbed_projections():
    """(X W_q)(Y W_k)ᵀ = X (W_q W_kᵀ) Yᵀ: two projections act as one. Justifies caching the inputs instead of the keys."""
    p, q = dims("p q")
    a, b = index("a", p), index("b", q)
    X, Y = tensor("X", i, a), tensor("Y", j, b)
    W_q, W_k = tensor("W_q", a, k), tensor("W_k", b, k)
    Q, K = define("Q", (i, k), Sum(X[i, a] * W_q[a, k], a)), define("K", (j, k), Sum(Y[j, b] * W_k[b, k], b))
    both = define("W", (a, b), Sum(W_q[a, k] * W_k[b, k], k))
    return Eq(
        attention(Q, K, V, M, scale), attention(define("X W", (i, b), Sum(X[i, a] * both[a, b], a)), Y, V, M, scale)
    )


@theorem
def hull():
    """Every output lies in the convex hull of the values: a half-space that holds all v_j holds each o_i.

    Catches weights that are negative or sum to more than 1.
    """
    w, b = tensor("w", c), scalar("b")
    gap = assume(Le(Sum(w[c] * V[j, c], c), b), by={b: Max(Sum(w[c] * V[j, c], c), j)})
    O = attention(Q, K, V, M)
    return Le(Sum(w[c] * O[i, c], c), b, because=Sum(O.part("P")[i, j] * gap[j], j))


@identity
def masked_is_deleted():
    """A key that the mask hides is a key that is not there. Catches a hidden key that keeps some weight, and 0 · NaN."""
    jj = split(j, j1, j2)
    return Eq(
        attention(
            Q,
            concat("K", (jj, k), K1[j1, k], K2[j2, k]),
            concat("V", (jj, c), V1[j1, c], V2[j2, c]),
            concat("M", (i, jj), 1, 0),
        ),
        attention(Q, K1, V1),
    )


@identity(corollary_of="attention.masked_is_deleted")
def decoding_with_a_cache():
    """A row of causal attention is one query against the keys up to its own: what a cache of keys and values computes."""
    q, jj = tensor("q", i1, k), split(j, j1, j2)
    seen, later = concat("K", (jj, k), K1[j1, k], K2[j2, k]), concat("V", (jj, c), V1[j1, c], V2[j2, c])
    return Eq(attention(q, seen, later, concat("M", (i1, jj), 1, 0), scale), attention(q, K1, V1, None, scale))


@identity(corollary_of="attention.masked_is_deleted")
def no_influence_of_the_future():
    """What stands after the visible keys has no influence: both sides equal attention over the visible ones."""
    jj = split(j, j1, j2)
    K3, V3 = tensor("K3", j2, k), tensor("V3", j2, c)
    visible = concat("M", (i, jj), 1, 0)

    def followed_by(later_K, later_V):
        whole_K = concat("K", (jj, k), K1[j1, k], later_K[j2, k])
        return attention(Q, whole_K, concat("V", (jj, c), V1[j1, c], later_V[j2, c]), visible)

    return Eq(followed_by(K2, V2), followed_by(K3, V3))


@identity
def log_mask():
    """Multiplying the weights by M > 0 is adding log M to the scores: the additive masks of the textbooks."""
    W = tensor("W", i, j, positive=True)
    S = define("S", (i, j), scale * Sum(Q[i, k] * K[j, k], k) + log(W[i, j]))
    P = softmax(S)
    return Eq(attention(Q, K, V, W, scale), define("O", (i, c), Sum(P[i, j] * V[j, c], j)))


@identity
def online_merge():
    """Attention over two blocks of keys, merged by their log-sum-exps (Dao et al. 2022, algorithm 1)."""
    jj = split(j, j1, j2)

    def lse(keys, key):
        return logsumexp(define("S", (i, key), scale * Sum(Q[i, k] * keys[key, k], k)))

    L1, L2 = lse(K1, j1), lse(K2, j2)
    O1, O2 = attention(Q, K1, V1, None, scale), attention(Q, K2, V2, None, scale)
    whole = attention(
        Q, concat("K", (jj, k), K1[j1, k], K2[j2, k]), concat("V", (jj, c), V1[j1, c], V2[j2, c]), None, scale
    )
    merged = (exp(L1[i]) * O1[i, c] + exp(L2[i]) * O2[i, c]) / (exp(L1[i]) + exp(L2[i]))
    return Eq(whole, define("merged", (i, c), merged))


def score_gradient(O, dO):
    """dS = P ∘ (dP - D), dP = dO Vᵀ, D = rowsum(dO ∘ O)   (Dao et al. 2022, appendix B.2)."""
    P = O.part("P")
    dP = define("dP", (i, j), Sum(dO[i, c] * V[j, c], c))
    D = define("D", (i,), Sum(dO[i, c] * O[i, c], c))
    return define("dS", (i, j), P[i, j] * (dP[i, j] - D[i]))


@identity
def gradient_query():
    """dQ = scale · dS K. Catches a gradient without the scale, and D taken from another row."""
    O = attention(Q, K, V, M, scale)
    dS = score_gradient(O, dO)
    return Eq(vjp(O, Q, dO), define("dQ", (i, k), scale * Sum(dS[i, j] * K[j, k], j)))


@identity
def gradient_key():
    """dK = scale · dSᵀ Q."""
    O = attention(Q, K, V, M, scale)
    dS = score_gradient(O, dO)
    return Eq(vjp(O, K, dO), define("dK", (j, k), scale * Sum(dS[i, j] * Q[i, k], i)))


@identity
def gradient_value():
    """dV = Pᵀ dO."""
    O = attention(Q, K, V, M, scale)
    return Eq(vjp(O, V, dO), define("dV", (j, c), Sum(O.part("P")[i, j] * dO[i, c], i)))
