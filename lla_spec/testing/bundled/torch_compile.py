"""torch's functions behind torch.compile: `lla-spec verify torch_compile --limit 120` (it compiles inside the calls).

One graph serves every shape of a family: sizes are symbols, leading axes are one, and inputs are contiguous, since each
other pattern of strides is one more kernel to build. On the CPU inductor writes C++, so a compiler must be there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from lla_spec.testing.bundled import torch_native
from lla_spec.testing.errors import TargetError

LLA_TARGET: dict[str, Any] = {
    **torch_native.LLA_TARGET,
    "name": "torch.compile",
    "supports": {"layouts": "contiguous"},  # the adapter's; see above
}

UNLIMITED = {
    "recompile_limit": 1 << 16,  # of one function: in each dtype, for each eps, with and without gradients, and so on
    "accumulated_recompile_limit": 1 << 16,
    "fail_on_recompile_limit_hit": True,
}

if not torch.cuda.is_available():
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise TargetError(
            "target torch_compile: inductor finds no C++ compiler; install g++ or clang, or set CXX"
        ) from None


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` compiled once for all sizes above 1, in each dtype, with and without gradients, and at sizes 0 and 1;
    past the limit of recompilations it raises, and never runs eager."""
    built = torch.compile(function, dynamic=True, fullgraph=True)

    @functools.wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Tensor:
        with torch._dynamo.config.patch(**UNLIMITED):
            return built(*arguments, **keywords)

    return called


def _of_rows(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` compiled for a first argument (rows, d)."""
    built = _compiled(function)

    @functools.wraps(function)
    def called(x: Tensor, *others: Any, **keywords: Any) -> Tensor:
        out = built(x.reshape(-1, x.shape[-1]), *others, **keywords)
        return out.reshape((*x.shape[:-1], *out.shape[1:]))

    return called


softmax = _of_rows(torch_native.softmax)
log_softmax = _of_rows(torch_native.log_softmax)
logsumexp = _of_rows(torch_native.logsumexp)
linear = _of_rows(torch_native.linear)
layer_norm = _of_rows(torch_native.layer_norm)
rms_norm = _of_rows(torch_native.rms_norm)
