"""Layer normalisation and its kin (Ba, Kiros & Hinton 2016; Zhang & Sennrich 2019; Vaswani et al. 2017, §3.1).

LayerNorm(x)_k = γ_k (x_k - μ) / √(v + ε) + β_k        μ, v: mean and (biased) variance of the row

RMSNorm(x)_k = γ_k x_k / √(r + ε)                      r: mean square of the row

x ∈ ℝⁿˣᵈ: n rows of d features; everything runs over the last axis. ε > 0 throughout, so no row is outside the domain.
"""

from sympy import Rational

from lla_spec.calculus import vjp
from lla_spec.formulas.linear import linear
from lla_spec.language import Eq, formula, identity
from lla_spec.symbols import Sum, define, dims, index, scalar, sqrt, tensor

n, d, e = dims("n d e")
i, k, c = index("i", n), index("k", d), index("c", e)
l = index("l", d)

x = tensor("x", i, k)
γ = tensor("γ", k, argument="weight", default=1, batched=False)
β = tensor("β", k, argument="bias", default=0, batched=False)
eps = scalar("eps", default=Rational(1, 10**5), positive=True)
eps_rms = scalar("eps", default=Rational(1, 10**6), positive=True)  # another default, as the field has it

h = tensor("h", i, k)  # the residual stream
s = tensor("s", i, k, argument="sublayer")  # what the sublayer adds to it

g = tensor("g", i, k)  # the cotangent of the output
t = scalar("t", positive=True)


def mean(x):
    return define("μ", (i,), Sum(x[i, k], k) / d)


def variance(x, μ):
    return define("v", (i,), Sum((x[i, k] - μ[i]) ** 2, k) / d)


def mean_square(x):
    return define("r", (i,), Sum(x[i, k] ** 2, k) / d)


@formula(rows=i)
def layer_norm(x, γ, β, eps):
    μ = mean(x)
    v = variance(x, μ)
    return define("y", (i, k), γ[k] * (x[i, k] - μ[i]) / sqrt(v[i] + eps) + β[k])


@formula(rows=i)
def rms_norm(x, γ, eps_rms):
    r = mean_square(x)
    return define("y", (i, k), γ[k] * x[i, k] / sqrt(r[i] + eps_rms))


@formula(rows=i)
def residual_layer_norm(h, s, γ, β, eps):
    H = define("H", (i, k), h[i, k] + s[i, k])
    return layer_norm(H, γ, β, eps)


# ---- LayerNorm


@identity
def zero_mean():
    """The normalised row has mean 0. Catches a mean over another axis, and one that is not subtracted."""
    return Eq(Sum(layer_norm(x, None, None, eps)[i, k], k), 0)


@identity
def unit_variance():
    """Its variance is v/(v + ε). Catches ε outside the root, and the divisor d - 1."""
    v = variance(x, mean(x))
    y = layer_norm(x, None, None, eps)
    return Eq(Sum(y[i, k] ** 2, k) / d, define("w", (i,), v[i] / (v[i] + eps)))


@identity
def constant_row():
    """Equal entries give β. Catches 0/0 where the variance vanishes."""
    a = tensor("a", i)
    return Eq(layer_norm(define("x'", (i, k), a[i]), γ, β, eps), define("β'", (i, k), β[k]))


@identity
def affine_invariance():
    """LN(t x + a; t²ε) = LN(x; ε) for t > 0: what justifies a kernel that rescales its rows. Catches ε times a scale."""
    a = tensor("a", i)
    moved = define("x'", (i, k), t * x[i, k] + a[i])
    return Eq(layer_norm(moved, γ, β, t**2 * eps), layer_norm(x, γ, β, eps))


@identity
def reflection():
    """LN(-x) = -LN(x), so that with a factor t < 0 affine invariance holds up to the sign. Catches |x - μ|."""
    y = layer_norm(x, γ, None, eps)
    return Eq(layer_norm(define("-x", (i, k), -x[i, k]), γ, None, eps), define("-y", (i, k), -y[i, k]))


@identity
def gain_and_bias():
    """γ and β act on the normalised row. Catches weights that enter the statistics, or are left out."""
    y = layer_norm(x, None, None, eps)
    return Eq(layer_norm(x, γ, β, eps), define("y'", (i, k), γ[k] * y[i, k] + β[k]))


@identity
def rms_of_the_centred_row():
    """LayerNorm = RMSNorm ∘ centring, at the same ε. Justifies the two-pass variance. Catches E[x²] without - μ²."""
    μ = mean(x)
    return Eq(layer_norm(x, γ, None, eps), rms_norm(define("x - μ", (i, k), x[i, k] - μ[i]), γ, eps))


@identity
def layer_norm_gradient():
    """dx = (ĝ - m₁ - x̂ m₂) / √(v + ε), ĝ = γ∘g, m₁ = mean ĝ, m₂ = mean ĝ∘x̂. Catches either mean left out."""
    x̂ = layer_norm(x, None, None, eps)
    ĝ = define("ĝ", (i, k), γ[k] * g[i, k])
    m1 = define("m₁", (i,), Sum(ĝ[i, k], k) / d)
    m2 = define("m₂", (i,), Sum(ĝ[i, k] * x̂[i, k], k) / d)
    dx = (ĝ[i, k] - m1[i] - x̂[i, k] * m2[i]) / sqrt(variance(x, mean(x))[i] + eps)
    return Eq(vjp(layer_norm(x, γ, β, eps), x, g), define("dx", (i, k), dx))


@identity
def layer_norm_gradient_weight():
    """dγ = Σ_i g ∘ x̂, over all rows. Catches g ∘ x, and a sum that stagnates in 16 bits."""
    x̂ = layer_norm(x, None, None, eps)
    return Eq(vjp(layer_norm(x, γ, β, eps), γ, g), define("dγ", (k,), Sum(g[i, k] * x̂[i, k], i)))


@identity
def layer_norm_gradient_bias():
    """dβ = Σ_i g, over all rows. Catches a mean over the batch, or its last row only."""
    return Eq(vjp(layer_norm(x, γ, β, eps), β, g), define("dβ", (k,), Sum(g[i, k], i)))


@identity
def gradient_is_centred():
    """Σ_k dx_k = 0, since a shift changes nothing. Catches dx without m₁."""
    return Eq(Sum(vjp(layer_norm(x, γ, β, eps), x, g)[i, k], k), 0)


@identity
def gradient_along_the_row():
    """Σ_k x̂_k dx_k = ε (v + ε)^(-3/2) Σ_k x̂_k γ_k g_k: nearly 0, as scaling changes little. Catches dx without m₂."""
    x̂ = layer_norm(x, None, None, eps)
    dx = vjp(layer_norm(x, γ, β, eps), x, g)
    left_over = eps / sqrt(variance(x, mean(x))[i] + eps) ** 3
    return Eq(Sum(x̂[i, k] * dx[i, k], k), left_over * Sum(x̂[i, k] * γ[k] * g[i, k], k))


# ---- RMSNorm


@identity
def unit_mean_square():
    """The mean square of the output is r/(r + ε). Catches a sum where the mean belongs, and ε outside the root."""
    r = mean_square(x)
    y = rms_norm(x, None, eps)
    return Eq(Sum(y[i, k] ** 2, k) / d, define("w", (i,), r[i] / (r[i] + eps)))


@identity
def scale_invariance():
    """RMSNorm(t x; t²ε) = RMSNorm(x; ε) for t > 0. Catches a mean that is subtracted after the root is taken."""
    return Eq(rms_norm(define("x'", (i, k), t * x[i, k]), γ, t**2 * eps), rms_norm(x, γ, eps))


@identity
def rms_reflection():
    """RMSNorm(-x) = -RMSNorm(x): a factor t < 0 comes out as its sign. Catches |x|."""
    y = rms_norm(x, γ, eps)
    return Eq(rms_norm(define("-x", (i, k), -x[i, k]), γ, eps), define("-y", (i, k), -y[i, k]))


@identity
def gain_folds_into_linear():
    """W RMSNorm(x; γ) = (W∘γ) RMSNorm(x; 1): how gains are folded into the next layer before quantisation."""
    W = tensor("W", c, k, argument="weight", batched=False)
    folded = define("W∘γ", (c, k), W[c, k] * γ[k])
    return Eq(linear(rms_norm(x, γ, eps), W), linear(rms_norm(x, None, eps), folded))


@identity
def rms_norm_gradient():
    """dx = (ĝ - x̂ m₂) / √(r + ε), ĝ = γ∘g, m₂ = mean ĝ∘x̂. Catches LayerNorm's m₁, and the missing m₂."""
    x̂ = rms_norm(x, None, eps)
    ĝ = define("ĝ", (i, k), γ[k] * g[i, k])
    m2 = define("m₂", (i,), Sum(ĝ[i, k] * x̂[i, k], k) / d)
    dx = (ĝ[i, k] - x̂[i, k] * m2[i]) / sqrt(mean_square(x)[i] + eps)
    return Eq(vjp(rms_norm(x, γ, eps), x, g), define("dx", (i, k), dx))


@identity
def rms_norm_gradient_weight():
    """dγ = Σ_i g ∘ x̂, over all rows. Catches g ∘ x."""
    x̂ = rms_norm(x, None, eps)
    return Eq(vjp(rms_norm(x, γ, eps), γ, g), define("dγ", (k,), Sum(g[i, k] * x̂[i, k], i)))


@identity
def rms_gradient_along_the_row():
    """Σ_k x_k dx_k = ε (r + ε)^(-3/2) Σ_k x_k γ_k g_k (Euler, degree 0 but for ε). Catches dx without m₂."""
    dx = vjp(rms_norm(x, γ, eps), x, g)
    left_over = eps / sqrt(mean_square(x)[i] + eps) ** 3
    return Eq(Sum(x[i, k] * dx[i, k], k), left_over * Sum(x[i, k] * γ[k] * g[i, k], k))


# ---- LayerNorm of a residual sum


@identity
def residual_is_layer_norm_of_the_sum():
    """LayerNorm(h + s). Catches a kernel that normalises one of the two and adds the other."""
    return Eq(residual_layer_norm(h, s, γ, β, eps), layer_norm(define("h+s", (i, k), h[i, k] + s[i, k]), γ, β, eps))


@identity
def residual_is_symmetric():
    """The stream and the sublayer may change places. Catches statistics that are taken of one of them."""
    return Eq(residual_layer_norm(h, s, γ, β, eps), residual_layer_norm(s, h, γ, β, eps))


@identity
def residual_gradient_splits():
    """dh = ds: both get the whole gradient. Catches one that is sent to one side, or halved."""
    y = residual_layer_norm(h, s, None, None, eps)
    return Eq(vjp(y, h, g), vjp(y, s, g))
