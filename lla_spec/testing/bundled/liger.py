"""Liger's Triton kernels as a target: `lla-spec verify liger`. Without a GPU they run in Triton's interpreter."""

# The package is optional, so it may be missing where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Any

import torch
from torch import Tensor

from lla_spec.testing.bundled.shapes import loss_of_no_rows
from lla_spec.testing.errors import TargetError

if not torch.cuda.is_available():
    if sys.modules.get("triton") and os.environ.get("TRITON_INTERPRET") != "1":
        raise TargetError(
            "target liger: there is no GPU and Triton is imported to compile; set TRITON_INTERPRET=1 in the environment"
        )
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it where a kernel is decorated, at the imports below

import triton.language as tl
from liger_kernel.ops import layer_norm as _layer_norm
from liger_kernel.ops import rms_norm as _rms_norm
from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
from liger_kernel.ops.layer_norm import LigerLayerNormFunction
from liger_kernel.ops.rms_norm import LigerRMSNormFunction
from liger_kernel.ops.softmax import LigerSoftmaxFunction


def _rsqrt(x: Any) -> Any:
    """libdevice is CUDA's, and its functions give None in the interpreter; Triton's own is interpreted."""
    return tl.rsqrt(x)


if not torch.cuda.is_available():
    _layer_norm.rsqrt = _rms_norm.rsqrt = _rsqrt

LLA_TARGET: dict[str, Any] = {
    "name": "liger",
    "version": importlib.metadata.version("liger-kernel"),
    "devices": ["cuda" if torch.cuda.is_available() else "cpu"],
    "dtypes": ["fp32", "bf16", "fp16"],  # norms and losses widen to tl.float32, whatever comes
    "ops": {name: {"policies": {"all_ignored": "zero"}} for name in ("cross_entropy", "linear_cross_entropy")},
}
if not torch.cuda.is_available():  # one program for each row of w_out's gradient, 0.4 ms each where it is interpreted
    LLA_TARGET["ops"]["linear_cross_entropy"]["supports"] = {"v": "at most 5000"}


class _Scalar(float):
    """A number that Triton's interpreter can pass on: it leaves floats as they are, and the kernels call `eps.to`."""

    def to(self, dtype: object) -> _Scalar:
        return self


def softmax(x: Tensor) -> Tensor:
    return LigerSoftmaxFunction.apply(x)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    weight = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device) if weight is None else weight
    bias = torch.zeros(x.shape[-1], dtype=x.dtype, device=x.device) if bias is None else bias
    return LigerLayerNormFunction.apply(x, weight, bias, _Scalar(eps))


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Not in place: its default stores dx over the cotangent, as the docstring of LigerRMSNormFunction says."""
    return LigerRMSNormFunction.apply(x, weight, _Scalar(eps), _Scalar(0.0), "llama", False)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """The kernel writes the gradient over the logits, "a trick" as its comment says: it is given a copy of them."""
    if not targets.numel():  # its launcher takes the maximum of the targets
        return loss_of_no_rows(logits, targets, "sum" if reduction == "mean" else reduction)  # 0, as of none that count
    rows, words = logits.reshape(-1, logits.shape[-1]).clone(), targets.reshape(-1)
    loss = LigerCrossEntropyFunction.apply(rows, words, None, ignore_index, 0.0, 0.0, reduction)[0]
    return loss.reshape(targets.shape) if reduction == "none" else loss


def linear_cross_entropy(
    h: Tensor, w_out: Tensor, targets: Tensor, bias: Tensor | None = None, *, ignore_index: int = -100
) -> Tensor:
    """The loss is float32 by their promise; the last rounding, to the dtype of h, is this adapter's."""
    if not targets.numel():  # its launcher divides by their number
        return loss_of_no_rows(h @ w_out.mT, targets, "sum")
    rows, words = h.reshape(-1, h.shape[-1]), targets.reshape(-1)
    return LigerFusedLinearCrossEntropyFunction.apply(rows, w_out, words, bias, None, ignore_index)[0].to(h.dtype)
