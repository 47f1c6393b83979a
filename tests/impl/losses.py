"""What a loss and its gradient are at 50 digits, and how far counted roundings may take them from it.

The truth comes from mpmath (test_output.exactly); the counts are explained where they stand, and none is tuned.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lla_spec.testing import assert_correct
from tests.impl.cases import normal
from tests.impl.test_output import FUNCTION, MP, accumulator, exactly, exp, expm1, roundings, tiny

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


def linear_case(dtype: torch.dtype = FLOAT32) -> tuple[Tensor, Tensor, Tensor]:
    return normal((3, 4), dtype, 0), normal((7, 4), dtype, 1), normal((7,), dtype, 2)


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
