"""The words that a declaration is written with; each makes real sympy (`lla_spec.tensors`).

    n, d = dims("n d")                      # positive integers
    i, k = index("i", n), index("k", d)     # an index knows the dimension that it ranges over
    X = tensor("X", i, k)                   # X ∈ ℝⁿˣᵈ;  X[i, k] is a sympy Indexed
    Sum(X[i, k]**2, k)                      # a sympy Sum over k = 0 … d-1

`Sum` and `Max` rename the index that they bind to one that nobody can write, so that no later `subs` captures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy as sp

from lla_spec.tensors import DeclarationError, Dim, Index, Kept, Maximum, Role, Tensor


def dims(names: str) -> Any:
    """Dimensions by name, `n, d = dims("n d")`; one name gives one Dim."""
    made = tuple(Dim(name) for name in names.replace(",", " ").split())
    return made[0] if len(made) == 1 else made


def index(name: str, dim: Dim) -> Index:
    """An index called `name` that ranges over `dim`."""
    if not isinstance(dim, Dim):
        raise DeclarationError(f"index {name}: ranges over {dim!r}; it must range over a dimension made by dims()")
    return Index(name, dim)


def tensor(
    name: str,
    *axes: Index,
    argument: str | None = None,
    default: Any = None,
    batched: bool = True,
    positive: bool = False,
    nonnegative: bool = False,
) -> Tensor:
    """A real tensor. `argument` is its name in torch signatures (lower case of its symbol unless given)."""
    value = None if default is None else sp.sympify(default)
    role = Role(argument or name.lower(), default=value, batched=batched)
    return Tensor(name, axes, role=role, positive=positive, nonnegative=nonnegative)


def mask(name: str, *axes: Index, argument: str = "mask", causal: bool = False, keyword: bool = False) -> Tensor:
    """Who may look at whom: 1 or 0 (bool in torch), 1 everywhere when left out. Proofs let it be any real tensor ≥ 0.

    `causal=True` says that the operation also takes `is_causal`, which multiplies the mask by a lower triangle.
    """
    role = Role(argument, kind="mask", default=sp.S.One, causal=causal, keyword=keyword)
    return Tensor(name, axes, role=role, nonnegative=True)


def live(name: str, *axes: Index) -> Tensor:
    """1, and 0 where the mask of the formula keeps nothing: a factor that states the convention for such rows."""
    return Tensor(name, axes, role=Role("", kind="live", default=sp.S.One), nonnegative=True)


def choice(name: str, *axes: Index, argument: str, ignored: str = "") -> Tensor:
    """One class for each row, as a matrix: 1 at the class, 0 elsewhere (int64 without the last axis in torch).

    `ignored="ignore_index"` says that the operation takes a keyword of that name, and that the row of a class of that
    value is 0 everywhere. Proofs let it be any real tensor ≥ 0.
    """
    return Tensor(name, axes, role=Role(argument, kind="index", ignored=ignored), nonnegative=True)


def scalar(name: str, default: Any = None, *, positive: bool = False) -> Tensor:
    """A real number that the operation takes as a keyword, such as `scale`."""
    value = None if default is None else sp.sympify(default)
    return Tensor(name, role=Role(name, kind="scalar", default=value, batched=False), positive=positive)


def permutation(name: str, axis: Index) -> Tensor:
    """A bijection of the values of `axis`: K[π[j], k] is row π(j) of K."""
    return Tensor(name, (axis,), role=Role(name, kind="permutation", batched=False), permutation=True)


def orthonormal(matrix: Tensor, along: Index) -> Tensor:
    """A matrix in place of `matrix` with Σ over `along` of T[…, a] T[…, b] = δ(a, b): for `assume(…, by={U: …})`.

    Provers take it to be any such matrix; numbers are drawn with that property.
    """
    return Tensor(matrix.name, matrix.axes, role=matrix.role, orthonormal=along)


def centred(matrix: Tensor, along: Index) -> Tensor:
    """A matrix in the place of `matrix` whose sum over `along` is zero: for `assume(…, by={X: …})`."""
    return Tensor(matrix.name, matrix.axes, role=matrix.role, centred=along)


def define(name: str, axes: Sequence[Index], body: Any) -> Tensor:
    """The definition name[axes] := body."""
    return Tensor(name, axes, sp.sympify(body))


def split(whole: Index, *parts: Index) -> Index:
    """An index called as `whole` that runs through `parts` one after the other: it declares m = m₁ + m₂."""
    if len(parts) < 2:
        raise DeclarationError(f"split {whole}: needs two parts or more, got {len(parts)}")
    return Index(whole.name, Dim(whole.dim.name, tuple(parts)))


def concat(name: str, axes: Sequence[Index], *blocks: Any) -> Tensor:
    """The concatenation of `blocks` along the one split axis among `axes`, block p written with the p-th part's index.

    `concat("K", (j, k), K1[j1, k], K2[j2, k])` where `j = split(j, j1, j2)`.
    """
    along = [axis for axis in axes if axis.dim.parts]
    if len(along) != 1:
        raise DeclarationError(f"{name}: concat needs exactly one split axis, got {along} among {tuple(axes)}")
    if len(blocks) != len(along[0].dim.parts):
        raise DeclarationError(f"{name}: {len(blocks)} blocks for the {len(along[0].dim.parts)} parts of {along[0]}")
    return Tensor(name, axes, blocks=tuple(sp.sympify(block) for block in blocks))


def product(whole: Index, *factors: Index) -> Index:
    """An index called as `whole` that counts the pairs (or triples …) of `factors`, the last one fastest: h = g · r."""
    if len(factors) < 2:
        raise DeclarationError(f"product {whole}: needs two factors or more, got {len(factors)}")
    return Index(whole.name, Dim(whole.dim.name, factors=tuple(factors)))


def merge(name: str, axes: Sequence[Index], body: Any) -> Tensor:
    """A tensor whose product axes run through their factors: `body` is written with the factors' own indices.

    `merge("K", (p, j, k), K[g, j, k])` where `p = product(p, g, r)` repeats each K_g r times, as one axis of g · r.
    """
    if not any(axis.dim.factors for axis in axes):
        raise DeclarationError(f"{name}: merge needs a product axis among {tuple(axes)}")
    return Tensor(name, axes, blocks=(sp.sympify(body),))


def Sum(body: Any, *over: Index) -> sp.Expr:
    """Σ over each index in `over`, from 0 to its dimension - 1, as a sympy Sum whose bound index nobody can write."""
    return _bind(sp.Sum, body, over)


def Max(body: Any, *over: Index, where: Any = None) -> sp.Expr:
    """The maximum over the indices in `over`, among the entries that the mask `where` keeps (at least one)."""
    return _bind(Maximum, body if where in (None, 1) else Kept(sp.sympify(body), sp.sympify(where)), over)


def _bind(make: Any, body: Any, over: Sequence[Index]) -> sp.Expr:
    expr: Any = sp.sympify(body)
    for position in over:
        if not isinstance(position, Index):
            raise DeclarationError(f"{make.__name__}: cannot run over {position!r}; it must be an index(name, dim)")
        bound = position.fresh()
        expr = make(expr.xreplace({position: bound}), bound.limits)
    return expr


def delta(first: Index, second: Index) -> sp.Expr:
    """1 where both indices are equal, else 0."""
    return sp.KroneckerDelta(first, second)


def sqrt(value: Any) -> sp.Expr:
    return sp.sqrt(sp.sympify(value))


def exp(value: Any) -> sp.Expr:
    return sp.exp(sp.sympify(value))


def log(value: Any) -> sp.Expr:
    return sp.log(sp.sympify(value))
