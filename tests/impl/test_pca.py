"""pca of impl, and the maps to scores and back: shapes, exact cases, gradients, transforms, refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from impl.pca import pca, pca_inverse, pca_inverse_vjp, pca_transform, pca_transform_vjp
from lla_spec.evaluating.certificates import tau
from lla_spec.evaluating.contracts import contract
from lla_spec.testing import assert_correct, bound

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BOTH = [(pca_transform, pca_transform_vjp, 5), (pca_inverse, pca_inverse_vjp, 2)]
each_map = pytest.mark.parametrize(("forward", "vjp", "last"), BOTH, ids=["transform", "inverse"])

# leading axes of x (with n), of the mean and of the components
BATCHES = [
    ((4,), (), ()),
    ((3, 4), (3,), (3,)),
    ((2, 3, 4), (3,), (2, 1)),
    ((4,), (3,), ()),
    ((), (), ()),
    ((), (3,), (3,)),
]
each_batch = pytest.mark.parametrize("batches", BATCHES, ids=str)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def arguments(batches: Any, last: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x or z (…, last), mean (…, 5), components (…, 2, 5)."""
    rows, mean, components = batches
    made = normal(*rows, last, seed=1), normal(*mean, 5, seed=2), normal(*components, 2, 5, seed=3)
    return made[0].to(dtype), made[1].to(dtype), made[2].to(dtype)


def formula(forward: Any, x: Tensor, mean: Tensor, components: Tensor, *, sign: int = -1) -> Tensor:
    """The definition, entry by entry, in float64; of magnitudes, and with sign 1, Σ|terms|."""
    one = x.ndim == 1
    x, mean, components = (x.double()[None] if one else x.double()), mean.double()[..., None, :], components.double()
    out = (x + sign * mean) @ components.mT if forward is pca_transform else x @ components + mean
    return out[..., 0, :] if one else out


def assert_within(got: Tensor, want: Tensor, size: Tensor) -> None:
    """|got - want| ≤ γ of the accumulator times Σ|terms|, in got and in float64's want, then got's one rounding.

    No entry here sums more than 16 terms of a subtraction and a product each: 18 roundings on the way of any term.
    """
    assert got.shape == want.shape
    units = [torch.finfo(dtype).eps / 2 for dtype in (torch.promote_types(got.dtype, torch.float32), torch.float64)]
    error = sum(18 * u / (1 - 18 * u) for u in units) * size
    assert bool(((got.double() - want).abs() <= error + torch.finfo(got.dtype).eps / 2 * (want.abs() + error)).all())


# ---- pca


@each_dtype
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize(("n", "d"), [(5, 7), (7, 5), (2, 4), (6, 1)])
def test_shapes_and_dtype(dtype: torch.dtype, batch: tuple[int, ...], n: int, d: int) -> None:
    for k in (1, min(n, d)):
        found = pca(normal(*batch, n, d, dtype=dtype), k)
        assert [tuple(x.shape) for x in found] == [(*batch, d), (*batch, k, d), (*batch, k)]
        assert {x.dtype for x in found} == {dtype}


def test_variance_is_that_of_the_scores() -> None:
    x = normal(20, 6) + 5
    mean, components, explained = pca(x, 4)
    scores = pca_transform(x, mean, components)
    assert_correct("pca", (mean, components, explained), x, 4)
    # Two more ways to the variances, as good as the first where no singular value is small.
    assert_correct("pca", (mean, components, scores.var(-2)), x, 4)
    assert_correct("pca", (mean, components, torch.linalg.eigvalsh(x.mT.cov()).flip(0)[:4]), x, 4)
    # Each score is off by its rounding and by what the rounded mean is, along the component; then they are averaged.
    off = bound("pca_transform", x, mean, components).mean(0) + components.abs() @ bound("mean_pool", x)
    assert bool((scores.mean(0).abs() <= off + bound("mean_pool", scores)).all())


def test_all_components_bring_everything_back() -> None:
    x = normal(9, 4)
    mean, components, explained = pca(x, 4)
    assert_correct("pca", (mean, components, explained), x, 4)
    scores = pca_transform(x, mean, components)
    # The scores' rounding and the inverse's; and ‖VᵀV - I‖₂ = ‖VVᵀ - I‖₂ ≤ 4τ, whose entries are certified to be ≤ τ.
    lost = bound("pca_transform", x, mean, components) @ components.abs()
    lost += bound("pca_inverse", scores, mean, components)
    turned = 4 * tau(x.shape, contract("fused", "fp64")) * torch.linalg.vector_norm(x - mean, dim=-1, keepdim=True)
    assert bool(((pca_inverse(scores, mean, components) - x).abs() <= lost + turned).all())


def test_an_offset_far_above_the_spread_is_taken_out_first() -> None:
    spread = normal(50, 3, dtype=torch.float32)
    x = spread + 2.0**13
    mean, components, explained = pca(x, 3)
    assert_correct("pca", (mean, components, explained), x, 3)
    squares = (x.T @ x - 50 * torch.outer(x.mean(0), x.mean(0))) / 49  # what is squared before it is centred
    with pytest.raises(AssertionError, match="explained variance"):
        assert_correct("pca", (mean, components, torch.linalg.eigvalsh(squares).flip(0)), x, 3)


def test_small_singular_values_survive_where_the_covariance_loses_them() -> None:
    turns, _ = torch.linalg.qr(normal(8, 3, 3, dtype=torch.float32))  # one alone may round well by chance
    x = torch.diag(torch.tensor([1.0, 2.0**-14, 0.0])) @ turns  # σ₂/σ₁ is below √u of float32
    x = torch.cat([x, -x], -2)
    mean, components, explained = pca(x, 2)
    assert_correct("pca", (mean, components, explained), x, 2)
    with pytest.raises(AssertionError, match="explained variance is off"):
        assert_correct("pca", (mean, components, torch.linalg.eigvalsh(x.mT @ x / 5).flip(-1)[..., :2]), x, 2)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_sixteen_bits_are_the_float32_result_rounded_once(dtype: torch.dtype) -> None:
    x = normal(2, 8, 5, dtype=dtype) + 3
    for narrow, broad in zip(pca(x, 3), pca(x.float(), 3), strict=True):
        assert torch.equal(narrow, broad.to(dtype))


def test_gradients_of_what_no_sign_changes() -> None:
    x = normal(6, 3).requires_grad_()
    assert gradcheck(lambda x: pca(x, 2)[0], [x])
    assert gradcheck(lambda x: pca(x, 2)[2], [x])
    assert gradcheck(lambda x: pca(x, 2)[1].mT @ pca(x, 2)[1], [x])  # the projector


# ---- scores and back


@each_map
@each_batch
@each_dtype
def test_value_and_gradients_are_the_formulas(forward: Any, vjp: Any, last: int, batches: Any, dtype: Any) -> None:
    given = arguments(batches, last, dtype)
    leaves = [x.clone().requires_grad_() for x in given]
    out = forward(*leaves)
    exact_leaves = [x.double().requires_grad_() for x in given]
    exact = formula(forward, *exact_leaves)
    sizes = [x.detach().abs().requires_grad_() for x in exact_leaves]
    size = formula(forward, *sizes, sign=1)
    assert out.dtype == dtype
    assert_within(out, exact, size)
    grad_output = normal(*out.shape, seed=9, dtype=dtype)
    named = vjp(*given, grad_output=grad_output)
    behind = torch.autograd.grad(out, leaves, grad_output)
    want = torch.autograd.grad(exact, exact_leaves, grad_output.double())
    grad_sizes = torch.autograd.grad(size, sizes, grad_output.double().abs())
    assert isinstance(named, tuple) and len(named) == 3
    for got, also, true, bound_by, argument in zip(named, behind, want, grad_sizes, given, strict=True):
        assert got.dtype == also.dtype == dtype and got.shape == also.shape == argument.shape
        assert_within(got, true, bound_by)
        assert_within(also, true, bound_by)  # torch may sum in another order where a tensor requires grad


@each_map
@each_batch
def test_derivatives_equal_finite_differences(forward: Any, vjp: Any, last: int, batches: Any) -> None:
    leaves = [x.requires_grad_() for x in arguments(batches, last)]
    assert gradcheck(forward, leaves)
    assert gradgradcheck(forward, leaves)


@each_map
def test_gradients_are_summed_before_they_are_rounded(forward: Any, vjp: Any, last: int) -> None:
    """bfloat16 stalls at 256 when ones are added."""
    x, mean = torch.ones(4096, 1, 1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
    components = torch.ones(1, 1, dtype=torch.bfloat16)
    _, dmean, dcomponents = vjp(x, mean, components, grad_output=torch.ones_like(x))
    assert abs(dmean.item()) == 4096 and dcomponents.item() == 4096


def test_only_the_gradients_asked_for_are_given() -> None:
    x, mean, components = arguments(((4,), (), ()), 5)
    components.requires_grad_()
    pca_transform(x, mean, components).sum().backward()
    assert x.grad is None and mean.grad is None and components.grad is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_and_vmap() -> None:
    x = normal(3, 8, 4, dtype=torch.float32)

    def whole(x: Tensor) -> tuple[Tensor, ...]:
        mean, components, explained = pca(x, 2)
        scores = pca_transform(x, mean, components)
        return mean, explained, pca_inverse(scores, mean, components)

    compiled: Any = torch.compile(whole, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(got, want) for got, want in zip(compiled(x), whole(x), strict=True))
    assert_correct("pca", torch.func.vmap(lambda x: pca(x, 2))(x), x, 2)
    mean, components, _ = pca(x, 2)
    scores = torch.func.vmap(pca_transform)(x, mean, components)
    back = torch.func.vmap(pca_inverse)(scores, mean, components)
    assert_correct("pca_transform", scores, x, mean, components)
    assert_correct("pca_inverse", back, scores, mean, components)
    grads = torch.func.vmap(torch.func.grad(lambda m, x, c: pca_transform(x, m, c).square().sum()))(mean, x, components)
    assert grads.shape == mean.shape


def test_arguments_stay() -> None:
    given = arguments(((3, 4), (3,), (3,)), 5)
    before = [x.clone() for x in given]
    pca(given[0], 2)
    pca_transform_vjp(*given, grad_output=torch.ones_like(pca_transform(*given)))
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


# ---- refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_components(bad: float) -> None:
    x = normal(4, 3, dtype=torch.float32)
    x[1, 1] = bad
    with pytest.raises(torch.linalg.LinAlgError):
        pca(x, 1)


X, M, C = torch.zeros(2, 6, 5), torch.zeros(5), torch.zeros(3, 5)
REFUSALS: list[tuple[Any, str]] = [
    (lambda: pca(X[:, :1], 1), "pca: x has n 1 (axis -2), it must have at least 2 observations"),
    (lambda: pca(X, 6), "pca: k must be an integer in 1 ... min(n, d) = 5, got k 6 with n 6 and d 5"),
    (lambda: pca(X, 0), "pca: k must be an integer in 1 ... min(n, d) = 5, got k 0 with n 6 and d 5"),
    (lambda: pca(M, 1), "pca: x must have at least 2 axes (..., n, d), got shape (5,)"),
    (lambda: pca(X.int(), 1), "pca: x must be float64, float32, bfloat16 or float16, got torch.int32"),
    (lambda: pca_transform(X, M[:4], C), "pca_transform: mean has d 4 but x has 5 (axis -1)"),
    (lambda: pca_transform(X, M, C[:, :4]), "pca_transform: components has d 4 but x has 5 (axis -1)"),
    (lambda: pca_transform(X, M, M), "pca_transform: components must have at least 2 axes (..., k, d), got shape (5,)"),
    (
        lambda: pca_transform(X, M.double(), C),
        "pca_transform: mean has dtype torch.float64 but x has torch.float32; all floating arguments share one dtype",
    ),
    (
        lambda: pca_transform(X, M.expand(4, 5), C),
        "pca_transform: leading axes do not broadcast: x (2,), mean (4,), components ()",
    ),
    (
        lambda: pca_inverse(X, M, C),
        "pca_inverse: components has k 3 but z has 5 (axis -2 of components, axis -1 of z)",
    ),
    (lambda: pca_inverse(X[..., :3], M[:4], C), "pca_inverse: mean has d 4 but components has 5 (axis -1)"),
    (
        lambda: pca_transform_vjp(X, M, C, grad_output=X),
        "pca_transform_vjp: grad_output has shape (2, 6, 5) but the result has (2, 6, 3)",
    ),
    (
        lambda: pca_inverse_vjp(X[..., :3], M, C, grad_output=M),
        "pca_inverse_vjp: grad_output has shape (5,) but the result has (2, 6, 5)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value) == message
