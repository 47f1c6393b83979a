"""What the cases of an operation are made of, read off its declaration: its sizes, its mask, its scalars."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import sympy as sp

from lla_spec.interface import has_rows, is_per_matrix, torch_shape
from lla_spec.language import Formula
from lla_spec.substituting import expand
from lla_spec.tensors import Dim, Index, Tensor, definitions, inputs
from lla_spec.testing.inputs import hidden_arguments, is_weights

SCALARS = (0.5, -0.25, 3.0, 0.0)  # of a score's scale: of any sign, and 0, which `scale or default` takes for None
POSITIVE_SCALARS = (2.0**-40, 0.001, 1.0)  # of an ε that keeps a root away from 0


@dataclass(frozen=True)
class Features:
    """An operation as its cases see it; a size, an argument or a scalar is named as in the torch call."""

    dims: tuple[str, ...]  # the sizes of a case: every dimension but the rows'
    summed: tuple[str, ...]  # those that a sum runs over
    exponential: bool
    family: str  # of plain values: those that do not saturate an exponential
    mask: bool
    masked: tuple[str, ...]  # the axes along which the mask hides
    causal: tuple[str, str] | None  # the (query, key) dimensions
    squared: tuple[str, ...]  # a dimension that looks at itself: arrays grow with its square
    scalars: dict[str, tuple[float, ...]]  # the values to try, by name
    optional: tuple[str, ...]  # tensors that may be left out, other than masks
    classes: str  # the dimension that an index chooses from; "" without one
    ignored: bool  # a class may be left out
    heads: tuple[str, ...]  # the dimensions that count heads: they stay small
    hides: bool  # the mask can hide entries of an argument
    each: tuple[str, ...]  # what all rows may share, and each matrix of them may have of its own
    arguments: int
    scored: tuple[str, ...]  # the matrices without one of which all that is exponentiated is equal
    shifts: tuple[str, ...]  # vectors beside them


@cache
def features(formula: Formula) -> Features:
    own = list(formula.parameters.values())
    rows = formula.rows.dim if formula.rows is not None else None
    found: dict[Dim, None] = {}
    for parameter in own:
        if parameter.role is not None and parameter.role.argument:
            found.update((axis.dim, None) for axis in parameter.axes if axis.dim != rows)
    entry = expand(formula.result.entry)
    summed = {limit.dim for total in entry.atoms(sp.Sum) for limit in _bound(total)}
    masks = [p for p in own if p.role and p.role.kind == "mask" and p.role.argument]
    causal = next(((p.axes[-2].dim.name, p.axes[-1].dim.name) for p in masks if p.role and p.role.causal), None)
    raised = [t for t in definitions(formula.result) if t.body is not None and t.body.has(sp.exp)]
    exponential = bool(raised)
    scores = [p for p in inputs(*raised) if p.role and p.role.kind == "real" and p.role.argument]
    ones = {dim.name: 1 for dim in found}
    matrices = [p for p in scores if len(torch_shape(formula, p, ones)) + has_rows(formula, p) > 1]
    return Features(
        dims=tuple(dim.name for dim in found),
        summed=tuple(dim.name for dim in found if dim in summed),
        exponential=exponential,
        family="model" if exponential and any(map(is_weights, own)) else "normal",
        mask=bool(masks),
        masked=tuple(p.axes[-1].dim.name for p in masks),
        causal=causal,
        squared=tuple({a.dim.name for p in masks for a, b in itertools.pairwise(p.axes) if a.dim == b.dim}),
        scalars={
            p.role.argument: POSITIVE_SCALARS if p.positive else SCALARS
            for p in own if p.role and p.role.kind == "scalar" and p.role.argument
        },
        optional=tuple(
            p.role.argument for p in own
            if p.role and p.role.kind == "real" and p.role.default is not None and p.role.argument
        ),
        classes=next((p.axes[-1].dim.name for p in own if p.role and p.role.kind == "index"), ""),
        ignored=any(p.role is not None and bool(p.role.ignored) for p in own),
        heads=tuple(dict.fromkeys(axis.dim.name for axis in sum(formula.counts.values(), ()) or formula.merge)),
        hides=bool(masks) and bool(hidden_arguments(formula)),
        each=tuple(p.role.argument for p in own if p.role and is_per_matrix(formula, p)),
        arguments=sum(1 for p in own if p.role and p.role.kind == "real" and p.role.argument),
        scored=_names(matrices),
        shifts=_names(p for p in scores if p not in matrices),
    )  # fmt: skip


def _names(parameters: Iterable[Tensor]) -> tuple[str, ...]:
    return tuple(p.role.argument for p in parameters if p.role)


def _bound(total: sp.Sum) -> list[Index]:
    return [limit[0] for limit in total.limits if isinstance(limit[0], Index)]


def few_heads(size: int) -> int:
    """1 of 1, else 2, 3 or 4; what is few stays as it is."""
    return 1 if size == 1 else 2 + (size + 1) % 3
