"""Softmax and the log-sum-exp (Bridle 1990; Blanchard, Higham & Higham 2021, "Accurately computing the log-sum-exp").

softmax(x)_j = exp(x_j) / Σ_l exp(x_l)        logsumexp(x) = log Σ_l exp(x_l)

x ∈ ℝⁿˣᵐ: n rows of m logits; everything runs over the last axis.
"""

from lla_spec.calculus import vjp
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import Max, Sum, concat, define, dims, exp, index, log, mask, split, tensor

n, m, m1, m2 = dims("n m m1 m2")
i, j = index("i", n), index("j", m)
l = index("l", m)
j1, j2 = index("j1", m1), index("j2", m2)

x = tensor("x", i, j)
M = mask("M", i, j, argument="")  # which logits take part; 1 everywhere when left out


@formula(rows=i)
def softmax(x, M):
    Z = define("Z", (i,), Sum(M[i, l] * exp(x[i, l]), l))
    return define("P", (i, j), M[i, j] * exp(x[i, j]) / Z[i])


@formula(rows=i)
def logsumexp(x, M):
    return define("L", (i,), log(Sum(M[i, j] * exp(x[i, j]), j)))


@formula(rows=i)
def log_softmax(x):
    L = logsumexp(x)
    return define("y", (i, j), x[i, j] - L[i])


@formula(rows=i, operation=False)
def safe_softmax(x, M):
    peak = define("peak", (i,), Max(x[i, j], j, where=M[i, j]))
    u = define("u", (i, j), M[i, j] * exp(x[i, j] - peak[i]))
    return define("P", (i, j), u[i, j] / Sum(u[i, l], l))


@formula(rows=i, operation=False)
def safe_logsumexp(x, M):
    peak = define("peak", (i,), Max(x[i, j], j, where=M[i, j]))
    return define("L", (i,), peak[i] + log(Sum(M[i, j] * exp(x[i, j] - peak[i]), j)))


@identity
def row_sums():
    """Every row sums to 1. Catches a normalisation over the wrong axis, or by a sum that was rounded."""
    return Eq(Sum(softmax(x, M)[i, j], j), 1)


@identity
def shift():
    """A constant added to a row changes nothing: this is what lets a kernel subtract the row's maximum."""
    c = tensor("c", i)
    return Eq(softmax(define("x'", (i, j), x[i, j] + c[i]), M), softmax(x, M))


@identity(evaluate="left")
def safe():
    """Subtracting the maximum first is the same function. Justifies every stable kernel, and our own oracle."""
    return Eq(safe_softmax(x, M), softmax(x, M))


@identity(evaluate="left")
def safe_lse():
    """logsumexp with the maximum taken out. Catches a maximum that is not added back."""
    return Eq(safe_logsumexp(x, M), logsumexp(x, M))


@identity
def log_of_softmax():
    """log_softmax = log ∘ softmax. Catches a log-sum-exp that is rounded on its way."""
    return Eq(log_softmax(x), define("log P", (i, j), log(softmax(x)[i, j])))


@identity
def exp_of_log_softmax():
    """Σ_j exp(log_softmax(x)_j) = 1."""
    return Eq(Sum(exp(log_softmax(x)[i, j]), j), 1)


@identity
def lse_shift():
    """logsumexp(x + c) = logsumexp(x) + c."""
    c = tensor("c", i)
    return Eq(logsumexp(define("x'", (i, j), x[i, j] + c[i])), define("L+c", (i,), logsumexp(x)[i] + c[i]))


@identity(evaluate="right")
def lse_gradient():
    """The gradient of logsumexp is softmax: dx = dL · P."""
    dL = tensor("dL", i)
    L = logsumexp(x, M)
    return Eq(vjp(L, x, dL), define("dx", (i, j), dL[i] * softmax(x, M)[i, j]))


@identity(evaluate="right")
def softmax_gradient():
    """dx = P ∘ (dP - Σ_l P_l dP_l). Catches the missing centring, and the Jacobian of another axis."""
    dP = tensor("dP", i, j)
    P = softmax(x, M)
    return Eq(vjp(P, x, dP), define("dx", (i, j), P[i, j] * (dP[i, j] - Sum(P[i, l] * dP[i, l], l))))


@identity(evaluate="right")
def log_softmax_gradient():
    """dx = dy - P Σ_l dy_l. Catches a gradient that forgets the weight of the sum."""
    dy = tensor("dy", i, j)
    return Eq(vjp(log_softmax(x), x, dy), define("dx", (i, j), dy[i, j] - softmax(x)[i, j] * Sum(dy[i, l], l)))


@identity
def gradient_sums_to_zero():
    """Σ_j dx_j = 0, since a shift changes nothing."""
    dP = tensor("dP", i, j)
    return Eq(Sum(vjp(softmax(x), x, dP)[i, j], j), 0)


@identity
def lse_merge():
    """Two blocks' log-sum-exps merge into the whole's: the recurrence of online softmax (Milakov & Gimelshein 2018)."""
    jj = split(j, j1, j2)
    x1, x2 = tensor("x1", i, j1), tensor("x2", i, j2)
    L1, L2 = logsumexp(x1), logsumexp(x2)
    whole = logsumexp(concat("x", (i, jj), x1[i, j1], x2[i, j2]))
    return Eq(whole, define("merged", (i,), log(exp(L1[i]) + exp(L2[i]))))


@identity
def additive_mask():
    """Adding log M to the logits is multiplying by M (M > 0): the additive mask of the textbooks."""
    W = tensor("W", i, j, positive=True)
    return Eq(softmax(define("x'", (i, j), x[i, j] + log(W[i, j]))), softmax(x, W))
