"""The transformers library's own attention, norm and loss: `lla-spec verify transformers` (or `transformers:sdpa`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward

from lla_spec.testing.bundled.shapes import mask_of_heads, mask_of_rows, one_batch, visible, with_heads

# transformers/models/llama/modeling_llama.py, eager_attention_forward: matmul · scaling in the io dtype (two roundings
# of the scores), softmax(dtype=float32).to(io), matmul: `whiteboard`; in float64 the softmax is float32 as well. A mask
# adds the least number (masking_utils.eager_mask), so a row that sees nothing averages the values.
_EAGER: dict[str, Any] = {
    "contract": {"fp64": {"acc": "fp32"}, "fp32": "fused", "bf16": "whiteboard", "fp16": "whiteboard"},
    "policies": {"fully_masked_row": "mean", "nan_in_masked": "propagates"},
}
LLA_TARGET: dict[str, Any] = {
    "name": "transformers",
    "version": transformers.__version__,
    "devices": ["cpu", "cuda"],
    "dtypes": ["fp64", "fp32", "bf16", "fp16"],
    "ops": {
        "attention": _EAGER,
        "grouped_query_attention": _EAGER,
        # LlamaRMSNorm and ForCausalLMLoss compute in float32 whatever comes: hidden_states.to(float32), logits.float().
        "rms_norm": {"contract": {"fp64": {"acc": "fp32"}}},
        "cross_entropy": {"contract": {"fp64": {"acc": "fp32"}}, "policies": {"all_ignored": "nan"}},
        "cross_entropy_sum": {"contract": {"fp64": {"acc": "fp32"}}},
        "cross_entropy_none": {"dtypes": []},  # ForCausalLMLoss reduces
    },
}


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    mask = mask_of_rows(visible(q, k, mask, is_causal), q)
    return _eager(with_heads(q), with_heads(k), with_heads(v), mask, scale).reshape(*q.shape[:-1], v.shape[-1])


def grouped_query_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    mask = mask_of_heads(visible(q, k, mask, is_causal), q)
    return _eager(one_batch(q), one_batch(k), one_batch(v), mask, scale).reshape(*q.shape[:-1], v.shape[-1])


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Of (b, h, n, d), with the additive mask that masking_utils.eager_mask makes of a bool one."""
    added = None
    if mask is not None:
        added = torch.where(mask, torch.tensor(0.0, dtype=q.dtype), torch.finfo(q.dtype).min)
    out, _ = eager_attention_forward(_layer(q, k), q, k, v, added, _scaling(q, scale))
    return out.transpose(1, 2)


def _layer(q: Tensor, k: Tensor) -> Any:
    """What the attention functions read of their module."""
    return SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False, is_causal=False)


def _scaling(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    norm = LlamaRMSNorm(x.shape[-1], eps)
    given = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device) if weight is None else weight
    return torch.func.functional_call(norm, {"weight": given}, (x,))


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """The loss is float32 by its own promise; the last rounding, to the dtype of the logits, is this adapter's."""
    count = None if reduction == "mean" else torch.tensor(1)
    loss = ForCausalLMLoss(
        logits, targets, logits.shape[-1], num_items_in_batch=count, ignore_index=ignore_index, shift_labels=targets
    )
    return loss.to(logits.dtype)


def _sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    mask = mask_of_rows(visible(q, k, mask, is_causal), q)
    return _sdpa(with_heads(q), with_heads(k), with_heads(v), mask, scale).reshape(*q.shape[:-1], v.shape[-1])


def _sdpa_grouped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    mask = mask_of_heads(visible(q, k, mask, is_causal), q)
    return _sdpa(one_batch(q), one_batch(k), one_batch(v), mask, scale).reshape(*q.shape[:-1], v.shape[-1])


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    out, _ = sdpa_attention_forward(_layer(q, k), q, k, v, mask, scaling=_scaling(q, scale))
    return out.transpose(1, 2)


_ZEROS = {"policies": {"fully_masked_row": "zeros", "nan_in_masked": "propagates"}}
sdpa: dict[str, Any] = {
    "LLA_TARGET": {
        **LLA_TARGET,
        "name": "transformers sdpa",
        "ops": {"attention": _ZEROS, "grouped_query_attention": _ZEROS},
    },
    "attention": _sdpa_attention,
    "grouped_query_attention": _sdpa_grouped,
}
"""`transformers:sdpa`: the same with sdpa_attention_forward, whose masks are bool."""
