"""Operations whose result is a witness: declared by the properties that it has, and judged by a certificate.

    @certified(returns=(U, S, Vh), counts={"k": (r,)})
    def truncated_svd(W):
        "The k largest singular values of W, with singular vectors."
        return Eq(Sum(W[i, j] * Vh[r, j], j), U[i, r] * S[r]), Le(…)

Singular vectors have no formula: signs are free, and so are the bases of equal singular values. Such an operation has
no entry, no derivative and no bound of rounding, and a law about it takes its result as an input with a hypothesis.
A tensor in a property that is neither a parameter nor the result of a certified operation stands for any tensor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from lla_spec.calls import Formula
from lla_spec.language import Relation, _doc, _naming, _source, _topic, registry
from lla_spec.printing import latex, plain_expression
from lla_spec.tensors import DeclarationError, Dim, Index, Tensor, definitions, inputs, tensors_in

SIGNS = {"=": ("=", "="), "<=": ("≤", r"\le")}


@dataclass(eq=False)
class Certified(Formula):
    """An operation on tensors and on `counts`: positional integers of the torch signature, each a result's dimension.

    `results`: the tensors that it returns, in order. `properties`: the relations that define them. `least`: dimensions
    with a smallest size other than 1. Every count lies in 1 … the least dimension of the parameters.
    """

    results: tuple[Tensor, ...] = ()
    properties: tuple[Relation, ...] = ()
    least: Mapping[Dim, int] = field(default_factory=dict)
    witnesses: tuple[Tensor, ...] = ()  # the results of those declared before it, which its properties may name

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        raise DeclarationError(f"{self.id}: its result is a witness, not a formula; a law takes it as an input")

    def __repr__(self) -> str:
        return f"<certified {self.id}({', '.join([*self.parameters, *self.counts])}) -> {self.results!r}>"

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The sizes of a case: the parameters' dimensions in order, then the counts."""
        return tuple(dict.fromkeys([*self.given_dims, *self.counted.values()]))

    @property
    def counted(self) -> dict[str, Dim]:
        """The dimension that each count is."""
        return {name: axes[0].dim for name, axes in self.counts.items()}

    @property
    def given_dims(self) -> tuple[Dim, ...]:
        """The parameters' dimensions."""
        return tuple(dict.fromkeys(dim for tensor in self.parameters.values() for dim in tensor.shape))

    @property
    def signature(self) -> inspect.Signature:
        """The torch signature: tensors, then counts."""
        names = [p.role.argument for p in self.parameters.values() if p.role is not None]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter(name, kind) for name in [*names, *self.counts]])

    def impossible(self, sizes: Mapping[str, int]) -> str:
        """Why no arguments of these sizes exist; "" where they do."""
        most = min(sizes[dim.name] for dim in self.given_dims)
        for dim, least in self.least.items():
            if sizes[dim.name] < least:
                return f"{dim.name}={sizes[dim.name]} is less than {least}"
        for dim in self.counted.values():
            if not 1 <= sizes[dim.name] <= most:
                return f"{dim.name}={sizes[dim.name]} is not in 1…{most}, the least dimension of the arguments"
        return ""

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The results by torch name."""
        return {t.role.argument if t.role is not None else t.name: t for t in self.results}

    def text(self) -> Iterator[str]:
        """Its properties for a terminal, one a line, what is defined for them before them."""
        told: set[str] = set()
        for relation in self.properties:
            for entry, body in _definitions(relation):
                line = f"{_plain(entry)} = {_plain(body)}"
                yield from () if line in told else (line,)
                told.add(line)
            line = f"{_plain(relation.left)} {SIGNS[relation.kind][0]} {_plain(relation.right)}"
            free = ", ".join(map(repr, self._free(relation)))
            yield f"{line} for any {free}" if free else line

    def latex(self) -> str:
        """Its properties as LaTeX, one a line, what is defined for them before them."""
        lines: dict[str, None] = {}
        for relation in self.properties:
            lines.update((f"{latex(entry)} := {latex(body)}", None) for entry, body in _definitions(relation))
            lines[f"{latex(relation.left)} {SIGNS[relation.kind][1]} {latex(relation.right)}"] = None
        return " \\\\\n".join(lines)

    def _free(self, relation: Relation) -> list[Tensor]:
        """What a property says of any tensor: competitors that a best one is compared with."""
        known = {*self.parameters.values(), *self.witnesses, *self.results}
        return [tensor for tensor in inputs(*_named(relation)) if tensor not in known]


def _named(relation: Relation) -> list[Tensor]:
    return [tensor for side in (relation.left, relation.right) for tensor in tensors_in(side)]


def _definitions(relation: Relation) -> list[tuple[sp.Expr, sp.Expr]]:
    """(entry, body) of each definition that it rests on."""
    return [(tensor.entry, tensor.body) for tensor in definitions(*_named(relation)) if tensor.body is not None]


def _plain(expr: Any) -> str:
    return plain_expression(expr).replace("KroneckerDelta", "δ")


def _witnesses() -> tuple[Tensor, ...]:
    """The results of every certified operation that is declared."""
    return tuple(t for made in registry.formulas.values() if isinstance(made, Certified) for t in made.results)


def certified(
    *,
    returns: tuple[Tensor, ...],
    counts: Mapping[str, tuple[Index, ...]],
    least: Mapping[Dim, int] | None = None,
) -> Callable[[Callable[..., Any]], Certified]:
    """Declare the decorated function as a certified operation; it returns one relation (Eq, Le) or a tuple of them.

    Its parameters are its page's tensors of the same names. DeclarationError where a parameter is no tensor of the
    page, where no property is given, or where a result has an axis that neither parameters nor counts have.
    """

    def declare(function: Callable[..., Any]) -> Certified:
        topic, name = _topic(function), function.__name__
        with _naming(topic, name):
            parameters = {key: _own_tensor(function, key) for key in inspect.signature(function).parameters}
            stated = function(**parameters)
            made = Certified(
                name, topic, parameters, returns[0], differentiable=False, doc=_doc(function), source=_source(function),
                counts=dict(counts), results=tuple(returns), least=dict(least or {}), witnesses=_witnesses(),
                properties=stated if isinstance(stated, tuple) else (stated,),
            )  # fmt: skip
            _check(made)
        registry.add_formula(made)
        return made

    return declare


def _own_tensor(function: Callable[..., Any], name: str) -> Tensor:
    found = function.__globals__.get(name)
    if not isinstance(found, Tensor):
        raise DeclarationError(f"no tensor called {name} stands on its page")
    return found


def _check(made: Certified) -> None:
    for relation in made.properties:
        if not isinstance(relation, Relation):
            raise DeclarationError(f"must return Eq(left, right) or Le(left, right), got {type(relation).__name__}")
    for result in made.results:
        for dim in result.shape:
            if dim not in made.dims:
                raise DeclarationError(f"{result!r} has the axis {dim}, which no parameter and no count has")
