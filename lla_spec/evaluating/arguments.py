"""Between torch's arguments and a declaration: names, rows, batch axes, masks, defaults, and back again.

Everything is read off the formula's parameters and their roles, so a new operation needs nothing here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from lla_spec.calculus import gradient_parameters
from lla_spec.evaluating import layout
from lla_spec.evaluating.compiling import compile_formula, compile_vjp
from lla_spec.evaluating.plan import Domain, Plan
from lla_spec.language import Formula, registry
from lla_spec.symbols import Index, Tensor

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


def torch_parameters(formula: Formula) -> dict[str, tuple[str, Tensor]]:
    """The parameters that torch code takes: torch name -> (spec name, tensor). The others keep their defaults."""
    return {
        p.role.argument: (name, p) for name, p in formula.parameters.items() if p.role is not None and p.role.argument
    }


def signature(formula: Formula, *, vjp: bool = False) -> inspect.Signature:
    """The torch signature of an operation, or of its VJP.

    >>> from lla_spec.language import registry
    >>> print(signature(registry.formulas["attention"]))
    (q, k, v, mask=None, *, is_causal=False, scale=None)
    >>> print(signature(registry.formulas["linear"], vjp=True))
    (x, weight, bias=None, *, grad_output)
    """
    positional: list[inspect.Parameter] = []
    keywords: list[inspect.Parameter] = []
    if vjp:
        keywords.append(inspect.Parameter("grad_output", inspect.Parameter.KEYWORD_ONLY))
    for name, (_, tensor) in torch_parameters(formula).items():
        role = tensor.role
        assert role is not None
        if role.causal:
            keywords.append(inspect.Parameter("is_causal", inspect.Parameter.KEYWORD_ONLY, default=False))
        default = inspect.Parameter.empty if role.default is None else None
        if role.kind == "scalar":
            if isinstance(role.default, sp.Number):
                default = float(role.default)
            keywords.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
        else:
            positional.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    return inspect.Signature([*positional, *keywords])


@dataclass(frozen=True)
class Prepared:
    """One evaluation, ready to run: the plan, its inputs by spec name, and how results become torch's arrays."""

    plan: Plan
    inputs: dict[str, Any]
    axes: dict[str, tuple[Index, ...]]  # of each result, by result name
    shapes: dict[str, tuple[int, ...]]  # of each result, in torch's layout
    sizes: dict[str, int]  # of the dimensions, by name
    lead: tuple[int, ...]  # the batch axes in front of a result, before those that an argument lacks are summed
    rows: Index | None
    masks: dict[str, Array]  # the masks as they were given, before empty rows were filled
    empty: tuple[tuple[Index, ...], Array] | None  # where a mask keeps nothing: its axes, and (batch, axes) booleans

    def run(self, domain: Domain, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The results in torch's layout, in the domain's form."""
        found = self.plan.run(domain, self.inputs if inputs is None else inputs)
        return {name: self.restore(domain, name, value) for name, value in found.items()}

    def restore(self, domain: Domain, name: str, value: Any) -> Any:
        """One result in torch's layout: rows become the leading axes; batch axes that an argument lacks are summed."""
        axes, shape = self.axes[name], self.shapes[name]
        if self.rows is not None:  # all leading axes are rows: they stand in the plan, and are summed there
            return domain.move(lambda array: array.reshape(shape), value)
        own = shape[len(shape) - len(axes) :]
        kept = (1,) * (len(self.lead) - (len(shape) - len(own))) + shape[: len(shape) - len(own)]
        summed = [k for k, (full, here) in enumerate(zip(self.lead, kept, strict=True)) if here != full]
        value = domain.move(lambda array: np.broadcast_to(array, (*self.lead, *own)), value)
        if not summed:
            return value
        last = tuple(range(-len(summed), 0))
        value = domain.sum(domain.move(lambda array: np.moveaxis(array, summed, last), value), len(summed))
        return domain.move(lambda array: array.reshape(shape), value)

    @property
    def entries(self) -> int:
        """The entries of the largest array that an evaluation makes."""
        return self.plan.largest(self.sizes) * (1 if self.rows is not None else math.prod(self.lead))

    def empty_in(self, name: str) -> Array | None:
        """True where a result's entry belongs to a row with no key to look at, broadcastable to the result."""
        if self.empty is None or not set(self.empty[0]) <= set(self.axes[name]):
            return None
        return _aligned(self.empty, self.axes[name])


def prepare(
    formula: Formula, arguments: Mapping[str, Any], *, vjp: bool = False, causal_alignment: str = "bottom_right"
) -> Prepared:
    """Read torch arguments (float64 arrays, numbers, bools, None) as the inputs of the formula's plan.

    Raises ArgumentError for a missing or unknown argument, too few axes, or batch axes that do not broadcast.
    """
    return _Reader(formula, arguments, vjp, causal_alignment).prepared()


class _Reader:
    def __init__(self, formula: Formula, arguments: Mapping[str, Any], vjp: bool, alignment: str) -> None:
        if alignment not in ALIGNMENTS:
            raise ArgumentError(f"causal_alignment is {alignment!r}, expected one of {', '.join(ALIGNMENTS)}")
        self.formula, self.arguments, self.vjp, self.alignment = formula, arguments, vjp, alignment
        self.what = f"{formula.name}_vjp" if vjp else formula.name
        self.parameters = torch_parameters(formula)
        self.inputs: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}
        self.leads: dict[str, tuple[int, ...]] = {}
        self.masks: dict[str, Array] = {}
        self.empty: tuple[tuple[Index, ...], Array] | None = None

    def prepared(self) -> Prepared:
        self._check_names()
        for argument, (name, tensor) in self.parameters.items():
            if tensor.role and tensor.role.kind != "mask":
                self._read(argument, name, tensor)
        if self.vjp:
            self._read("grad_output", "grad_output", self.formula.result)
        for argument, (name, tensor) in self.parameters.items():
            if tensor.role and tensor.role.kind == "mask":
                self._read_mask(argument, name, tensor)
        omitted = frozenset(set(self.formula.parameters) - set(self.inputs))
        lead = self._lead()
        results = self._results(omitted)
        plan = (
            compile_vjp(self.formula, tuple(results), omitted) if self.vjp else compile_formula(self.formula, omitted)
        )
        shapes = {name: self._shape(name, tensor, lead) for name, tensor in results.items()}
        axes = {name: tensor.axes for name, tensor in results.items()}
        rows = self.formula.rows
        sizes = self.sizes if rows is None else {**self.sizes, rows.dim.name: math.prod(lead)}
        return Prepared(plan, self.inputs, axes, shapes, sizes, lead, rows, self.masks, self.empty)

    def _check_names(self) -> None:
        known = set(signature(self.formula, vjp=self.vjp).parameters)
        for name in self.arguments:
            if name not in known:
                raise ArgumentError(f"{self.what}: has no argument {name}; it takes {', '.join(sorted(known))}")

    def _results(self, omitted: frozenset[str]) -> dict[str, Tensor]:
        if not self.vjp:
            return {self.formula.result.name: self.formula.result}
        wrt = [name for name in gradient_parameters(self.formula) if name not in omitted]
        return {name: self.formula.parameters[name] for name in wrt}

    def _read(self, argument: str, name: str, tensor: Tensor) -> None:
        value = self.arguments.get(argument)
        role = tensor.role
        if value is None:
            if role is None or role.default is None:
                raise ArgumentError(f"{self.what}: {argument} is missing")
            return
        array = np.asarray(value, dtype=np.int64 if tensor.permutation else np.float64)
        rank = len(tensor.axes)
        rows = bool(rank) and tensor.axes[0] == self.formula.rows
        needed = rank - rows
        if array.ndim < needed:
            raise ArgumentError(f"{self.what}: {argument} has shape {array.shape} but needs at least {needed} axes")
        own = array.shape[array.ndim - needed :]
        self.leads[argument] = array.shape[: array.ndim - needed]
        for axis, size in zip(tensor.axes[rows:], own, strict=True):
            known = self.sizes.setdefault(axis.dim.name, size)
            if known != size:
                raise ArgumentError(
                    f"{self.what}: {argument} has shape {array.shape}, {size} on axis "
                    f"{tensor.axes.index(axis) - rank}, but {axis.dim.name} is already {known}"
                )
        if role is not None and not role.batched and self.leads[argument]:
            raise ArgumentError(
                f"{self.what}: {argument} has shape {array.shape} but takes no batch axes, only {needed} axes"
            )
        if rows:
            array = array.reshape(math.prod(self.leads[argument]), *own)
        self.inputs[name] = array

    def _lead(self) -> tuple[int, ...]:
        """The batch axes of the whole evaluation; where rows run through the leading axes, those."""
        try:
            lead = np.broadcast_shapes(*self.leads.values())
        except ValueError:
            shown = ", ".join(f"{name} {shape}" for name, shape in self.leads.items())
            raise ArgumentError(f"{self.what}: the leading axes do not broadcast: {shown}") from None
        if self.formula.rows is not None:
            for name, shape in self.leads.items():
                if shape != lead and name in self._with_rows():
                    raise ArgumentError(f"{self.what}: {name} has leading axes {shape}, the others {lead}")
        return lead

    def _with_rows(self) -> set[str]:
        found = {a for a, (_, t) in self.parameters.items() if t.axes and t.axes[0] == self.formula.rows}
        return found | ({"grad_output"} if self.formula.result.axes[:1] == (self.formula.rows,) else set())

    def _shape(self, name: str, tensor: Tensor, lead: tuple[int, ...]) -> tuple[int, ...]:
        rows = tensor.axes[:1] == (self.formula.rows,)
        own = tuple(axis.dim.size(self.sizes) for axis in tensor.axes[int(rows) :])
        if not self.vjp:
            return (*lead, *own)
        argument = next(a for a, (n, _) in self.parameters.items() if n == name)
        return (*self.leads[argument], *own)

    # ---- masks

    def _read_mask(self, argument: str, name: str, tensor: Tensor) -> None:
        """The bool mask (..., rows, keys) and `is_causal` as one array of zeros and ones.

        A row with no key to look at is outside the formula's domain (0/0). By convention its result is 0 and it sends
        no gradient. It is evaluated with a mask of ones and a cotangent of 0, so that nothing is 0/0 and everything
        that it adds to a gradient is a product with 0, which is exact; then its result is set to 0.
        """
        given = self.arguments.get(argument)
        causal = bool(tensor.role and tensor.role.causal and self.arguments.get("is_causal"))
        if given is None and not causal:
            return
        shape = tuple(axis.dim.size(self.sizes) for axis in tensor.axes)
        keep = np.ones(shape, bool)
        if given is not None:
            keep = np.asarray(given).astype(bool)
            if keep.ndim < len(shape):
                raise ArgumentError(
                    f"{self.what}: {argument} has shape {keep.shape} but needs at least {len(shape)} axes"
                )
            lead = keep.shape[: keep.ndim - len(shape)]
            try:
                keep = np.broadcast_to(keep, (*lead, *shape))
            except ValueError:
                raise ArgumentError(
                    f"{self.what}: {argument} has shape {keep.shape}, which does not broadcast to (..., "
                    f"{', '.join(map(str, shape))})"
                ) from None
            self.leads[argument] = lead
        if causal:
            keep = keep & self._lower_triangle(*shape[-2:])
        self.masks[name] = keep
        empty = ~np.asarray(keep.any(axis=-1))
        if empty.any():
            keep = keep | empty[..., None]
            self.empty = (tensor.axes[:-1], empty)
            self._silence(tensor)
        self.inputs[name] = keep.astype(np.float64)

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
            self.inputs["grad_output"] = np.where(_aligned(self.empty, result), 0.0, self.inputs["grad_output"])


def _aligned(empty: tuple[tuple[Index, ...], Array], axes: tuple[Index, ...]) -> Array:
    own, rows = empty
    order = tuple(own.index(axis) for axis in axes if axis in own)
    return layout.Align(order, tuple(axis in own for axis in axes))({}, rows)


__all__ = ["ArgumentError", "Prepared", "operation", "prepare", "signature", "torch_parameters"]
