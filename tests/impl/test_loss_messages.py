"""What the losses refuse, and in which words."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.impl.losses import (
    FLOAT32,
    FLOAT64,
    cross_entropy,
    cross_entropy_vjp,
    linear_cross_entropy,
    linear_cross_entropy_vjp,
)


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
