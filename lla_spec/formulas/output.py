"""The output layer: a probability for each word (Bridle 1990; Vaswani et al. 2017, §3.4).

output_softmax(h) = softmax(W h + b)

h ∈ ℝⁿˣᵈ one vector for each position    W ∈ ℝᵛˣᵈ, b ∈ ℝᵛ one row for each word
"""

from lla_spec.calculus import vjp
from lla_spec.formulas.linear import linear
from lla_spec.formulas.softmax import softmax
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import Sum, define, dims, index, log, permutation, scalar, tensor

n, v, d = dims("n v d")
i, t, k = index("i", n), index("t", v), index("k", d)
l = index("l", v)

h = tensor("h", i, k)
W = tensor("W", t, k, argument="w_out", batched=False)
b = tensor("b", t, argument="bias", default=0, batched=False)
dP = tensor("dP", i, t)


@formula(rows=i)
def output_softmax(h, W, b):
    return softmax(linear(h, W, b))


@identity
def probabilities():
    """Each position's probabilities sum to 1. Catches a normalisation over the positions."""
    return Eq(Sum(output_softmax(h, W, b)[i, t], t), 1)


@identity
def bias_shift():
    """A constant added to the whole bias changes nothing. Catches a bias that is added after the softmax."""
    c = scalar("c")
    return Eq(output_softmax(h, W, define("b'", (t,), b[t] + c)), output_softmax(h, W, b))


@identity
def common_row():
    """One vector added to every row of W changes nothing. Catches a normalisation over the positions."""
    u = tensor("u", k)
    return Eq(output_softmax(h, define("W'", (t, k), W[t, k] + u[k]), b), output_softmax(h, W, b))


@identity
def renamed_words():
    """Words may be renumbered: P follows the rows of W and b. Catches a tail of the vocabulary that is left out."""
    π = permutation("π", t)
    P = output_softmax(h, W, b)
    permuted = output_softmax(h, define("W'", (t, k), W[π[t], k]), define("b'", (t,), b[π[t]]))
    return Eq(permuted, define("P'", (i, t), P[i, π[t]]))


@identity
def temperature():
    """W/τ and b/τ give softmax(log P / τ): P to the power 1/τ, normalised. Catches z·τ, and a bias left undivided."""
    τ = scalar("τ", positive=True)
    P = output_softmax(h, W, b)
    cooled = output_softmax(h, define("W'", (t, k), W[t, k] / τ), define("b'", (t,), b[t] / τ))
    return Eq(cooled, softmax(define("log P/τ", (i, t), log(P[i, t]) / τ)))


@identity
def log_odds():
    """log P_t - log P_l = ⟨W_t - W_l, h⟩ + b_t - b_l. Catches logits that are clipped or squashed on their way."""
    P = output_softmax(h, W, b)
    odds = Sum((W[t, k] - W[l, k]) * h[i, k], k) + b[t] - b[l]
    return Eq(log(P[i, t]) - log(P[i, l]), define("z_t-z_l", (i, t, l), odds))


@identity
def factored_weight():
    """W = A B is a narrower layer B first (Lan et al. 2020, §3.1). Catches a factor taken transposed."""
    r = index("r", dims("r"))
    A, B = tensor("A", t, r), tensor("B", r, k, argument="weight", batched=False)
    product = define("AB", (t, k), Sum(A[t, r] * B[r, k], r))
    return Eq(output_softmax(h, product, b), output_softmax(linear(h, B), A, b))


def logit_gradient(P, dP):
    """dz = P ∘ (dP - Σ_t P_t dP_t), softmax's own gradient."""
    return define("dz", (i, t), P[i, t] * (dP[i, t] - Sum(P[i, l] * dP[i, l], l)))


@identity
def gradient_hidden():
    """dh = dz W. Catches a weight that is transposed in the backward pass."""
    P = output_softmax(h, W, b)
    dz = logit_gradient(P, dP)
    return Eq(vjp(P, h, dP), define("dh", (i, k), Sum(dz[i, t] * W[t, k], t)))


@identity
def gradient_weight():
    """dW = dzᵀ h, summed over the positions. Catches partial sums that were kept in 16 bits."""
    P = output_softmax(h, W, b)
    dz = logit_gradient(P, dP)
    return Eq(vjp(P, W, dP), define("dW", (t, k), Sum(dz[i, t] * h[i, k], i)))


@identity
def gradient_bias():
    """db = Σ_i dz_i. Catches a mean over the positions, or the last one only."""
    P = output_softmax(h, W, b)
    dz = logit_gradient(P, dP)
    return Eq(vjp(P, b, dP), define("db", (t,), Sum(dz[i, t], i)))
