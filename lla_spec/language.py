"""Formulas, identities and theorems: how a page of the specification is written, and the registry that holds it.

    @formula(rows=i)
    def linear(X, W, b):
        return define("Y", (i, c), Sum(W[c, k] * X[i, k], k) + b[c])

    @identity
    def adjoint():
        "⟨Wx, y⟩ = ⟨x, Wᵀy⟩."
        return Eq(Sum(linear(X, W)[i, c] * y[c], c), Sum(X[i, k] * Sum(W[c, k] * y[c], c), k))

A formula's parameters are the tensors of the same names on its page. Calling a formula on other tensors substitutes
them (and their dimensions) into the definitions; further leading axes of an argument are batch axes of the result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sympy as sp

from lla_spec.calls import Formula, calls
from lla_spec.mentions import formulas_in
from lla_spec.tensors import DeclarationError, Dim, Index, Label, Tensor, free_indices, is_input, order, tensors_in


@dataclass(frozen=True, eq=False)
class Relation:
    """left = right, or left ≤ right with the non-negative expression that `right - left` is (`because`)."""

    left: Any
    right: Any
    kind: str = "="
    because: sp.Expr | None = None


def Eq(left: Any, right: Any) -> Relation:
    """The equation left = right, entry by entry."""
    return Relation(_side(left), _side(right))


def Le(left: Any, right: Any, because: Any = None) -> Relation:
    """left ≤ right; in a theorem `because` is the certificate: right - left, written so that it is seen to be ≥ 0."""
    return Relation(_side(left), _side(right), "<=", None if because is None else sp.sympify(because))


def _side(side: Any) -> Any:
    """A tensor stands for all its entries; anything else is an expression."""
    return side if isinstance(side, Tensor) else sp.sympify(side)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """An assumed relation, and `by`: the construction (a tensor for each constrained input) that makes it true."""

    relation: Relation
    by: Mapping[Tensor, Tensor]
    slack: Tensor | None = None


STATED = ("left", "right", "relation", "hypotheses", "because", "matrix")
BUNDLED = Path(__file__).parent / "formulas"  # stating its laws takes seconds: they are when asked for, as tests do


@dataclass(eq=False)
class Law:
    """A statement about formulas: `left` = `right` (or ≤), both tensors over the same dimensions."""

    name: str
    topic: str
    kind: str  # "identity" | "theorem"
    left: Tensor
    right: Tensor
    relation: str
    hypotheses: tuple[Hypothesis, ...]
    because: Tensor | None
    matrix: sp.MatrixExpr | None
    evaluate: str | None
    corollary_of: str | None
    doc: str
    source: str
    of: str = ""  # the operation, where it is declared: a law about a witness calls none
    states: Callable[[], Any] | None = None  # the function that returns the relation

    @classmethod
    def stated_later(cls, state: Callable[[], Mapping[str, Any]], **known: Any) -> Law:
        """A law whose statement (`STATED`) is made when one of its attributes is first asked for."""
        law = object.__new__(cls)
        vars(law).update(known, _state=state)
        return law

    def check(self) -> None:
        """Have it stated. Raises DeclarationError where it is no statement about an operation."""
        for name in ("left", "operation"):
            getattr(self, name)

    def __getattr__(self, name: str) -> Any:
        if name not in STATED or "_state" not in vars(self):
            raise AttributeError(f"a law has no {name}")
        vars(self).update(vars(self).pop("_state")())
        return vars(self)[name]

    @property
    def id(self) -> str:
        return f"{self.topic}.{self.name}"

    @cached_property
    def operation(self) -> str:
        """The operation it belongs to: the declared one, or the outermost call of its left (else its right) side."""
        if self.of:
            return self.of
        for side in (self.left, self.right):
            for call in calls(side):
                formula = call.formula.gradient_of[0] if call.formula.gradient_of else call.formula
                if formula.operation:
                    return formula.name
        raise DeclarationError(f"{self.id}: calls no operation; name the one that it is about with of=…")

    def belongs_to(self, operation: str) -> bool:
        """Whether it is a law of this operation. It is stated only where its function names that."""
        return operation in self._candidates and self.operation == operation

    @cached_property
    def _candidates(self) -> frozenset[str]:
        return formulas_in(self.states) if self.states and not self.of else frozenset({self.operation})

    @cached_property
    def dims(self) -> list[Dim]:
        """Every elementary dimension of the statement, by name."""
        found: set[Dim] = set()
        sides = [self.left, self.right, *([] if self.because is None else [self.because])]
        # A call may take what its result does not depend on: the bias's gradient does not depend on the weight.
        tensors = order(*sides, *(argument for side in sides for call in calls(side) for argument in call.tensors()))
        for tensor in tensors:
            for expr in (tensor.body, *tensor.blocks):
                found |= set() if expr is None else {d for d in expr.free_symbols if isinstance(d, Dim)}
                found |= set() if expr is None else {i.dim for i in expr.atoms(Index)}
            found |= {axis.dim for axis in tensor.axes}
        return sorted(set().union(*(dim.elementary for dim in found)), key=lambda dim: dim.name)


class Registry:
    """Every formula and law that the pages declare, in their order, by name and by `topic.name`."""

    def __init__(self) -> None:
        self.formulas: dict[str, Formula] = {}
        self.laws: dict[str, Law] = {}

    def add_formula(self, made: Formula) -> None:
        if made.name in self.formulas:
            raise DeclarationError(
                f"{made.id}: a formula called {made.name} is already declared at {self.formulas[made.name].source}"
            )
        made.state_laws = lambda: self.state(made.topic)
        self.formulas[made.name] = made

    def add_law(self, made: Law) -> None:
        if made.id in self.laws:
            raise DeclarationError(f"{made.id}: already declared at {self.laws[made.id].source}; choose another name")
        self.laws[made.id] = made

    def state(self, topic: str) -> None:
        """Have every law of a page stated."""
        for law in list(self.laws.values()):
            if law.topic == topic:
                law.check()

    def operations(self) -> list[Formula]:
        return [formula for formula in self.formulas.values() if formula.operation]

    def laws_of(self, operation: str) -> list[Law]:
        return [law for law in self.laws.values() if law.belongs_to(operation)]


registry = Registry()
_assumed: list[Hypothesis] = []  # the hypotheses of the law that is being declared


def assume(relation: Relation, *, by: Mapping[Tensor, Any]) -> Tensor:
    """State a hypothesis of the law being declared; `by` constructs the inputs that it constrains, so that it holds.

    Returns the slack right - left as a tensor (≥ 0 where the relation is ≤), for use in a certificate.
    """
    left, right = sides_of(relation)
    slack = Tensor("slack", left.axes, right[left.axes] - left.entry, nonnegative=relation.kind == "<=")
    built = {t: (v if isinstance(v, Tensor) else Tensor(t.name, t.axes, sp.sympify(v))) for t, v in by.items()}
    for constrained, construction in built.items():
        if constrained in inputs_of(construction):
            raise DeclarationError(
                f"assume: {constrained.name} is constructed from itself; construct it from a free tensor"
            )
    _assumed.append(Hypothesis(relation, built, slack))
    return slack


def inputs_of(tensor: Tensor) -> list[Tensor]:
    return [t for t in order(tensor) if is_input(t)]


def formula(function: Any = None, **options: Any) -> Any:
    """Declare the decorated function as a formula: its parameters are its page's tensors of the same names.

    `rows=i`: all leading axes of the torch tensors run through i.
    `operation=False`: a formula without a torch function.
    """
    if function is None:
        return lambda f: formula(f, **options)
    topic, name = _topic(function), function.__name__
    parameters: dict[str, Tensor] = {}
    for parameter in inspect.signature(function).parameters:
        found = function.__globals__.get(parameter)
        if not isinstance(found, Tensor):
            raise DeclarationError(f"{topic}.{name}: no tensor called {parameter} stands on its page")
        parameters[parameter] = found
    with _naming(topic, name):
        result = function(**parameters)
        if not isinstance(result, Tensor):
            raise DeclarationError(f"must return define(name, axes, body), got {type(result).__name__}")
        _check_names(result, parameters)
    made = Formula(name, topic, parameters, _own(result), doc=_doc(function), source=_source(function), **options)
    registry.add_formula(made)
    return made


def _own(result: Tensor) -> Tensor:
    """The result as the formula's own definition, where the function returned another formula's call as it was."""
    return result if result.call is None else Tensor(result.name, result.axes, result.entry)


def _check_names(result: Tensor, parameters: Mapping[str, Tensor]) -> None:
    for tensor in order(result):
        if is_input(tensor) and tensor not in parameters.values():
            raise DeclarationError(f"uses {tensor!r}, which is not one of its parameters ({', '.join(parameters)})")
    names: dict[str, Tensor] = {}
    for tensor in _visible(result):
        if names.setdefault(tensor.name, tensor) is not tensor:
            raise DeclarationError(f"two tensors are called {tensor.name}; rename one")


def _visible(tensor: Tensor) -> list[Tensor]:
    """The tensors that a declaration itself names: the insides of its calls are not among them."""
    found: dict[Label, Tensor] = {}

    def visit(t: Tensor) -> None:
        if t.label in found:
            return
        found[t.label] = t
        body = [] if t.body is None else tensors_in(t.body)
        for other in t.call.tensors() if t.call else body:
            visit(other)

    visit(tensor)
    return list(found.values())


def identity(
    function: Any = None, *, evaluate: str | None = None, corollary_of: str | None = None, of: str = ""
) -> Any:
    """Declare the equation that the decorated function returns.

    `evaluate="left"` ("right") says that numerical evaluation may replace the other side's call by this side: the law
    is what makes that right (softmax.safe, for one). `corollary_of` names the law that this one is an instance of.
    `of` names the operation of a law that calls none, such as one about the factors that truncated_svd must return.
    """
    if function is None:
        return lambda f: identity(f, evaluate=evaluate, corollary_of=corollary_of, of=of)
    return _declare(function, "identity", evaluate, corollary_of, of)


def theorem(function: Any = None, *, corollary_of: str | None = None, of: str = "") -> Any:
    """Declare the inequality that the decorated function returns, with its hypotheses and its certificate."""
    if function is None:
        return lambda f: theorem(f, corollary_of=corollary_of, of=of)
    return _declare(function, "theorem", None, corollary_of, of)


def _declare(function: Any, kind: str, evaluate: str | None, corollary_of: str | None, of: str) -> Law:
    topic, name = _topic(function), function.__name__
    law = Law.stated_later(
        lambda: _statement(function, kind, law), name=name, topic=topic, kind=kind, evaluate=evaluate,
        corollary_of=corollary_of, doc=_doc(function), source=_source(function), of=of,
        states=function,
    )  # fmt: skip
    if Path(function.__code__.co_filename).parent != BUNDLED:  # a page of one's own is validated when it is read
        with _naming(topic, name):
            law.check()
    registry.add_law(law)
    return law


def _statement(function: Any, kind: str, law: Law) -> dict[str, Any]:
    """What the decorated function states; an error in it names the declaration."""
    outer = _assumed.copy()
    _assumed.clear()
    try:
        with _naming(law.topic, law.name):
            relation = function()
            if not isinstance(relation, Relation):
                raise DeclarationError(f"must return Eq(left, right) or Le(left, right), got {type(relation).__name__}")
            if kind == "theorem" and relation.because is None:
                raise DeclarationError("a theorem needs its certificate: Le(left, right, because=…)")
            left, right = sides_of(relation)
        matrix = relation.right if isinstance(relation.right, sp.MatrixExpr) else None
        because = None if relation.because is None else Tensor("because", left.axes, relation.because)
        if matrix is not None and left.call is not None:
            left.call.formula.stated_matrix = matrix
        return dict(zip(STATED, (left, right, relation.kind, tuple(_assumed), because, matrix), strict=True))
    finally:
        _assumed[:] = outer


def sides_of(relation: Relation) -> tuple[Tensor, Tensor]:
    """Both sides as tensors over the same axes."""
    left, right = relation.left, relation.right
    if isinstance(right, sp.MatrixExpr):
        from lla_spec.printing import matrix_entry

        if not isinstance(left, Tensor):
            raise DeclarationError("a matrix form stands against one formula's call: Eq(call, matrix expression)")
        return left, Tensor("right", left.axes, matrix_entry(right, *left.axes))
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.shape != right.shape:
            raise DeclarationError(f"left is over {left.shape} and right over {right.shape}")
        return left, right
    exprs = [side.entry if isinstance(side, Tensor) else side for side in (left, right)]
    free = sorted(free_indices(exprs[0]) | free_indices(exprs[1]), key=str)
    named = [axis for side in (left, right) if isinstance(side, Tensor) for axis in side.axes]
    axes = tuple(dict.fromkeys([*named, *free]))  # a side that lacks an axis is the same all along it
    made = [side if isinstance(side, Tensor) and side.axes == axes else Tensor(name, axes, expr)
            for side, name, expr in zip((left, right), ("left", "right"), exprs, strict=True)]  # fmt: skip
    return made[0], made[1]


class _naming:
    """Puts the declaration's name before the message of an error in it."""

    def __init__(self, topic: str, name: str) -> None:
        self.prefix = f"{topic}.{name}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, DeclarationError) and not str(error).startswith(self.prefix):
            raise DeclarationError(f"{self.prefix}: {error}") from error


def _topic(function: Callable[..., Any]) -> str:
    return function.__module__.rsplit(".", 1)[-1]


def _doc(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "")


def _source(function: Callable[..., Any]) -> str:
    code = function.__code__
    path = Path(code.co_filename)
    parts = path.parts
    start = parts.index("lla_spec") if "lla_spec" in parts else len(parts) - 1
    return f"{'/'.join(parts[start:])}:{code.co_firstlineno}"
