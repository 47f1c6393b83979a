"""The output layer is softmax(W h + b) to within counted roundings of float32 or float64, and one of the dtype.

The truth comes from mpmath at 50 digits, on numpy arrays of its numbers; the bounds count roundings, none is tuned.
"""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from impl.linear import linear
from impl.output import output_softmax, output_softmax_vjp
from impl.softmax import softmax
from lla_spec.testing import assert_correct
from tests.impl.cases import normal

NAN, INF = math.nan, math.inf
FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16
each_dtype = pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16, torch.float16], ids=str)

MP = mpmath.mp.clone()
MP.dps = 50

# exp, log1p and expm1 are within 2 ulp, the contract's `exp_ulp`: 4 unit roundoffs.
FUNCTION = 4


def exactly(x: Tensor) -> np.ndarray:
    """The numbers of a tensor as mpmath's; array arithmetic on them is exact to 50 digits."""
    return np.frompyfunc(MP.mpf, 1, 1)(np.asarray(x.detach().double().numpy()))


exp: Callable[[Any], Any] = np.frompyfunc(MP.exp, 1, 1)
expm1: Callable[[Any], Any] = np.frompyfunc(MP.expm1, 1, 1)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def roundings(count: Any, dtype: torch.dtype) -> Any:
    """ku/(1-ku): what `count` relative errors of the accumulator may multiply to, exactly (Higham 2002, Lemma 3.1)."""
    ku = count * MP.mpf(torch.finfo(accumulator(dtype)).eps) / 2
    return ku / (1 - ku)


def tiny(dtype: torch.dtype) -> Any:
    return MP.mpf(torch.finfo(dtype).tiny)  # what an underflow may lose, flushed to zero or not


def assert_within(got: Tensor, want: np.ndarray, error: Any, dtype: torch.dtype) -> None:
    """|got - want| ≤ error in the accumulator, then the one rounding to dtype; NaN is within nothing."""
    assert got.dtype == dtype and tuple(got.shape) == np.shape(want)
    cast = 0 if dtype == accumulator(dtype) else MP.mpf(torch.finfo(dtype).eps) / 2
    bound = error + cast * (abs(want) + error) + tiny(dtype)
    assert np.all(abs(exactly(got) - want) <= bound), (got, want, bound)


def logits_and_error(h: Tensor, w_out: Tensor, bias: Tensor | None) -> tuple[Any, Any]:
    """Z = H Wᵀ + b, and per row how far off its worst logit may be: d products and d additions of the accumulator."""
    x, w = exactly(h), exactly(w_out)
    b = 0 if bias is None else exactly(bias)
    z, size = x @ w.T + b, abs(x) @ abs(w).T + abs(b)
    return z, (roundings(h.shape[-1] + 1, h.dtype) * size).max(-1, keepdims=True)


def spread(z: Any) -> Any:
    return z.max(-1, keepdims=True) - z.min(-1, keepdims=True)


def softmax_of(z: Any) -> Any:
    e = exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def probability_error(z: Any, e: Any, dtype: torch.dtype) -> Any:
    """The relative error of exp(z_j - max)/Σ, z off by e: 2e as a ratio of exponentials; the subtraction and exp in
    both numerator and sum, n - 1 additions, 2 for the division (some kernels multiply by a rounded reciprocal)."""
    return expm1(2 * e) + (1 + expm1(2 * e)) * roundings(
        2 * (spread(z) + 2 * e) + 2 * FUNCTION + z.shape[-1] + 1, dtype
    )


CASES = {
    "plain": ((2, 3, 4), (7, 4), (7,)),
    "no_bias": ((3, 5), (4, 5), None),
    "one_word": ((2, 3), (1, 3), (1,)),
    "one_row": ((4,), (6, 4), (6,)),
    "no_rows": ((2, 0, 4), (6, 4), (6,)),
    "no_features": ((2, 0), (3, 0), (3,)),
}
each_case = pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)


def inputs_of(shapes: Any, dtype: torch.dtype) -> list[Tensor | None]:
    return [None if s is None else 2 * normal(s, dtype, seed) for seed, s in enumerate(shapes)]


@each_dtype
@each_case
def test_value_is_the_formula(shapes: Any, dtype: torch.dtype) -> None:
    h, w_out, bias = inputs_of(shapes, dtype)
    assert h is not None and w_out is not None
    z, e = logits_and_error(h, w_out, bias)
    p = softmax_of(z)
    error = p * probability_error(z, e, dtype) + 2 * tiny(accumulator(dtype))
    assert_within(output_softmax(h, w_out, bias), p, error, dtype)


@each_dtype
@each_case
def test_gradients_are_the_formula_s(shapes: Any, dtype: torch.dtype) -> None:
    h, w_out, bias = inputs_of(shapes, dtype)
    assert h is not None and w_out is not None
    upstream = normal((*h.shape[:-1], w_out.shape[0]), dtype, 9)
    (z, e), g, x, w = logits_and_error(h, w_out, bias), exactly(upstream), exactly(h), exactly(w_out)
    p = softmax_of(z)
    t = (p * g).sum(-1, keepdims=True)
    dz = p * (g - t)
    # The error of dz: that of p, that of Σ_v p_v g_v, and 3 roundings of p·g, p·t and their difference.
    e_p = p * probability_error(z, e, dtype)
    e_t = (e_p * abs(g)).sum(-1, keepdims=True) + roundings(z.shape[-1], dtype) * ((p + e_p) * abs(g)).sum(
        -1, keepdims=True
    )
    e_dz = e_p * abs(g - t) + (p + e_p) * (e_t + roundings(3, dtype) * (abs(g) + abs(t) + e_t))
    # A sum of n products is off by its terms' errors, and by n roundings.
    words, rows = z.shape[-1], math.prod(h.shape[:-1])
    x, flat, e_flat = x.reshape(rows, h.shape[-1]), dz.reshape(rows, words), e_dz.reshape(rows, words)
    dh, dw, db = output_softmax_vjp(h, w_out, bias, grad_output=upstream)
    for got, want, of, count in (
        (dh, dz @ w, e_dz @ abs(w) + roundings(words, dtype) * ((abs(dz) + e_dz) @ abs(w)), words),
        (dw, flat.T @ x, e_flat.T @ abs(x) + roundings(rows, dtype) * ((abs(flat) + e_flat).T @ abs(x)), rows),
        (db, flat.sum(0), e_flat.sum(0) + roundings(rows, dtype) * (abs(flat) + e_flat).sum(0), rows),
    ):
        if got is not None:
            assert_within(got, want + MP.zero, of + count * tiny(accumulator(dtype)), dtype)
    assert (db is None) == (bias is None)


@each_case
def test_autograd_gives_the_named_vjp(shapes: Any) -> None:
    inputs = inputs_of(shapes, FLOAT64)
    leaves = [x.requires_grad_() for x in inputs if x is not None]
    out = output_softmax(*inputs)  # type: ignore[arg-type]
    upstream = normal(tuple(out.shape), FLOAT64, 9)
    named = output_softmax_vjp(*inputs, grad_output=upstream)  # type: ignore[arg-type]
    for got, want in zip(torch.autograd.grad(out, leaves, upstream), (x for x in named if x is not None), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("shapes", [CASES["plain"], CASES["no_bias"], CASES["one_word"]], ids=str)
def test_gradients_equal_finite_differences(shapes: Any) -> None:
    leaves = [x.requires_grad_() for x in inputs_of(shapes, FLOAT64) if x is not None]
    assert gradcheck(output_softmax, leaves)
    assert gradgradcheck(output_softmax, leaves)


def test_only_the_gradients_asked_for_are_given() -> None:
    h, w_out, bias = inputs_of(CASES["plain"], FLOAT32)
    assert h is not None and w_out is not None and bias is not None
    bias.requires_grad_()
    output_softmax(h, w_out, bias).square().sum().backward()
    assert h.grad is None and w_out.grad is None and bias.grad is not None


def test_the_logits_are_not_rounded() -> None:
    # 256 + 1 is no bfloat16: rounded logits would tie, and so would softmax(linear(...)), which rounds at its edge.
    h, w_out = torch.ones(2, dtype=BFLOAT16), torch.tensor([[256.0, 1.0], [256.0, 0.0]], dtype=BFLOAT16)
    assert softmax(linear(h, w_out)).tolist() == [0.5, 0.5]
    z = torch.tensor([1.0, 0.0], dtype=FLOAT64)
    assert torch.equal(output_softmax(h, w_out), torch.softmax(z, -1).to(BFLOAT16))


def test_sums_over_thousands_of_rows_do_not_stagnate() -> None:
    # Both words are equally likely, so dz = (1/4)(g_0 - g_1)(1, -1) exactly: 4096 rows add up to ±1024.
    h, w_out, bias = (torch.ones(*s, dtype=BFLOAT16) for s in ((4096, 1), (2, 1), (2,)))
    upstream = torch.tensor([[1.0, 0.0]], dtype=BFLOAT16).expand(4096, 2)
    _, dw, db = output_softmax_vjp(h, w_out, bias, grad_output=upstream)
    assert db is not None
    assert dw.flatten().tolist() == db.tolist() == [1024.0, -1024.0]


# --- edges ---


def test_a_word_with_bias_minus_infinity_is_never_said() -> None:
    h, w_out, bias = inputs_of(CASES["plain"], FLOAT32)
    assert h is not None and w_out is not None and bias is not None
    bias[2] = -INF
    rest = [0, 1, 3, 4, 5, 6]
    upstream = normal((2, 3, 7), FLOAT32, 9)
    p = output_softmax(h, w_out, bias)
    dh, dw, db = output_softmax_vjp(h, w_out, bias, grad_output=upstream)
    assert db is not None
    assert not p[..., 2].any() and not dw[2].any() and not db[2]
    without = h, w_out[rest], bias[rest]
    assert_correct("output_softmax", p[..., rest], *without)
    assert_correct("output_softmax_vjp", (dh, dw[rest], db[rest]), *without, grad_output=upstream[..., rest])


def test_large_logits_saturate() -> None:
    h = torch.tensor([[400.0], [-400.0]])
    p = output_softmax(h, torch.tensor([[1.0], [-1.0]]))
    assert torch.equal(p, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_nan_stays_in_its_row() -> None:
    h, w_out, bias = inputs_of(CASES["plain"], FLOAT32)
    assert h is not None and w_out is not None
    clean = output_softmax(h, w_out, bias)
    h[1, 1, 0] = NAN
    p = output_softmax(h, w_out, bias)
    assert p[1, 1].isnan().all()
    p[1, 1] = clean[1, 1]
    assert torch.equal(p, clean)


def test_without_words_there_is_no_probability() -> None:
    h, w_out, bias = torch.ones(2, 3), torch.ones(0, 3), torch.ones(0)
    assert output_softmax(h, w_out, bias).shape == (2, 0)
    dh, dw, db = output_softmax_vjp(h, w_out, bias, grad_output=torch.ones(2, 0))
    assert db is not None and not dh.any() and dw.shape == (0, 3) and db.shape == (0,)


# --- transforms ---


def test_vmap_is_a_loop() -> None:
    h, w_out, bias = inputs_of(CASES["plain"], FLOAT64)
    assert h is not None and w_out is not None and bias is not None
    assert_correct("output_softmax", vmap(output_softmax, (0, None, None))(h, w_out, bias), h, w_out, bias)
    upstream = normal((3, 7), FLOAT64, 9)

    def worth(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return (output_softmax(x, w, b) * upstream).sum()

    per_example = vmap(grad(worth, argnums=(0, 1, 2)), (0, None, None))(h, w_out, bias)
    for i in range(2):
        grads = tuple(each[i] for each in per_example)
        assert_correct("output_softmax_vjp", grads, h[i], w_out, bias, grad_output=upstream)


def test_compiled_is_eager() -> None:
    h, w_out, bias = (x.requires_grad_() for x in inputs_of(CASES["plain"], FLOAT64) if x is not None)
    out = torch.compile(output_softmax, backend="aot_eager", fullgraph=True)(h, w_out, bias)
    want = output_softmax(h, w_out, bias)
    assert torch.equal(out, want)
    upstream = normal((2, 3, 7), FLOAT64, 9)
    grads = (torch.autograd.grad(y, (h, w_out, bias), upstream) for y in (out, want))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_autocast_does_not_round_the_logits() -> None:
    h, w_out, bias = inputs_of(CASES["plain"], FLOAT32)
    assert h is not None and w_out is not None
    want = output_softmax(h, w_out, bias)
    with torch.autocast("cpu", dtype=BFLOAT16):
        assert torch.equal(output_softmax(h, w_out, bias), want)


# --- messages ---


def t(*shape: int, dtype: torch.dtype = FLOAT32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: output_softmax(t(2, 4), t(7, 3)), "output_softmax: w_out has d 3 but h has 4 (axis -1)"),
    (lambda: output_softmax(t(2, 4), t(7, 4), t(6)), "output_softmax: bias has V 6 but w_out has 7 (axis 0)"),
    (
        lambda: output_softmax(t(2, 4), t(1, 7, 4)),
        "output_softmax: w_out must have exactly 2 axes (V, d), got shape (1, 7, 4)",
    ),
    (
        lambda: output_softmax(t(2, 4), t(7, 4), t(1, 7)),
        "output_softmax: bias must have exactly 1 axis (V,), got shape (1, 7)",
    ),
    (lambda: output_softmax(t(), t(7, 4)), "output_softmax: h must have at least 1 axis (..., d), got shape ()"),
    (
        lambda: output_softmax(t(4), t(7, 4, dtype=BFLOAT16)),
        "output_softmax: w_out has dtype torch.bfloat16 but h has torch.float32; "
        "all floating arguments share one dtype",
    ),
    (
        lambda: output_softmax_vjp(t(2, 4), t(7, 4), grad_output=t(2, 4)),
        "output_softmax_vjp: grad_output has shape (2, 4) but the result has (2, 7)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value) == message
