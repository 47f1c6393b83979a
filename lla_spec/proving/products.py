"""Product dimensions, h = g · r, eliminated before anything is proved for all dimensions.

    Σ_p f(p) = Σ_g Σ_r f(g, r)        merge(K; K_g)[(g, r), j] = K[g, j]        δ(p, p') = δ(g, g') δ(r, r')

An axis over a product becomes one axis for each factor, in every tensor and in the statement. An axis that is read in
another order than the one in which it counts (r fastest or g fastest) has no such form, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp
from sympy.concrete.expr_with_limits import ExprWithLimits

from lla_spec.substituting import keep
from lla_spec.tensors import Dim, Index, Label, Tensor, is_input

Places = Mapping[sp.Basic, tuple[Index, ...]]  # the indices that stand for a product index in sight


class Unfactorable(ValueError):
    """A product dimension that cannot be eliminated; the message says where."""


def factored(left: Tensor, right: Tensor, elimination: Factoring | None = None) -> tuple[Tensor, Tensor]:
    """left = right without product dimensions. Raises Unfactorable. One `elimination` may serve several statements."""
    if not (_has_product(left) or _has_product(right)):
        return left, right
    elimination = elimination or Factoring()
    return elimination.tensor(left), elimination.tensor(right)


def _has_product(tensor: Tensor) -> bool:
    seen: set[Label] = set()
    todo = [tensor]
    while todo:
        current = todo.pop()
        if current.label in seen:
            continue
        seen.add(current.label)
        if any(axis.dim.factors for axis in current.axes):
            return True
        todo += current.dependencies
    return False


def _elements(index: Index) -> tuple[Index, ...]:
    """New indices for the factors of a product (and for theirs); the index itself where it is none."""
    if not index.dim.factors:
        return (index,)
    return tuple(one for factor in index.dim.factors for one in _elements(factor.fresh()))


def _size(dim: Dim) -> sp.Expr:
    return sp.Mul(*[_size(factor.dim) for factor in dim.factors]) if dim.factors else dim


class Factoring:
    """One version of each tensor."""

    def __init__(self) -> None:
        self.versions: dict[Label, Tensor] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """The tensor with each product axis as the axes of its factors."""
        if tensor.label not in self.versions:
            self.versions[tensor.label] = self._version(tensor) if _has_product(tensor) else tensor
        return self.versions[tensor.label]

    def _version(self, tensor: Tensor) -> Tensor:
        groups = [_elements(axis) for axis in tensor.axes]
        axes = [axis for group in groups for axis in group]
        if is_input(tensor):
            if tensor.permutation or tensor.orthonormal or tensor.centred:
                raise Unfactorable(f"{tensor.name} is a permutation or constrained along a product dimension")
            return Tensor(tensor.name, axes, positive=tensor.positive, nonnegative=tensor.nonnegative)
        places: dict[sp.Basic, tuple[Index, ...]] = {}
        places.update((axis, group) for axis, group in zip(tensor.axes, groups, strict=True) if axis.dim.factors)
        if tensor.body is not None:
            return Tensor(tensor.name, axes, self.rewrite(tensor.body, places), nonnegative=tensor.nonnegative)
        factors = {}
        for axis, group in places.items():
            if any(factor.dim.factors for factor in axis.dim.factors):  # pyright: ignore[reportAttributeAccessIssue]
                raise Unfactorable(f"{tensor.name}: merge the factors of {axis} one product at a time")
            factors.update(zip(axis.dim.factors, group, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
        blocks = tuple(self.rewrite(block, places).xreplace(factors) for block in tensor.blocks)
        if any(axis.dim.parts for axis in tensor.axes):
            return Tensor(tensor.name, axes, blocks=blocks)
        return Tensor(tensor.name, axes, blocks[0], nonnegative=tensor.nonnegative)

    def rewrite(self, expr: Any, places: Places) -> Any:
        """An expression without product dimensions; `places` says what stands for its free product indices."""
        if isinstance(expr, sp.Indexed):
            return self._entry(expr, places)
        if isinstance(expr, Label):
            return keep(self.tensor(expr.tensor), ())
        if isinstance(expr, sp.KroneckerDelta) and expr.args[0] in places:
            pairs = zip(places[expr.args[0]], places.get(expr.args[1], ()), strict=True)
            return sp.Mul(*[sp.KroneckerDelta(first, second) for first, second in pairs])
        if isinstance(expr, ExprWithLimits):
            return self._bound(expr, places)
        if isinstance(expr, Dim):
            return _size(expr)
        if isinstance(expr, sp.Symbol) or not expr.args:
            return expr
        return expr.func(*[self.rewrite(arg, places) for arg in expr.args])

    def _entry(self, expr: Any, places: Places) -> Any:
        tensor: Tensor = expr.base.label.tensor
        where: list[Any] = []
        for index, axis in zip(expr.indices, tensor.axes, strict=True):
            if not axis.dim.factors:
                where.append(self.rewrite(index, places))
            elif not isinstance(index, Index) or index not in places:
                raise Unfactorable(f"{tensor.name}: {index} on an axis over {axis.dim} does not name its factors")
            elif index.dim != axis.dim:
                order = [", ".join(f.dim.name for f in dim.factors) for dim in (index.dim, axis.dim)]
                raise Unfactorable(f"{tensor.name}: {index} counts ({order[0]}), the axis counts ({order[1]})")
            else:
                where += places[index]
        return keep(self.tensor(tensor), tuple(where))

    def _bound(self, expr: Any, places: Places) -> Any:
        limits: list[Any] = []
        inner = dict(places)
        for index, low, high in expr.limits:
            if isinstance(index, Index) and index.dim.factors:
                inner[index] = _elements(index)
                limits += [one.limits for one in inner[index]]
            else:
                limits.append((index, low, self.rewrite(high, places)))
        return type(expr)(self.rewrite(expr.function, inner), *limits)
