"""Attention in several heads (Vaswani et al. 2017, §3.2.2; Ainslie et al. 2023 for grouped queries).

multi_head(x) = [head_1 … head_h] W_oᵀ + b_o,  head_p = Attention(x W_q,pᵀ, x W_k,gᵀ, x W_v,gᵀ),  g the group of head p

A head p = (g, r) is counted by its group g and its place r there; the heads of a group look at the same keys and values.
In torch both are one axis, row-major: with r heads in each group, head p belongs to group p // r.

Q ∈ ℝᵍˣʳˣⁿˣᵈ, K ∈ ℝᵍˣᵐˣᵈ, V ∈ ℝᵍˣᵐˣᵉ    x ∈ ℝⁿˣᵏ, W_q ∈ ℝᵍˣʳˣᵃˣᵏ, W_k ∈ ℝᵍˣᵃˣᵏ, W_v ∈ ℝᵍˣᵉˣᵏ, W_o ∈ ℝᵒˣᵍˣʳˣᵉ
"""

from lla_spec.calculus import vjp
from lla_spec.formulas.attention import attention
from lla_spec.formulas.linear import linear
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import Sum, define, dims, index, live, mask, merge, product, scalar, sqrt, tensor

G, R, N, m, d, e, D, A, O = dims("g r n m d e k a o")
g, r, i, j, k, c = index("g", G), index("r", R), index("i", N), index("j", m), index("k", d), index("c", e)
l, a, o, i2 = index("l", D), index("a", A), index("o", O), index("i2", N)

Q, K, V = tensor("Q", g, r, i, k), tensor("K", g, j, k), tensor("V", g, j, c)
M = mask("M", g, r, i, j, causal=True)
scale = scalar("scale", default=1 / sqrt(d))

x = tensor("x", i, l)
W_q, W_k = tensor("W_q", g, r, a, l, batched=False), tensor("W_k", g, a, l, batched=False)
W_v, W_o = tensor("W_v", g, c, l, batched=False), tensor("W_o", o, g, r, c, batched=False)
b_q = tensor("b_q", g, r, a, default=0, batched=False)
b_k, b_v = tensor("b_k", g, a, default=0, batched=False), tensor("b_v", g, c, default=0, batched=False)
b_o = tensor("b_o", o, default=0, batched=False)
L = mask("L", i, i2, causal=True, keyword=True)
seen = live("seen", i)  # a query that looks at nothing has zeros for its heads, so that its output is b_o


@formula(merge=(g, r))
def grouped_query_attention(Q, K, V, M, scale):
    return attention(Q, K, V, M, scale)


@formula(merge=(g, r, a, c), counts={"num_heads": (g, r), "num_kv_heads": (g,)})
def multi_head_attention(x, W_q, W_k, W_v, W_o, b_q, b_k, b_v, b_o, L, seen):
    Q, K, V = linear(x, W_q, b_q).named("Q"), linear(x, W_k, b_k).named("K"), linear(x, W_v, b_v).named("V")
    heads = attention(Q, K, V, L)
    return define("y", (i, o), Sum(W_o[o, g, r, c] * seen[i] * heads[g, r, i, c], g, r, c) + b_o[o])


head = product(index("h", dims("h")), g, r)  # the heads as torch counts them, place fastest
whole = product(index("q", dims("hc")), g, r, c)  # head by head, their features side by side
dO = tensor("dO", g, r, i, c)


def repeated(name, keys, *axes):
    """Each group's keys, once for every head of the group (repeat_interleave, not tile)."""
    return merge(name, (head, *axes), keys)


@identity
def groups_are_repeated_keys():
    """Grouped queries are plain heads on keys and values that are repeated r times. Catches heads that are tiled."""
    heads = merge("Q'", (head, i, k), Q[g, r, i, k])
    plain = attention(heads, repeated("K'", K[g, j, k], j, k), repeated("V'", V[g, j, c], j, c))
    return Eq(merge("O'", (head, i, c), grouped_query_attention(Q, K, V)[g, r, i, c]), plain)


def score_gradient(O, dO):
    """dS = P ∘ (dP - D) of every head."""
    dP = define("dP", (g, r, i, j), Sum(dO[g, r, i, c] * V[g, j, c], c))
    D = define("D", (g, r, i), Sum(dO[g, r, i, c] * O[g, r, i, c], c))
    return define("dS", (g, r, i, j), O.part("P")[g, r, i, j] * (dP[g, r, i, j] - D[g, r, i]))


@identity
def group_gradient_key():
    """dK_g adds up over the heads of the group. Catches the gradient of one head, and their mean."""
    O = grouped_query_attention(Q, K, V, M, scale)
    dS = score_gradient(O, dO)
    return Eq(vjp(O, K, dO), define("dK", (g, j, k), scale * Sum(dS[g, r, i, j] * Q[g, r, i, k], r, i)))


@identity
def group_gradient_value():
    """dV_g = Σ_r Pᵀ dO. Catches values whose gradient forgets the other heads of the group."""
    O = grouped_query_attention(Q, K, V, M, scale)
    return Eq(vjp(O, V, dO), define("dV", (g, j, c), Sum(O.part("P")[g, r, i, j] * dO[g, r, i, c], r, i)))


@identity
def heads_side_by_side():
    """multi_head = (the heads' outputs, concatenated) W_oᵀ + b_o. Catches heads that are joined in another order."""
    O = grouped_query_attention(linear(x, W_q, b_q), linear(x, W_k, b_k), linear(x, W_v, b_v), scale=1 / sqrt(A))
    joined = merge("H", (i, whole), O[g, r, i, c])
    return Eq(
        multi_head_attention(x, W_q, W_k, W_v, W_o, b_q, b_k, b_v, b_o),
        linear(joined, merge("W'", (o, whole), W_o[o, g, r, c]), b_o),
    )
