"""Checked arguments: a refusal is a ValueError that names operation, argument, value, rule and axis.

Every check reads shapes, dtypes and devices, never entries, so torch.compile traces through it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from impl.precision import DTYPES

_FLOATING = "float64, float32, bfloat16 or float16"


def check_floating(operation: str, **tensors: Tensor | None) -> None:
    """All tensors that are given are floating and share the dtype and the device of the first."""
    first: tuple[str, Tensor] | None = None
    for name, x in tensors.items():
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise ValueError(f"{operation}: {name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise ValueError(f"{operation}: {name} must be {_FLOATING}, got {x.dtype}")
        if first is None:
            first = name, x
            continue
        if x.dtype != first[1].dtype:
            raise ValueError(
                f"{operation}: {name} has dtype {x.dtype} but {first[0]} has {first[1].dtype}; "
                "all floating arguments share one dtype"
            )
        if x.device != first[1].device:
            raise ValueError(
                f"{operation}: {name} is on {x.device} but {first[0]} is on {first[1].device}; "
                "all arguments share one device"
            )


def check_axes(operation: str, name: str, x: Tensor, layout: str, *, exactly: bool = False) -> None:
    """`x` has the axes of `layout`, such as "n, d", and may have leading ones before them unless `exactly`."""
    wanted = layout.count(",") + 1
    if x.ndim == wanted or (x.ndim > wanted and not exactly):
        return
    count, axes = f"{wanted} {'axis' if wanted == 1 else 'axes'}", layout if exactly else f"..., {layout}"
    comma = "," if exactly and wanted == 1 else ""
    raise ValueError(
        f"{operation}: {name} must have {'exactly' if exactly else 'at least'} {count} ({axes}{comma}), "
        f"got shape {tuple(x.shape)}"
    )


def check_size(
    operation: str, of: str, name: str, x: Tensor, axis: int, other: str, y: Tensor, other_axis: int
) -> None:
    """Axis `axis` of `x` and axis `other_axis` of `y` have one size; `of` is what that size counts."""
    if x.shape[axis] == y.shape[other_axis]:
        return
    where = f"axis {axis}" if axis == other_axis else f"axis {axis} of {name}, axis {other_axis} of {other}"
    raise ValueError(f"{operation}: {name} has {of} {x.shape[axis]} but {other} has {y.shape[other_axis]} ({where})")


def check_leading(operation: str, axes: int, **tensors: Tensor) -> tuple[int, ...]:
    """The common shape of everything before the last `axes` axes, broadcast as torch.matmul does."""
    leading = {name: tuple(x.shape[: x.ndim - axes]) for name, x in tensors.items()}
    common = _broadcast(tuple(leading.values()))
    if common is None:
        shapes = ", ".join(f"{name} {shape}" for name, shape in leading.items())
        raise ValueError(f"{operation}: leading axes do not broadcast: {shapes}")
    return common


def check_mask(operation: str, mask: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """`mask` is bool, lies beside `like`, has at least two axes and broadcasts to `shape`, which is (..., n, m)."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise ValueError(f"{operation}: mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise ValueError(f"{operation}: mask must be bool, got {mask.dtype}; True = may look")
    if mask.device != like.device:
        raise ValueError(
            f"{operation}: mask is on {mask.device} but q is on {like.device}; all arguments share one device"
        )
    check_axes(operation, "mask", mask, "n, m")
    if _broadcast((tuple(mask.shape), shape)) != shape:
        raise ValueError(
            f"{operation}: mask has shape {tuple(mask.shape)}, which does not broadcast to (..., n, m) = {shape}"
        )


def check_scale(operation: str, scale: float | None, head_dim: int) -> float:
    """`scale` as a finite float; None means 1/√head_dim (1 where head_dim is 0: every score is then an empty sum)."""
    if scale is None:
        return head_dim**-0.5 if head_dim else 1.0
    # Compared, not math.isfinite: under torch.compile with dynamic shapes a float is symbolic and only compares.
    if isinstance(scale, bool) or not isinstance(scale, float | int) or not -math.inf < scale < math.inf:
        raise ValueError(f"{operation}: scale must be a finite float or None (1/sqrt(head_dim)), got {scale!r}")
    return float(scale)


def check_grad_output(operation: str, grad_output: Tensor, shape: Sequence[int], name: str, like: Tensor) -> None:
    """`grad_output` has the shape of the result and the dtype and device of the arguments."""
    check_floating(operation, **{name: like, "grad_output": grad_output})
    if tuple(grad_output.shape) != tuple(shape):
        raise ValueError(
            f"{operation}: grad_output has shape {tuple(grad_output.shape)} but the result has {tuple(shape)}"
        )


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that all of `shapes` broadcast to, None where two sizes of an axis differ and neither is 1."""
    common: list[int] = []
    for axis in range(-max(len(shape) for shape in shapes), 0):
        size = 1
        for shape in shapes:
            if len(shape) < -axis or shape[axis] == 1:
                continue
            if size not in (1, shape[axis]):
                return None
            size = shape[axis]
        common.append(size)
    return tuple(common)
