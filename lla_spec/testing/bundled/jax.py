"""JAX's own functions as a target, on its CPU backend: `lla-spec verify jax`. Gradients are jax.vjp's."""

# The package is optional, so it may be missing where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor

from lla_spec.testing.bundled.shapes import mask_of_heads, mask_of_rows, one_batch, visible, with_heads

jax.config.update("jax_platforms", "cpu")

LLA_TARGET = {
    "name": "jax",
    "version": jax.__version__,
    "devices": ["cpu"],
    "dtypes": ["fp64", "fp32", "bf16", "fp16"],
    "ops": {
        # jax/_src/nn/functions.py: value is (B, S, K, H) with the H of query and key; masked scores are
        # -0.7 · the largest number, so a row that sees nothing averages the values.
        "attention": {"supports": {"e": "d"}, "policies": {"fully_masked_row": "mean", "nan_in_masked": "propagates"}},
        "grouped_query_attention": {
            "supports": {"e": "d"},
            "policies": {"fully_masked_row": "mean", "nan_in_masked": "propagates"},
        },
        # jnp.mean documents NaN over an empty selection.
        "mean_pool": {"policies": {"fully_masked_row": "nan", "nan_in_masked": "ignored"}},
        # standardize documents mean(x²) - mean(x)² ("fast", its default). It has no weight and no bias: times and plus
        # are ours, two more operations of the accumulator in fp64 and fp32, roundings that JAX never made in 16 bits.
        "layer_norm": {"dtypes": ["fp64", "fp32"], "contract": {"variance": "naive"}},
        "truncated_svd": {"dtypes": ["fp64", "fp32"]},  # LAPACK has no 16 bits
    },
}


def _array(value: Any) -> Any:
    """A tensor as a JAX array of the same memory (DLPack takes compact ones; a slice is copied)."""
    return jax.dlpack.from_dlpack(value.detach().contiguous()) if isinstance(value, Tensor) else value


def _tensors(result: Any) -> Any:
    return jax.tree.map(lambda array: torch.from_dlpack(jax.block_until_ready(array)), result)


class _Call(torch.autograd.Function):
    """A function of JAX arrays as a node of torch's graph."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        with jax.enable_x64(True):
            arrays = [_array(value) for value in arguments]
            ctx.floating = [place for place, value in enumerate(arguments) if ctx.needs_input_grad[place + 1]]
            if not ctx.floating:
                return _tensors(function(*arrays))

            def of_floating(*given: Any) -> Any:
                swapped = dict(zip(ctx.floating, given, strict=True))
                return function(*(swapped.get(place, array) for place, array in enumerate(arrays)))

            result, ctx.pull = jax.vjp(of_floating, *(arrays[place] for place in ctx.floating))
            return _tensors(result)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        with jax.enable_x64(True):
            found = dict(zip(ctx.floating, _tensors(ctx.pull(_array(cotangents[0]))), strict=True))
        return None, *(found.get(place) for place in range(len(ctx.needs_input_grad) - 1))


def on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of JAX arrays, taking and giving tensors, differentiable; keywords are passed on as they are."""

    @functools.wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        return _Call.apply(functools.partial(function, **keywords), *arguments)

    return called


@on_tensors
def softmax(x: Any) -> Any:
    return jax.nn.softmax(x, axis=-1)


@on_tensors
def log_softmax(x: Any) -> Any:
    return jax.nn.log_softmax(x, axis=-1)


@on_tensors
def logsumexp(x: Any) -> Any:
    return jax.nn.logsumexp(x, axis=-1)


@on_tensors
def matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b)


@on_tensors
def weighted_average(weights: Any, v: Any) -> Any:
    return jnp.matmul(weights, v)


@on_tensors
def _attention(q: Any, k: Any, v: Any, mask: Any, *, scale: float | None) -> Any:
    """Of (b, h, n, d); JAX has the heads after the rows."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale), 1, 2)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    mask = mask_of_rows(visible(q, k, mask, is_causal), q)
    out = _attention(with_heads(q), with_heads(k), with_heads(v), mask, scale=scale)
    return out.reshape(*q.shape[:-1], v.shape[-1])


def grouped_query_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    mask = mask_of_heads(visible(q, k, mask, is_causal), q)
    out = _attention(one_batch(q), one_batch(k), one_batch(v), mask, scale=scale)
    return out.reshape(*q.shape[:-1], v.shape[-1])


@on_tensors
def embedding(ids: Any, weight: Any) -> Any:
    return jnp.take(weight, ids, axis=0)


@on_tensors
def mean_pool(x: Any, mask: Any = None) -> Any:
    return jnp.mean(x, axis=-2, where=None if mask is None else mask[..., None])


@on_tensors
def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Any:
    out = jax.nn.standardize(x, axis=-1, epsilon=eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


@on_tensors
def _svd(w: Any) -> Any:
    return tuple(jnp.linalg.svd(w, full_matrices=False))


def truncated_svd(w: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = _svd(w)
    return u[..., :k], s[..., :k], vh[..., :k, :]
