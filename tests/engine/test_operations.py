"""Torch-style arguments to the declaration and back: signatures, rows, batches, masks, empty rows, NaN and infinity."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lla_spec.evaluating.arguments import ArgumentError, operation, prepare
from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.operations import bound, generic_bound, oracle
from lla_spec.interface import signature
from tests.engine.float64_bounds import FP64, assert_within

SIGNATURES = {
    "linear": "(x, weight, bias=None)",
    "matmul": "(a, b)",
    "softmax": "(x)",
    "log_softmax": "(x)",
    "logsumexp": "(x)",
    "weighted_average": "(weights, v)",
    "attention": "(q, k, v, mask=None, *, is_causal=False, scale=None)",
}
BACKWARD = {
    "linear": "(x, weight, bias=None, *, grad_output)",
    "matmul": "(a, b, *, grad_output)",
    "softmax": "(x, *, grad_output)",
    "log_softmax": "(x, *, grad_output)",
    "logsumexp": "(x, *, grad_output)",
    "weighted_average": "(weights, v, *, grad_output)",
    "attention": "(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None)",
}
rng = np.random.default_rng(0)
F32 = contract("strict", "fp32")


def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


Q, K, V, G = normal(2, 4, 3), normal(2, 5, 3), normal(2, 5, 6), normal(2, 4, 6)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signature_is_read_off_the_declaration(name: str) -> None:
    assert str(signature(operation(name))) == SIGNATURES[name]
    assert str(signature(operation(name), vjp=True)) == BACKWARD[name]


def torch_of(arguments: dict[str, Any], leaves: bool) -> dict[str, Any]:
    def tensor(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return torch.from_numpy(value).requires_grad_(leaves and value.dtype != bool)

    return {key: tensor(value) for key, value in arguments.items()}


TORCH = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "linear": lambda x, weight, bias=None: torch.nn.functional.linear(x, weight, bias),
    "matmul": lambda a, b: a @ b,
    "weighted_average": lambda weights, v: weights @ v,
    "attention": lambda q, k, v, mask=None, is_causal=False, scale=None: scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale
    ),
}
KEEP = rng.random((2, 4, 5)) < 0.6
KEEP[..., 0] = True
CASES: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {"x": normal(2, 3, 7)}),
    ("softmax", {"x": normal(7)}),
    ("log_softmax", {"x": normal(2, 3, 7)}),
    ("logsumexp", {"x": normal(2, 3, 7)}),
    ("logsumexp", {"x": normal(7)}),
    ("linear", {"x": normal(2, 3, 5), "weight": normal(4, 5), "bias": normal(4)}),
    ("linear", {"x": normal(5), "weight": normal(4, 5)}),
    ("matmul", {"a": normal(2, 3, 5), "b": normal(2, 5, 4)}),
    ("matmul", {"a": normal(2, 1, 3, 5), "b": normal(4, 5, 4)}),
    ("weighted_average", {"weights": normal(3, 5), "v": normal(5, 4)}),
    ("attention", {"q": Q, "k": K, "v": V}),
    ("attention", {"q": Q, "k": K, "v": V, "mask": KEEP}),
    ("attention", {"q": Q, "k": K, "v": V, "mask": KEEP[0, :1], "scale": -0.7}),
    ("attention", {"q": Q, "k": K[:, :4], "v": V[:, :4], "is_causal": True}),
    ("attention", {"q": Q, "k": K[:1], "v": V[1]}),
]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_oracle_agrees_with_torch_in_float64(name: str, arguments: dict[str, Any]) -> None:
    given = torch_of(arguments, leaves=True)
    out = TORCH[name](**given)
    judged = bound(name, arguments, FP64, exact=True)  # the exact value, and what float64 may do to it
    assert_within(out.detach().numpy(), judged)
    assert_within(oracle(name, arguments), judged)
    grad_output = normal(*out.shape)
    leaves = {key: value for key, value in given.items() if isinstance(value, torch.Tensor) and value.requires_grad}
    gradients = torch.autograd.grad(out, list(leaves.values()), torch.from_numpy(np.asarray(grad_output)))
    arguments = {**arguments, "grad_output": grad_output}
    found, exact = oracle(name, arguments, vjp=True), bound(name, arguments, FP64, vjp=True, exact=True)
    assert list(found) == list(exact) == list(leaves)
    for key, gradient in zip(leaves, gradients, strict=True):
        assert_within(gradient.numpy(), exact[key])
        assert_within(found[key], exact[key])


def test_causal_is_aligned_at_the_bottom_right() -> None:
    lower = np.tril(np.ones((4, 5), bool), 1)
    causal = oracle("attention", {"q": Q, "k": K, "v": V, "is_causal": True})
    np.testing.assert_array_equal(causal, oracle("attention", {"q": Q, "k": K, "v": V, "mask": lower}))
    top = oracle("attention", {"q": Q, "k": K, "v": V, "is_causal": True}, causal_alignment="top_left")
    lower_left = np.tril(np.ones((4, 5), bool))
    np.testing.assert_array_equal(top, oracle("attention", {"q": Q, "k": K, "v": V, "mask": lower_left}))
    judged = bound("attention", {"q": Q, "k": K, "v": V, "is_causal": True}, F32, causal_alignment="top_left")
    np.testing.assert_array_equal(judged.value, top)
    explicit = bound("attention", {"q": Q, "k": K, "v": V, "mask": lower_left}, F32)
    np.testing.assert_array_equal(judged.error, explicit.error)
    both = oracle("attention", {"q": Q, "k": K, "v": V, "is_causal": True, "mask": KEEP})
    np.testing.assert_array_equal(both, oracle("attention", {"q": Q, "k": K, "v": V, "mask": KEEP & lower}))


@pytest.mark.parametrize("exact", [False, True])
def test_a_row_without_keys_is_zero_and_sends_no_gradient(exact: bool) -> None:
    keep = KEEP.copy()
    keep[0, 1] = keep[1, 3] = False
    arguments = {"q": Q, "k": K, "v": V, "mask": keep}
    out = oracle("attention", arguments, exact=exact)
    assert (out[0, 1] == 0).all() and (out[1, 3] == 0).all() and (out[0, 0] != 0).all()
    gradients = oracle("attention", {**arguments, "grad_output": G}, vjp=True, exact=exact)
    assert (gradients["q"][0, 1] == 0).all()
    moved = {**arguments, "q": Q.copy()}
    moved["q"][0, 1] = 1e3
    louder = G * np.where(keep.any(-1), 1.0, 99.0)[..., None]
    other = oracle("attention", {**moved, "grad_output": louder}, vjp=True, exact=exact)
    for key in ("k", "v"):
        np.testing.assert_array_equal(gradients[key], other[key])
    judged = generic_bound("attention", arguments, F32)
    assert (judged.error[0, 1] == 0).all() and (judged.value[0, 1] == 0).all() and np.isfinite(judged.error).all()


def test_more_queries_than_keys_under_a_causal_mask_start_with_empty_rows() -> None:
    out = oracle("attention", {"q": normal(5, 3), "k": normal(3, 3), "v": normal(3, 2), "is_causal": True})
    assert (out[:2] == 0).all() and (out[2:] != 0).all()


def test_a_live_nan_spreads_and_a_hidden_one_does_not() -> None:
    keep = np.tril(np.ones((4, 5), bool))
    clean = {"q": Q, "k": K, "v": V, "mask": keep, "grad_output": G}
    for name, row in (("k", 3), ("v", 3), ("k", 4), ("v", 4)):
        dirty = {**clean, name: clean[name].copy()}
        dirty[name][0, row, 0] = np.nan
        out = oracle("attention", {k: x for k, x in dirty.items() if k != "grad_output"})
        expected = oracle("attention", {k: x for k, x in clean.items() if k != "grad_output"})
        reached = np.zeros(out.shape, bool)
        if row == 3:  # the last query alone sees key 3; key 4 is seen by none
            reached[0, 3, slice(None) if name == "k" else 0] = True
        np.testing.assert_array_equal(np.isnan(out), reached)
        np.testing.assert_array_equal(out[~reached], expected[~reached])
        gradients, whole = oracle("attention", dirty, vjp=True), oracle("attention", clean, vjp=True)
        for key, gradient in gradients.items():
            assert not np.isnan(gradient[1]).any()
            if row == 4:
                np.testing.assert_array_equal(gradient, whole[key])
        if row == 3:
            assert np.isnan(gradients["q"][0, 3]).all() and np.isfinite(gradients["q"][0, :3]).all()
        judged = generic_bound("attention", {k: x for k, x in dirty.items() if k != "grad_output"}, F32)
        assert (judged.error[reached] == 0).all() and np.isnan(judged.value[reached]).all()
        assert np.isfinite(judged.error).all()


def test_a_nan_times_zero_is_nan_where_no_mask_hides_it() -> None:
    weights, v = np.array([[0.0, 1.0]]), np.array([[np.nan], [1.0]])
    assert np.isnan(oracle("weighted_average", {"weights": weights, "v": v})).all()


def test_nan_in_a_row_without_keys_reaches_nothing() -> None:
    keep = np.ones((4, 5), bool)
    keep[1] = False
    dirty = Q.copy()
    dirty[:, 1] = np.nan
    arguments = {"q": dirty, "k": K, "v": V, "mask": keep}
    np.testing.assert_array_equal(oracle("attention", arguments)[:, 1], 0.0)
    for gradient in oracle("attention", {**arguments, "grad_output": G}, vjp=True).values():
        assert np.isfinite(gradient).all()


def test_a_logit_of_minus_infinity_is_a_weight_of_zero() -> None:
    x = np.array([[0.0, -np.inf, 1.0], [2.0, 3.0, 4.0]])
    judged = bound("softmax", {"x": x}, F32)
    assert judged.value[0, 1] == 0 and judged.error[0, 1] == 0
    assert np.isfinite(judged.error).all()
    gradient = oracle("softmax", {"x": x, "grad_output": np.ones((2, 3))}, vjp=True)["x"]
    assert np.isfinite(gradient).all() and gradient[0, 1] == 0
    assert np.isfinite(oracle("logsumexp", {"x": x})).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_what_depends_on_an_infinity_is_not_judged(value: float) -> None:
    a, b = normal(3, 2), normal(2, 4)
    a[1, 0] = value
    judged = bound("matmul", {"a": a, "b": b}, F32)
    assert np.isnan(judged.value[1]).all() and np.isinf(judged.error[1]).all()
    assert np.isfinite(judged.value[[0, 2]]).all() and np.isfinite(judged.error[[0, 2]]).all()
    x = normal(2, 3)
    x[0, 0] = np.inf
    judged = bound("softmax", {"x": x}, F32)
    assert np.isinf(judged.error[0]).all() and np.isfinite(judged.error[1]).all()


def test_a_hidden_infinity_reaches_nothing() -> None:
    keep = np.ones((4, 5), bool)
    keep[:, 2] = False
    dirty = {"q": Q, "k": K.copy(), "v": V.copy(), "mask": keep}
    dirty["k"][:, 2], dirty["v"][:, 2] = -np.inf, np.inf
    clean = oracle("attention", {"q": Q, "k": K, "v": V, "mask": keep})
    np.testing.assert_array_equal(oracle("attention", dirty), clean)
    exact = oracle("attention", {"q": Q, "k": K, "v": V, "mask": keep}, exact=True)
    np.testing.assert_array_equal(oracle("attention", dirty, exact=True), exact)
    assert np.isfinite(generic_bound("attention", dirty, F32).error).all()


def test_the_exact_oracle_is_correctly_rounded() -> None:
    a, b = np.array([[1.0, 2.0**-53, 2.0**-80]]), np.ones((3, 1))
    assert oracle("matmul", {"a": a, "b": b}, exact=True) == 1 + 2.0**-52
    third = oracle("softmax", {"x": np.zeros((1, 3))}, exact=True)
    np.testing.assert_array_equal(third, np.full((1, 3), 1 / 3))


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("attention", {"q": Q, "k": K}, r"attention: v is missing"),
    ("attention", {"q": Q, "k": K, "v": V, "mask": KEEP[..., :3]}, r"mask has shape \(2, 4, 3\), which does not broad"),
    ("attention", {"q": Q, "k": normal(2, 5, 7), "v": V}, r"k has shape \(2, 5, 7\), 7 on axis -1, but d is already 3"),
    ("attention", {"q": Q, "k": normal(3, 5, 3), "v": V}, r"the leading axes do not broadcast: q \(2,\), k \(3,\)"),
    ("linear", {"x": normal(2, 3), "weight": normal(2, 4, 3)}, r"weight has shape \(2, 4, 3\) but takes no batch axes"),
    (
        "pca_transform",
        {"x": normal(2, 3, 4), "mean": normal(3, 4), "components": normal(1, 4)},
        r"x \(2,\), mean \(3,\)",
    ),
    ("softmax", {"x": np.float64(1.0)}, r"x has shape \(\) but needs at least 1 axes"),
    ("softmax", {"x": normal(3), "dim": 0}, r"softmax: has no argument dim; it takes x"),
    ("soft", {"x": normal(3)}, r"soft is no operation; there are softmax"),
    ("safe_softmax", {"x": normal(3)}, r"safe_softmax is no operation"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_arguments_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        oracle(name, arguments)


def test_arguments_are_left_as_they_were() -> None:
    arguments = {"q": Q.copy(), "k": K.copy(), "v": V.copy(), "mask": np.zeros((4, 5), bool), "grad_output": G.copy()}
    oracle("attention", arguments, vjp=True)
    for key, kept in {"q": Q, "k": K, "v": V, "grad_output": G}.items():
        np.testing.assert_array_equal(arguments[key], kept)
    assert not arguments["mask"].any()


def whole_numbers(*shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float64)


BATCHES = [
    ((3, 5), (3,), (3,)), ((3, 5), (), (3,)), ((5,), (3,), ()), ((), (3,), (3,)), ((2, 3, 5), (3,), (2, 1)),
    ((2, 3, 0), (1,), ()), ((0, 3), (0,), (0,)),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "mean", "components"), BATCHES)
def test_a_mean_for_each_matrix_of_rows_is_that_of_the_loop(rows, mean, components) -> None:
    """Leading axes broadcast as torch's do, and a gradient is summed over those that its argument lacks.

    Of small whole numbers every sum is exact, so both ways agree to the last bit.
    """
    given = {
        "x": whole_numbers(*rows, 4),
        "mean": whole_numbers(*mean, 4),
        "components": whole_numbers(*components, 2, 4),
    }
    lead = np.broadcast_shapes(rows[:-1], mean, components)
    cotangent = whole_numbers(*lead, *rows[-1:], 2)
    found = oracle("pca_transform", {**given, "grad_output": cotangent}, vjp=True, exact=True)
    own = {"x": given["x"].shape[-2:] if rows else (4,), "mean": (4,), "components": (2, 4)}
    whole = {name: np.broadcast_to(value, (*lead, *own[name])) for name, value in given.items()}
    sums = {name: np.zeros(value.shape) for name, value in whole.items()}
    scores = oracle("pca_transform", given, exact=True)
    for at in np.ndindex(*lead):
        one = {name: value[at] for name, value in whole.items()}
        np.testing.assert_array_equal(scores[at], oracle("pca_transform", one, exact=True))
        for name, part in oracle("pca_transform", {**one, "grad_output": cotangent[at]}, vjp=True, exact=True).items():
            sums[name][at] = part
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], summed_to(value.shape, sums[name]))


@pytest.mark.parametrize(
    ("lead", "words"), [((), "grad_output has no rows"), ((3, 4), "grad_output has 4 rows, the others 5")]
)
def test_a_cotangent_with_other_rows_is_named(lead, words) -> None:
    given = {"x": normal(5, 4), "mean": normal(3, 4), "components": normal(2, 4), "grad_output": normal(*lead, 2)}
    with pytest.raises(ArgumentError, match=words):
        oracle("pca_transform", given, vjp=True)


def summed_to(shape, value):
    """Over the axes that broadcasting added, and those where it repeated."""
    value = value.sum(tuple(range(value.ndim - len(shape))))
    return value.sum(tuple(k for k, size in enumerate(shape) if size != value.shape[k]), keepdims=True)


def test_no_rows_and_no_batches_are_legal() -> None:
    assert oracle("softmax", {"x": np.zeros((0, 3))}).shape == (0, 3)
    assert oracle("attention", {"q": np.zeros((2, 0, 3)), "k": K, "v": V}).shape == (2, 0, 6)
    assert bound("linear", {"x": np.zeros((0, 3)), "weight": normal(4, 3)}, F32).error.shape == (0, 4)
    empty = {"x": np.zeros((0, 3)), "weight": normal(4, 3), "grad_output": np.zeros((0, 4))}
    gradients = oracle("linear", empty, vjp=True)
    np.testing.assert_array_equal(gradients["weight"], np.zeros((4, 3)))


def test_small_evaluations_are_quick_enough_for_hypothesis() -> None:
    arguments = {"q": normal(4, 3), "k": normal(5, 3), "v": normal(5, 2)}
    oracle("attention", arguments)

    def once() -> float:
        start = time.perf_counter()
        oracle("attention", arguments)
        return time.perf_counter() - start

    assert min(once() for _ in range(50)) < 1e-3


def test_a_prepared_evaluation_counts_its_largest_array() -> None:
    assert prepare(operation("attention"), {"q": Q, "k": K, "v": V}).entries == 2 * 4 * 6
    assert prepare(operation("softmax"), {"x": normal(2, 3, 7)}).entries == 42


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("vjp", [False, True])
def test_a_score_that_overflows_to_minus_infinity_is_no_masked_key(sign, vjp):
    """q·k is ±3·10^320: a kernel's row is infinite or NaN, and nothing is known of what comes of it."""
    q, v = np.full((2, 3), 1e160), np.ones((2, 3))
    given = {"q": q, "k": np.stack([sign * q[0], 1e-170 * q[0]]), "v": v, "mask": np.array([[True, False]])}
    found = bound("attention", given | ({"grad_output": v} if vjp else {}), contract("strict", "fp64"), vjp=vjp)
    for bounded in found.values() if vjp else [found]:
        assert np.isinf(bounded.error).all()
