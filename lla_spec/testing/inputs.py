"""The tensors of a case, as the torch call takes them, built anew every time they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lla_spec import tensors as spec
from lla_spec.interface import IGNORE_INDEX, count_values, has_rows, is_per_matrix, torch_parameters, torch_shape
from lla_spec.language import Formula
from lla_spec.testing.bits import Bits
from lla_spec.testing.cases import Case
from lla_spec.testing.families import FAMILIES
from lla_spec.testing.layouts import LAYOUTS

TORCH_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

SEEN = {"live_nan": 0.5, "live_inf": 0.5, "first_nan": 0.0}
"""Special values in a live slot, and where it is among the entries of the first tensor: in the middle, where there are
rows before it and after it, which it must not reach; or first, where a search for the largest begins."""

Arguments = dict[str, Tensor | float | int | bool | None]


@dataclass(frozen=True)
class Inputs:
    """`arguments` by torch name (grad_output among them in a vjp case)."""

    arguments: Arguments

    @property
    def digest(self) -> str:
        return digest(self.arguments)


def lead(formula: Formula, parameter: spec.Tensor, case: Case) -> tuple[int, ...]:
    """The leading axes of one argument: the batch, unless it is shared by it (a weight) or the rows are summed."""
    if is_per_matrix(formula, parameter):
        return case.batch[:-1] if case.each else ()
    summed = formula.rows is not None and parameter is formula.result and not has_rows(formula, parameter)
    return case.batch if not summed and (parameter.role is None or parameter.role.batched) else ()


def shape_of(formula: Formula, tensor: spec.Tensor, case: Case) -> tuple[int, ...]:
    """The torch shape of a parameter or of the result; `batch` stands for the rows' axis where there is one."""
    return (*lead(formula, tensor, case), *torch_shape(formula, tensor, dict(case.sizes)))


def arguments_of(formula: Formula) -> dict[str, spec.Tensor]:
    """The formula's parameters that the torch call takes, by torch name."""
    return {name: parameter for name, (_, parameter) in torch_parameters(formula).items()}


def build(formula: Formula, case: Case) -> Inputs:
    """The arguments of `formula` for `case`, in its dtype, layout and device."""
    arguments: Arguments = {}
    left_out = set(filter(None, case.without.split("+")))
    parameters = arguments_of(formula)
    keep = None
    for position, (name, parameter) in enumerate(parameters.items()):
        role = parameter.role
        assert role is not None
        if name in left_out:
            arguments[name] = None
        elif role.kind == "mask":
            keep = _mask(formula, parameter, case)
            arguments[name] = keep
            if role.causal:
                arguments["is_causal"] = case.causal
        elif role.kind == "scalar":
            arguments[name] = case.scale
        elif role.kind == "index":
            classes, ignored = choose(case, name, shape_of(formula, parameter, case), _classes(parameter, case))
            arguments[name] = torch.from_numpy(np.array(classes)).to(case.device)
            if role.ignored:
                arguments[role.ignored] = ignored
        else:
            families = case.family.split("+")
            family = families[position % len(families)]
            if family == "model" and is_weights(parameter):
                family = "weights"
            values = _values(case, name, shape_of(formula, parameter, case), family, case.exponent)
            layouts = case.layout.split("+")
            arguments[name] = _place(values, case, layouts[position % len(layouts)])
    arguments.update(count_values(formula, dict(case.sizes)))
    if case.law == "vjp":
        family = next((name for name in case.family.split("+") if FAMILIES[name].cotangent), "normal")
        values = _values(case, "grad_output", shape_of(formula, formula.result, case), family, min(case.exponent, 0))
        arguments["grad_output"] = _place(values, case, case.grad)
    _plant(formula, case, arguments, keep)
    return Inputs(arguments)


def is_weights(parameter: spec.Tensor) -> bool:
    """A matrix that all rows share."""
    role = parameter.role
    return role is not None and role.kind == "real" and not role.batched and len(parameter.axes) > 1


def _values(case: Case, name: str, shape: tuple[int, ...], family: str, exponent: int) -> np.ndarray:
    return FAMILIES[family].fill(Bits(case.seed, name), shape, 2.0**exponent)


def _place(values: np.ndarray, case: Case, layout: str) -> Tensor:
    tensor = torch.from_numpy(np.array(values, dtype=np.float64)).to(TORCH_DTYPES[case.dtype])
    return LAYOUTS[layout](tensor.to(case.device))


def _mask(formula: Formula, parameter: spec.Tensor, case: Case) -> Tensor | None:
    if case.mask == "none":
        return None
    *heads, rows, columns = mask_shape(formula, parameter, case)
    batch = (*case.batch, *heads)
    keep = MASKS[case.mask](Bits(case.seed, "mask", case.mask), batch, rows, columns)
    if len(parameter.axes) == 1:
        keep = keep[..., 0, :]
    tensor = torch.from_numpy(np.ascontiguousarray(keep)).to(case.device)
    return tensor.expand(*batch, *keep.shape[-min(len(parameter.axes), 2) :]) if case.mask == "expanded" else tensor


def mask_shape(formula: Formula, parameter: spec.Tensor, case: Case) -> tuple[int, ...]:
    """(heads…, rows, columns) of a mask; one row where it has a single axis."""
    shape = torch_shape(formula, parameter, dict(case.sizes))
    return shape if len(shape) > 1 else (1, *shape)


def _classes(parameter: spec.Tensor, case: Case) -> int:
    return parameter.axes[-1].dim.size(dict(case.sizes))


def choose(case: Case, name: str, shape: Sequence[int], count: int) -> tuple[np.ndarray, int]:
    """(int64 classes of `shape`, the value of ignore_index) that the case's `index` describes."""
    bits = Bits(case.seed, name)
    classes = bits.integers(0, count, tuple(shape)).astype(np.int64)
    if case.index == "ends":  # the first class and the last
        classes = np.where(classes % 2 == 0, 0, count - 1)
    elif case.index == "same":  # one class for all, the last
        classes = np.full(classes.shape, count - 1)
    elif case.index == "ignored":
        hidden = Bits(case.seed, name, "ignored").uniform(tuple(shape)) < 0.4
        classes = np.where(hidden, IGNORE_INDEX, classes)
    elif case.index == "all_ignored":
        classes = np.full(classes.shape, IGNORE_INDEX)
    return classes, {"ignored_class": count // 2, "ignored_zero": 0}.get(case.index, IGNORE_INDEX)


def _every_other(batch: Sequence[int]) -> tuple[int, ...]:
    """The batch axes with each second one left to broadcasting."""
    return tuple(1 if position % 2 else size for position, size in enumerate(batch))


def _holes(bits: Bits, rows: int, columns: int) -> np.ndarray:
    """All visible but for one key of each third row: what a test of a tile's border does not see."""
    keep = np.ones((rows, columns), bool)
    hidden = bits.integers(0, max(columns, 1), (rows,))
    for row in range(1, rows, 3):
        keep[row, hidden[row] : hidden[row] + 1] = False
    return _some_kept(keep, bits)


Mask = Callable[[Bits, Sequence[int], int, int], np.ndarray]
MASKS: dict[str, Mask] = {
    "full": lambda bits, batch, n, m: np.ones((n, m), bool),
    "random": lambda bits, batch, n, m: _some_kept(bits.uniform((n, m)) < 0.6, bits),
    "holes": lambda bits, batch, n, m: _holes(bits, n, m),
    "padding": lambda bits, batch, n, m: np.arange(m) < bits.integers(1, m + 1, (*batch, 1))[..., None],
    "empty_rows": lambda bits, batch, n, m: _some_empty(bits.uniform((n, m)) < 0.6, bits),
    "one_key": lambda bits, batch, n, m: np.arange(m) == bits.integers(0, max(m, 1), (n, 1)),
    "expanded": lambda bits, batch, n, m: _some_kept(bits.uniform((n, m)) < 0.6, bits),
    "per_batch": lambda bits, batch, n, m: _some_kept(bits.uniform((*batch, n, m)) < 0.6, bits),
    "partly_batched": lambda bits, batch, n, m: _some_kept(bits.uniform((*_every_other(batch), n, m)) < 0.6, bits),
    "broadcast": lambda bits, batch, n, m: _some_kept(bits.uniform((1, m)) < 0.6, bits),
}
"""Masks (…, n, m), True = may look, by name: bits, batch axes, n and m to a bool array."""


def _some_kept(keep: np.ndarray, bits: Bits) -> np.ndarray:
    """Every row looks at something."""
    if keep.shape[-1]:
        chosen = bits.integers(0, keep.shape[-1], (*keep.shape[:-1], 1))
        np.put_along_axis(keep, chosen, True, -1)
    return keep


def _some_empty(keep: np.ndarray, bits: Bits) -> np.ndarray:
    """At least one row looks at nothing (the first, and each other one with probability 1/4)."""
    _some_kept(keep, bits)[bits.uniform(keep.shape[:-1]) < 0.25] = False
    keep[..., :1, :] = False
    return keep


def _plant(formula: Formula, case: Case, arguments: Arguments, keep: Tensor | None) -> None:
    """Put the case's special values where it says: in live slots, in slots that the mask hides, or -inf in logits."""
    if case.special in ("none", "reuse"):
        return
    tensors = [
        t for name, t in arguments.items() if isinstance(t, Tensor) and t.is_floating_point() and name != "grad_output"
    ]
    if case.special == "minus_inf":
        _write(
            tensors[0],
            Bits(case.seed, "special").uniform(tuple(tensors[0].shape)) < 0.3,
            float("-inf"),
            spare_first=True,
        )
        return
    value = float("nan") if case.special.endswith("nan") else float("inf")
    if case.special in SEEN:
        first = tensors[0]
        where = np.zeros(tuple(first.shape), bool)
        at = int(where.size * SEEN[case.special])
        where.reshape(-1)[at : at + 1] = True
        _write(first, where, value)
        return
    hidden = hidden_columns(formula, case, keep)
    for name, parameter in hidden_arguments(formula).items():
        tensor = arguments[name]
        assert isinstance(tensor, Tensor)
        after = len(parameter.axes) - 1 - parameter.axes.index(column_axis(formula))
        before = tensor.dim() - hidden.ndim - after
        shape = (*hidden.shape[:-1], *(1,) * before, hidden.shape[-1], *(1,) * after)
        _write(tensor, np.broadcast_to(hidden.reshape(shape), tuple(tensor.shape)), value)


def mask_of(formula: Formula) -> spec.Tensor | None:
    """The parameter that is the mask of the torch call."""
    masks = [p for p in arguments_of(formula).values() if p.role and p.role.kind == "mask"]
    return masks[0] if masks else None


def column_axis(formula: Formula) -> spec.Index:
    """The axis of what the mask hides: the keys'."""
    found = mask_of(formula)
    assert found is not None, f"{formula.name} has no mask"
    return found.axes[-1]


def hidden_arguments(formula: Formula) -> dict[str, spec.Tensor]:
    """The real arguments whose entries a mask can hide, by torch name."""
    axis = column_axis(formula)
    return {n: p for n, p in arguments_of(formula).items() if p.role and p.role.kind == "real" and axis in p.axes}


def hidden_columns(formula: Formula, case: Case, keep: Tensor | None) -> np.ndarray:
    """Which keys no query of any head may look at, (*batch, m)."""
    parameter = mask_of(formula)
    assert parameter is not None, f"{formula.name} has no mask"
    shape = torch_shape(formula, parameter, dict(case.sizes))
    if keep is None:
        return np.zeros((*case.batch, shape[-1]), bool)
    seen = np.broadcast_to(keep.cpu().numpy(), (*case.batch, *shape))
    return np.asarray(~seen.any(tuple(range(len(case.batch), seen.ndim - 1))))


def _write(tensor: Tensor, where: np.ndarray, value: float, spare_first: bool = False) -> None:
    chosen = torch.from_numpy(np.array(where)).to(tensor.device)
    if spare_first and chosen.dim() and chosen.shape[-1]:
        chosen[..., 0] = False
    tensor.masked_fill_(chosen, value)


def digest(arguments: Mapping[str, object]) -> str:
    """Sixteen hexadecimal digits of the arguments' values, dtypes and shapes (not of their layout)."""
    seen = hashlib.sha256()
    for name, value in sorted(arguments.items()):
        seen.update(name.encode())
        if isinstance(value, Tensor):
            dense = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())  # strides of its own
            seen.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
            seen.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            seen.update(repr(value).encode())
    return seen.hexdigest()[:16]
