"""False statements, each one slip away from a law: both engines must refuse them.

Each is refuted by numbers at the smallest shape where it is false: the shape and both values of one entry stand beside
it, and the test computes them again. (Scale 1/d is right at d = 1, so its shape has d = 2.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lla_spec.calculus import vjp
from lla_spec.formulas import attention as A
from lla_spec.formulas import linear as Lin
from lla_spec.formulas import softmax as S
from lla_spec.language import Eq, Law, Relation
from lla_spec.symbols import Max, Sum, concat, define, dims, exp, index, log, permutation, scalar, split, sqrt, tensor
from tests.engine.declaring import law_of


@dataclass(frozen=True)
class FalseStatement:
    """A false equation, where it is false, and the two sides' values at one entry there (10 digits)."""

    name: str
    build: Callable[[], Relation]
    shape: dict[str, int]
    numbers: str

    def law(self) -> Law:
        return law_of(self.build(), self.name)


FALSE: list[FalseStatement] = []


def false(numbers: str, **shape: int) -> Callable[[Callable[[], Relation]], Callable[[], Relation]]:
    """Declare the relation that a function returns as false at `shape`, where the entry shown has these `numbers`."""

    def declare(build: Callable[[], Relation]) -> Callable[[], Relation]:
        FALSE.append(FalseStatement(build.__name__, build, shape, numbers))
        return build

    return declare


x, M, i, j, l = S.x, S.M, S.i, S.j, S.l
P, dP = S.softmax(S.x), tensor("dP", S.i, S.j)


# Softmax and the log-sum-exp


@false("left[0, 0] = 0.25, right[0, 0] = 0", m=2, n=1)
def softmax_gradient_without_weights():
    return Eq(vjp(P, x, dP), define("dx", (i, j), P[i, j] * (dP[i, j] - Sum(dP[i, l], l))))


@false("left[0, 0] = 0, right[0, 0] = 2", m=1, n=1)
def softmax_gradient_with_plus():
    return Eq(vjp(P, x, dP), define("dx", (i, j), P[i, j] * (dP[i, j] + Sum(P[i, l] * dP[i, l], l))))


@false("left[0, 0] = 0, right[0, 0] = 1", m=1, n=1)
def softmax_gradient_not_centred():
    return Eq(vjp(P, x, dP), define("dx", (i, j), P[i, j] * dP[i, j]))


@false("left[0, 0] = -0.5, right[0, 0] = 0", m=2, n=1)
def log_softmax_gradient_without_the_sum():
    return Eq(vjp(S.log_softmax(x), x, dP), define("dx", (i, j), dP[i, j] - P[i, j] * dP[i, j]))


@false("left[0, 0] = 1, right[0, 0] = 0.5", m=1, n=2)
def softmax_over_the_wrong_axis():
    other = index("i'", S.n)
    return Eq(P, define("P'", (i, j), exp(x[i, j]) / Sum(exp(x[other, j]), other)))


@false("left[0] = 2, right[0] = 1", m=1, n=2)
def softmax_columns_sum_to_one():
    return Eq(Sum(P[i, j], i), 1)


@false("left[0, 0] = 0.2689414214, right[0, 0] = 0.5", m=2, n=1)
def softmax_is_uniform():
    return Eq(P, define("P'", (i, j), 1 / S.m))


@false("left[0, 0] = 0.119202922, right[0, 0] = 0.2689414214", m=2, n=1)
def softmax_ignores_the_temperature():
    return Eq(S.softmax(define("x'", (i, j), 2 * x[i, j])), P)


@false("left[0, 0] = 0.2689414214, right[0, 0] = 0.5", m=2, n=1)
def softmax_ignores_a_shift_of_the_columns():
    c = tensor("c", j)
    return Eq(S.softmax(define("x'", (i, j), x[i, j] + c[j])), P)


@false("left[0, 0] = 1, right[0, 0] = 0.5", m=2, n=1)
def softmax_ignores_the_mask():
    return Eq(S.softmax(x, M), P)


@false("left[0] = 1, right[0] = 3", m=1, n=1)
def row_sums_at_three_logits_only():
    return Eq(S.m * Sum(P[i, j], j), 3)


@false("left[0] = 2, right[0] = 4", m=2, n=1)
def square_of_a_sum():
    return Eq(Sum(x[i, j] ** 2, j), Sum(x[i, j], j) ** 2)


@false("left[0, 0] = 1, right[0, 0] = -1", m=1, n=1)
def root_of_a_square():
    return Eq(define("root", (i, j), sqrt(x[i, j] ** 2)), x)


@false("left[0] = 1, right[0] = -1", m=1, n=1)
def root_of_a_sum_of_squares():
    return Eq(sqrt(Sum(x[i, j] ** 2, j)), Sum(x[i, j], j))


@false("left[0] = 0.6931471806, right[0] = 0", m=2, n=1)
def log_of_a_sum():
    return Eq(S.logsumexp(x), define("sum", (i,), Sum(x[i, j], j)))


@false("left[0, 0] = 1, right[0, 0] = -1", m=1, n=1)
def product_of_roots_without_signs():
    """√(a²b²) = ab: the square of a free sign."""
    y = tensor("y", i, j)
    return Eq(define("root", (i, j), sqrt((x[i, j] * y[i, j]) ** 2)), define("product", (i, j), x[i, j] * y[i, j]))


@false("left[0] = 1, right[0] = 0", m=1, n=1)
def logsumexp_ignores_a_shift():
    c = tensor("c", i)
    return Eq(S.logsumexp(define("x'", (i, j), x[i, j] + c[i])), S.logsumexp(x))


@false("left[0] = 0, right[0] = 1", m=1, n=1)
def maximum_not_added_back():
    peak = define("peak", (i,), Max(x[i, j], j))
    return Eq(define("L", (i,), log(Sum(exp(x[i, j] - peak[i]), j))), S.logsumexp(x))


@false("left[0] = 0.6931471806, right[0] = 0", m=2, n=1)
def logsumexp_is_the_maximum():
    return Eq(S.logsumexp(x), define("peak", (i,), Max(x[i, j], j)))


@false("left[0] = 0.6931471806, right[0] = 0", m1=1, m2=1, n=1)
def logsumexps_merge_by_their_mean():
    jj = split(j, S.j1, S.j2)
    x1, x2 = tensor("x1", i, S.j1), tensor("x2", i, S.j2)
    whole = S.logsumexp(concat("x", (i, jj), x1[i, S.j1], x2[i, S.j2]))
    return Eq(whole, define("mean", (i,), (S.logsumexp(x1)[i] + S.logsumexp(x2)[i]) / 2))


@false("left[0] = 1, right[0] = -1", m=1, n=1)
def a_dimension_is_a_scalar_of_its_name():
    m = scalar("m")
    return Eq(define("mean", (i,), Sum(x[i, j], j) / S.m), define("quotient", (i,), Sum(x[i, j], j) / m))


@false("left[0, 1] = 1, right[0, 1] = 0", m=3, n=1)
def every_permutation_is_its_own_inverse():
    π = permutation("π", j)
    return Eq(define("x'", (i, j), x[i, π[π[j]]]), x)


# Attention


def _attention(Q=A.Q, K=A.K, V=A.V, M=A.M, scale=None):
    return A.attention(Q, K, V, M, scale)


@false("left[0, 0] = 0.6224593312, right[0, 0] = 0.6697615493", d=2, e=1, m=2, n=1)
def scale_by_the_dimension():
    return Eq(_attention(scale=1 / A.d), _attention())


@false("left[0, 0] = 0.7310585786, right[0, 0] = 0.6697615493", d=2, e=1, m=2, n=1)
def scale_left_out():
    return Eq(_attention(scale=1), _attention())


@false("left[0, 0] = 0.7310585786, right[0, 0] = 0.6697615493", d=2, e=1, m=2, n=1)
def scale_by_the_values_dimension():
    return Eq(_attention(scale=1 / sqrt(A.e)), _attention())


@false("left[0, 0] = 0, right[0, 0] = 1", d=1, e=1, m=1, n=1)
def gradient_query_not_centred():
    O = _attention(scale=A.scale)
    weights, dO = O.part("P"), A.dO
    dP = define("dP", (A.i, A.j), Sum(dO[A.i, A.c] * A.V[A.j, A.c], A.c))
    dQ = A.scale * Sum(weights[A.i, A.j] * dP[A.i, A.j] * A.K[A.j, A.k], A.j)
    return Eq(vjp(O, A.Q, dO), define("dQ", (A.i, A.k), dQ))


@false("left[0, 0] = 0, right[0, 0] = 0.25", d=1, e=2, m=2, n=1)
def gradient_query_without_scale():
    O = _attention(scale=A.scale)
    dS = A.score_gradient(O, A.dO)
    return Eq(vjp(O, A.Q, A.dO), define("dQ", (A.i, A.k), Sum(dS[A.i, A.j] * A.K[A.j, A.k], A.j)))


@false("left[2, 0] = 0, right[2, 0] = 0.2222222222", d=1, e=1, m=3, n=1)
def gradient_key_from_the_keys():
    O = _attention(scale=A.scale)
    dS = A.score_gradient(O, A.dO)
    return Eq(vjp(O, A.K, A.dO), define("dK", (A.j, A.k), A.scale * Sum(dS[A.i, A.j] * A.K[A.j, A.k], A.i)))


@false("left[0, 0] = 1, right[0, 0] = 2", d=1, e=1, m=1, n=1)
def gradient_value_doubled():
    O = _attention(scale=A.scale)
    weights = O.part("P")
    return Eq(vjp(O, A.V, A.dO), define("dV", (A.j, A.c), 2 * Sum(weights[A.i, A.j] * A.dO[A.i, A.c], A.i)))


def _whole(first_key=A.K1, mask=None):
    """Attention over two blocks of keys."""
    jj = split(A.j, A.j1, A.j2)
    K = concat("K", (jj, A.k), first_key[A.j1, A.k], A.K2[A.j2, A.k])
    V = concat("V", (jj, A.c), A.V1[A.j1, A.c], A.V2[A.j2, A.c])
    return _attention(A.Q, K, V, None if mask is None else concat("M", (A.i, jj), *mask), A.scale)


@false("left[0, 0] = 1, right[0, 0] = 0", d=1, e=1, m1=1, m2=1, n=1)
def mask_inverted():
    return Eq(_whole(mask=(0, 1)), _attention(A.Q, A.K1, A.V1, None, A.scale))


@false("left[0, 0] = 0.5, right[0, 0] = 0", d=1, e=1, m1=1, m2=1, n=1)
def hidden_keys_still_count():
    return Eq(_whole(mask=(1, 1)), _attention(A.Q, A.K1, A.V1, None, A.scale))


@false("left[0, 0] = 0.2689414214, right[0, 0] = 0.5", d=1, e=1, m1=1, m2=1, n=1)
def bias_on_some_keys_only():
    b = tensor("b", A.k)
    return Eq(_whole(define("K1'", (A.j1, A.k), A.K1[A.j1, A.k] + b[A.k])), _whole())


@false("left[0, 0] = 1, right[0, 0] = 0", d=1, e=1, m=1, n=1)
def value_bias_ignored():
    b = tensor("b", A.c)
    return Eq(_attention(V=define("V'", (A.j, A.c), A.V[A.j, A.c] + b[A.c])), _attention())


@false("left[0, 0] = 1, right[0, 0] = 2", d=1, e=1, m=1, n=1)
def constant_values_doubled():
    u = tensor("u", A.c)
    return Eq(_attention(V=define("U", (A.j, A.c), u[A.c])), define("2u", (A.i, A.c), 2 * u[A.c]))


@false("left[0, 0] = 0.7310585786, right[0, 0] = 0.5", d=1, e=1, m1=1, m2=1, n=1)
def blocks_merge_by_their_mean():
    O1, O2 = (_attention(A.Q, K, V, None, A.scale) for K, V in ((A.K1, A.V1), (A.K2, A.V2)))
    return Eq(_whole(), define("mean", (A.i, A.c), (O1[A.i, A.c] + O2[A.i, A.c]) / 2))


@false("left[0, 0] = 0.5, right[0, 0] = 1", d=1, e=1, m1=1, m2=1, n=1)
def blocks_merge_by_their_sum():
    O1, O2 = (_attention(A.Q, K, V, None, A.scale) for K, V in ((A.K1, A.V1), (A.K2, A.V2)))
    return Eq(_whole(), define("sum", (A.i, A.c), O1[A.i, A.c] + O2[A.i, A.c]))


@false("left[0, 0] = 1, right[0, 0] = 2", d=1, e=1, m=1, n=1)
def linear_in_the_queries():
    double = define("2Q", (A.i, A.k), 2 * A.Q[A.i, A.k])
    return Eq(_attention(double), define("2O", (A.i, A.c), 2 * _attention()[A.i, A.c]))


@false("left[0, 0] = 0.7310585786, right[0, 0] = 0.2689414214", d=1, e=1, m=2, n=1)
def keys_permuted_without_their_values():
    π = permutation("π", A.j)
    return Eq(_attention(K=define("K'", (A.j, A.k), A.K[π[A.j], A.k]), M=None), _attention(M=None))


@false("left[0, 0] = 0.7310585786, right[0, 0] = 0.5", d=1, e=1, m=2, n=3)
def queries_permuted_without_their_outputs():
    π = permutation("π", A.i)
    return Eq(_attention(define("Q'", (A.i, A.k), A.Q[π[A.i], A.k]), M=None), _attention(M=None))


# Linear maps


@false("left[0, 0] = 1, right[0, 0] = 0.5", d=1, e=1, n=2)
def gradient_weight_is_a_mean():
    dY = tensor("dY", Lin.i, Lin.c)
    mean = Sum(dY[Lin.i, Lin.c] * Lin.X[Lin.i, Lin.k], Lin.i) / Lin.n
    return Eq(vjp(Lin.linear(Lin.X, Lin.W, Lin.b), Lin.W, dY), define("dW", (Lin.c, Lin.k), mean))


@false("left[0] = 1, right[0] = 0.5", d=1, e=1, n=2)
def gradient_bias_is_a_mean():
    dY = tensor("dY", Lin.i, Lin.c)
    mean = Sum(dY[Lin.i, Lin.c], Lin.i) / Lin.n
    return Eq(vjp(Lin.linear(Lin.X, Lin.W, Lin.b), Lin.b, dY), define("db", (Lin.c,), mean))


@false("left[0, 0] = 1, right[0, 0] = 0", d=1, e=1, n=1)
def bias_left_out():
    return Eq(Lin.linear(Lin.X, Lin.W, Lin.b), Lin.linear(Lin.X, Lin.W))


@false("left = 1, right = 0", q=2)
def adjoint_by_the_same_matrix():
    r, s = index("r", dims("q")), index("s", dims("q"))
    W, v, y = tensor("W", r, s), tensor("v", s), tensor("y", r)
    return Eq(Sum(W[r, s] * v[s] * y[r], r, s), Sum(W[s, r] * v[s] * y[r], r, s))


@false("left[0, 1] = 0, right[0, 1] = 1", q=2)
def transpose_in_the_same_order():
    r, s, t = (index(name, dims("q")) for name in "rst")
    first, second = tensor("A", r, t), tensor("B", t, s)
    product = Lin.matmul(first, second)
    return Eq(define("Cᵀ", (s, r), product[r, s]), define("AᵀBᵀ", (s, r), Sum(first[t, s] * second[r, t], t)))


@false("left[0, 0] = 1, right[0, 0] = 0", d1=1, d2=1, m=1, n=1)
def second_block_dropped():
    kk = split(Lin.k, Lin.k1, Lin.k2)
    A1, A2 = tensor("A1", Lin.i, Lin.k1), tensor("A2", Lin.i, Lin.k2)
    B1, B2 = tensor("B1", Lin.k1, Lin.j), tensor("B2", Lin.k2, Lin.j)
    first = concat("A", (Lin.i, kk), A1[Lin.i, Lin.k1], A2[Lin.i, Lin.k2])
    return Eq(Lin.matmul(first, concat("B", (kk, Lin.j), B1[Lin.k1, Lin.j], B2[Lin.k2, Lin.j])), Lin.matmul(A1, B1))


@false("left[0, 0] = -1, right[0, 0] = 1", e=1, m=1, n=1)
def average_divides_by_the_sum_of_its_weights():
    total = Sum(Lin.α[Lin.i, Lin.j], Lin.j)
    average = Lin.weighted_average(Lin.α, Lin.V)
    return Eq(average, define("c'", (Lin.i, Lin.c), average[Lin.i, Lin.c] / total))
