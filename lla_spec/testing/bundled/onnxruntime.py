"""onnxruntime's CPU kernels as a target: `lla-spec verify onnxruntime`. A graph of one node is built on the spot."""

# The package is optional, so it may be missing where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from lla_spec.testing.bundled.shapes import loss_of_no_rows, mask_of_heads, mask_of_rows, one_batch, visible, with_heads

# docs/OperatorKernels.md of onnxruntime: its CPU provider has no bfloat16. epsilon is a float32 attribute in the ONNX
# standard, so that a norm in float64 is given a number that is off by one part in 10^8.
_EPSILON = {"contract": {"fp64": {"acc": "fp32"}}}
LLA_TARGET = {
    "name": "onnxruntime",
    "version": onnxruntime.__version__,
    "devices": ["cpu"],
    "dtypes": ["fp64", "fp32", "fp16"],
    "differentiable": False,
    "ops": {"layer_norm": _EPSILON, "rms_norm": _EPSILON},
}

OPSET = 23  # the first with Attention and RMSNormalization
TYPES = {
    torch.float64: TensorProto.DOUBLE,
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bool: TensorProto.BOOL,
    torch.int64: TensorProto.INT64,
}


@functools.cache
def _session(operator: str, types: tuple[tuple[int, int] | None, ...], attributes: tuple[tuple[str, Any], ...]) -> Any:
    """The session of one node; `types` are (element type, number of axes) of each input, None where it is left out."""
    inputs = [
        helper.make_tensor_value_info(f"x{place}", kind[0], [None] * kind[1])
        for place, kind in enumerate(types)
        if kind is not None
    ]
    names = [f"x{place}" if kind is not None else "" for place, kind in enumerate(types)]
    assert types[0] is not None
    outputs = [helper.make_tensor_value_info("y", types[0][0], None)]
    node = helper.make_node(operator, names, ["y"], **dict(attributes))
    graph = helper.make_graph([node], operator, inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(operator: str, *arguments: Tensor | None, **attributes: Any) -> Tensor:
    """The first output of `operator` of the standard opset, of these inputs."""
    given = list(arguments)
    while given and given[-1] is None:
        given.pop()
    types = tuple(None if value is None else (TYPES[value.dtype], value.ndim) for value in given)
    session = _session(operator, types, tuple(sorted(attributes.items())))
    feeds = {f"x{place}": value.detach().numpy() for place, value in enumerate(given) if value is not None}
    return torch.from_numpy(np.asarray(session.run(None, feeds)[0]))


def softmax(x: Tensor) -> Tensor:
    return run("Softmax", x, axis=-1)


def log_softmax(x: Tensor) -> Tensor:
    return run("LogSoftmax", x, axis=-1)


def logsumexp(x: Tensor) -> Tensor:
    return run("ReduceLogSumExp", x, torch.tensor([x.ndim - 1]), keepdims=0)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return run("MatMul", a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return run("Gemm", x.reshape(-1, x.shape[-1]), weight, bias, transB=1).reshape(*x.shape[:-1], len(weight))


def weighted_average(weights: Tensor, v: Tensor) -> Tensor:
    return run("MatMul", weights, v)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    mask = mask_of_rows(visible(q, k, mask, is_causal), q)
    out = _attention(with_heads(q), with_heads(k), with_heads(v), mask, scale)
    return out.reshape(*q.shape[:-1], v.shape[-1])


def grouped_query_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    mask = mask_of_heads(visible(q, k, mask, is_causal), q)
    out = _attention(one_batch(q), one_batch(k), one_batch(v), mask, scale)
    return out.reshape(*q.shape[:-1], v.shape[-1])


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """The standard multiplies q and k by sqrt(scale), so its sign goes to q; the runtime refuses an empty batch."""
    if not q.numel():
        return q.new_empty(*q.shape[:-1], v.shape[-1])
    if scale is None:
        return run("Attention", q, k, v, mask)
    return run("Attention", q * np.sign(scale), k, v, mask, scale=abs(scale) or 1.0)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    return run("Gather", weight, ids, axis=0)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    return run("LayerNormalization", x, _or_ones(weight, x), bias, axis=-1, epsilon=eps)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    return run("RMSNormalization", x, _or_ones(weight, x), axis=-1, epsilon=eps)


def _or_ones(weight: Tensor | None, x: Tensor) -> Tensor:
    """The standard makes the weight an input that must be there."""
    return torch.ones(x.shape[-1:], dtype=x.dtype) if weight is None else weight


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    if not targets.numel():  # the runtime refuses to reshape it
        return loss_of_no_rows(logits, targets, reduction)
    rows, words = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    loss = run("SoftmaxCrossEntropyLoss", rows, words, ignore_index=ignore_index, reduction=reduction)
    return loss.reshape(targets.shape if reduction == "none" else ())
