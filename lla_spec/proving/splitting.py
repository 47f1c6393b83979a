"""Split dimensions, m = m₁ + m₂, eliminated before anything is proved.

    Σ_j f(j) = Σ_j1 f(j1) + Σ_j2 f(j2)        max_j f(j) = max(max_j1 f(j1), max_j2 f(j2))
    concat(K; K1, K2)[j1, k] = K1[j1, k]      m = m1 + m2        δ(j1, j2) = 0

A statement with a free index over a split dimension becomes one statement for each part, and an input with a split axis
becomes one input for each part. What comes out names no split dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import sympy as sp
from sympy.concrete.expr_with_limits import ExprWithLimits

from lla_spec.substituting import keep
from lla_spec.tensors import Dim, Index, Kept, Label, Maximum, Tensor, is_input, split_axis

Path: TypeAlias = tuple[int, ...]  # which part of a split dimension, then which part of that part, …
Place: TypeAlias = tuple[Path, Index]  # a part of a split dimension, and the index that runs through it
Places: TypeAlias = Mapping[sp.Basic, Place]  # where each split index in sight stands


class Unsplittable(ValueError):
    """A split dimension that cannot be eliminated; the message says where."""


def eliminate(left: Tensor, right: Tensor, elimination: Splitting | None = None) -> list[tuple[Tensor, Tensor]]:
    """left = right as statements without split dimensions: one for each choice of parts on the split axes.

    Axes are matched by position and must agree. Raises Unsplittable where an index over a split dimension goes through
    a permutation (it would mix the parts). One `elimination` may serve several statements.
    """
    if not _is_split(left) and not _is_split(right):
        return [(left, right)]
    elimination = elimination or Splitting()
    chosen = list(itertools.product(*[_parts(axis.dim) for axis in left.axes]))
    return [(elimination.tensor(left, paths), elimination.tensor(right, paths)) for paths in chosen]


def _is_split(tensor: Tensor) -> bool:
    """Does any dimension in its making have parts?"""
    seen: set[Label] = set()
    todo = [tensor]
    while todo:
        current = todo.pop()
        if current.label in seen:
            continue
        seen.add(current.label)
        if current.blocks or any(axis.dim.parts for axis in current.axes):
            return True
        if current.body is not None:
            atoms = current.body.atoms(sp.Symbol)
            if any(s.parts if isinstance(s, Dim) else isinstance(s, Index) and s.dim.parts for s in atoms):
                return True
            todo += [s.tensor for s in atoms if isinstance(s, Label)]
    return False


def _parts(dim: Dim) -> list[Path]:
    """The parts that cover a dimension, each without parts of its own: [()] where it is not split."""
    return [(p, *path) for p, part in enumerate(dim.parts) for path in _parts(part.dim)] if dim.parts else [()]


def _part(index: Index, path: Path) -> Index:
    """A new index that runs through the part of `index` that `path` names."""
    for position in path:
        index = index.dim.parts[position]
    return index.fresh()


def _size(dim: Dim) -> sp.Expr:
    return sp.Add(*[_size(part.dim) for part in dim.parts]) if dim.parts else dim


def _value(tensor: Tensor, where: tuple[sp.Expr, ...]) -> sp.Expr:
    """An entry; the number that it is where the tensor is one number, such as the block 0 of a mask."""
    return tensor.body if tensor.body is not None and tensor.body.is_Number else keep(tensor, where)


class Splitting:
    """One version of each tensor for each choice of parts on its axes."""

    def __init__(self) -> None:
        self.versions: dict[tuple[Label, tuple[Path, ...]], Tensor] = {}

    def tensor(self, tensor: Tensor, paths: tuple[Path, ...]) -> Tensor:
        """The tensor restricted to one part of each split axis (the path () on an axis that is not split)."""
        key = (tensor.label, paths)
        if key not in self.versions:
            self.versions[key] = self._restricted(tensor, paths)
        return self.versions[key]

    def _restricted(self, tensor: Tensor, paths: tuple[Path, ...]) -> Tensor:
        if is_input(tensor) and not any(paths):
            return tensor
        axes = [_part(axis, path) if path else axis for axis, path in zip(tensor.axes, paths, strict=True)]
        name = tensor.name + "".join(str(p + 1) for path in paths for p in path)
        if is_input(tensor):
            if tensor.permutation:
                raise Unsplittable(
                    f"{tensor.name} permutes the split dimension {tensor.axes[0].dim} and mixes its parts"
                )
            return self._part_of_input(tensor, name, axes, paths)
        places: dict[sp.Basic, Place] = {
            old: (path, new) for old, path, new in zip(tensor.axes, paths, axes, strict=True) if path
        }
        body = tensor.body
        if body is None:  # a concatenation: the block that the path names, at the part's own index
            along = split_axis(tensor)
            (block, *path), new = paths[along], axes[along]
            body = tensor.blocks[block]
            part = tensor.axes[along].dim.parts[block]
            if part in tensor.axes:
                raise Unsplittable(f"{tensor.name}: {part} is an axis and the index of block {block + 1}; rename one")
            if path:
                places[part] = (tuple(path), new)
            else:
                body = body.xreplace({part: new})
        return Tensor(name, axes, self.rewrite(body, places), nonnegative=tensor.nonnegative)

    def _part_of_input(self, tensor: Tensor, name: str, axes: list[Index], paths: tuple[Path, ...]) -> Tensor:
        """Some columns of an orthonormal or centred matrix are so too; some of its rows are not."""
        uncut: dict[Index | None, Index] = {
            o: n for o, n, path in zip(tensor.axes, axes, paths, strict=True) if not path
        }
        part = Tensor(
            name,
            axes,
            positive=tensor.positive,
            nonnegative=tensor.nonnegative,
            orthonormal=uncut.get(tensor.orthonormal),
            centred=uncut.get(tensor.centred),
        )
        part.whole = tensor.whole
        return part

    def rewrite(self, expr: Any, places: Places) -> Any:
        """An expression without split dimensions; `places` says where its free split indices stand."""
        if isinstance(expr, sp.Indexed):
            return self._entry(expr, places)
        if isinstance(expr, Label):
            return _value(self.tensor(expr.tensor, ()), ())
        if isinstance(expr, sp.KroneckerDelta):
            return self._delta(expr, places)
        if isinstance(expr, ExprWithLimits):
            return self._bound(expr, places)
        if isinstance(expr, Dim):
            return _size(expr)
        if isinstance(expr, sp.Symbol) or not expr.args:
            return expr
        return expr.func(*[self.rewrite(arg, places) for arg in expr.args])

    def _entry(self, expr: Any, places: Places) -> sp.Expr:
        paths: list[Path] = []
        where: list[sp.Expr] = []
        tensor: Tensor = expr.base.label.tensor
        for index, axis in zip(expr.indices, tensor.axes, strict=True):
            path, new = places.get(index, ((), index))
            if axis.dim.parts and not path:
                raise Unsplittable(f"{tensor.name}: index {index} over the split {axis.dim} does not name a part of it")
            paths.append(path)
            where.append(new if path else self.rewrite(index, places))
        return _value(self.tensor(tensor, tuple(paths)), tuple(where))

    def _delta(self, expr: sp.KroneckerDelta, places: Places) -> sp.Expr:
        (path1, first), (path2, second) = (places.get(index, ((), index)) for index in expr.args[:2])
        if path1 != path2:
            return sp.S.Zero
        return sp.KroneckerDelta(first, second)

    def _bound(self, expr: Any, places: Places) -> Any:
        """A sum, or a maximum: innermost index first, each over the parts of its dimension."""
        *inner, (index, low, high) = expr.limits
        make: Any = type(expr)
        if make not in (sp.Sum, Maximum):
            raise Unsplittable(f"{make.__name__} over {index}: only sums and maxima may run over indices")
        if not isinstance(index, Index) or (index, low, high) != index.limits:
            raise Unsplittable(f"a sum over {index} from {low} to {high}: it must run through all of its dimension")
        function = make(expr.function, *inner) if inner else expr.function
        if not index.dim.parts:
            return make(self.rewrite(function, places), (index, low, high))
        terms = []
        for path, part in self._ranges(index):
            body = self.rewrite(function, {**places, index: (path, part)})
            if make is Maximum and isinstance(body, Kept) and body.args[1] == 0:
                continue  # nothing is kept of this part
            terms.append(make(body, part.limits))
        if not terms:
            raise Unsplittable(f"a maximum over {index} of which no part is kept")
        if make is Maximum:
            return sp.Max(*terms)
        return sum(terms, sp.S.Zero)

    def _ranges(self, index: Index) -> Iterator[Place]:
        return ((path, _part(index, path)) for path in _parts(index.dim))
