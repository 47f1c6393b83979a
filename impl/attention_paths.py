"""Which way attention goes, and the fused way: torch's flash kernel, where it is right and where it pays.

The kernel holds O(n) memory where the formula holds n × m scores. It is wrong or different where
- an entry is NaN or inf: NaN in q comes out as zeros, NaN in a masked slot leaks;
- a query may look at no key: torch's convention, not ours;
- a score or a sum of values overflows float32: it divides by Σ exp last, the formula first;
- causal with n ≠ m: its is_causal is top-left, so it gets the bottom-right mask instead.
So eager mode reads q, k and v once each and goes the clear way wherever one of these could happen. Under
torch.compile, vmap and the other functorch transforms nothing can be read, and the clear way is the only one.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from impl.masks import looks
from impl.precision import largest_magnitude, values_can_be_read

Path = Literal["clear", "fused"]

# From how many scores n·m per matrix the kernel wins, forward alone and with its backward. What is not listed goes
# the clear way: on a CPU the kernel is slower in float16, float64 is there to be trusted rather than to be fast, and
# on CUDA nobody has yet measured the kernels against the contract.
FUSED_FROM: dict[tuple[str, torch.dtype], int] = {
    ("cpu", torch.float32): 2**14,
    ("cpu", torch.bfloat16): 2**15,
}


def attention_path(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float = 1.0
) -> Path:
    """The path that `attention` and `attention_vjp` take for these arguments, `scale` as they resolved it.

    >>> q = torch.zeros(1, 512, 64)
    >>> attention_path(q, q, q), attention_path(q, q, q / 0), attention_path(q.double(), q.double(), q.double())
    ('fused', 'clear', 'clear')
    """
    if not values_can_be_read(q) or torch.is_autocast_enabled(q.device.type):
        return "clear"
    smallest = FUSED_FROM.get((q.device.type, q.dtype))
    if smallest is None or q.shape[-2] * k.shape[-2] < smallest:
        return "clear"
    if v.shape[-1] != q.shape[-1] or 0 in (q.numel(), k.numel(), v.numel()):
        return "clear"  # the kernel takes e = d only, and no empty tensor
    return "clear" if _has_empty_row(q, k, mask, is_causal) or _may_overflow(q, k, v, scale) else "fused"


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool, scale: float) -> Tensor:
    """torch's flash kernel, forward and, through its own autograd, backward. It takes four axes and dense rows."""
    leading = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    # The kernel's own causal masking saves half the work, and agrees with bottom-right where n = m only. It hides a
    # score by -inf before it multiplies by the scale: with a scale of 0 or less that is NaN or +inf (torch 2.13, CPU).
    top_left = is_causal and mask is None and q.shape[-2] == k.shape[-2] and scale > 0
    may_look = None if top_left else looks(q, k, mask, is_causal)
    if may_look is not None:
        may_look = _mask_with_four_axes(may_look, leading)
    q, k, v = (_dense_rows(_four_axes(x.expand(*leading, *x.shape[-2:]))) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=may_look, is_causal=top_left, scale=scale)
    return out.reshape(*leading, *out.shape[-2:])


def _has_empty_row(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    if mask is None:
        return is_causal and q.shape[-2] > k.shape[-2]
    rows = looks(q, k, mask, True) if is_causal else mask
    return rows is not None and not bool(rows.any(-1).all())


def _may_overflow(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether a partial result of the kernel could pass float32's range. True for NaN: no comparison with it holds."""
    score = q.shape[-1] * largest_magnitude(q) * largest_magnitude(k) * max(abs(scale), 1.0)
    total = k.shape[-2] * largest_magnitude(v)
    limit = torch.finfo(torch.float32).max
    return not (score < limit and total < limit)


def _four_axes(x: Tensor) -> Tensor:
    return x.reshape(*(1,) * (4 - x.ndim), *x.shape) if x.ndim < 4 else x.flatten(0, x.ndim - 4)


def _mask_with_four_axes(mask: Tensor, leading: torch.Size) -> Tensor:
    """Sizes of 1 are kept, since the kernel copies a mask to floats at the size that it is given."""
    mask = mask.reshape(*(1,) * (len(leading) + 2 - mask.ndim), *mask.shape)
    if any(size != 1 for size in mask.shape[:-3]) and mask.ndim > 4:
        mask = mask.expand(*leading, *mask.shape[-2:])  # axes that become one axis need their full sizes
    return _four_axes(mask)


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
