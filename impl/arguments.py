"""Checked arguments: a refusal is a ValueError that names operation, argument, value, rule and axis.

Every check reads shapes, dtypes and devices, so torch.compile traces through it. `check_range` alone reads entries,
and only where that costs no synchronisation and no graph: in eager mode on a CPU.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from impl.precision import DTYPES, values_can_be_read

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


def check_mask(
    operation: str,
    mask: Tensor | None,
    shape: tuple[int, ...],
    like: Tensor,
    *,
    beside: str = "q",
    layout: str = "n, m",
    true: str = "may look",
) -> None:
    """`mask` is bool, has at least the axes of `layout`, broadcasts to `shape`, which is (..., layout), and lies on
    the device of `like`, the argument named `beside`; `true` is what True means."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise ValueError(f"{operation}: mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise ValueError(f"{operation}: mask must be bool, got {mask.dtype}; True = {true}")
    if mask.device != like.device:
        raise ValueError(
            f"{operation}: mask is on {mask.device} but {beside} is on {like.device}; all arguments share one device"
        )
    check_axes(operation, "mask", mask, layout)
    if _broadcast((tuple(mask.shape), shape)) != shape:
        raise ValueError(
            f"{operation}: mask has shape {tuple(mask.shape)}, which does not broadcast to (..., {layout}) = {shape}"
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


def check_count(operation: str, name: str, value: int) -> None:
    """`value` is an integer of at least 1, such as a number of heads."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt) or value < 1:
        raise ValueError(f"{operation}: {name} must be an integer of at least 1, got {value!r}")


def check_divides(operation: str, who: str, divisor: int, what: str, number: int, where: str = "") -> None:
    """`divisor` divides `number`; `who` and `what` begin the sentence about each, such as "k has", "q has heads"."""
    if divisor < 1 or number % divisor:
        raise ValueError(f"{operation}: {what} {number} but {who} {divisor}, which does not divide it{where}")


def check_product(
    operation: str, of: str, name: str, x: Tensor, axis: int, one: str, factor: int, two: str, other: int
) -> None:
    """Axis `axis` of `x`, which counts `of`, has size factor · other; `one` and `two` name the factors."""
    if x.shape[axis] != factor * other:
        raise ValueError(
            f"{operation}: {name} has {of} {x.shape[axis]} but {one} {factor} times {two} {other} "
            f"is {factor * other} (axis {axis})"
        )


def check_ids(operation: str, name: str, ids: Tensor, beside: str, like: Tensor) -> None:
    """`ids` are int64 and lie on the device of `like`, the argument named `beside`."""
    if not isinstance(ids, Tensor):
        raise ValueError(f"{operation}: {name} must be a torch.Tensor, got {type(ids).__name__}")
    if ids.dtype != torch.int64:
        raise ValueError(f"{operation}: {name} must be int64, got {ids.dtype}")
    if ids.device != like.device:
        raise ValueError(
            f"{operation}: {name} is on {ids.device} but {beside} is on {like.device}; all arguments share one device"
        )


def check_range(
    operation: str, name: str, ids: Tensor, of: str, other: str, x: Tensor, axis: int, *, ignored: int | None = None
) -> None:
    """Every entry of `ids` that is not `ignored` counts along axis `axis` of `x`, which has so many `of`.

    Entries are read in eager mode on a CPU. Elsewhere an entry out of range is as undefined as it is to torch.
    """
    if not values_can_be_read(ids) or ids.device.type != "cpu":
        return
    size = x.shape[axis]
    outside = (ids < 0) | (ids >= size)
    if ignored is not None:
        outside &= ids != ignored
    if outside.any():
        raise ValueError(
            f"{operation}: {name} holds {ids[outside][0].item()} but {other} has {size} {of} (axis {axis})"
        )


def check_choice(operation: str, name: str, value: str, choices: Sequence[str]) -> None:
    """`value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(f"{operation}: {name} must be {listed}, got {value!r}")


def check_integer(operation: str, name: str, value: int) -> None:
    """`value` is an integer of any sign, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise ValueError(f"{operation}: {name} must be an integer, got {value!r}")
