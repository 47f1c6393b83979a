"""Expressions rewritten: tensors replaced, indices renamed, bound indices made fresh so that nothing is captured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import sympy as sp
from sympy.concrete.expr_with_limits import ExprWithLimits

from lla_spec.tensors import Label, Tensor, is_input

Leaf = Callable[[Tensor, tuple[sp.Expr, ...]], sp.Expr]


def transform(expr: Any, leaf: Leaf, rename: Mapping[Any, Any] | None = None) -> Any:
    """`expr` with every entry T[…] replaced by `leaf(T, indices)`, free symbols renamed, bound indices made fresh.

    `rename` maps indices and dimensions; a bound index over a renamed dimension ranges over the new one.
    """
    rename = dict(rename or {})
    if isinstance(expr, sp.Indexed):
        label: Any = expr.base.args[0]
        return leaf(label.tensor, tuple(transform(i, leaf, rename) for i in expr.indices))
    if isinstance(expr, Label):
        return leaf(expr.tensor, ())
    if isinstance(expr, ExprWithLimits):
        limits, given = [], cast(Any, expr.limits)  # sympy types its Tuples as Basic
        for bound, *_ in given:
            rename[bound] = bound.fresh(rename.get(bound.dim, bound.dim))
            limits.append(rename[bound].limits)
        return type(expr)(transform(expr.function, leaf, rename), *limits)
    if isinstance(expr, sp.Symbol):
        return rename.get(expr, expr)
    if not expr.args:
        return expr
    return expr.func(*[transform(arg, leaf, rename) for arg in expr.args])


def keep(tensor: Tensor, where: tuple[sp.Expr, ...]) -> Any:
    """The leaf that changes nothing."""
    return sp.Indexed(tensor.base, *where) if tensor.axes else tensor.label


def body_at(tensor: Tensor, where: Sequence[sp.Expr]) -> sp.Expr:
    """A definition's body at the given indices, its bound indices fresh."""
    assert tensor.body is not None
    return transform(tensor.body, keep, dict(zip(tensor.axes, where, strict=True)))


def expand(expr: sp.Basic, stop: Callable[[Tensor], bool] = is_input) -> Any:
    """`expr` with every definition replaced by its body, until only inputs (or tensors where `stop` holds) remain."""

    def leaf(tensor: Tensor, where: tuple[sp.Expr, ...]) -> sp.Expr:
        if stop(tensor) or tensor.body is None:
            return keep(tensor, where)
        return expand(body_at(tensor, where), stop)

    return transform(expr, leaf)
