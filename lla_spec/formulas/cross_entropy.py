"""The loss of next-word prediction (Goodfellow, Bengio & Courville 2016, §6.2.2.2).

cross_entropy(z) = (1/N) Σ_i (log Σ_t exp z_it - z_i,target(i)), over the N positions that have a target

z ∈ ℝⁿˣᵛ logits    T ∈ {0,1}ⁿˣᵛ: row i has its 1 at the target of position i, and is 0 where it has none
"""

from lla_spec.calculus import vjp
from lla_spec.formulas.linear import linear
from lla_spec.formulas.output import output_softmax
from lla_spec.formulas.softmax import log_softmax, logsumexp, softmax
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import Sum, choice, concat, define, dims, exp, index, log, permutation, scalar, split, tensor

n, v, d, n1, n2, v1, v2 = dims("n v d n1 n2 v1 v2")
i, t, k = index("i", n), index("t", v), index("k", d)
l = index("l", v)
i1, i2, t1, t2 = index("i1", n1), index("i2", n2), index("t1", v1), index("t2", v2)

z = tensor("z", i, t, argument="logits")
T = choice("T", i, t, argument="targets", ignored="ignore_index")
h = tensor("h", i, k)
W = tensor("W", t, k, argument="w_out", batched=False)
b = tensor("b", t, argument="bias", default=0, batched=False)
g = scalar("g")  # the cotangent of a loss

ii, tt = split(i, i1, i2), split(t, t1, t2)  # two batches of positions; two chunks of the vocabulary
z1, z2 = tensor("z1", i1, t), tensor("z2", i2, t)
T1, T2 = choice("T1", i1, t, argument="targets"), choice("T2", i2, t, argument="targets")
z_whole = concat("z", (ii, t), z1[i1, t], z2[i2, t])


def position_loss(z, T):
    """ℓ_i = log Σ_t exp z_it - z_i,target(i), and 0 where there is no target."""
    L = logsumexp(z)
    return define("ℓ", (i,), Sum(T[i, t] * (L[i] - z[i, t]), t))


def mean_over_targets(losses, T):
    return define("mean", (), Sum(losses[i], i) / Sum(T[i, t], i, t))


@formula(rows=i, keywords={"reduction": "mean"})
def cross_entropy(z, T):
    return mean_over_targets(position_loss(z, T), T)


@formula(rows=i, called="cross_entropy", keywords={"reduction": "sum"})
def cross_entropy_sum(z, T):
    losses = position_loss(z, T)
    return define("sum", (), Sum(losses[i], i))


@formula(rows=i, called="cross_entropy", keywords={"reduction": "none"})
def cross_entropy_none(z, T):
    return position_loss(z, T)


@formula(rows=i, keywords={"reduction": "mean"})
def linear_cross_entropy(h, W, T, b):
    return mean_over_targets(position_loss(linear(h, W, b), T), T)


def positions(T):
    """N, how many positions have a target."""
    return Sum(T.entry, *T.axes)


# ---- the loss


@identity
def negative_log_probability():
    """ℓ_i = -log softmax(z_i) at the target. Catches a loss of the wrong class, and a log-sum-exp rounded on its way."""
    logP = log_softmax(z)
    return Eq(cross_entropy_none(z, T), define("-log P", (i,), -Sum(T[i, t] * logP[i, t], t)))


@identity
def mean_over_the_kept():
    """mean = sum / N, N the positions with a target. Catches a division by all n."""
    return Eq(cross_entropy(z, T), cross_entropy_sum(z, T) / positions(T))


@identity
def sum_of_the_losses():
    """sum = Σ_i ℓ_i. Catches partial sums that were rounded, and a last block that is left out."""
    return Eq(cross_entropy_sum(z, T), Sum(cross_entropy_none(z, T)[i], i))


@identity
def logit_shift():
    """A constant added to a row's logits changes nothing: a kernel may subtract the maximum, if z_target loses it too."""
    c = tensor("c", i)
    return Eq(cross_entropy_none(define("z'", (i, t), z[i, t] + c[i]), T), cross_entropy_none(z, T))


@identity
def equal_logits():
    """Equal logits cost log v: the loss before training. Catches a padded vocabulary that is counted."""
    c = tensor("c", i)
    uniform = define("ℓ'", (i,), Sum(T[i, t] * log(v), t))
    return Eq(cross_entropy_none(define("z'", (i, t), c[i]), T), uniform)


@identity
def renamed_words():
    """Words may be renumbered, logits and targets alike. Catches a target index that a chunk's start shifts."""
    π = permutation("π", t)
    renamed = cross_entropy_none(define("z'", (i, t), z[i, π[t]]), define("T'", (i, t), T[i, π[t]]))
    return Eq(renamed, cross_entropy_none(z, T))


@identity
def chunked_vocabulary():
    """Chunks of the vocabulary merge by their log-sum-exps; z_target lies in one of them (Wijmans et al. 2024, §4)."""
    x1, x2 = tensor("x1", i, t1), tensor("x2", i, t2)
    C1 = choice("C1", i, t1, argument="targets")
    whole = cross_entropy_none(concat("z", (i, tt), x1[i, t1], x2[i, t2]), concat("T", (i, tt), C1[i, t1], 0))
    L = log(exp(logsumexp(x1)[i]) + exp(logsumexp(x2)[i]))
    return Eq(whole, define("ℓ'", (i,), Sum(C1[i, t1] * (L - x1[i, t1]), t1)))


@identity
def ignored_positions_do_not_count():
    """What has no target is not there: the loss is that of the rest. Catches N = n, and a NaN · 0 on padding."""
    return Eq(cross_entropy(z_whole, concat("T", (ii, t), T1[i1, t], 0)), cross_entropy(z1, T1))


@identity
def two_batches_add():
    """The sums over two batches add up. Catches state that is kept between blocks of rows."""
    whole = cross_entropy_sum(z_whole, concat("T", (ii, t), T1[i1, t], T2[i2, t]))
    return Eq(whole, cross_entropy_sum(z1, T1) + cross_entropy_sum(z2, T2))


@identity
def gradient_accumulation():
    """Means over two batches are weighted by their N. Catches the plain average over unequal micro-batches."""
    N1, N2 = positions(T1), positions(T2)
    whole = cross_entropy(z_whole, concat("T", (ii, t), T1[i1, t], T2[i2, t]))
    return Eq(whole, (N1 * cross_entropy(z1, T1) + N2 * cross_entropy(z2, T2)) / (N1 + N2))


# ---- its gradient


def logit_gradient(P, T):
    """P - T where there is a target, 0 where there is none."""
    return define("dz", (i, t), Sum(T[i, l], l) * P[i, t] - T[i, t])


@identity
def gradient_of_each():
    """dz_i = G_i (P_i - onehot), and 0 without a target. Catches a target's -1 that is forgotten or put elsewhere."""
    G, dz = tensor("G", i), logit_gradient(softmax(z), T)
    return Eq(vjp(cross_entropy_none(z, T), z, G), define("G dz", (i, t), G[i] * dz[i, t]))


@identity
def gradient_of_the_sum():
    """dz = P - onehot, times the cotangent. Catches a gradient that ignores what flows in from above."""
    dz = logit_gradient(softmax(z), T)
    return Eq(vjp(cross_entropy_sum(z, T), z, g), define("dz'", (i, t), g * dz[i, t]))


@identity
def gradient_of_the_mean():
    """dz = (P - onehot) / N, N the positions with a target. Catches the missing 1/N, and 1/n for 1/N."""
    dz = logit_gradient(softmax(z), T)
    return Eq(vjp(cross_entropy(z, T), z, g), define("dz'", (i, t), g * dz[i, t] / positions(T)))


@identity
def gradient_sums_to_zero():
    """Σ_t dz_it = 0, since a shift changes nothing. Catches a P that does not sum to 1 where it is recomputed."""
    return Eq(Sum(vjp(cross_entropy_sum(z, T), z, g)[i, t], t), 0)


@identity
def ignored_positions_send_nothing():
    """dz is exactly 0 where there is no target, and elsewhere that of the rest. Catches P / N on padding."""
    dz = vjp(cross_entropy(z_whole, concat("T", (ii, t), T1[i1, t], 0)), z_whole, g)
    return Eq(dz, concat("dz", (ii, t), vjp(cross_entropy(z1, T1), z1, g)[i1, t], 0))


# ---- the loss of the output layer


@identity
def loss_of_the_logits():
    """linear_cross_entropy = cross_entropy ∘ linear: what a fused kernel must equal without the logits in memory."""
    return Eq(linear_cross_entropy(h, W, T, b), cross_entropy(linear(h, W, b), T))


@identity
def bias_shift():
    """A constant added to the whole bias changes nothing. Catches a bias that a chunk does not add."""
    c = scalar("c")
    return Eq(linear_cross_entropy(h, W, T, define("b'", (t,), b[t] + c)), linear_cross_entropy(h, W, T, b))


@identity
def gradient_hidden():
    """dh = dz W / N. Catches a gradient summed over one chunk of the vocabulary only."""
    dz = logit_gradient(output_softmax(h, W, b), T)
    dh = g * Sum(dz[i, t] * W[t, k], t) / positions(T)
    return Eq(vjp(linear_cross_entropy(h, W, T, b), h, g), define("dh", (i, k), dh))


@identity
def gradient_weight():
    """dW = dzᵀ h / N, summed over the positions. Catches partial sums in 16 bits, and ignored positions let in."""
    dz = logit_gradient(output_softmax(h, W, b), T)
    dW = g * Sum(dz[i, t] * h[i, k], i) / positions(T)
    return Eq(vjp(linear_cross_entropy(h, W, T, b), W, g), define("dW", (t, k), dW))


@identity
def gradient_bias():
    """db = Σ_i dz_i / N. Catches a mean over all n, and a bias without a gradient."""
    dz = logit_gradient(output_softmax(h, W, b), T)
    db = g * Sum(dz[i, t], i) / positions(T)
    return Eq(vjp(linear_cross_entropy(h, W, T, b), b, g), define("db", (t,), db))
