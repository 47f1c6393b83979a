"""A formula and its calls: calling it on other tensors makes its definitions anew, over their dimensions.

A template's dimensions and indices are matched to the arguments' from the last axis on; further leading axes of an
argument are batch axes of every definition that rests on it. The result remembers the call that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from lla_spec.substituting import expand, keep, transform
from lla_spec.tensors import DeclarationError, Dim, Index, Label, Tensor, definitions

Argument = Tensor | sp.Expr | None


@dataclass(frozen=True, eq=False)
class Call:
    """A formula applied to arguments (by parameter name; None where it was left out)."""

    formula: Formula
    arguments: Mapping[str, Argument]

    def tensors(self) -> list[Tensor]:
        return [value for value in self.arguments.values() if isinstance(value, Tensor)]


@dataclass(eq=False)
class Formula:
    """A declared formula. It has `entry`, `matrix`, `latex()` and `at(n=2, …)`; calling it applies it to tensors."""

    name: str
    topic: str
    parameters: dict[str, Tensor]
    result: Tensor
    rows: Index | None = None
    merge: tuple[Index, ...] = ()  # axes that torch has as one where they stand side by side (interface.torch_axes)
    counts: Mapping[str, tuple[Index, ...]] = field(default_factory=dict)  # integer keywords: products of dimensions
    called: str = ""  # the torch function, where it is not called as the formula is
    keywords: Mapping[str, Any] = field(default_factory=dict)  # with which that function is this formula
    operation: bool = True
    differentiable: bool = True
    doc: str = ""
    source: str = ""
    gradient_of: tuple[Formula, str] | None = None  # (f, parameter) where this is one output of f's VJP
    stated_matrix: sp.MatrixExpr | None = None  # set by the identity that states it
    state_laws: Callable[[], None] | None = None  # have the laws of its page stated; set by the registry
    vjps: dict[str, Formula] = field(default_factory=dict)  # filled by calculus.vjp_formula, one per parameter

    def __post_init__(self) -> None:
        self.called = self.called or self.name

    @property
    def id(self) -> str:
        return f"{self.topic}.{self.name}"

    @property
    def entry(self) -> sp.Expr:
        """One entry of the result in the inputs, at the free indices `self.axes`; parameters with defaults stay."""
        return expand(self.result.entry)

    @property
    def axes(self) -> tuple[Index, ...]:
        return self.result.axes

    @property
    def matrix(self) -> sp.MatrixExpr:
        """The textbook's matrix expression: the right side of the page's identity that states one for this formula."""
        if self.stated_matrix is None and self.state_laws is not None:
            self.state_laws()
        if self.stated_matrix is None:
            raise DeclarationError(f"{self.id}: no identity states a matrix form of it")
        return self.stated_matrix

    def latex(self) -> str:
        """The definitions, one a line, as LaTeX."""
        from lla_spec.printing import definitions_latex

        return definitions_latex(self.result)

    def at(self, **sizes: int) -> sp.Matrix | sp.NDimArray:
        """The result as an explicit sympy Matrix at the given sizes; what has a default takes it.

        >>> from lla_spec.formulas.attention import attention
        >>> attention.at(n=2, m=3, d=2, e=1).shape
        (2, 1)
        """
        from lla_spec.printing import explicit

        return explicit(self.with_defaults(), sizes)

    def with_defaults(self) -> Tensor:
        """The result with every parameter that has a default left out."""
        optional = {name: None for name, p in self.parameters.items() if p.role and p.role.default is not None}
        return self(**{**{name: p for name, p in self.parameters.items() if name not in optional}, **optional})

    def __call__(self, *args: Any, over: Index | None = None, **kwargs: Any) -> Tensor:
        given = self._bind(args, kwargs)
        if over is not None:
            first = next(iter(given.values()))
            if not isinstance(first, Tensor) or first.axes[-1:] != (over,):
                raise DeclarationError(
                    f"{self.name}: runs over the last axis, but {over} is not the last axis of {first!r}"
                )
        return _Application(self, given).result()

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Argument]:
        names = list(self.parameters)
        if len(args) > len(names):
            raise DeclarationError(f"{self.name}: takes {len(names)} arguments ({', '.join(names)}), got {len(args)}")
        by_lower = {name.lower(): name for name in names}
        given: dict[str, Any] = dict(zip(names, args, strict=False))
        for key, value in kwargs.items():
            name = key if key in self.parameters else by_lower.get(key) or ("M" if key == "mask" else key)
            if name not in self.parameters:
                raise DeclarationError(f"{self.name}: has no parameter {key}; it has {', '.join(names)}")
            if name in given:
                raise DeclarationError(f"{self.name}: {name} was given twice")
            given[name] = value
        bound: dict[str, Argument] = {}
        for name, parameter in self.parameters.items():
            value = given.get(name)
            if value is None and (parameter.role is None or parameter.role.default is None):
                raise DeclarationError(f"{self.name}: {name} is missing and has no default")
            bound[name] = value if value is None or isinstance(value, Tensor) else sp.sympify(value)
        return bound

    def __repr__(self) -> str:
        return f"<formula {self.id}({', '.join(self.parameters)}) -> {self.result!r}>"


class _Application:
    """One call of a formula: its dimensions and indices matched to the arguments', its definitions made anew."""

    def __init__(self, formula: Formula, arguments: dict[str, Argument]) -> None:
        self.formula, self.arguments = formula, arguments
        self.dims: dict[Dim, Dim] = {}
        self.indices: dict[Index, Index] = {}
        self.batch_of: dict[Label, tuple[Index, ...]] = {}
        self.made: dict[Label, Tensor] = {}
        for name, argument in arguments.items():
            if isinstance(argument, Tensor):
                self._match(name, argument)

    def _match(self, name: str, given: Tensor) -> None:
        parameter = self.formula.parameters[name]
        rank = len(parameter.axes)
        if len(given.axes) < rank:
            raise DeclarationError(
                f"{self.formula.name}: {given.name} has {len(given.axes)} axes, but {name} needs {rank} ({parameter!r})"
            )
        cut = len(given.axes) - rank
        self.batch_of[parameter.label] = given.axes[:cut]
        for axis, actual in zip(parameter.axes, given.axes[cut:], strict=True):
            bound = self.dims.setdefault(axis.dim, actual.dim)
            if bound != actual.dim:
                position = parameter.axes.index(axis) - rank
                raise DeclarationError(
                    f"{self.formula.name}: {given.name} has {actual.dim} on axis {position}, "
                    f"but {axis.dim} is already {bound}"
                )
            if axis not in self.indices:
                taken = actual in self.indices.values() or actual in given.axes[:cut]
                self.indices[axis] = axis.fresh(actual.dim) if taken else actual

    def _leaf(self, tensor: Tensor, where: tuple[sp.Expr, ...]) -> sp.Expr:
        for name, parameter in self.formula.parameters.items():
            if parameter is tensor:
                argument = self.arguments[name]
                if argument is None:
                    assert parameter.role is not None and parameter.role.default is not None
                    return transform(parameter.role.default, self._leaf, self.dims)
                return argument if isinstance(argument, sp.Expr) else keep(argument, (*self._batch(tensor), *where))
        if tensor.label in self.made:
            return keep(self.made[tensor.label], (*self._batch(tensor), *where))
        return keep(tensor, where)

    def _batch(self, tensor: Tensor) -> tuple[Index, ...]:
        return self.batch_of.get(tensor.label, ())

    def _instance(self, template: Tensor) -> Tensor:
        batch: dict[Index, None] = {}
        for other in (*template.dependencies, *(template.call.tensors() if template.call else ())):
            batch.update(dict.fromkeys(self._batch(other)))
        self.batch_of[template.label] = tuple(batch)
        axes = [self.indices.setdefault(a, a.fresh(self.dims.get(a.dim, a.dim))) for a in template.axes]
        body = transform(template.body, self._leaf, {**self.dims, **self.indices})
        made = Tensor(template.name, (*batch, *axes), body, nonnegative=template.nonnegative)
        if template.call is not None:
            made.call = Call(template.call.formula, {n: self._argument(a) for n, a in template.call.arguments.items()})
        return made

    def _argument(self, argument: Argument) -> Argument:
        if isinstance(argument, sp.Expr):
            return transform(argument, self._leaf, {**self.dims, **self.indices})
        if argument is None or argument.label in self.made:
            return None if argument is None else self.made[argument.label]
        for name, parameter in self.formula.parameters.items():
            if parameter is argument:
                return self.arguments[name]
        return argument

    def result(self) -> Tensor:
        for template in definitions(self.formula.result):
            self.made[template.label] = self._instance(template)
        out = self.made[self.formula.result.label]
        out.call = Call(self.formula, self.arguments)
        return out


def calls(tensor: Tensor) -> Iterator[Call]:
    """The calls in a tensor's making, outermost first; what a call itself is made of stays hidden."""
    if tensor.call is not None:
        yield tensor.call
        for argument in tensor.call.tensors():
            yield from calls(argument)
        return
    for other in tensor.dependencies:
        yield from calls(other)
