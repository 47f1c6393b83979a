"""The precision rule of every operation: accumulate in at least float32, round once to the dtype of the arguments.

float64 stays float64. `values_can_be_read` says where a value may decide what is computed.
"""

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over arguments of `dtype` are held.

    >>> accumulator(torch.bfloat16), accumulator(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """`x` in its accumulator's dtype: exact, since float32 holds every bfloat16 and float16."""
    return x.to(accumulator(x.dtype))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, left in the accumulator's dtype for the caller to go on with or to round.

    A product of two 16-bit significands is exact in float32, so only the sum rounds. Autocast is put aside: it would
    round the widened arguments to bfloat16 again. torch's global switches (`set_float32_matmul_precision`, TF32) are
    obeyed; impl's contract is stated for their defaults.
    """
    a, b = widened(a), widened(b)
    if not a.is_meta and torch.is_autocast_enabled(a.device.type):
        with torch.autocast(a.device.type, enabled=False):
            return a @ b
    return a @ b


def summed_to(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of `like` out of the gradient of its broadcast: summed in the accumulator's dtype, then rounded."""
    return grad.sum_to_size(like.shape).to(like.dtype)


def values_can_be_read(x: Tensor) -> bool:
    """Whether Python may branch on the entries of `x`: in eager mode, not while compiling nor under vmap or grad.

    torch has no public question for an active functorch transform; `Function.apply` asks this same one.
    """
    return not x.is_meta and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def largest_magnitude(x: Tensor) -> float:
    """max |x| as a Python float, NaN if any entry is, 0 if there is none: below inf exactly where x is finite.

    One read of x by aminmax; `x.isfinite().all()` and `linalg.vector_norm` take 15 to 20 times as long on CPU.
    """
    if x.numel() == 0:
        return 0.0
    low, high = torch.aminmax(x.detach())
    return max(-low.item(), high.item())
