"""Between torch's arguments and a declaration: names, rows, batch axes, masks, defaults, and back again.

Everything is read off the formula's parameters and their roles, so a new operation needs nothing here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lla_spec.calculus import gradient_parameters
from lla_spec.evaluating.compiling import compile_formula, compile_vjp
from lla_spec.evaluating.float64 import Float64
from lla_spec.evaluating.prepared import Prepared, aligned
from lla_spec.interface import (
    IGNORE_INDEX,
    has_rows,
    is_per_matrix,
    own_axes,
    signature,
    torch_axes,
    torch_parameters,
    torch_shape,
    unmerged_sizes,
)
from lla_spec.language import Formula, registry
from lla_spec.tensors import Index, Tensor

Array = np.ndarray
ALIGNMENTS = ("bottom_right", "top_left")


class ArgumentError(ValueError):
    """Arguments that do not fit an operation; the message names the argument, its shape and the rule."""


def operation(name: str) -> Formula:
    """The declared operation of that name; ArgumentError lists the names there are."""
    found = registry.formulas.get(name)
    if found is None or not found.operation:
        raise ArgumentError(f"{name} is no operation; there are {', '.join(f.name for f in registry.operations())}")
    return found


def prepare(
    formula: Formula, arguments: Mapping[str, Any], *, vjp: bool = False, causal_alignment: str = "bottom_right"
) -> Prepared:
    """Read torch arguments (float64 arrays, numbers, bools, None) as the inputs of the formula's plan.

    Raises ArgumentError for a missing or unknown argument, too few axes, or batch axes that do not broadcast.
    """
    return _Reader(formula, arguments, vjp, causal_alignment).prepared()


@functools.cache
def _names(formula: Formula, vjp: bool) -> frozenset[str]:
    return frozenset(signature(formula, vjp=vjp).parameters)


class _Reader:
    def __init__(self, formula: Formula, arguments: Mapping[str, Any], vjp: bool, alignment: str) -> None:
        if alignment not in ALIGNMENTS:
            raise ArgumentError(f"causal_alignment is {alignment!r}, expected one of {', '.join(ALIGNMENTS)}")
        self.formula, self.arguments, self.vjp, self.alignment = formula, arguments, vjp, alignment
        self.what = f"{formula.name}_vjp" if vjp else formula.name
        self.parameters = torch_parameters(formula)
        self.rows = formula.rows  # None where a parameter is given for each matrix: then only the last leading axis is
        self.single = False  # one row, without an axis of its own
        self.inputs: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # of torch's arrays, by spec name
        self.leads: dict[str, tuple[int, ...]] = {}
        self.masks: dict[str, Array] = {}
        self.empty: tuple[tuple[Index, ...], Array] | None = None

    def prepared(self) -> Prepared:
        self._check_names()
        kinds = {argument: tensor.role.kind for argument, (_, tensor) in self.parameters.items() if tensor.role}
        given = {argument: (name, t) for argument, (name, t) in self.parameters.items() if kinds[argument] != "mask"}
        if self.vjp:
            given["grad_output"] = ("grad_output", self.formula.result)
        arrays = {argument: self._array(argument, name, tensor) for argument, (name, tensor) in given.items()}
        self._find_sizes({given[argument][0]: argument for argument, array in arrays.items() if array is not None})
        if any(is_per_matrix(self.formula, t) and self.leads.get(argument) for argument, (_, t) in given.items()):
            self._take_rows_apart()
        for argument, array in arrays.items():
            if array is not None:
                self._read(argument, *given[argument], array)
        for argument, (name, tensor) in self.parameters.items():
            if kinds[argument] == "mask":
                self._read_mask(argument, name, tensor)
        omitted = frozenset(set(self.formula.parameters) - set(self.inputs))
        lead = self._lead()
        results = self._results(omitted)
        plan = (
            compile_vjp(self.formula, tuple(results), omitted) if self.vjp else compile_formula(self.formula, omitted)
        )
        leads = {name: self._lead_of(name, tensor, lead) for name, tensor in results.items()}
        shapes = {name: self._shape(name, tensor, lead) for name, tensor in results.items()}
        axes = {name: self._axes(tensor) for name, tensor in results.items()}
        sizes = self.sizes if self.rows is None else {**self.sizes, self.rows.dim.name: math.prod(lead)}
        return Prepared(
            plan, self.inputs, axes, leads, shapes, sizes, lead, self.rows, self.masks, self.empty, self.vjp,
            self._void(sizes),
        )  # fmt: skip

    def _void(self, sizes: Mapping[str, int]) -> bool:
        """A mean over the rows that have a class, where none has: 0/0."""
        chosen = [self.inputs[name] for name, t in self.parameters.values() if t.role and t.role.kind == "index"]
        if self.formula.result.axes[:1] == (self.formula.rows,) or not chosen or any(array.any() for array in chosen):
            return False
        forward = compile_formula(self.formula, frozenset(set(self.formula.parameters) - set(self.inputs)))
        with np.errstate(all="ignore"):
            (found,) = forward.run(Float64(), self.inputs, sizes).values()
        return bool(np.isnan(found).any())

    def _check_names(self) -> None:
        known = _names(self.formula, self.vjp)
        for name in self.arguments:
            if name not in known:
                raise ArgumentError(f"{self.what}: has no argument {name}; it takes {', '.join(sorted(known))}")
        for name, value in self.formula.keywords.items():
            if self.arguments.get(name, value) != value:
                raise ArgumentError(f"{self.what}: {name} is {self.arguments[name]!r}, but this formula is {value!r}")

    def _results(self, omitted: frozenset[str]) -> dict[str, Tensor]:
        if not self.vjp:
            return {self.formula.result.name: self.formula.result}
        wrt = [name for name in gradient_parameters(self.formula) if name not in omitted]
        return {name: self.formula.parameters[name] for name in wrt}

    def _array(self, argument: str, name: str, tensor: Tensor) -> Array | None:
        """The argument as an array with enough axes; None where it is left out."""
        value = self.arguments.get(argument)
        role = tensor.role
        if value is None:
            if role is None or role.default is None:
                raise ArgumentError(f"{self.what}: {argument} is missing")
            return None
        integers = tensor.permutation or (role is not None and role.kind == "index")
        array = np.asarray(value, dtype=np.int64 if integers else np.float64)
        needed = len(torch_axes(self.formula, tensor))
        if array.ndim < needed:
            raise ArgumentError(f"{self.what}: {argument} has shape {array.shape} but needs at least {needed} axes")
        self.leads[argument] = array.shape[: array.ndim - needed]
        self.shapes[name] = array.shape
        if role is not None and not role.batched and self.leads[argument]:
            raise ArgumentError(
                f"{self.what}: {argument} has shape {array.shape} but takes no batch axes, only {needed} axes"
            )
        return array

    def _find_sizes(self, arguments: Mapping[str, str]) -> None:
        counts: dict[str, int] = {}
        for name in self.formula.counts:
            value = self.arguments.get(name)
            first = next(iter(counts.values()), None)  # the later ones have the first as their default
            if value is None and first is None:
                raise ArgumentError(f"{self.what}: {name} is missing")
            counts[name] = int(value if value is not None else first)  # pyright: ignore[reportArgumentType]
        self.sizes, wrong = unmerged_sizes(self.formula, {n: self.shapes[n] for n in arguments}, counts)
        if wrong:
            raise ArgumentError(f"{self.what}: {wrong}")

    def _take_rows_apart(self) -> None:
        """The last leading axis is the rows', the ones before it are batch axes. A single observation is one row."""
        assert self.rows is not None
        dim, self.rows = self.rows.dim.name, None
        with_rows = [argument for argument in self.leads if argument in self._with_rows()]
        self.single = not any(self.leads[argument] for argument in with_rows if argument != "grad_output")
        for argument in with_rows:
            lead = self.leads[argument]
            if not (lead or self.single):
                raise ArgumentError(f"{self.what}: {argument} has no rows")
            size = 1 if self.single else lead[-1]
            if self.sizes.setdefault(dim, size) != size:
                raise ArgumentError(f"{self.what}: {argument} has {size} rows, the others {self.sizes[dim]}")
            self.leads[argument] = lead if self.single else lead[:-1]

    def _axes(self, tensor: Tensor) -> tuple[Index, ...]:
        """Its axes in the plan's results; the rows among them where they are not all of the leading axes."""
        return tensor.axes if self.rows is None else own_axes(self.formula, tensor)

    def _shape(self, name: str, tensor: Tensor, lead: tuple[int, ...]) -> tuple[int, ...]:
        """Of a result, in torch's layout."""
        if self.vjp:
            return self.shapes[name]
        apart = self.rows is None and has_rows(self.formula, tensor) and not self.single
        rows = (self.sizes[tensor.axes[0].dim.name],) if apart else ()
        return (*self._lead_of(name, tensor, lead), *rows, *torch_shape(self.formula, tensor, self.sizes))

    def _read(self, argument: str, name: str, tensor: Tensor, array: Array) -> None:
        lead = self.leads[argument]
        if tensor.role is not None and tensor.role.kind == "index":
            array = self._one_hot(argument, tensor, array)
        own = tuple(axis.dim.size(self.sizes) for axis in self._axes(tensor))
        if self.rows is not None and has_rows(self.formula, tensor):
            array = array.reshape(math.prod(lead), *own)
        elif own != array.shape[len(lead) :]:
            array = array.reshape(*lead, *own)
        self.inputs[name] = array

    def _one_hot(self, argument: str, tensor: Tensor, classes: Array) -> Array:
        """(…, V) zeros and ones; the row of an ignored class is 0."""
        role = tensor.role
        assert role is not None
        dim = tensor.axes[-1].dim
        if dim.name not in self.sizes:
            raise ArgumentError(f"{self.what}: the number of classes {dim} of {argument} does not follow")
        count = self.sizes[dim.name]
        given = self.arguments.get(role.ignored, IGNORE_INDEX) if role.ignored else None
        kept = np.ones(classes.shape, bool) if given is None else classes != given
        wrong = classes[kept & ((classes < 0) | (classes >= count))]
        if wrong.size:
            raise ArgumentError(f"{self.what}: {argument} has the class {wrong[0]}, outside of [0, {count})")
        return ((classes[..., None] == np.arange(count)) & kept[..., None]).astype(np.float64)

    def _lead(self) -> tuple[int, ...]:
        """The batch axes of the whole evaluation; where rows run through the leading axes, those."""
        try:
            lead = np.broadcast_shapes(*self.leads.values())
        except ValueError:
            shown = ", ".join(f"{name} {shape}" for name, shape in self.leads.items())
            raise ArgumentError(f"{self.what}: the leading axes do not broadcast: {shown}") from None
        if self.rows is not None:
            for name, shape in self.leads.items():
                if shape != lead and name in self._with_rows():
                    raise ArgumentError(f"{self.what}: {name} has leading axes {shape}, the others {lead}")
        return lead

    def _with_rows(self) -> set[str]:
        found = {a for a, (_, t) in self.parameters.items() if has_rows(self.formula, t)}
        return found | ({"grad_output"} if has_rows(self.formula, self.formula.result) else set())

    def _lead_of(self, name: str, tensor: Tensor, lead: tuple[int, ...]) -> tuple[int, ...]:
        """The leading axes of a result: all of them; none where the rows were summed; for a gradient its argument's."""
        if self.vjp:
            return self.leads[next(a for a, (n, _) in self.parameters.items() if n == name)]
        return lead if self.rows is None or has_rows(self.formula, tensor) else ()

    # ---- masks

    def _read_mask(self, argument: str, name: str, tensor: Tensor) -> None:
        """The bool mask (..., rows, keys) and `is_causal` as one array of zeros and ones.

        A row with no key to look at is outside the formula's domain (0/0). By convention its result is 0 and it sends
        no gradient. It is evaluated with a mask of ones and a cotangent of 0, so that nothing is 0/0 and everything
        that it adds to a gradient is a product with 0, which is exact; then its result is set to 0. A formula that goes
        on after its masked rows states the convention itself, by the factor `live`.
        """
        given = self.arguments.get(argument)
        causal = bool(tensor.role and tensor.role.causal and self.arguments.get("is_causal"))
        if given is None and not causal:
            return
        shape = torch_shape(self.formula, tensor, self.sizes)
        if given is not None and np.asarray(given).dtype != bool:
            way = "True where it may be looked at (of an additive mask, mask > -inf)"
            raise ArgumentError(f"{self.what}: {argument} holds numbers, it must be bool, {way}")
        keep = np.ones(shape, bool) if given is None else self._broadcast(argument, np.asarray(given), shape)
        lead = keep.shape[: keep.ndim - len(shape)]
        self.leads[argument] = lead
        if causal:
            keep = keep & self._lower_triangle(*shape[-2:])
        keep = keep.reshape(*lead, *(axis.dim.size(self.sizes) for axis in tensor.axes))
        self.masks[name] = keep
        empty = ~np.asarray(keep.any(axis=-1))
        if empty.any():
            keep = keep | empty[..., None]
            living = [n for n, t in self.formula.parameters.items() if t.role and t.role.kind == "live"]
            if living:
                self.inputs[living[0]] = (~empty).astype(np.float64)
            else:
                self.empty = (tensor.axes[:-1], empty)
                self._silence(tensor)
        self.inputs[name] = keep.astype(np.float64)

    def _broadcast(self, argument: str, keep: Array, shape: tuple[int, ...]) -> Array:
        """The mask over its lead and all its axes; those of the heads may be missing."""
        needed = min(len(shape), 2)
        if keep.ndim < needed:
            raise ArgumentError(f"{self.what}: {argument} has shape {keep.shape} but needs at least {needed} axes")
        try:
            return np.broadcast_to(keep, (*keep.shape[: max(keep.ndim - len(shape), 0)], *shape))
        except ValueError:
            raise ArgumentError(
                f"{self.what}: {argument} has shape {keep.shape}, which does not broadcast to (..., "
                f"{', '.join(map(str, shape))})"
            ) from None

    def _lower_triangle(self, rows: int, columns: int) -> Array:
        """Row i sees the keys j <= i + (m - n), so the last query sees all of them; top-left: j <= i."""
        shift = columns - rows if self.alignment == "bottom_right" else 0
        return np.arange(columns) <= np.arange(rows)[:, None] + shift

    def _silence(self, tensor: Tensor) -> None:
        """The cotangent of the empty rows becomes 0."""
        assert self.empty is not None
        result = self.formula.result.axes
        if not set(self.empty[0]) <= set(result):
            raise NotImplementedError(f"{self.what}: an empty row of {tensor!r} is no row of the result {result}")
        if self.vjp:
            self.inputs["grad_output"] = np.where(aligned(self.empty, result), 0.0, self.inputs["grad_output"])


__all__ = ["ArgumentError", "operation", "prepare"]
