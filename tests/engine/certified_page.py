"""The three certified operations on a page of the tests' own: they do not enter the registry."""

from lla_spec import certified as machinery
from lla_spec.certified import certified
from lla_spec.language import Eq, Le, Registry
from lla_spec.symbols import Sum, define, delta, dims, index, tensor

whole, machinery.registry = machinery.registry, Registry()  # put back below

m, n, d, K = dims("m n d k")
i, j, a, b = index("i", m), index("j", n), index("a", K), index("b", K)
W, X, Y = tensor("W", i, j), tensor("X", i, a), tensor("Y", a, j)
U, S = tensor("U", i, a, argument="U"), tensor("S", a, argument="S")
Vh, B = tensor("Vh", a, j, argument="Vh"), tensor("B", i, j, argument="W_k")


def squared(matrix):
    return Sum(matrix.entry**2, *matrix.axes)


@certified(returns=(U, S, Vh), counts={"k": (a,)})
def truncated_svd(W):
    """The k largest singular values, in descending order, and orthonormal singular vectors that go with them."""
    return (
        Eq(Sum(U[i, a] * U[i, b], i), delta(a, b)),
        Eq(Sum(Vh[a, j] * Vh[b, j], j), delta(a, b)),
        Eq(Sum(W[i, j] * Vh[a, j], j), U[i, a] * S[a]),
        Eq(Sum(W[i, j] * U[i, a], i), S[a] * Vh[a, j]),
        Le(0, S[a]),
        Le(
            squared(define("R", (i, j), W[i, j] - Sum(U[i, a] * S[a] * Vh[a, j], a))),
            squared(define("D", (i, j), W[i, j] - Sum(X[i, a] * Y[a, j], a))),
        ),
    )


@certified(returns=(B,), counts={"k": (a,)})
def low_rank(W):
    """A matrix of rank at most k, and none of these is nearer to W."""
    return (
        Eq(B[i, j], Sum(U[i, a] * S[a] * Vh[a, j], a)),
        Le(
            squared(define("R", (i, j), W[i, j] - B[i, j])),
            squared(define("D", (i, j), W[i, j] - Sum(X[i, a] * Y[a, j], a))),
        ),
    )


c, e = index("c", d), index("e", d)
o = index("i", n)
x, Z, T = tensor("x", o, c), tensor("Z", o, a), tensor("T", a, c)
μ, V, λ = (
    tensor("μ", c, argument="mean"),
    tensor("V", a, c, argument="components"),
    tensor("λ", a, argument="explained_variance"),
)


@certified(returns=(μ, V, λ), counts={"k": (a,)}, least={n: 2})
def pca(x):
    """The mean of n observations, the k orthonormal directions of largest variance, and these variances (n - 1)."""
    Xc = define("Xc", (o, c), x[o, c] - μ[c])
    score = define("z", (o, a), Sum(Xc[o, c] * V[a, c], c))
    return (
        Eq(μ[c], Sum(x[o, c], o) / n),
        Eq(Sum(V[a, c] * V[b, c], c), delta(a, b)),
        Eq(Sum(Xc[o, e] * score[o, a], o), (n - 1) * λ[a] * V[a, e]),
        Le(
            squared(define("R", (o, c), Xc[o, c] - Sum(score[o, a] * V[a, c], a))),
            squared(define("D", (o, c), Xc[o, c] - Sum(Z[o, a] * T[a, c], a))),
        ),
    )


machinery.registry = whole
