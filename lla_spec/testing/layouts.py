"""The same values in another memory layout. Inputs are built anew by each check: a clone would make them contiguous."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_POISON = float("nan")


def _dense(values: Tensor) -> Tensor:
    return values.contiguous()


def _transposed(values: Tensor) -> Tensor:
    """Stored with the last two axes swapped, viewed back: strides are not those of a dense tensor."""
    return values.transpose(-1, -2).contiguous().transpose(-1, -2) if values.dim() >= 2 else _strided(values)


def _strided(values: Tensor) -> Tensor:
    """Every other element along the last axis of a twice as wide buffer, the elements between poisoned with NaN."""
    buffer = _poisoned((*values.shape[:-1], 2 * values.shape[-1]), values) if values.dim() else _poisoned((2,), values)
    view = buffer[..., ::2] if values.dim() else buffer[0]
    view.copy_(values)
    return view


def _sliced(values: Tensor) -> Tensor:
    """The inside of a larger buffer (storage offset, row stride beyond the row's end), the rim poisoned with NaN."""
    if values.dim() == 0:
        return _strided(values)
    buffer = _poisoned(tuple(size + 3 for size in values.shape), values)
    view = buffer[tuple(slice(1, 1 + size) for size in values.shape)]
    view.copy_(values)
    return view


def _offset(values: Tensor) -> Tensor:
    """Dense, but it begins one element into its storage: not aligned to 16 bytes."""
    buffer = _poisoned((values.numel() + 2,), values)
    view = buffer[1 : 1 + values.numel()].view(values.shape)
    view.copy_(values)
    return view


def _expanded(values: Tensor) -> Tensor:
    """The first slice of the first axis, repeated with stride 0 (values change: the case says so)."""
    return values[:1].contiguous().expand(values.shape) if values.dim() and values.shape[0] else values


def _scalar_expanded(values: Tensor) -> Tensor:
    """One element with stride 0 everywhere, as the cotangent of `.sum()` is."""
    return values.reshape(-1)[:1].reshape(()).expand(values.shape) if values.numel() else values


def _poisoned(shape: tuple[int, ...], like: Tensor) -> Tensor:
    if like.dtype == torch.bool:
        return torch.ones(shape, dtype=like.dtype, device=like.device)
    return torch.full(shape, _POISON, dtype=like.dtype, device=like.device)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": _dense,
    "transposed": _transposed,
    "strided": _strided,
    "sliced": _sliced,
    "offset": _offset,
    "expanded": _expanded,
    "scalar": _scalar_expanded,
}

BESIDE_NAN = ("strided", "sliced", "offset")  # views into a buffer whose other entries are NaN
