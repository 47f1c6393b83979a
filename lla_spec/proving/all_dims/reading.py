"""From sympy to normal forms. Each definition is read once, at its own axes, and renamed wherever it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import sympy as sp

from lla_spec.proving.all_dims.sums import Sums
from lla_spec.proving.all_dims.terms import ONE, Entry, Leaf, Poly, Refused, Root, Size
from lla_spec.proving.all_dims.zero import is_zero
from lla_spec.tensors import Dim, Index, Kept, Label, Maximum, Tensor, is_input

Where = Mapping[sp.Basic, Leaf]  # what each index in sight is called


class Reader:
    """Reads expressions into the normal forms of one proof."""

    def __init__(self, fuel: int, orthonormal: Mapping[Tensor, int] | None = None) -> None:
        self.names = Names()
        self.display: dict[str, str] = {}  # a dimension's name -> what an index over it is called, for people
        self.engine = Sums(fuel)
        for tensor, axis in (orthonormal or {}).items():
            if len(tensor.axes) != 2 or not is_input(tensor):
                raise ValueError(f"orthonormal: {tensor!r} must be an input with 2 axes")
            name = self.names.of(tensor.label, tensor.name)
            self.engine.orthonormal[name] = axis, name
        self._definitions: dict[Label, Poly] = {}
        self._entries: dict[tuple[Label, tuple[Leaf, ...]], Poly] = {}

    # --- tensors -------------------------------------------------------------------------------------------------

    def entry(self, tensor: Tensor, leaves: Sequence[Leaf]) -> Poly:
        """The normal form of an entry of an input or of a definition."""
        for axis, leaf in zip(tensor.axes, leaves, strict=True):
            if self.dim(axis.dim) != leaf.dim:
                raise Refused(f"{tensor.name}: {leaf.name} does not range over {axis.dim}, the dimension of its axis")
        if is_input(tensor):
            if tensor.permutation:
                raise Refused(f"the permutation {tensor.name} outside an index")
            name = self.names.of(tensor.label, tensor.name)
            self._constrain(tensor, name)
            return self.engine.atom(Entry(name, tuple(leaves), tensor.nonnegative))
        own = [Leaf(f"@{position}", self.dim(axis.dim)) for position, axis in enumerate(tensor.axes)]
        if tensor.label not in self._definitions:
            if tensor.body is None:
                raise Refused(f"{tensor.name} is a concatenation: eliminate split dimensions first")
            self._definitions[tensor.label] = self.read(tensor.body, dict(zip(tensor.axes, own, strict=True)))
        place = (tensor.label, tuple(leaves))
        if place not in self._entries:
            names = {mine.base: leaf for mine, leaf in zip(own, leaves, strict=True)}
            self._entries[place] = self.engine.rename(self._definitions[tensor.label], names)
        return self._entries[place]

    def _constrain(self, tensor: Tensor, name: str) -> None:
        """Tell the engine, before the first sum over it, what the matrix declares."""
        if tensor.orthonormal is not None:
            whole = self.names.of(tensor.whole.label, tensor.whole.name)
            self.engine.orthonormal.setdefault(name, (tensor.axes.index(tensor.orthonormal), whole))
        if tensor.centred is not None:
            self.engine.centred[name] = tensor.axes.index(tensor.centred)

    def dim(self, dim: Dim) -> str:
        if dim.parts:
            raise Refused(f"{dim} is a sum of dimensions: eliminate split dimensions first")
        return self.names.of(dim, dim.name)

    def leaf(self, where: Any, names: Where) -> Leaf:
        tensor = _indexed(where)
        if where in names:
            return names[where]
        if tensor is not None and tensor.permutation:
            inner = self.leaf(where.indices[0], names)
            if inner.dim != self.dim(tensor.axes[0].dim):
                raise Refused(f"{tensor.name} permutes {tensor.axes[0].dim}, but {where} gives it another index")
            return inner._replace(through=(*inner.through, self.names.of(tensor.label, tensor.name)))
        raise Refused(f"the index {where}: it must be a bound index, an axis, or a permutation of one")

    # --- expressions ---------------------------------------------------------------------------------------------

    def read(self, expr: Any, names: Where) -> Poly:
        engine = self.engine
        engine.spend()
        if isinstance(expr, sp.Rational):
            return engine.constant(Fraction(int(expr.p), int(expr.q)))
        if isinstance(expr, Dim):
            return engine.atom(Size(self.dim(expr)))
        if isinstance(expr, Label):
            return self.entry(expr.tensor, ())
        tensor = _indexed(expr)
        if tensor is not None:
            return self.entry(tensor, [self.leaf(i, names) for i in expr.indices])
        if isinstance(expr, sp.Add):
            return engine.add(*[self.read(term, names) for term in expr.args])
        if isinstance(expr, sp.Mul):
            result = engine.constant(1)
            for factor in expr.args:
                result = engine.mul(result, self.read(factor, names))
            return result
        if isinstance(expr, sp.KroneckerDelta) and len(expr.args) == 2:
            first, second = (self.leaf(index, names) for index in expr.args)
            return engine.delta(first, second)
        return self._read_function(expr, names)

    def _read_function(self, expr: Any, names: Where) -> Poly:
        engine = self.engine
        if isinstance(expr, sp.exp):
            return engine.exp(self.read(expr.args[0], names))
        if expr is sp.E:
            return engine.exp(engine.constant(1))
        if isinstance(expr, sp.log) and len(expr.args) == 1:
            return engine.log(self._not_zero(self.read(expr.args[0], names), "log of 0"))
        if isinstance(expr, sp.Pow):
            return self._power(self.read(expr.base, names), self.read(expr.exp, names))
        if isinstance(expr, sp.Sum):
            return self._read_sum(expr, names)
        if isinstance(expr, Maximum):
            return self._read_maximum(expr, names)
        if isinstance(expr, sp.Max):
            return engine.peak([self.read(arg, names) for arg in expr.args])
        if isinstance(expr, Kept):
            raise Refused("Kept outside a maximum")
        raise Refused(f"{type(expr).__name__} ({str(expr)[:60]}) has no normal form")

    def _power(self, base: Poly, exponent: Poly) -> Poly:
        if any(monomial != ONE for monomial in exponent):  # the condition is base > 0
            return self.engine.exp(self.engine.mul(exponent, self.engine.log(self._not_zero(base, "log of 0"))))
        number = exponent.get(ONE, Fraction(0))
        if number < 0:
            base = self._not_zero(base, "division by 0")
        elif number.denominator != 1:
            base = self._not_zero(base, "root of 0, which needs an argument > 0")
        return self.engine.power(base, number)

    def _not_zero(self, poly: Poly, otherwise: str) -> Poly:
        if any(isinstance(atom, Root) for m in poly for atom, _ in m) and is_zero(self.engine, poly):
            raise Refused(otherwise)
        return poly

    def _read_sum(self, expr: sp.Sum, names: Where) -> Poly:
        inner, bound = self._bind(expr.limits, names)
        poly = self.read(expr.function, inner)
        for leaf in bound:
            poly = self.engine.sum(poly, leaf)
        return poly

    def _read_maximum(self, expr: Maximum, names: Where) -> Poly:
        if len(expr.limits) != 1:
            raise Refused("a maximum over several indices at once; nest them")
        inner, (bound,) = self._bind(expr.limits, names)
        function = expr.function
        contents = [self.read(part, inner) for part in (function.args if isinstance(function, Kept) else (function,))]
        if contents[1:] == [{}]:
            raise Refused("a maximum of nothing: its mask is 0")
        if len(contents) == 2 and list(contents[1]) == [ONE]:  # a mask that keeps everything
            contents.pop()
        return self.engine.peak(contents, bound)

    def _bind(self, limits: Sequence[Any], names: Where) -> tuple[Where, list[Leaf]]:
        bound: list[Leaf] = []
        inner = dict(names)
        for index, *range_ in limits:
            if not isinstance(index, Index) or tuple(range_) != index.limits[1:]:
                raise Refused(f"a sum over {index} from {range_}: it must run through all of its dimension")
            leaf = self.engine.fresh(self.dim(index.dim))
            self.display.setdefault(leaf.dim, index.name)
            inner[index] = leaf
            bound.append(leaf)
        return inner, bound


def _indexed(expr: Any) -> Tensor | None:
    """The tensor of which `expr` is an entry."""
    label: Any = expr.base.label if isinstance(expr, sp.Indexed) else None  # pyright: ignore[reportAttributeAccessIssue]
    return label.tensor if isinstance(label, Label) else None


class Names:
    """Identifiers that tell apart tensors, and dimensions, of one name.

    They are made of letters, digits and _ only, so that an atom's key can be read in one way.
    """

    def __init__(self) -> None:
        self._names: dict[sp.Basic, str] = {}
        self._taken: set[str] = set()

    def of(self, symbol: sp.Basic, wanted: str) -> str:
        if symbol not in self._names:
            stem = "".join(c if c.isalnum() else "_" for c in wanted) or "_"
            name, count = stem, 1
            while name in self._taken:
                count += 1
                name = f"{stem}_{count}"
            self._taken.add(name)
            self._names[symbol] = name
        return self._names[symbol]
