"""Word and sentence vectors (Bengio et al. 2003, §2; Collobert et al. 2011).

embedding(t) = row t of E        mean_pool(x) = Σ_i M_i x_i / Σ_i M_i

T ∈ {0,1}ⁿˣᵛ: row i has its 1 at the i-th token    E ∈ ℝᵛˣᵈ one vector for each word    x ∈ ℝⁿˣᵈ the tokens of a sentence
"""

from lla_spec.calculus import vjp
from lla_spec.formulas.linear import linear, matmul, weighted_average
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import Sum, choice, concat, define, dims, index, mask, permutation, split, tensor

n, v, d, n1, n2 = dims("n v d n1 n2")
i, t, k = index("i", n), index("t", v), index("k", d)
i1, i2 = index("i1", n1), index("i2", n2)

T = choice("T", i, t, argument="ids")
E = tensor("E", t, k, argument="weight", batched=False)
x = tensor("x", i, k)
M = mask("M", i)


@formula(rows=i)
def embedding(T, E):
    return define("Y", (i, k), Sum(T[i, t] * E[t, k], t))


@formula
def mean_pool(x, M):
    kept = define("kept", (), Sum(M[i], i))
    return define("y", (k,), Sum(M[i] * x[i, k], i) / kept)


@identity
def one_hot_product():
    """Looking a row up is multiplying by a one-hot matrix. Catches a row read from the wrong place."""
    return Eq(embedding(T, E), matmul(T, E))


@identity
def gradient_is_a_scatter_add():
    """dE_t = Σ over the tokens t of their cotangents, each as often as it occurs. Catches a gradient that overwrites."""
    dY = tensor("dY", i, k)
    return Eq(vjp(embedding(T, E), E, dY), define("dE", (t, k), Sum(T[i, t] * dY[i, k], i)))


@identity
def renamed_words():
    """Words may be renumbered, if the rows of E are. Catches an offset in the ids, and a padding row held at zero."""
    π = permutation("π", t)
    return Eq(embedding(define("T'", (i, t), T[i, π[t]]), define("E'", (t, k), E[π[t], k])), embedding(T, E))


@identity
def sum_of_tables():
    """Looking up is linear in the table: an adapter's E + F may be merged. Catches rows that are normalised."""
    F = tensor("F", t, k, argument="weight", batched=False)
    both = embedding(T, define("E+F", (t, k), E[t, k] + F[t, k]))
    return Eq(both, define("Y'", (i, k), embedding(T, E)[i, k] + embedding(T, F)[i, k]))


@identity(corollary_of="embedding.gradient_is_a_scatter_add")
def gradient_counts():
    """Equal cotangents arrive as often as the word occurs. Catches duplicates that are dropped, and a sum that stagnates."""
    u = tensor("u", k)
    count = define("count", (t,), Sum(T[i, t], i))
    dE = vjp(embedding(T, E), E, define("dY", (i, k), u[k]))
    return Eq(dE, define("dE'", (t, k), count[t] * u[k]))


@identity
def bag_of_words():
    """Pooled word vectors are the counts times E, over n: the order of the words is gone. Catches a sum for the mean."""
    count = define("count", (t,), Sum(T[i, t], i))
    return Eq(mean_pool(embedding(T, E)), define("y'", (k,), Sum(count[t] * E[t, k], t) / n))


@identity
def pooling_is_a_weighted_average():
    """The sentence vector is the average with weights M / ΣM. Catches a division by n where tokens are hidden."""
    o = index("o", dims("o"))
    α = define("α", (o, i), M[i] / Sum(M[i], i))
    return Eq(define("y'", (o, k), mean_pool(x, M)[k]), weighted_average(α, x))


@identity
def pooling_commutes_with_linear():
    """Averages of W x + b are W of the average, + b. Catches weights that do not sum to 1: the bias shows them."""
    c = index("c", dims("e"))
    W = tensor("W", c, k, argument="weight", batched=False)
    b = tensor("b", c, argument="bias", batched=False)
    pooled = mean_pool(x, M)
    return Eq(mean_pool(linear(x, W, b), M), define("Wy+b", (c,), Sum(W[c, k] * pooled[k], k) + b[c]))


@identity
def shuffled_tokens():
    """Pooling knows no order. Catches a last block of tokens that is dropped."""
    π = permutation("π", i)
    return Eq(mean_pool(define("x'", (i, k), x[π[i], k])), mean_pool(x))


@identity
def hidden_tokens_do_not_count():
    """What the mask hides is not there: pooling with it is pooling the rest. Catches 0 · NaN and a count of all."""
    ii = split(i, i1, i2)
    x1, x2 = tensor("x1", i1, k), tensor("x2", i2, k)
    return Eq(mean_pool(concat("x", (ii, k), x1[i1, k], x2[i2, k]), concat("M", (ii,), 1, 0)), mean_pool(x1))


@identity
def pooled_gradient():
    """dx_i = M_i dy / ΣM. Catches a gradient that hidden tokens receive, and one divided by n."""
    dy = tensor("dy", k)
    return Eq(vjp(mean_pool(x, M), x, dy), define("dx", (i, k), M[i] * dy[k] / Sum(M[i], i)))
