"""One evaluation of a declaration, ready to run, and how its results become torch's arrays.

Rows become the leading axes again; batch axes that an argument lacks are summed into its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lla_spec.evaluating import layout
from lla_spec.evaluating.plan import Domain, Plan
from lla_spec.tensors import Index

Array = np.ndarray


@dataclass(frozen=True)
class Prepared:
    """One evaluation, ready to run: the plan, its inputs by spec name, and how results become torch's arrays."""

    plan: Plan
    inputs: dict[str, Any]
    axes: dict[str, tuple[Index, ...]]  # of each result, by result name, without the rows where all leading axes are
    leads: dict[str, tuple[int, ...]]  # the leading axes of each result in front of these, in torch's layout
    shapes: dict[str, tuple[int, ...]]  # of each result, in torch's layout
    sizes: dict[str, int]  # of the dimensions, by name
    lead: tuple[int, ...]  # the batch axes in front of a result, before those that an argument lacks are summed
    rows: Index | None  # the axis that all leading axes are; None where there is none, or a batch of matrices has rows
    masks: dict[str, Array]  # the masks as they were given, before empty rows were filled
    empty: tuple[tuple[Index, ...], Array] | None  # where a mask keeps nothing: its axes, and (batch, axes) booleans
    vjp: bool = False
    void: bool = False  # no row has a class: a mean over none of them

    def run(self, domain: Domain, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The results in torch's layout, in the domain's form."""
        found = self.plan.run(domain, self.inputs if inputs is None else inputs, self.sizes)
        return {name: self.restore(domain, name, value) for name, value in found.items()}

    def restore(self, domain: Domain, name: str, value: Any) -> Any:
        """One result in torch's layout: rows become the leading axes; batch axes that an argument lacks are summed."""
        shape = self.shapes[name]
        if self.rows is not None:  # all leading axes are rows: they stand in the plan, and are summed there
            return domain.move(lambda array: array.reshape(shape), value)
        own, kept = self._own(name), self.leads[name]
        kept = (1,) * (len(self.lead) - len(kept)) + kept
        summed = [k for k, (full, here) in enumerate(zip(self.lead, kept, strict=True)) if here != full]
        value = domain.move(lambda array: np.broadcast_to(array, (*self.lead, *own)), value)
        if summed:
            last = tuple(range(-len(summed), 0))
            value = domain.sum(domain.move(lambda array: np.moveaxis(array, summed, last), value), len(summed))
        elif (*self.lead, *own) == shape:
            return value
        return domain.move(lambda array: array.reshape(shape), value)

    def _own(self, name: str) -> tuple[int, ...]:
        return tuple(axis.dim.size(self.sizes) for axis in self.axes[name])

    @property
    def entries(self) -> int:
        """The entries of the largest array that an evaluation makes."""
        return self.plan.largest(self.sizes) * (1 if self.rows is not None else math.prod(self.lead))

    def empty_in(self, name: str) -> Array | None:
        """True where a result's entry belongs to a row with no key to look at, broadcastable to the result."""
        if self.empty is None or not set(self.empty[0]) <= set(self.axes[name]):
            return None
        found, own = aligned(self.empty, self.axes[name]), self._own(name)
        if own == self.shapes[name][len(self.leads[name]) :]:
            return found
        whole = np.broadcast_to(found, (*found.shape[: found.ndim - len(own)], *own))
        return whole.reshape(*found.shape[: found.ndim - len(own)], *self.shapes[name][len(self.leads[name]) :])


def aligned(empty: tuple[tuple[Index, ...], Array], axes: tuple[Index, ...]) -> Array:
    """Booleans over the rows of a mask, broadcastable to (…, axes)."""
    own, rows = empty
    order = tuple(own.index(axis) for axis in axes if axis in own)
    return layout.Align(order, tuple(axis in own for axis in axes))({}, rows)
