"""The chain rule, layer by layer (Baur & Strassen 1983; Griewank & Walther 2008, §3.2): backpropagation is right.

(f ∘ g)ᵛʲᵖ = gᵛʲᵖ ∘ fᵛʲᵖ        what is used twice receives the sum        what is shared by rows sums over them

Each left side differentiates a composition; each right side calls the layers' own VJPs in turn, as autograd does.
x, h ∈ ℝⁿˣᵈ tokens    W ∈ ℝᵛˣᵈ, b ∈ ℝᵛ    E ∈ ℝᵛˣᵈ    T targets, ids as in embedding and cross_entropy
"""

from lla_spec.calculus import vjp
from lla_spec.formulas.attention import attention
from lla_spec.formulas.cross_entropy import cross_entropy
from lla_spec.formulas.embedding import embedding, mean_pool
from lla_spec.formulas.linear import linear
from lla_spec.formulas.normalization import layer_norm, rms_norm
from lla_spec.formulas.softmax import softmax
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import Sum, choice, concat, define, dims, exp, index, log, scalar, split, sqrt, tensor

n, v, d, e, r, n1, n2 = dims("n v d e r n1 n2")
i, t, k, c, a = index("i", n), index("t", v), index("k", d), index("c", e), index("a", r)
j, l = index("j", n), index("l", v)
i1, i2 = index("i1", n1), index("i2", n2)
ii = split(i, i1, i2)  # two batches of rows

x, h = tensor("x", i, k), tensor("h", i, k)
γ = tensor("γ", k, argument="weight", default=1, batched=False)
β = tensor("β", k, argument="bias", default=0, batched=False)
eps = scalar("eps", positive=True)
W = tensor("W", t, k, argument="w_out", batched=False)
b = tensor("b", t, argument="bias", default=0, batched=False)
E = tensor("E", t, k, argument="weight", batched=False)
T = choice("T", i, t, argument="targets", ignored="ignore_index")
ids = choice("ids", i, t, argument="ids")

dH, dP, g = tensor("dH", i, k), tensor("dP", i, t), scalar("g")
p, q, scale = scalar("p"), scalar("q"), scalar("scale")  # two real factors, and attention's


# ---- compositions written out in one expression, whose derivative knows no layers


@formula(rows=i, operation=False)
def probabilities_at_once(h, W, b):
    Z = Sum(exp(Sum(W[l, k] * h[i, k], k) + b[l]), l)
    return define("P", (i, t), exp(Sum(W[t, k] * h[i, k], k) + b[t]) / Z)


@formula(rows=i, operation=False)
def loss_at_once(h, W, T, b):
    L = log(Sum(exp(Sum(W[l, k] * h[i, k], k) + b[l]), l))
    loss = Sum(T[i, t] * (L - Sum(W[t, k] * h[i, k], k) - b[t]), t)
    return define("mean", (), Sum(loss, i) / Sum(T[i, t], i, t))


@formula(rows=i, operation=False)
def normalised_logits_at_once(x, eps, W):
    r = Sum(x[i, k] ** 2, k) / d
    return define("z", (i, t), Sum(W[t, k] * x[i, k] / sqrt(r + eps), k))


@formula(operation=False)
def residual_attention(h):
    """h + Attention(h), the sublayer of a block with queries, keys and values h."""
    s = attention(h, h, h)
    return define("H", (i, k), h[i, k] + s[i, k])


# ---- (f ∘ g)ᵛʲᵖ = gᵛʲᵖ ∘ fᵛʲᵖ


@identity
def softmax_after_linear():
    """The output layer's dh is softmax's VJP, then linear's. Catches a layer whose VJP is taken at the wrong point."""
    logits = linear(h, W, b)
    layered = vjp(logits, h, vjp(softmax(logits), logits, dP))
    return Eq(layered, vjp(probabilities_at_once(h, W, b), h, dP))


@identity
def loss_after_linear():
    """The loss's dW is cross-entropy's VJP, then linear's: what a fused kernel must give. Catches a doubled 1/N."""
    logits = linear(h, W, b)
    layered = vjp(logits, W, vjp(cross_entropy(logits, T), logits, g))
    return Eq(layered, vjp(loss_at_once(h, W, T, b), W, g))


@identity
def linear_after_linear():
    """dX = (dY W₂) W₁: the last layer first. Catches the layers' VJPs in forward order, and W for Wᵀ."""
    W1, W2 = tensor("W1", a, k, argument="weight", batched=False), tensor("W2", c, a, argument="weight", batched=False)
    dY = tensor("dY", i, c)
    hidden = linear(x, W1)
    product = define("W₂W₁", (c, k), Sum(W2[c, a] * W1[a, k], a))
    return Eq(vjp(hidden, x, vjp(linear(hidden, W2), hidden, dY)), vjp(linear(x, product), x, dY))


@identity
def linear_after_rms_norm():
    """dx is linear's VJP, then RMSNorm's. Catches a normalisation that backward leaves out.

    With loss_after_linear it derives the output head, loss ∘ linear ∘ RMSNorm, and with normalization's
    rms_of_the_centred_row the head of a LayerNorm.
    """
    y = rms_norm(x, None, eps)
    layered = vjp(y, x, vjp(linear(y, W), y, dP))
    return Eq(layered, vjp(normalised_logits_at_once(x, eps, W), x, dP))


@identity
def pooled_word_gradient():
    """dE of a bag of words: each word's count times dy / n. Catches a pooled gradient that reaches a word once only."""
    dy_pooled = tensor("dy", k)
    pooled = mean_pool(embedding(ids, E))
    count = define("count", (t,), Sum(ids[i, t], i))
    return Eq(vjp(pooled, E, dy_pooled), define("dE", (t, k), count[t] * dy_pooled[k] / n))


# ---- what is used twice receives the sum


@identity
def self_attention_residual():
    """dh = dH + dQ + dK + dV: h reaches h + Attention(h) by four ways. Catches a branch left out, or counted twice.

    With normalization.residual_gradient_splits before it, it derives the block LN(h + Attention(h)).
    """
    Q, K, V = define("Q", (i, k), h[i, k]), define("K", (j, k), h[j, k]), define("V", (j, k), h[j, k])
    s = attention(Q, K, V)
    dQ, dK, dV = (vjp(s, argument, dH) for argument in (Q, K, V))
    dh = define("dh", (i, k), dH[i, k] + dQ[i, k] + dK[i, k] + dV[i, k])
    return Eq(dh, vjp(residual_attention(h), h, dH))


@identity
def tied_weights():
    """Where W is E, dE is the sum of both layers' gradients (Press & Wolf 2017). Catches one that overwrites the other."""
    F = define("F", (t, k), E[t, k])
    h0, dZ = embedding(ids, E), tensor("dZ", i, t)
    outer = vjp(linear(h0, F), F, dZ)
    inner = vjp(h0, E, vjp(linear(h0, F), h0, dZ))
    return Eq(vjp(linear(h0, E), E, dZ), define("dE", (t, k), outer[t, k] + inner[t, k]))


# ---- linear in the cotangent, symmetric, summed over rows


@identity
def softmax_is_linear_in_the_cotangent():
    """vjp(pu + qw) = p vjp(u) + q vjp(w). Catches a gradient that is clipped, or scaled twice."""
    z, u, w = tensor("z", i, t), tensor("u", i, t), tensor("w", i, t)
    P = softmax(z)
    parts = p * vjp(P, z, u)[i, t] + q * vjp(P, z, w)[i, t]
    return Eq(vjp(P, z, define("pu+qw", (i, t), p * u[i, t] + q * w[i, t])), define("sum", (i, t), parts))


@identity
def layer_norm_is_additive_in_the_cotangent():
    """vjp(u + w) = vjp(u) + vjp(w). Catches statistics of the cotangent where those of x belong."""
    u, w = tensor("u", i, k), tensor("w", i, k)
    y = layer_norm(x, None, None, eps)
    both = vjp(y, x, define("u+w", (i, k), u[i, k] + w[i, k]))
    return Eq(both, define("sum", (i, k), vjp(y, x, u)[i, k] + vjp(y, x, w)[i, k]))


@identity
def attention_is_additive_in_the_cotangent():
    """vjp(u + w) = vjp(u) + vjp(w). Catches a saved D = Σ dO∘O of another call."""
    s = index("s", dims("m"))
    Q, K, V = tensor("Q", i, k), tensor("K", s, k), tensor("V", s, c)
    u, w = tensor("u", i, c), tensor("w", i, c)
    O = attention(Q, K, V, None, scale)
    both = vjp(O, Q, define("u+w", (i, c), u[i, c] + w[i, c]))
    return Eq(both, define("sum", (i, k), vjp(O, Q, u)[i, k] + vjp(O, Q, w)[i, k]))


@identity
def softmax_jacobian_is_symmetric():
    """⟨vjp(u), w⟩ = ⟨u, vjp(w)⟩, row by row. Catches a Jacobian that is transposed or not centred."""
    z, u, w = tensor("z", i, t), tensor("u", i, t), tensor("w", i, t)
    P = softmax(z)
    return Eq(Sum(vjp(P, z, u)[i, t] * w[i, t], t), Sum(u[i, t] * vjp(P, z, w)[i, t], t))


def in_two_batches(name, *axes):
    """A tensor over the rows of two batches: its parts, and the whole."""
    one, two = tensor(f"{name}1", i1, *axes), tensor(f"{name}2", i2, *axes)
    return one, two, concat(name, (ii, *axes), one[(i1, *axes)], two[(i2, *axes)])


@identity
def linear_weight_sums_over_batches():
    """dW of two batches is the sum of both. Catches the gradient of the last block of rows, and their mean."""
    M = tensor("M", c, k, argument="weight", batched=False)
    (x1, x2, both), (y1, y2, dY) = in_two_batches("x", k), in_two_batches("dY", c)
    parts = [vjp(linear(part, M), M, cotangent) for part, cotangent in ((x1, y1), (x2, y2))]
    return Eq(vjp(linear(both, M), M, dY), define("sum", (c, k), parts[0][c, k] + parts[1][c, k]))


@identity
def embedding_sums_over_batches():
    """dE of two batches is the sum of both, where both read one word as well. Catches += that became =."""
    (y1, y2, dY) = in_two_batches("dY", k)
    ids1, ids2 = choice("ids1", i1, t, argument="ids"), choice("ids2", i2, t, argument="ids")
    both = concat("ids", (ii, t), ids1[i1, t], ids2[i2, t])
    parts = [vjp(embedding(part, E), E, cotangent) for part, cotangent in ((ids1, y1), (ids2, y2))]
    return Eq(vjp(embedding(both, E), E, dY), define("sum", (t, k), parts[0][t, k] + parts[1][t, k]))
