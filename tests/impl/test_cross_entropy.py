"""The loss and its gradient equal the formula to within counted roundings; its edges, and the transforms of torch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.nn import functional as F

from lla_spec.testing import assert_correct
from tests.impl.cases import normal
from tests.impl.losses import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    INF,
    LINEAR,
    NAN,
    assert_linear_gradients,
    assert_linear_loss,
    cross_entropy,
    cross_entropy_vjp,
    each_dtype,
    each_family,
    each_reduction,
    gradient_error,
    labels,
    linear_case,
    linear_cross_entropy,
    linear_cross_entropy_vjp,
    linear_inputs,
    logits_and_targets,
    loss_error,
    module,
    reduced,
    row_losses,
    spread,
    upstream_of,
    weights,
)
from tests.impl.test_output import FUNCTION, accumulator, assert_within, exactly, roundings, tiny


@each_dtype
@each_reduction
@each_family
def test_loss_is_the_formula(family: str, reduction: str, dtype: torch.dtype) -> None:
    logits, targets, keep = logits_and_targets(family, dtype)
    z = exactly(logits)
    losses, _ = row_losses(z, targets, keep)
    want, error = reduced(losses, loss_error(losses, z, 0, 0, dtype), keep, reduction, dtype)
    assert_within(cross_entropy(logits, targets, reduction=reduction), want, error, dtype)


@each_dtype
@each_reduction
@each_family
def test_gradient_is_the_formula_s(family: str, reduction: str, dtype: torch.dtype) -> None:
    logits, targets, keep = logits_and_targets(family, dtype)
    leaf = logits.clone().requires_grad_()
    out = cross_entropy(leaf, targets, reduction=reduction)
    upstream = upstream_of(out)
    (got,) = cross_entropy_vjp(logits, targets, grad_output=upstream, reduction=reduction)
    assert torch.equal(got, torch.autograd.grad(out, leaf, upstream)[0])
    z, g = exactly(logits), weights(upstream, keep, reduction)
    _, dz = row_losses(z, targets, keep)
    error = gradient_error(dz, z, 0, 0, dtype)
    error = abs(g) * error + roundings(2, dtype) * abs(g) * (abs(dz) + error) + tiny(accumulator(dtype))
    assert_within(got, dz * g, error, dtype)
    assert not got[targets == -100].any()


@each_reduction
@pytest.mark.parametrize("family", ["plain", "sure", "offset", "many_classes"])
def test_torch_in_float64_agrees(family: str, reduction: str) -> None:
    """To the error of logsumexp(z) - z_t, which is relative to the logits and not to the loss: ours is the smaller."""
    logits, targets, keep = logits_and_targets(family, FLOAT64)
    flat = logits.flatten(0, -2).requires_grad_()
    want = F.cross_entropy(flat, targets.flatten(), reduction=reduction)
    got = cross_entropy(flat, targets.flatten(), reduction=reduction)
    z = exactly(flat)
    size = (abs(z).max() + spread(z).max() + 2 * FUNCTION + z.shape[-1] + 4) * keep.size  # of one loss, times N rows
    bound = float(roundings(size, FLOAT64) * (1 + abs(z).max()))
    assert got.shape == want.shape and bool(((got - want).abs() <= 2 * bound).all())
    upstream = upstream_of(want)
    (dz,), (also,) = (torch.autograd.grad(loss, flat, upstream) for loss in (got, want))
    assert bool(((dz - also).abs() <= 2 * bound * upstream.abs().max()).all())


@each_reduction
@pytest.mark.parametrize("family", ["plain", "one_row", "ties", "one_class", "impossible"])
def test_gradients_equal_finite_differences(family: str, reduction: str) -> None:
    logits, targets, _ = logits_and_targets(family, FLOAT64)
    possible = logits.isfinite()
    leaf = logits[possible].requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(logits.masked_scatter(possible, x), targets, reduction=reduction)

    assert gradcheck(loss, leaf)
    assert gradgradcheck(loss, leaf)


def test_the_loss_of_a_sure_model_is_not_zero() -> None:
    # log(1 + exp(-20)) = 2.06e-9, where 1 + exp(-20) is 1 in float32 and torch's loss and gradient are 0.
    logits, target = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    z = exactly(logits)
    losses, dz = row_losses(z, target, np.ones((1, 1), dtype=bool))
    error, gradient_s = loss_error(losses, z, 0, 0, FLOAT32), gradient_error(dz, z, 0, 0, FLOAT32)
    assert (error < losses).all() and (gradient_s < abs(dz)).all()  # so 0 is refused
    assert_within(cross_entropy(logits, target, reduction="none"), losses[..., 0], error[..., 0], FLOAT32)
    (got,) = cross_entropy_vjp(logits, target, grad_output=torch.ones(1), reduction="none")
    assert_within(got, dz, gradient_s, FLOAT32)


def test_sums_over_thousands_of_rows_do_not_stagnate() -> None:
    # 3000 log 2 = 2079.4 lies 0.56 from its bfloat16, 2080, and 3000 roundings of float32 move it by 0.38 at most.
    logits, targets = torch.zeros(3000, 2, dtype=BFLOAT16), torch.zeros(3000, dtype=torch.int64)
    assert cross_entropy(logits, targets, reduction="sum").item() == 2080
    assert cross_entropy(logits, targets).item() == torch.tensor(math.log(2)).to(BFLOAT16).item()


# --- edges ---


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_kept(rows: int) -> None:
    """The mean is 0/0, the sum 0, and the gradients 0, whatever the inputs hold."""
    h, w_out, bias = (torch.full_like(x, NAN) for x in linear_case())
    logits, h, targets = torch.full((rows, 7), NAN), h[:rows], torch.full((rows,), -100)
    for loss, inputs in ((cross_entropy, (logits, targets)), (linear_cross_entropy, (h, w_out, targets, bias))):
        leaves = [x.requires_grad_() for x in inputs if x.is_floating_point()]
        mean, total, each = (loss(*inputs, reduction=reduction) for reduction in ("mean", "sum", "none"))
        assert mean.isnan() and total == 0 and torch.equal(each, torch.zeros(rows))
        for out in (mean, total, each):
            assert isinstance(out, Tensor)
            for upstream in (torch.ones_like(out), torch.full_like(out, NAN)):
                for dx in torch.autograd.grad(out, leaves, upstream, retain_graph=True):
                    assert torch.equal(dx, torch.zeros_like(dx))


def test_nothing_kept_has_a_second_derivative() -> None:
    h, w_out, bias = (x.requires_grad_() for x in linear_case())
    upstream, none = torch.tensor(1.0, requires_grad=True), torch.full((3,), -100)
    for loss, leaf in ((cross_entropy(h, none), h), (linear_cross_entropy(h, w_out, none, bias), w_out)):
        (dx,) = torch.autograd.grad(loss, leaf, upstream, create_graph=True)
        assert torch.autograd.grad(dx.sum(), upstream)[0] == 0


@each_reduction
def test_an_ignored_row_is_a_deleted_row_whatever_it_holds(reduction: str) -> None:
    h, w_out, bias = linear_case()
    targets, rest = torch.tensor([4, -100, 0]), torch.tensor([0, 2])
    h[1] = NAN
    logits = h @ w_out.mT
    upstream = torch.tensor([0.5, NAN, 0.5]) if reduction == "none" else torch.tensor(0.5)
    short = upstream[rest] if reduction == "none" else upstream
    options: Any = {"reduction": reduction}

    loss, of_linear = (
        cross_entropy(logits, targets, **options),
        linear_cross_entropy(h, w_out, targets, bias, **options),
    )
    if reduction == "none":
        assert loss[1] == of_linear[1] == 0
        loss, of_linear = loss[rest], of_linear[rest]
    assert_correct("cross_entropy", loss, logits[rest], targets[rest], **options)
    assert_linear_loss(of_linear, h[rest], w_out, targets[rest], bias, reduction)

    (dz,) = cross_entropy_vjp(logits, targets, grad_output=upstream, **options)
    dh, dw, db = linear_cross_entropy_vjp(h, w_out, targets, bias, grad_output=upstream, **options)
    assert not dz[1].any() and not dh[1].any()
    assert_correct("cross_entropy_vjp", (dz[rest],), logits[rest], targets[rest], grad_output=short, **options)
    given = h[rest], w_out, targets[rest], bias
    assert_linear_gradients((dh[rest], dw, db), *given, grad_output=torch.tensor(0.5), reduction=reduction)


def test_a_second_derivative_does_not_see_an_ignored_row() -> None:
    logits = normal((3, 4), FLOAT64, 0)
    logits[1] = NAN
    logits.requires_grad_()
    loss = cross_entropy(logits, torch.tensor([0, -100, 2]))
    (dz,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad(dz.square().sum(), logits)
    assert not second[1].any() and second.isfinite().all()


def test_ignore_index_may_be_a_class() -> None:
    h, w_out, bias = linear_case()
    logits, targets, none = h @ w_out.mT + bias, torch.tensor([2, 0, 2]), torch.tensor([-100, 0, -100])
    assert torch.equal(cross_entropy(logits, targets, ignore_index=2), cross_entropy(logits, none))
    assert torch.equal(
        linear_cross_entropy(h, w_out, targets, bias, ignore_index=2), linear_cross_entropy(h, w_out, none, bias)
    )
    (dz,) = cross_entropy_vjp(logits, targets, grad_output=torch.tensor(1.0), ignore_index=2)
    assert not dz[0].any() and dz[1, 2] != 0  # the class is ignored as a target, not as a word


def test_an_impossible_target_costs_infinity_and_pulls_with_1() -> None:
    logits, target = torch.tensor([0.0, -INF, 0.0]), torch.tensor(1)
    assert cross_entropy(logits, target) == INF
    (dz,) = cross_entropy_vjp(logits, target, grad_output=torch.tensor(1.0))
    assert dz.tolist() == [0.5, -1.0, 0.5]
    h, w_out = torch.ones(1), torch.zeros(3, 1)
    assert linear_cross_entropy(h, w_out, target, logits) == INF
    _, dw, db = linear_cross_entropy_vjp(h, w_out, target, logits, grad_output=torch.tensor(1.0))
    assert db.tolist() == dw.flatten().tolist() == [0.5, -1.0, 0.5]


@pytest.mark.parametrize("chunk", [1, 2, 4096])
@pytest.mark.parametrize("bad", [-INF, NAN])
def test_a_row_without_a_largest_logit_is_nan(bad: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", chunk)
    logits, target = torch.full((3,), bad), torch.tensor(0)
    assert cross_entropy(logits, target).isnan()
    assert linear_cross_entropy(torch.ones(1), torch.zeros(3, 1), target, logits).isnan()


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_nan_reaches_its_loss_from_every_chunk(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", 1)
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    logits[place] = NAN
    target = torch.tensor(1)
    assert cross_entropy(logits, target).isnan()
    assert linear_cross_entropy(torch.ones(1), torch.zeros(4, 1), target, logits).isnan()


def test_a_single_class_costs_nothing() -> None:
    logits, targets = torch.tensor([[400.0], [-3.0]]), torch.zeros(2, dtype=torch.int64)
    assert cross_entropy(logits, targets) == 0
    assert not cross_entropy_vjp(logits, targets, grad_output=torch.tensor(1.0))[0].any()


def test_without_classes_every_row_is_ignored() -> None:
    targets = torch.full((2,), -100)
    h, w_out = torch.ones(2, 3, requires_grad=True), torch.ones(0, 3, requires_grad=True)
    logits = torch.ones(2, 0, requires_grad=True)
    assert cross_entropy(logits, targets, reduction="sum") == 0
    assert linear_cross_entropy(h, w_out, targets, reduction="sum") == 0
    loss = cross_entropy(logits, targets, reduction="sum") + linear_cross_entropy(h, w_out, targets, reduction="sum")
    dz, dh, dw = torch.autograd.grad(loss, (logits, h, w_out))
    assert dz.shape == (2, 0) and torch.equal(dh, torch.zeros(2, 3)) and dw.shape == (0, 3)


# --- transforms ---


@each_reduction
def test_vmap_is_a_loop(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", 3)
    (h, w_out, targets, bias), _ = linear_inputs(LINEAR["plain"], FLOAT64)
    targets[1, 2] = -100  # two of three places are kept in each example
    z, g = normal((2, 3, 7), FLOAT64, 7), torch.tensor(0.7, dtype=FLOAT64)

    def plain(x: Tensor, t: Tensor) -> Tensor:
        return cross_entropy(x, t, reduction=reduction)

    def linear(x: Tensor, w: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, t, b, reduction=reduction)

    losses, of_linear = vmap(plain)(z, targets), vmap(linear, (0, None, None, 0))(h, w_out, bias, targets)
    (dz,) = vmap(grad(lambda x, t: (g * plain(x, t)).sum(), (0,)))(z, targets)
    pulled = grad(lambda x, w, b, t: (g * linear(x, w, b, t)).sum(), (0, 1, 2))
    grads = vmap(pulled, (0, None, None, 0))(h, w_out, bias, targets)
    for i in range(2):
        upstream, options = g.expand(losses[i].shape), {"reduction": reduction}
        assert_correct("cross_entropy", losses[i], z[i], targets[i], **options)
        assert_correct("cross_entropy_vjp", (dz[i],), z[i], targets[i], grad_output=upstream, **options)
        given = h[i], w_out, targets[i], bias
        assert_linear_loss(of_linear[i], *given, reduction)
        assert_linear_gradients(tuple(x[i] for x in grads), *given, grad_output=g, reduction=reduction)


@each_reduction
def test_compiled_is_eager(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", 3)
    inputs, _ = linear_inputs(LINEAR["plain"], FLOAT64)
    leaves = [inputs[i].requires_grad_() for i in (0, 1, 3)]
    z, targets = normal((2, 3, 7), FLOAT64, 7).requires_grad_(), inputs[2]

    def both(z: Tensor, h: Tensor, w: Tensor, t: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(z, t, reduction=reduction), linear_cross_entropy(h, w, t, b, reduction=reduction)

    got = torch.compile(both, backend="aot_eager", fullgraph=True)(z, *inputs)
    want = both(z, *inputs)
    upstream = [upstream_of(x) for x in want]
    grads = (torch.autograd.grad(losses, [z, *leaves], upstream) for losses in (got, want))
    assert all(torch.equal(a, b) for a, b in (*zip(got, want, strict=True), *zip(*grads, strict=True)))
    assert targets[0, 1] == -100  # an ignored row is among them


def test_inductor_keeps_the_accumulator() -> None:
    logits, targets = normal((6, 40), BFLOAT16, 0) * 8, labels(6, classes=40)
    got = torch.compile(cross_entropy, fullgraph=True)(logits, targets, reduction="none")
    z, keep = exactly(logits), np.ones((6, 1), dtype=bool)
    losses, _ = row_losses(z, targets, keep)
    want, error = reduced(losses, loss_error(losses, z, 0, 0, BFLOAT16), keep, "none", BFLOAT16)
    assert_within(got, want, error, BFLOAT16)


def test_autocast_does_not_round_the_logits() -> None:
    (h, w_out, targets, bias), _ = linear_inputs(LINEAR["plain"], FLOAT32)
    want = linear_cross_entropy(h, w_out, targets, bias)
    with torch.autocast("cpu", dtype=BFLOAT16):
        assert torch.equal(linear_cross_entropy(h, w_out, targets, bias), want)


def test_a_call_leaves_its_arguments_alone() -> None:
    inputs, _ = linear_inputs(LINEAR["plain"], FLOAT32)
    before = [x.clone() for x in inputs]
    cross_entropy(inputs[0], inputs[2].clamp(max=3))
    linear_cross_entropy(*inputs)
    linear_cross_entropy_vjp(*inputs, grad_output=torch.tensor(1.0))
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
