"""The loss fused with its linear layer: the formula at every chunk, no logits in memory, one rounding at the end."""

import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lla_spec.testing import assert_correct
from tests.impl.cases import normal
from tests.impl.losses import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    INF,
    LINEAR,
    chunks_of,
    cross_entropy,
    cross_entropy_vjp,
    each_chunk,
    each_dtype,
    each_linear,
    each_reduction,
    gradient_error,
    labels,
    linear_cross_entropy,
    linear_cross_entropy_vjp,
    linear_inputs,
    logits_and_targets,
    loss_error,
    module,
    reduced,
    row_losses,
    upstream_of,
    weights,
)
from tests.impl.test_output import MP, accumulator, assert_within, exactly, roundings, tiny
from tests.impl.test_output import logits_and_error as logits_and_their_error


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
