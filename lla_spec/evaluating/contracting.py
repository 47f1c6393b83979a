"""Products and sums of products as steps: where every axis goes, so that sums become matrix products.

A compiled expression is a `Value`: a register and the indices that its axes stand for. Renaming an index costs nothing,
and two steps that do the same to the same registers are one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lla_spec.evaluating import layout
from lla_spec.evaluating.plan import Step
from lla_spec.tensors import Dim, Index


@dataclass(frozen=True)
class Value:
    """A register and what its axes (after the batch axes) range over.

    `mask`: a 0/1 factor; `onehot`: one that may stand in a matrix product as well (a choice of a class). `peak`: the
    axes of a maximum that stands in it as a term, if one does.
    """

    register: int
    axes: tuple[Index, ...] = ()
    mask: bool = False
    onehot: bool = False
    peak: tuple[Index, ...] | None = None

    def renamed(self, names: Mapping[Index, Index]) -> Value:
        peak = None if self.peak is None else tuple(names.get(axis, axis) for axis in self.peak)
        return replace(self, axes=tuple(names.get(axis, axis) for axis in self.axes), peak=peak)


class Contractions:
    """The steps made so far, and the ways to add one."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.registers = 0
        self.known: dict[Any, int] = {}  # what a step does, to its register
        self.extents: set[tuple[Dim, ...]] = set()  # of the arrays on the way
        self.wanted: tuple[Index, ...] = ()  # the axes of the definition that is being compiled

    def emit(self, name: str, operands: Sequence[int], run: Callable[..., Any], *detail: Any) -> int:
        """The register of a step; `detail` is all that `run` depends on besides its operands."""
        key = (name, tuple(operands), detail)
        if key not in self.known:
            self.known[key] = self.registers
            self.steps.append(Step(name, self.registers, tuple(operands), run))
            self.registers += 1
        return self.known[key]

    def method(self, name: str, operands: Sequence[int], *detail: Any) -> int:
        """A step that is one method of the domain."""
        return self.emit(name, operands, lambda domain, _, *values: getattr(domain, name)(*values, *detail), *detail)

    def move(self, move: layout.Move, *operands: int) -> int:
        """A step that only moves entries; `move` is hashable and is given the sizes and the arrays."""

        def run(domain: Any, sizes: layout.Sizes, *values: Any) -> Any:
            return domain.move(functools.partial(move, sizes), *values)

        return self.emit("move", operands, run, move)

    def align(self, value: Value, axes: Sequence[Index]) -> int:
        """The register with its axes in the order of `axes`, of length 1 where it has none of that name."""
        if value.axes == tuple(axes):
            return value.register
        return self.move(alignment(value, axes), value.register)

    def spread(self, value: Value, axes: Sequence[Index]) -> int:
        """The register with every one of `axes` at its full length."""
        aligned = self.align(value, axes)
        if set(axes) <= set(value.axes):
            return aligned
        return self.move(layout.Spread(tuple(axis.dim for axis in axes)), aligned)

    # ---- products and sums of values

    def binary(self, name: str, a: Value, b: Value) -> Value:
        if len(b.axes) > len(a.axes):
            axes = (*b.axes, *(axis for axis in a.axes if axis not in b.axes))
        else:
            axes = (*a.axes, *(axis for axis in b.axes if axis not in a.axes))
        self.extents.add(tuple(axis.dim for axis in axes))
        return Value(self.method(name, [self.align(a, axes), self.align(b, axes)]), axes)

    def multiply_all(self, values: Sequence[Value]) -> Value:
        """The product: of what is no mask first (small factors before large), then masked."""
        masks = [value for value in values if value.mask]
        others = sorted((value for value in values if not value.mask), key=lambda value: len(value.axes))
        if not others:
            whole = functools.reduce(functools.partial(self.binary, "multiply"), masks)
            return masks[0] if len(masks) == 1 else replace(whole, mask=True)
        value = functools.reduce(functools.partial(self.binary, "multiply"), others)
        return functools.reduce(functools.partial(self.binary, "mask"), masks, value)

    def contraction(self, values: Sequence[Value], bound: Sequence[Index]) -> Value:
        """Σ over `bound` of the product of `values`: what depends on no bound index stays outside."""
        outside = [value for value in values if not set(value.axes) & set(bound)]
        inside = self.masked([value for value in values if set(value.axes) & set(bound)])
        while len(inside) > 2:
            a, b = inside[:2]
            inside = [self.binary("multiply", a, b), *inside[2:]]
            inside.sort(key=lambda value: len(value.axes))
        for index in bound:  # an index of one factor alone is summed there
            holders = [position for position, value in enumerate(inside) if index in value.axes]
            if len(inside) == 2 and len(holders) == 1:
                inside[holders[0]] = self.reduced(inside[holders[0]], [index])
        if not inside:
            return self.multiply_all(outside)
        shared = [index for index in bound if any(index in value.axes for value in inside)]
        if len(inside) == 1:
            return self.multiply_all([*outside, self.reduced(inside[0], shared)])
        total = self.matrix_product(inside[0], inside[1], shared)
        return self.multiply_all([*outside, total])

    def masked(self, values: list[Value]) -> list[Value]:
        """Masks multiplied into a factor that has all their axes, or else into all the factors at once."""
        masks = [value for value in values if value.mask]
        others = sorted((value for value in values if not value.mask), key=lambda value: len(value.axes))
        if not others:
            return masks
        for mask in masks:
            fits = [position for position, value in enumerate(others) if set(mask.axes) <= set(value.axes)]
            if fits:
                others[fits[0]] = self.binary("mask", others[fits[0]], mask)
            elif mask.onehot:
                others.append(replace(mask, mask=False))
            else:
                whole = functools.reduce(functools.partial(self.binary, "multiply"), others)
                others = [self.binary("mask", whole, mask)]
        return others

    def reduced(self, value: Value, over: Sequence[Index]) -> Value:
        if not over:
            return value
        kept = tuple(axis for axis in value.axes if axis not in over)
        return Value(self.method("sum", [self.align(value, (*kept, *over))], len(over)), kept)

    def matrix_product(self, a: Value, b: Value, over: Sequence[Index]) -> Value:
        """Two factors as stacks of matrices, (shared, left, over) and (shared, over, right), of any number of axes."""
        if not over:
            return self.binary("multiply", a, b)
        shared = tuple(axis for axis in a.axes if axis in b.axes and axis not in over)
        left = tuple(axis for axis in a.axes if axis not in b.axes)
        right = tuple(axis for axis in b.axes if axis not in a.axes)
        if left and right and [axis for axis in self.wanted if axis in (left[-1], right[0])] == [right[0], left[-1]]:
            a, b, left, right = b, a, right, left  # the definition's own order spares a transposition
        first = self.move_if(layout.Flatten((len(left), len(over))), self.align(a, (*shared, *left, *over)))
        second = self.move_if(layout.Flatten((len(over), len(right))), self.align(b, (*shared, *over, *right)))
        product = self.method("matmul", [first, second])
        if (len(left), len(right)) != (1, 1):
            dims = (tuple(axis.dim for axis in left), tuple(axis.dim for axis in right))
            product = self.move(layout.Unflatten(*dims), product)
        axes = (*shared, *left, *right)
        self.extents.add(tuple(axis.dim for axis in axes))
        return Value(product, axes)

    def move_if(self, flatten: layout.Flatten, register: int) -> int:
        return register if flatten.groups == (1, 1) else self.move(flatten, register)


def alignment(value: Value, axes: Sequence[Index]) -> layout.Align:
    """How a value's axes come to stand in the order of `axes`."""
    order = tuple(value.axes.index(axis) for axis in axes if axis in value.axes)
    return layout.Align(order, tuple(axis in value.axes for axis in axes))
