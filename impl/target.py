"""What impl promises: the contract per operation, dtype and path, and every policy.

A contract bounds the rounding. `strict`: sums in at least float32, one rounding. `fused`: in 16 bits attention may
round its weights before P V and keep partial gradients in 16 bits, as every fused kernel does. A policy says what is
given where the formula says nothing.
"""

from typing import Any

__version__ = "0.1.0"

_OVERFLOW = {"overflow": "inf"}  # a result beyond the dtype's range is ±inf, as the last rounding makes it

# The clear path of attention is strict in every dtype. The fused one, which eager mode takes from a certain size on
# (attention_paths), meets strict in float32 and fused in bfloat16: a dtype promises what the weaker of its paths keeps.
_ATTENTION: dict[str, Any] = {
    "contract": {"fp64": "strict", "fp32": "strict", "bf16": "fused", "fp16": "strict"},
    "policies": {
        **_OVERFLOW,
        "fully_masked_row": "zeros",
        "causal_alignment": "bottom_right",
        "nan_in_masked": "ignored",
    },
}
# A query that looks at nothing gives zeros in every head, then b_o.
_POOL: dict[str, Any] = {
    "contract": "strict",
    "policies": {**_OVERFLOW, "fully_masked_row": "zeros", "nan_in_masked": "ignored"},
}
_LOSS: dict[str, Any] = {"contract": "strict", "policies": {**_OVERFLOW, "all_ignored": "nan"}}
_STRICT: dict[str, Any] = {"contract": "strict", "policies": _OVERFLOW}

LLA_TARGET: dict[str, Any] = {
    "name": "impl",
    "version": __version__,
    "devices": ["cpu", "cuda"],
    "dtypes": ["fp64", "fp32", "bf16", "fp16"],
    "differentiable": True,
    "ops": {
        "embedding": _STRICT,
        "mean_pool": _POOL,
        "matmul": _STRICT,
        "linear": _STRICT,
        "weighted_average": _STRICT,
        "softmax": _STRICT,
        "log_softmax": _STRICT,
        "logsumexp": _STRICT,
        "attention": _ATTENTION,
        "grouped_query_attention": _ATTENTION,
        "multi_head_attention": _ATTENTION,
        "layer_norm": _STRICT,
        "rms_norm": _STRICT,
        "residual_layer_norm": _STRICT,
        "output_softmax": _STRICT,
        "cross_entropy": _LOSS,
        "linear_cross_entropy": _LOSS,
        "pca_transform": _STRICT,
        "pca_inverse": _STRICT,
        "truncated_svd": _STRICT,
        "low_rank": _STRICT,
        "pca": _STRICT,
    },
}
