"""An operation's face towards torch: its signature, and how the axes of its tensors lie in torch's arrays.

A declaration has an axis for everything that it sums over; torch merges some of them. Heads × head_dim is one axis of a
weight (`merge=(g, r, a)`: what stands side by side among these is one axis, row-major), and a choice of one class among
V is an int64 instead of a row of V zeros and ones. Integer keywords (`counts`) say how long the merged axes are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import sympy as sp

from lla_spec.calls import Formula
from lla_spec.certified import Certified
from lla_spec.tensors import Index, Tensor

IGNORE_INDEX = -100  # torch's default: no class


def torch_parameters(formula: Formula) -> dict[str, tuple[str, Tensor]]:
    """The parameters that torch code takes: torch name -> (spec name, tensor). The others keep their defaults."""
    return {
        p.role.argument: (name, p) for name, p in formula.parameters.items() if p.role is not None and p.role.argument
    }


@cache
def keyword_names(formula: Formula) -> frozenset[str]:
    """The arguments that torch code takes by keyword only."""
    kinds = signature(formula, vjp=True).parameters.values()
    return frozenset(parameter.name for parameter in kinds if parameter.kind is inspect.Parameter.KEYWORD_ONLY)


def signature(formula: Formula, *, vjp: bool = False) -> inspect.Signature:
    """The torch signature of an operation, or of its VJP.

    >>> from lla_spec.language import registry
    >>> print(signature(registry.formulas["attention"]))
    (q, k, v, mask=None, *, is_causal=False, scale=None)
    >>> print(signature(registry.formulas["linear"], vjp=True))
    (x, weight, bias=None, *, grad_output)
    """
    if isinstance(formula, Certified):
        return formula.signature
    positional: dict[str, Any] = {}
    keywords: dict[str, Any] = {"grad_output": inspect.Parameter.empty} if vjp else {}
    for position, name in enumerate(formula.counts):
        keywords[name] = None if position else inspect.Parameter.empty  # the later ones have the first as their default
    for name, (_, tensor) in torch_parameters(formula).items():
        role = tensor.role
        assert role is not None
        default = inspect.Parameter.empty if role.default is None else None
        if role.kind == "scalar":
            keywords[name] = float(role.default) if isinstance(role.default, sp.Number) else default
        else:
            (keywords if role.keyword else positional)[name] = default
        if role.causal:
            keywords["is_causal"] = False
        if role.ignored:
            keywords[role.ignored] = IGNORE_INDEX
    keywords.update(formula.keywords)
    made = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=d) for n, d in positional.items()]
    made += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d) for n, d in keywords.items()]
    return inspect.Signature(made)


# ---- axes


def has_rows(formula: Formula, tensor: Tensor) -> bool:
    """Whether its first axis is the one that runs through all leading axes of torch's array."""
    return formula.rows is not None and tensor.axes[:1] == (formula.rows,)


def is_per_matrix(formula: Formula, tensor: Tensor) -> bool:
    """Whether a parameter without the rows may have leading axes all the same: one of it for each matrix of rows.

    >>> from lla_spec.formulas.pca import pca_transform, X, μ
    >>> is_per_matrix(pca_transform, μ), is_per_matrix(pca_transform, X)
    (True, False)
    """
    role = tensor.role
    return (
        formula.rows is not None
        and not has_rows(formula, tensor)
        and role is not None
        and role.batched
        and role.kind == "real"
        and bool(role.argument)
    )


def own_axes(formula: Formula, tensor: Tensor) -> tuple[Index, ...]:
    """The declared axes, without the rows."""
    return tensor.axes[1:] if has_rows(formula, tensor) else tensor.axes


def torch_axes(formula: Formula, tensor: Tensor) -> list[tuple[Index, ...]]:
    """Its own axes as torch has them: each axis of the array with the declared ones that it runs through.

    >>> from lla_spec.formulas.linear import W, linear
    >>> torch_axes(linear, W)
    [(c,), (k,)]
    """
    groups: list[tuple[Index, ...]] = []
    for axis in own_axes(formula, tensor)[: -1 if tensor.role and tensor.role.kind == "index" else None]:
        if groups and axis in formula.merge and groups[-1][-1] in formula.merge:
            groups[-1] = (*groups[-1], axis)
        else:
            groups.append((axis,))
    return groups


def torch_shape(formula: Formula, tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of its own axes in torch's array."""
    return tuple(math.prod(axis.dim.size(sizes) for axis in group) for group in torch_axes(formula, tensor))


def count_values(formula: Formula, sizes: Mapping[str, int]) -> dict[str, int]:
    """What the integer keywords must be at these sizes."""
    return {name: math.prod(axis.dim.size(sizes) for axis in axes) for name, axes in formula.counts.items()}


def unmerged_sizes(
    formula: Formula, shapes: Mapping[str, tuple[int, ...]], counts: Mapping[str, int]
) -> tuple[dict[str, int], str]:
    """Every dimension's size from the arguments' shapes (by spec name), and what is wrong with them ("").

    A product with one unknown factor gives it. Products are looked at until nothing new is found.
    """
    products: list[tuple[str, tuple[Index, ...], int]] = []
    for name, value in counts.items():
        products.append((f"{name} is {value}", formula.counts[name], value))
    for name, shape in shapes.items():
        tensor = formula.parameters.get(name, formula.result)
        role = tensor.role
        shown = role.argument if role and role.argument else name
        groups = torch_axes(formula, tensor)
        for position, (group, size) in enumerate(zip(groups, shape[len(shape) - len(groups) :], strict=True)):
            what = f"{shown} has shape {shape}, {size} on axis {position - len(groups)}"
            products.append((what, group, size))
    sizes: dict[str, int] = {}
    waiting = products
    while waiting:
        later = []
        for what, group, size in waiting:
            known = math.prod(sizes[axis.dim.name] for axis in group if axis.dim.name in sizes)
            unknown = [axis.dim.name for axis in group if axis.dim.name not in sizes]
            if len(unknown) > 1:
                later.append((what, group, size))
            elif unknown and (size % known if known else size):
                return sizes, f"{what}, which is no multiple of {known}"
            elif unknown:
                sizes[unknown[0]] = size // known if known else 0
            elif known != size:
                names = " · ".join(axis.dim.name for axis in group)
                return sizes, f"{what}, but {names} is already {known}"
        if len(later) == len(waiting):
            return sizes, f"{later[0][0]}: the sizes of {', '.join(str(a.dim) for a in later[0][1])} do not follow"
        waiting = later
    return sizes, ""
