"""Linear maps: products, affine layers, weighted averages (Goodfellow, Bengio & Courville 2016, §2.2, §6.5).

matmul(A, B) = A B        linear(X) = X Wᵀ + b        weighted_average(α, V)_i = Σ_j α_ij v_j

A ∈ ℝⁿˣᵏ, B ∈ ℝᵏˣᵐ    X ∈ ℝⁿˣᵈ rows of features, W ∈ ℝᵉˣᵈ, b ∈ ℝᵉ    α ∈ ℝⁿˣᵐ, V ∈ ℝᵐˣᵉ
"""

from lla_spec.calculus import vjp
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import Sum, concat, define, dims, index, split, tensor

n, m, d, e, p, d1, d2 = dims("n m d e p d1 d2")
i, j, k, c, t = index("i", n), index("j", m), index("k", d), index("c", e), index("t", p)
k1, k2 = index("k1", d1), index("k2", d2)
i1, i2 = index("i1", dims("n1")), index("i2", dims("n2"))

A, B = tensor("A", i, k), tensor("B", k, j)
X = tensor("X", i, k)
W = tensor("W", c, k, argument="weight", batched=False)
b = tensor("b", c, argument="bias", default=0, batched=False)
α = tensor("α", i, j, argument="weights")
V = tensor("V", j, c)


@formula
def matmul(A, B):
    return define("C", (i, j), Sum(A[i, k] * B[k, j], k))


@formula(rows=i)
def linear(X, W, b):
    return define("Y", (i, c), Sum(W[c, k] * X[i, k], k) + b[c])


@formula
def weighted_average(α, V):
    return define("c", (i, c), Sum(α[i, j] * V[j, c], j))


@identity
def matmul_matrix_form():
    """The entries above are the textbook's A B."""
    return Eq(matmul(A, B), A.matrix * B.matrix)


@identity
def linear_matrix_form():
    """Without a bias, X Wᵀ. Catches a weight that is stored the other way round."""
    return Eq(linear(X, W), X.matrix * W.matrix.T)


@identity
def associativity():
    """(A B) C = A (B C): the order in which a chain is multiplied is free."""
    C = tensor("C", j, t)
    return Eq(matmul(matmul(A, B), C), matmul(A, matmul(B, C)))


@identity
def block_product():
    """[A₁ A₂] [B₁; B₂] = A₁B₁ + A₂B₂: what every tiled kernel computes. Catches a dropped or doubled block."""
    kk = split(k, k1, k2)
    A1, A2, B1, B2 = tensor("A1", i, k1), tensor("A2", i, k2), tensor("B1", k1, j), tensor("B2", k2, j)
    whole = matmul(concat("A", (i, kk), A1[i, k1], A2[i, k2]), concat("B", (kk, j), B1[k1, j], B2[k2, j]))
    return Eq(whole, define("sum", (i, j), matmul(A1, B1)[i, j] + matmul(A2, B2)[i, j]))


@identity
def transpose():
    """(A B)ᵀ = Bᵀ Aᵀ. Catches an operand that is read with the wrong layout."""
    At, Bt = define("Aᵀ", (k, i), A[i, k]), define("Bᵀ", (j, k), B[k, j])
    return Eq(define("Cᵀ", (j, i), matmul(A, B)[i, j]), matmul(Bt, At))


@identity
def adjoint():
    """⟨Wx, y⟩ = ⟨x, Wᵀy⟩. Catches a backward pass that multiplies by W where it needs Wᵀ."""
    y = tensor("y", i, c)
    back = linear(y, define("Wᵀ", (k, c), W[c, k]))
    return Eq(Sum(linear(X, W)[i, c] * y[i, c], c), Sum(X[i, k] * back[i, k], k))


@identity
def low_rank_update():
    """(W + B A) x = W x + B (A x): an adapter of rank r may be merged into the weight (Hu et al. 2021, LoRA)."""
    low, up = tensor("A", t, k), tensor("B", c, t)
    merged = define("W'", (c, k), W[c, k] + Sum(up[c, t] * low[t, k], t))
    apart = linear(linear(X, low), up)
    return Eq(linear(X, merged, b), define("sum", (i, c), linear(X, W, b)[i, c] + apart[i, c]))


@identity
def shared_weight():
    """A batch in two parts: the gradient of the weight that they share is the sum of both. Catches a mean over parts."""
    ii = split(i, i1, i2)
    X1, X2, Y1, Y2 = tensor("X1", i1, k), tensor("X2", i2, k), tensor("dY1", i1, c), tensor("dY2", i2, c)
    whole = vjp(linear(concat("X", (ii, k), X1[i1, k], X2[i2, k]), W), W, concat("dY", (ii, c), Y1[i1, c], Y2[i2, c]))
    first, second = vjp(linear(X1, W), W, Y1), vjp(linear(X2, W), W, Y2)
    return Eq(whole, define("sum", (c, k), first[c, k] + second[c, k]))


@identity
def gradient_x():
    """dX = dY W."""
    dY = tensor("dY", i, c)
    return Eq(vjp(linear(X, W, b), X, dY), define("dX", (i, k), Sum(dY[i, c] * W[c, k], c)))


@identity
def gradient_weight():
    """dW = dYᵀ X, summed over the rows. Catches a mean over the batch, or its last row only."""
    dY = tensor("dY", i, c)
    return Eq(vjp(linear(X, W, b), W, dY), define("dW", (c, k), Sum(dY[i, c] * X[i, k], i)))


@identity
def gradient_bias():
    """db = Σ_i dY_i."""
    dY = tensor("dY", i, c)
    return Eq(vjp(linear(X, W, b), b, dY), define("db", (c,), Sum(dY[i, c], i)))


@identity
def matmul_gradient_a():
    """dA = dC Bᵀ."""
    dC = tensor("dC", i, j)
    return Eq(vjp(matmul(A, B), A, dC), define("dA", (i, k), Sum(dC[i, j] * B[k, j], j)))


@identity
def matmul_gradient_b():
    """dB = Aᵀ dC."""
    dC = tensor("dC", i, j)
    return Eq(vjp(matmul(A, B), B, dC), define("dB", (k, j), Sum(A[i, k] * dC[i, j], i)))


@identity
def average_is_linear():
    """Weighted averages are linear in the values."""
    U = tensor("U", j, c)
    both = weighted_average(α, define("V+U", (j, c), V[j, c] + U[j, c]))
    return Eq(both, define("sum", (i, c), weighted_average(α, V)[i, c] + weighted_average(α, U)[i, c]))
