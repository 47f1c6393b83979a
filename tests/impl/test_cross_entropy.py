"""Losses and their gradients equal the formula to within counted roundings, relative to each loss and each entry.

The truth comes from mpmath (test_output.exactly); the counts are explained where they stand, and none is tuned.
"""

import importlib
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lla_spec.testing import assert_correct
from tests.impl.cases import normal
from tests.impl.test_output import FUNCTION, MP, accumulator, assert_within, exactly, exp, expm1, roundings, tiny
from tests.impl.test_output import logits_and_error as logits_and_their_error

module: Any = importlib.import_module("impl.cross_entropy")  # `impl.cross_entropy` is the function

# Called with lists of arguments, whose length a type checker cannot know.
cross_entropy: Any = module.cross_entropy
cross_entropy_vjp: Any = module.cross_entropy_vjp
linear_cross_entropy: Any = module.linear_cross_entropy
linear_cross_entropy_vjp: Any = module.linear_cross_entropy_vjp

NAN, INF = math.nan, math.inf
FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16
each_dtype = pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16, torch.float16], ids=str)
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def labels(*shape: int, classes: int, seed: int = 5) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


# --- the formula at 50 digits, and the bound; a number per row is a column (…, 1), which is no scalar to numpy ---


def row_losses(z: Any, targets: Tensor, keep: Any) -> tuple[Any, Any]:
    """ℓ = log Σ_j exp(z_j - z_t) and P - onehot; both 0 where not kept. No digit is lost where p_t is nearly 1."""
    t = np.where(keep, targets.numpy()[..., None], 0)
    ratios = exp(z - np.take_along_axis(z, t, -1))
    np.put_along_axis(ratios, t, MP.zero, -1)
    rest = ratios.sum(-1, keepdims=True)
    dz = ratios / (1 + rest)
    np.put_along_axis(dz, t, -rest / (1 + rest), -1)
    return np.where(keep, np.frompyfunc(MP.log1p, 1, 1)(rest), MP.zero), np.where(keep, dz, MP.zero)


def spread(z: Any) -> Any:
    """Between the largest and the smallest finite logit: how far from 0 the argument of any exp is."""
    largest = z.max(-1, keepdims=True)
    return largest - np.where(z == -MP.inf, largest, z).min(-1, keepdims=True)


def loss_error(losses: Any, z: Any, e: Any, chunks: int, dtype: torch.dtype) -> Any:
    """Logits off by e change a loss by 2e. Relative to it: 1 for m - z_t; the subtraction, exp and n - 1 additions of
    r; log1p, which magnifies no relative error; 1 to add the two, both ≥ 0. A merge adds exp and 3 operations."""
    count = 1 + (spread(z) + 2 * e) + FUNCTION + (z.shape[-1] - 1) + FUNCTION + 1 + chunks * (FUNCTION + 3)
    return 2 * e + roundings(count, dtype) * (losses + 2 * e) + (z.shape[-1] + 1) * tiny(accumulator(dtype))


def gradient_error(dz: Any, z: Any, e: Any, chunks: int, dtype: torch.dtype) -> Any:
    """Relative to each entry. P: the subtraction and exp above and below, n additions, a division of 2; P_t - 1: the
    loss's, which expm1 magnifies no further, and expm1. Logits off by e change either by a factor of exp(±2e)."""
    above_and_below = 2 * (spread(z) + 2 * e) + 3 * FUNCTION + z.shape[-1] + 2 + chunks * (FUNCTION + 3)
    relative = expm1(2 * e) + (1 + expm1(2 * e)) * roundings(above_and_below, dtype)
    return relative * abs(dz) + (z.shape[-1] + 1) * tiny(accumulator(dtype))


def reduced(losses: Any, error: Any, keep: Any, reduction: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The losses' sum or mean, and its error: N additions and a division."""
    if reduction == "none":
        return losses[..., 0], error[..., 0]
    size = keep.sum() if reduction == "mean" else 1
    total = losses.sum()
    return total / size, (error.sum() + roundings(keep.size + 1, dtype) * (losses + error).sum()) / size


def weights(upstream: Tensor, keep: Any, reduction: str) -> Any:
    """Of each row's gradient in that of the result."""
    g = np.asarray(exactly(upstream))
    return g[..., None] if reduction == "none" else np.full(keep.shape, g / (keep.sum() if reduction == "mean" else 1))


def upstream_of(out: Tensor) -> Tensor:
    return normal(tuple(out.shape), out.dtype, 99)


# --- the linear loss, of which the specification has the mean ---


def assert_linear_loss(loss: Tensor, h: Tensor, w_out: Tensor, targets: Tensor, bias: Any, reduction: str) -> None:
    """The specification has the mean: a place's loss is the mean of one, and the sum of two is exactly twice theirs."""
    if reduction == "none":
        for i, target in enumerate(targets):
            if target == -100:
                assert loss[i] == 0
            else:
                assert_correct("linear_cross_entropy", loss[i], h[i : i + 1], w_out, target[None], bias)
        return
    assert reduction == "mean" or (targets != -100).sum() == 2
    mean = loss if reduction == "mean" else loss / 2
    assert_correct("linear_cross_entropy", mean, h, w_out, targets, bias)


def assert_linear_gradients(
    grads: Any, h: Tensor, w_out: Tensor, targets: Tensor, bias: Any, *, grad_output: Tensor, reduction: str
) -> None:
    """Of one cotangent for every place: two places and a sum, or no reduction, pull exactly twice as the mean does."""
    assert reduction == "mean" or (targets != -100).sum() == 2
    g = grad_output if reduction == "mean" else 2 * grad_output
    assert_correct("linear_cross_entropy_vjp", grads, h, w_out, targets, bias, grad_output=g)


# --- cross_entropy ---

FAMILIES: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: normal((2, 3, 7), FLOAT64, 0),
    "one_row": lambda: normal((5,), FLOAT64, 0),
    "sure": lambda: 20 * normal((4, 6), FLOAT64, 1),
    "extreme": lambda: torch.where(normal((4, 6), FLOAT64, 2) > 0, 400.0, -400.0).to(FLOAT64),
    "ties": lambda: torch.ones(3, 5, dtype=FLOAT64),
    "offset": lambda: normal((3, 5), FLOAT64, 3) + 300,
    "one_class": lambda: normal((3, 1), FLOAT64, 4),
    "many_classes": lambda: 3 * normal((2, 400), FLOAT64, 5),
    "impossible": lambda: normal((3, 6), FLOAT64, 6).index_fill(-1, torch.tensor([5]), -INF),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def logits_and_targets(family: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Any]:
    logits = FAMILIES[family]().to(dtype)
    classes = 5 if family == "impossible" else logits.shape[-1]  # its target is possible; the other case is an edge
    targets = labels(*logits.shape[:-1], classes=classes)
    if family == "sure":
        targets = logits.argmax(-1)
    if targets.numel() > 2:
        targets.view(-1)[1] = -100
    return logits, targets, (targets != -100).numpy()[..., None]


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


# --- linear_cross_entropy ---

LINEAR = {
    "plain": ((2, 3, 4), (7, 4), (7,)),
    "no_bias": ((3, 5), (4, 5), None),
    "one_word": ((2, 3), (1, 3), (1,)),
    "one_row": ((4,), (6, 4), (6,)),
    "no_features": ((2, 0), (3, 0), (3,)),
}
each_linear = pytest.mark.parametrize("shapes", LINEAR.values(), ids=LINEAR)
each_chunk = pytest.mark.parametrize("chunk", [1, 3, 4096])


def linear_inputs(shapes: Any, dtype: torch.dtype) -> tuple[list[Any], Any]:
    """[h, w_out, targets, bias], and which rows are kept. The logits reach from sure to hopeless."""
    h, w_out, bias = (None if s is None else 2 * normal(s, dtype, seed) for seed, s in enumerate(shapes))
    assert h is not None and w_out is not None
    targets = labels(*h.shape[:-1], classes=w_out.shape[0])
    if targets.numel() > 1:
        targets.view(-1)[1] = -100
    return [h, w_out, targets, bias], (targets != -100).numpy()[..., None]


def chunks_of(w_out: Tensor, chunk: int) -> int:
    return -(-w_out.shape[0] // chunk)


@each_dtype
@each_chunk
@each_linear
def test_linear_loss_is_the_formula(
    shapes: Any, chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", chunk)
    (h, w_out, targets, bias), keep = linear_inputs(shapes, dtype)
    z, e = logits_and_their_error(h, w_out, bias)
    losses, _ = row_losses(z, targets, keep)
    errors = loss_error(losses, z, e, chunks_of(w_out, chunk), dtype)
    for reduction in ("mean", "sum", "none"):
        want, error = reduced(losses, errors, keep, reduction, dtype)
        got = linear_cross_entropy(h, w_out, targets, bias, reduction=reduction)
        assert_within(got, want, error, dtype)


@each_dtype
@each_chunk
@each_linear
def test_linear_gradients_are_the_formula_s(
    shapes: Any, chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", chunk)
    (h, w_out, targets, bias), keep = linear_inputs(shapes, dtype)
    (z, e), x, w = logits_and_their_error(h, w_out, bias), exactly(h), exactly(w_out)
    words, rows, chunks = w_out.shape[0], math.prod(targets.shape), chunks_of(w_out, chunk)
    _, dz = row_losses(z, targets, keep)
    error = gradient_error(dz, z, e, chunks, dtype)
    for reduction in ("mean", "sum", "none"):
        upstream = normal(tuple(targets.shape) if reduction == "none" else (), dtype, 9)
        g = weights(upstream, keep, reduction)
        dz_g = dz * g
        e_g = abs(g) * error + roundings(2, dtype) * abs(g) * (abs(dz) + error) + tiny(accumulator(dtype))
        kept, flat, e_flat = x.reshape(rows, -1), dz_g.reshape(rows, words), e_g.reshape(rows, words)
        size = abs(dz_g) + e_g
        size_flat = size.reshape(rows, words)
        dh, dw, db = linear_cross_entropy_vjp(h, w_out, targets, bias, grad_output=upstream, reduction=reduction)
        # A sum of n products is off by its terms' errors and by n roundings; a sum over chunks adds one for each.
        by_word, by_row = roundings(words + chunks, dtype), roundings(rows, dtype)
        assert_within(dh, dz_g @ w + MP.zero, e_g @ abs(w) + by_word * (size @ abs(w)), dtype)
        assert_within(dw, flat.T @ kept + MP.zero, (e_flat + by_row * size_flat).T @ abs(kept), dtype)
        assert (db is None) == (bias is None)
        if db is not None:
            assert_within(db, flat.sum(0), (e_flat + by_row * size_flat).sum(0), dtype)


@each_chunk
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("family", ["plain", "sure", "extreme", "ties", "offset", "one_class"])
def test_merged_chunks_keep_the_relative_precision(
    family: str, chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """h = logits and W = 1: the product is exact, and what remains is the error of the merges."""
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", chunk)
    logits, targets, keep = logits_and_targets(family, dtype)
    z, unit = exactly(logits), torch.eye(logits.shape[-1], dtype=dtype)
    losses, dz = row_losses(z, targets, keep)
    chunks = chunks_of(unit, chunk)
    want, error = reduced(losses, loss_error(losses, z, 0, chunks, dtype), keep, "none", dtype)
    assert_within(linear_cross_entropy(logits, unit, targets, reduction="none"), want, error, dtype)
    ones = torch.ones(targets.shape, dtype=dtype)
    dh, _, _ = linear_cross_entropy_vjp(logits, unit, targets, grad_output=ones, reduction="none")
    assert_within(dh, dz, gradient_error(dz, z, 0, chunks, dtype), dtype)


@each_reduction
@each_linear
def test_linear_autograd_gives_the_named_vjp(shapes: Any, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", 3)
    inputs, _ = linear_inputs(shapes, FLOAT64)
    leaves = [inputs[i].requires_grad_() for i in (0, 1, 3) if inputs[i] is not None]
    out = linear_cross_entropy(*inputs, reduction=reduction)
    upstream = upstream_of(out)
    named = [x for x in linear_cross_entropy_vjp(*inputs, grad_output=upstream, reduction=reduction) if x is not None]
    for got, want in zip(torch.autograd.grad(out, leaves, upstream), named, strict=True):
        assert torch.equal(got, want)


@each_reduction
@pytest.mark.parametrize("shapes", [LINEAR["plain"], LINEAR["no_bias"], LINEAR["one_word"]], ids=str)
def test_linear_gradients_equal_finite_differences(
    shapes: Any, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", 3)
    (h, w_out, targets, bias), _ = linear_inputs(shapes, FLOAT64)
    leaves = [x.requires_grad_() for x in (h, w_out, bias) if x is not None]

    def loss(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(x, w, targets, b, reduction=reduction)

    assert gradcheck(loss, leaves)
    assert gradgradcheck(loss, leaves)


def test_impossible_words_have_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", 2)  # the first chunk and the last are impossible throughout
    (h, w_out, _, _), _ = linear_inputs(LINEAR["plain"], FLOAT64)
    bias = torch.tensor([-INF, -INF, 0.0, 0.0, 1.0, -INF, -INF], dtype=FLOAT64)
    targets = torch.tensor([[2, 3, 4], [2, 2, -100]])
    leaves = [h.requires_grad_(), w_out.requires_grad_()]
    rest = slice(2, 5)
    possible = h, w_out[rest], torch.where(targets == -100, -100, targets - 2), bias[rest]
    assert_correct("linear_cross_entropy", linear_cross_entropy(h, w_out, targets, bias), *possible)
    assert gradcheck(lambda x, w: linear_cross_entropy(x, w, targets, bias), leaves)
    assert gradgradcheck(lambda x, w: linear_cross_entropy(x, w, targets, bias), leaves)


def test_only_the_gradients_asked_for_are_given() -> None:
    (h, w_out, targets, bias), _ = linear_inputs(LINEAR["plain"], FLOAT32)
    linear_cross_entropy(h.requires_grad_(), w_out, targets, bias).backward()
    assert w_out.grad is None and bias.grad is None
    want = linear_cross_entropy_vjp(h, w_out, targets, bias, grad_output=torch.tensor(1.0))[0]
    assert h.grad is not None and torch.equal(h.grad, want)


def test_linear_sums_do_not_stagnate() -> None:
    # Two words are equally likely in each of 4096 rows: dz = ±1/2, and the sums over rows are ±2048.
    h, w_out, bias = (torch.ones(s, dtype=BFLOAT16) for s in ((4096, 1), (2, 1), (2,)))
    targets, one = torch.zeros(4096, dtype=torch.int64), torch.tensor(1.0, dtype=BFLOAT16)
    _, dw, db = linear_cross_entropy_vjp(h, w_out, targets, bias, grad_output=one, reduction="sum")
    assert dw.flatten().tolist() == db.tolist() == [-2048.0, 2048.0]
    # 8192 words are equally likely, and all but the target's weigh 1: dh = 8191/8192, whose bfloat16 is 1.
    h, w_out = torch.zeros(1, 1, dtype=BFLOAT16), torch.ones(8192, 1, dtype=BFLOAT16)
    w_out[0] = 0
    dh, _, _ = linear_cross_entropy_vjp(h, w_out, targets[:1], grad_output=one)
    assert dh.item() == 1.0


@pytest.mark.parametrize("dtype", [BFLOAT16, torch.float16], ids=str)
def test_sixteen_bits_are_the_float32_result_rounded_once(dtype: torch.dtype) -> None:
    (h, w_out, targets, bias), _ = linear_inputs(LINEAR["plain"], dtype)
    z = 2 * normal((2, 3, 7), dtype, 0)
    one = torch.tensor(1.0)
    pairs = [
        ([cross_entropy(z, targets)], [cross_entropy(z.float(), targets)]),
        (
            cross_entropy_vjp(z, targets, grad_output=one.to(dtype)),
            cross_entropy_vjp(z.float(), targets, grad_output=one),
        ),
    ]
    wide = (h.float(), w_out.float(), targets, bias.float())
    pairs += [
        ([linear_cross_entropy(h, w_out, targets, bias)], [linear_cross_entropy(*wide)]),
        (
            linear_cross_entropy_vjp(h, w_out, targets, bias, grad_output=one.to(dtype)),
            linear_cross_entropy_vjp(*wide, grad_output=one),
        ),
    ]
    for narrow, want in pairs:
        assert all(torch.equal(x, y.to(dtype)) for x, y in zip(narrow, want, strict=True))


class Memory(TorchDispatchMode):
    """How many bytes of their own the results of all steps hold at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.known:
                self.take(x.untyped_storage())
        return result

    def take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self.give_back, key, size)

    def give_back(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.held -= size


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_the_logits_are_never_in_memory(dtype: torch.dtype) -> None:
    rows, words, d = 32, 16 * module.VOCABULARY_CHUNK, 4
    h, w_out, targets = normal((rows, d), dtype, 0), normal((words, d), dtype, 1), labels(rows, classes=words)
    leaves = [h.requires_grad_(), w_out.requires_grad_()]
    logits = rows * words * 4  # bytes, in float32
    with Memory() as whole:
        cross_entropy(h @ w_out.mT, targets)
    assert whole.peak >= logits * dtype.itemsize // 4  # the count counts
    with Memory() as forward:
        loss = linear_cross_entropy(h, w_out, targets)
    with Memory() as backward:
        torch.autograd.grad(loss, leaves)
    assert forward.peak < logits / 2
    assert backward.peak < logits / 2 + 2 * 4 * w_out.numel()  # dW, in pieces and then in one
    assert backward.peak < logits


# --- edges ---


def linear_case(dtype: torch.dtype = FLOAT32) -> tuple[Tensor, Tensor, Tensor]:
    return normal((3, 4), dtype, 0), normal((7, 4), dtype, 1), normal((7,), dtype, 2)


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


# --- messages ---


def t(*shape: int, dtype: torch.dtype = FLOAT32, device: str = "cpu") -> Any:
    return torch.zeros(shape, dtype=dtype, device=device)


def ids(*values: int) -> Tensor:
    return torch.tensor(values)


REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: cross_entropy(t(2, 7), ids(0, 7)),
        "cross_entropy: targets holds 7 but logits has 7 classes (axis -1)",
    ),
    (
        lambda: cross_entropy_vjp(t(2, 7), ids(0, -1), grad_output=t()),
        "cross_entropy_vjp: targets holds -1 but logits has 7 classes (axis -1)",
    ),
    (
        lambda: cross_entropy(t(2, 7), ids(0, -100), ignore_index=3),
        "cross_entropy: targets holds -100 but logits has 7 classes (axis -1)",
    ),
    (
        lambda: linear_cross_entropy(t(2, 3), t(5, 3), ids(0, 5)),
        "linear_cross_entropy: targets holds 5 but w_out has 5 classes (axis 0)",
    ),
    (lambda: cross_entropy(t(1, 0), ids(0)), "cross_entropy: targets holds 0 but logits has 0 classes (axis -1)"),
    (lambda: cross_entropy(t(2, 7), t(2)), "cross_entropy: targets must be int64, got torch.float32"),
    (
        lambda: cross_entropy(t(2, 7), t(2, dtype=torch.int32)),
        "cross_entropy: targets must be int64, got torch.int32",
    ),
    (lambda: cross_entropy(t(2, 7), [0, 1]), "cross_entropy: targets must be a torch.Tensor, got list"),
    (
        lambda: cross_entropy(t(2, 7), t(2, dtype=torch.int64, device="meta")),
        "cross_entropy: targets is on meta but logits is on cpu; all arguments share one device",
    ),
    (
        lambda: cross_entropy(t(2, 7), ids(0, 1, 2)),
        "cross_entropy: targets has shape (3,) but logits has rows (2,)",
    ),
    (
        lambda: linear_cross_entropy(t(2, 4, 3), t(5, 3), ids(0, 1)),
        "linear_cross_entropy: targets has shape (2,) but h has rows (2, 4)",
    ),
    (lambda: cross_entropy(t(), ids()), "cross_entropy: logits must have at least 1 axis (..., V), got shape ()"),
    (
        lambda: cross_entropy(t(2, 7, dtype=torch.int64), ids(0, 1)),
        "cross_entropy: logits must be float64, float32, bfloat16 or float16, got torch.int64",
    ),
    (
        lambda: cross_entropy(t(2, 7), ids(0, 1), reduction="avg"),
        "cross_entropy: reduction must be 'mean', 'sum' or 'none', got 'avg'",
    ),
    (
        lambda: linear_cross_entropy(t(2, 3), t(5, 3), ids(0, 1), reduction=None),
        "linear_cross_entropy: reduction must be 'mean', 'sum' or 'none', got None",
    ),
    (
        lambda: cross_entropy(t(2, 7), ids(0, 1), ignore_index=None),
        "cross_entropy: ignore_index must be an integer, got None",
    ),
    (
        lambda: cross_entropy(t(2, 7), ids(0, 1), ignore_index=True),
        "cross_entropy: ignore_index must be an integer, got True",
    ),
    (
        lambda: linear_cross_entropy(t(2, 3), t(5, 4), ids(0, 1)),
        "linear_cross_entropy: w_out has d 4 but h has 3 (axis -1)",
    ),
    (
        lambda: linear_cross_entropy(t(2, 3), t(5, 3), ids(0, 1), t(4)),
        "linear_cross_entropy: bias has V 4 but w_out has 5 (axis 0)",
    ),
    (
        lambda: cross_entropy_vjp(t(2, 7), ids(0, 1), grad_output=t(2)),
        "cross_entropy_vjp: grad_output has shape (2,) but the result has ()",
    ),
    (
        lambda: linear_cross_entropy_vjp(t(2, 3), t(5, 3), ids(0, 1), grad_output=t(), reduction="none"),
        "linear_cross_entropy_vjp: grad_output has shape () but the result has (2,)",
    ),
    (
        lambda: cross_entropy_vjp(t(2, 7), ids(0, 1), grad_output=t(dtype=FLOAT64)),
        "cross_entropy_vjp: grad_output has dtype torch.float64 but logits has torch.float32; "
        "all floating arguments share one dtype",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value) == message
