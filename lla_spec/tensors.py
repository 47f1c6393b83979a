"""What the specification is made of: dimensions, indices and tensors, all of them real sympy.

An index knows the dimension that it ranges over; an entry of a tensor is a sympy Indexed; a tensor is an input, a
definition or a concatenation, and knows what it rests on. `lla_spec.symbols` has the words that make them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy as sp
from sympy.concrete.expr_with_limits import ExprWithLimits

_keys = itertools.count(1)


class DeclarationError(ValueError):
    """A declaration that contradicts itself; the message names the declaration, the axis and the rule."""


class Dim(sp.Symbol):
    """A dimension: a positive integer. `parts` are the indices that it runs through where it is a sum (m = m₁ + m₂),
    `factors` those that it counts, the last one fastest, where it is a product (h = g · r).
    """

    __slots__ = ("factors", "parts")
    parts: tuple[Index, ...]
    factors: tuple[Index, ...]

    def __new__(cls, name: str, parts: tuple[Index, ...] = (), factors: tuple[Index, ...] = ()) -> Dim:
        dim = sp.Symbol.__xnew__(cls, name, integer=True, positive=True)
        dim.parts, dim.factors = parts, factors
        return dim

    def __getnewargs_ex__(self) -> Any:
        return (self.name, self.parts, self.factors), {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*sp.Symbol._hashable_content(self), self.parts, self.factors)

    def size(self, sizes: Mapping[str, int]) -> int:
        """Its value, given the sizes of the declared dimensions by name."""
        if self.parts:
            return sum(part.dim.size(sizes) for part in self.parts)
        if self.factors:
            return math.prod(factor.dim.size(sizes) for factor in self.factors)
        return int(sizes[self.name])

    @property
    def elementary(self) -> set[Dim]:
        """The declared dimensions that it is made of."""
        made_of = (*self.parts, *self.factors)
        return set().union(*(index.dim.elementary for index in made_of)) if made_of else {self}


class Index(sp.Symbol):
    """An index: an integer from 0 to `dim` - 1. A bound index has a `key`, which no user can write."""

    __slots__ = ("dim", "key")
    dim: Dim
    key: int

    def __new__(cls, name: str, dim: Dim, key: int = 0) -> Index:
        # No sign assumption: sympy sets δ(0, k) to zero where k is declared positive.
        obj = sp.Symbol.__xnew__(cls, name, integer=True)
        obj.dim, obj.key = dim, key
        return obj

    def __getnewargs_ex__(self) -> Any:
        return (self.name, self.dim, self.key), {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*sp.Symbol._hashable_content(self), self.dim, self.key)

    def sort_key(self, order: Any = None) -> Any:
        return self.class_key(), (3, (self.name, str(self.dim), self.key)), sp.S.One.sort_key(), sp.S.One

    @property
    def limits(self) -> tuple[Index, int, sp.Expr]:
        return (self, 0, self.dim - 1)

    def fresh(self, dim: Dim | None = None) -> Index:
        """A new index over the same dimension (or over `dim`) that equals no other."""
        return Index(self.name, dim or self.dim, next(_keys))


class Label(sp.Symbol):
    """The symbol under a tensor's name. Two tensors of one name have two labels, so they never mix."""

    __slots__ = ("key", "tensor")
    tensor: Tensor
    key: int

    def __new__(cls, name: str, tensor: Tensor, key: int, positive: bool) -> Label:
        obj = sp.Symbol.__xnew__(cls, name, positive=True) if positive else sp.Symbol.__xnew__(cls, name, real=True)
        obj.tensor, obj.key = tensor, key
        return obj

    def __getnewargs_ex__(self) -> Any:
        return (self.name, self.tensor, self.key, bool(self.is_positive)), {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*sp.Symbol._hashable_content(self), self.key)

    def sort_key(self, order: Any = None) -> Any:
        return self.class_key(), (4, (self.name, self.key)), sp.S.One.sort_key(), sp.S.One


class Maximum(ExprWithLimits):
    """max over the bound indices of an entry; opaque to calculus, because it has no derivative at ties."""

    def doit(self, **hints: Any) -> sp.Expr:
        limits: Any = self.limits
        (bound, low, high), *_ = limits
        if not (high.is_Integer and low.is_Integer):
            return self
        entry = self.function.doit(**hints)
        return sp.Max(*[entry.subs(bound, v).doit(**hints) for v in range(int(low), int(high) + 1)])

    def _eval_is_real(self) -> bool:
        return True


class Kept(sp.Function):
    """Kept(x, M): x where M is not zero, -∞ where it is. It stands inside a maximum only, where provers do not look."""

    nargs = 2


@dataclass(frozen=True)
class Role:
    """What a tensor is as an argument of the operation that torch code implements.

    `argument` is its name in the torch signature; `default` (an expression) is what it is when left out; `batched` is
    False for what all leading axes share (a weight). `kind` is "real", "mask" (0 or 1, bool in torch), "index" (rows of
    one 1 each, int64 in torch; `ignored` is the keyword whose value makes a row of zeros), "live" (see `live`) or
    "scalar". `causal`: the operation also takes `is_causal`. `keyword`: it is taken by keyword only.
    """

    argument: str
    kind: str = "real"
    default: sp.Expr | None = None
    batched: bool = True
    causal: bool = False
    ignored: str = ""
    keyword: bool = False


class Tensor:
    """A named array: an input (`body` is None), a definition (name[axes] := body), or a concatenation of `blocks`."""

    def __init__(
        self,
        name: str,
        axes: Sequence[Index] = (),
        body: Any = None,
        *,
        role: Role | None = None,
        positive: bool = False,
        nonnegative: bool = False,
        blocks: tuple[sp.Expr, ...] = (),
        permutation: bool = False,
        orthonormal: Index | None = None,
        centred: Index | None = None,
    ) -> None:
        self.name, self.axes = name, tuple(axes)
        self.body: sp.Expr | None = None if body is None else sp.sympify(body)
        self.role, self.positive, self.nonnegative = role, positive, nonnegative or positive
        self.blocks, self.permutation = blocks, permutation
        self.orthonormal, self.centred = orthonormal, centred  # the axis that Σ T T = δ, Σ T = 0 run along
        self.whole = self  # the matrix that it is some columns of
        self.call: Any = None  # the formula's call that made it, if one did (language.Call)
        self.label = Label(name, self, next(_keys), positive)
        self.base = sp.IndexedBase(self.label)
        self._validate()

    def _validate(self) -> None:
        for position, axis in enumerate(self.axes):
            if not isinstance(axis, Index):
                raise DeclarationError(f"{self.name}: axis {position} is {axis!r}; an axis is an index(name, dim)")
        if len(set(self.axes)) < len(self.axes):
            raise DeclarationError(f"{self.name}: one index stands on two axes {self.axes}; give each axis its own")
        for word, along in (("orthonormal", self.orthonormal), ("centred", self.centred)):
            if along is not None and (along not in self.axes or len(self.axes) != 2 or not is_input(self)):
                raise DeclarationError(f"{self.name}: {word} along {along} needs an input with that axis and one other")
        if any(axis.dim.name == self.name for axis in self.axes):
            raise DeclarationError(f"{self.name}: a tensor and its dimension share the name {self.name}; rename one")
        for expr in (self.body, *self.blocks):
            if expr is not None:
                allowed = {*self.axes, *(i for axis in self.axes for i in (*axis.dim.parts, *axis.dim.factors))}
                for free in sorted(free_indices(expr) - allowed, key=str):
                    raise DeclarationError(
                        f"{self.name}: index {free} is unbound; sum over it or make it an axis (axes {self.axes})"
                    )

    @property
    def shape(self) -> tuple[Dim, ...]:
        return tuple(axis.dim for axis in self.axes)

    @property
    def entry(self) -> sp.Expr:
        """The entry at its own axes, a sympy Indexed (a Symbol where it has no axes)."""
        return self[self.axes]

    def __getitem__(self, where: Any) -> Any:
        where = where if isinstance(where, tuple) else (where,)
        if len(where) != len(self.axes):
            raise DeclarationError(
                f"{self.name}: {len(where)} indices [{', '.join(map(str, where))}] but it has {len(self.axes)} axes "
                f"({', '.join(f'{a} over {a.dim}' for a in self.axes) or 'none: it is a scalar'})"
            )
        for position, (given, axis) in enumerate(zip(where, self.axes, strict=True)):
            ranges = _range_of(given)
            if ranges is not None and ranges != axis.dim and not _counts_the_same(ranges, axis.dim):
                raise DeclarationError(
                    f"{self.name}: axis {position} ranges over {axis.dim}, but index {given} ranges over {ranges}"
                )
        return sp.Indexed(self.base, *where) if self.axes else self.label

    @property
    def matrix(self) -> sp.MatrixSymbol:
        """The MatrixSymbol of the same name and shape (two axes only)."""
        if len(self.axes) != 2:
            raise DeclarationError(f"{self.name}: .matrix needs 2 axes, it has {len(self.axes)}")
        return MatrixOf(self)

    # A scalar tensor takes part in arithmetic as the symbol that it is.
    def _sympy_(self) -> sp.Expr:
        if self.axes:
            raise sp.SympifyError(f"{self.name} has axes {self.axes}: write {self.name}{list(self.axes)}")
        return self.label

    def __add__(self, other: Any) -> sp.Expr:
        return self._sympy_() + other

    def __sub__(self, other: Any) -> sp.Expr:
        return self._sympy_() - other

    def __mul__(self, other: Any) -> sp.Expr:
        return self._sympy_() * other

    def __truediv__(self, other: Any) -> sp.Expr:
        return self._sympy_() / other

    def __pow__(self, other: Any) -> sp.Expr:
        return self._sympy_() ** other

    def __neg__(self) -> sp.Expr:
        return -self._sympy_()

    def __radd__(self, other: Any) -> sp.Expr:
        return other + self._sympy_()

    def __rsub__(self, other: Any) -> sp.Expr:
        return other - self._sympy_()

    def __rmul__(self, other: Any) -> sp.Expr:
        return other * self._sympy_()

    def __rtruediv__(self, other: Any) -> sp.Expr:
        return other / self._sympy_()

    def __repr__(self) -> str:
        return f"{self.name}[{', '.join(map(str, self.axes))}]" if self.axes else self.name

    @cached_property
    def dependencies(self) -> tuple[Tensor, ...]:
        """The tensors that its body (or a concatenation's blocks) names."""
        found: dict[Label, Tensor] = {}
        for expr in (self.body, *self.blocks):
            if expr is not None:
                found.update((t.label, t) for t in tensors_in(expr))
        return tuple(found.values())

    def named(self, name: str) -> Tensor:
        """The same under another name: `linear(x, W_q).named("q")`, where a declaration calls one formula twice."""
        made = Tensor(name, self.axes, self.body, nonnegative=self.nonnegative)
        made.call = self.call
        return made

    def part(self, name: str) -> Tensor:
        """The definition called `name` in the formula that made this tensor, e.g. `attention(Q, K, V).part("P")`."""
        for found in definitions(self):
            if found.name == name:
                return found
        raise DeclarationError(
            f"{self.name}: nothing inside is called {name}; there are {[t.name for t in definitions(self)]}"
        )


def _counts_the_same(first: Dim, second: Dim) -> bool:
    """Whether two products have the same factors, in whatever order they are counted."""
    names = [sorted(factor.dim.name for factor in dim.factors) for dim in (first, second)]
    return bool(names[0]) and names[0] == names[1]


def _range_of(index: Any) -> Dim | None:
    """The dimension that an index, or an entry of a permutation, ranges over; None for a number."""
    if isinstance(index, Index):
        return index.dim
    if isinstance(index, sp.Indexed):
        label: Any = index.base.args[0]
        return label.tensor.axes[0].dim if isinstance(label, Label) else None
    return None


class MatrixOf(sp.MatrixSymbol):
    """The MatrixSymbol of a tensor; it remembers the tensor, so that a matrix expression can be read entry by entry."""

    tensor: Tensor

    def __new__(cls, tensor: Tensor) -> MatrixOf:
        obj = sp.MatrixSymbol.__new__(cls, tensor.label, *tensor.shape)
        obj.tensor = tensor
        return obj

    @property
    def func(self) -> Any:  # sympy rebuilds through func(*args): give back the plain symbol with the new shape
        return lambda *args: self if args == self.args else sp.MatrixSymbol(*args)


def split_axis(tensor: Tensor) -> int:
    """The position of the axis along which a concatenation runs."""
    return next(position for position, axis in enumerate(tensor.axes) if axis.dim.parts)


def free_indices(expr: sp.Basic) -> set[Index]:
    return {symbol for symbol in expr.free_symbols if isinstance(symbol, Index)}


def tensors_in(expr: sp.Basic) -> list[Tensor]:
    """The tensors that an expression names, each once, in the order of their making."""
    return [label.tensor for label in sorted(expr.atoms(Label), key=lambda label: label.key)]


def order(*outputs: Tensor) -> list[Tensor]:
    """Every tensor that `outputs` rest on, inputs first, each after what it names."""
    seen: dict[Label, Tensor] = {}

    def visit(tensor: Tensor) -> None:
        if tensor.label not in seen:
            for other in tensor.dependencies:
                visit(other)
            seen[tensor.label] = tensor

    for output in outputs:
        visit(output)
    return list(seen.values())


def is_input(tensor: Tensor) -> bool:
    return tensor.body is None and not tensor.blocks


def inputs(*outputs: Tensor) -> list[Tensor]:
    return [tensor for tensor in order(*outputs) if is_input(tensor)]


def definitions(*outputs: Tensor) -> list[Tensor]:
    return [tensor for tensor in order(*outputs) if not is_input(tensor)]
