"""Every refusal is a ValueError whose one line names the operation, the argument, its value, the rule and the axis."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import impl


def t(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    return torch.zeros(shape, dtype=dtype, device=device)


def looks(*shape: int) -> Any:
    return torch.ones(shape, dtype=torch.bool)


Q, K, V = t(2, 3, 4), t(2, 5, 4), t(2, 5, 6)

REFUSALS: list[tuple[Callable[[], Any], str]] = [
    # what is no floating tensor
    (
        lambda: impl.softmax([1.0, 2.0]),  # type: ignore[arg-type]
        "softmax: x must be a torch.Tensor, got list",
    ),
    (
        lambda: impl.matmul(t(2, 3, dtype=torch.int64), t(3, 4)),
        "matmul: a must be float64, float32, bfloat16 or float16, got torch.int64",
    ),
    (
        lambda: impl.logsumexp(t(3, dtype=torch.complex64)),
        "logsumexp: x must be float64, float32, bfloat16 or float16, got torch.complex64",
    ),
    # dtypes and devices
    (
        lambda: impl.attention(Q, K.bfloat16(), V),
        "attention: k has dtype torch.bfloat16 but q has torch.float32; all floating arguments share one dtype",
    ),
    (
        lambda: impl.linear(t(3), t(2, 3), t(2, dtype=torch.float64)),
        "linear: bias has dtype torch.float64 but x has torch.float32; all floating arguments share one dtype",
    ),
    (
        lambda: impl.matmul(t(2, 3), t(3, 4, device="meta")),
        "matmul: b is on meta but a is on cpu; all arguments share one device",
    ),
    (
        lambda: impl.attention(Q, K, V, looks(3, 5).to("meta")),
        "attention: mask is on meta but q is on cpu; all arguments share one device",
    ),
    # axes
    (lambda: impl.softmax(t()), "softmax: x must have at least 1 axis (..., n), got shape ()"),
    (lambda: impl.log_softmax(t()), "log_softmax: x must have at least 1 axis (..., n), got shape ()"),
    (lambda: impl.matmul(t(3), t(3, 4)), "matmul: a must have at least 2 axes (..., n, k), got shape (3,)"),
    (
        lambda: impl.weighted_average(t(2, 3), t(3)),
        "weighted_average: v must have at least 2 axes (..., m, e), got shape (3,)",
    ),
    (lambda: impl.linear(t(3), t(4, 2, 3)), "linear: weight must have exactly 2 axes (out, in), got shape (4, 2, 3)"),
    (lambda: impl.linear(t(3), t(2, 3), t(1, 2)), "linear: bias must have exactly 1 axis (out,), got shape (1, 2)"),
    (lambda: impl.attention(t(4), K, V), "attention: q must have at least 2 axes (..., n, d), got shape (4,)"),
    # sizes
    (
        lambda: impl.attention(t(3, 64), t(5, 32), t(5, 6)),
        "attention: k has head_dim 32 but q has 64 (axis -1)",
    ),
    (lambda: impl.attention(Q, K, t(2, 7, 6)), "attention: v has length 7 but k has 5 (axis -2)"),
    (lambda: impl.matmul(t(2, 3), t(4, 5)), "matmul: b has inner size 4 but a has 3 (axis -2 of b, axis -1 of a)"),
    (
        lambda: impl.weighted_average(t(2, 3), t(4, 5)),
        "weighted_average: v has length 4 but weights has 3 (axis -2 of v, axis -1 of weights)",
    ),
    (lambda: impl.linear(t(3), t(2, 4)), "linear: weight has in_features 4 but x has 3 (axis -1)"),
    (lambda: impl.linear(t(3), t(2, 3), t(5)), "linear: bias has out_features 5 but weight has 2 (axis 0)"),
    # leading axes
    (
        lambda: impl.matmul(t(2, 3, 4), t(5, 4, 6)),
        "matmul: leading axes do not broadcast: a (2,), b (5,)",
    ),
    (
        lambda: impl.attention(t(2, 1, 3, 4), t(3, 5, 4), t(7, 1, 5, 6)),
        "attention: leading axes do not broadcast: q (2, 1), k (3,), v (7, 1)",
    ),
    # the mask
    (
        lambda: impl.attention(Q, K, V, t(3, 5)),
        "attention: mask must be bool, got torch.float32; True = may look",
    ),
    (
        lambda: impl.attention(Q, K, V, [[True]]),  # type: ignore[arg-type]
        "attention: mask must be a torch.Tensor, got list",
    ),
    (
        lambda: impl.attention(Q, K, V, looks(5)),
        "attention: mask must have at least 2 axes (..., n, m), got shape (5,)",
    ),
    (
        lambda: impl.attention(Q, K, V, looks(3, 4)),
        "attention: mask has shape (3, 4), which does not broadcast to (..., n, m) = (2, 3, 5)",
    ),
    (  # a mask does not add batch axes
        lambda: impl.attention(Q, K, V, looks(7, 1, 3, 5)),
        "attention: mask has shape (7, 1, 3, 5), which does not broadcast to (..., n, m) = (2, 3, 5)",
    ),
    # the scale
    (
        lambda: impl.attention(Q, K, V, scale=math.nan),
        "attention: scale must be a finite float or None (1/sqrt(head_dim)), got nan",
    ),
    (
        lambda: impl.attention(Q, K, V, scale=-math.inf),
        "attention: scale must be a finite float or None (1/sqrt(head_dim)), got -inf",
    ),
    (
        lambda: impl.attention(Q, K, V, scale="0.5"),  # type: ignore[arg-type]
        "attention: scale must be a finite float or None (1/sqrt(head_dim)), got '0.5'",
    ),
    # the upstream gradient
    (
        lambda: impl.softmax_vjp(t(2, 3), grad_output=t(3)),
        "softmax_vjp: grad_output has shape (3,) but the result has (2, 3)",
    ),
    (
        lambda: impl.logsumexp_vjp(t(2, 3), grad_output=t(2, 1)),
        "logsumexp_vjp: grad_output has shape (2, 1) but the result has (2,)",
    ),
    (
        lambda: impl.log_softmax_vjp(t(3), grad_output=t(3).double()),
        "log_softmax_vjp: grad_output has dtype torch.float64 but x has torch.float32; "
        "all floating arguments share one dtype",
    ),
    (
        lambda: impl.matmul_vjp(t(2, 3), t(7, 3, 4), grad_output=t(2, 4)),
        "matmul_vjp: grad_output has shape (2, 4) but the result has (7, 2, 4)",
    ),
    (
        lambda: impl.linear_vjp(t(3), t(2, 3), grad_output=t(3)),
        "linear_vjp: grad_output has shape (3,) but the result has (2,)",
    ),
    (
        lambda: impl.weighted_average_vjp(t(2, 3), t(3, 4), grad_output=t(4, 2)),
        "weighted_average_vjp: grad_output has shape (4, 2) but the result has (2, 4)",
    ),
    (
        lambda: impl.attention_vjp(Q, K, V, grad_output=t(2, 3, 4)),
        "attention_vjp: grad_output has shape (2, 3, 4) but the result has (2, 3, 6)",
    ),
    (
        lambda: impl.attention_vjp(Q, t(2, 5, 3), V, grad_output=t(2, 3, 6)),
        "attention_vjp: k has head_dim 3 but q has 4 (axis -1)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value) == message
