"""What impl promises: the contract per operation, dtype and path, and every policy.

A contract bounds the rounding (`strict`: sums in at least float32, one rounding; `fused`: in 16 bits attention's weights
may be rounded before P V, and partial gradients kept, as every fused kernel does). A policy says what is given where
the formula says nothing.
"""

from typing import Any

__version__ = "0.1.0"

_OVERFLOW = {"overflow": "inf"}  # a result beyond the dtype's range is ±inf, as the last rounding makes it

# The clear path of attention is strict in every dtype. The fused one meets strict in float32 and fused in 16 bits, and
# callers do not choose the path in eager mode: so 16 bits promises what the weaker path keeps.
_ATTENTION: dict[str, Any] = {
    "contract": {"fp64": "strict", "fp32": "strict", "bf16": "fused", "fp16": "fused"},
    "policies": {
        **_OVERFLOW,
        "fully_masked_row": "zeros",
        "causal_alignment": "bottom_right",
        "nan_in_masked": "ignored",
    },
}
_STRICT: dict[str, Any] = {"contract": "strict", "policies": _OVERFLOW}

LLA_TARGET: dict[str, Any] = {
    "name": "impl",
    "version": __version__,
    "devices": ["cpu", "cuda"],
    "dtypes": ["fp64", "fp32", "bf16", "fp16"],
    "differentiable": True,
    "ops": {
        "matmul": _STRICT,
        "linear": _STRICT,
        "weighted_average": _STRICT,
        "softmax": _STRICT,
        "log_softmax": _STRICT,
        "logsumexp": _STRICT,
        "attention": _ATTENTION,
    },
}
