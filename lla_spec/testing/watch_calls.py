"""A call of a declared operation, as `watch` reads it from what a function was called with.

A reader takes a function's arguments and answers with a `Call`, or raises `NotJudged` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lla_spec.evaluating.arguments import operation
from lla_spec.interface import signature, torch_parameters
from lla_spec.language import registry

View = Callable[[Tensor], Tensor]


class NotJudged(Exception):
    """A call that is seen and not judged; the message says why."""


def same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Operand:
    """A tensor that was passed, and the view of it that the operation takes: a transpose, a reshape, some `rows`."""

    tensor: Tensor
    view: View = same
    rows: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """A call of a declared operation: its tensors and its other arguments by torch name; `result` views the output.

    `cotangent` is what the operation's own VJP is taken at, of the output's. `alignment` is the causal triangle's.
    """

    operation: str
    operands: Mapping[str, Operand]
    options: Mapping[str, Any] = field(default_factory=dict)
    result: View = same
    cotangent: View = same
    alignment: str = "bottom_right"


Reader = Callable[..., Call]


def call_of(name: str, options: Mapping[str, Any] | None = None, **tensors: Tensor | Operand | None) -> Call:
    given = {
        key: value if isinstance(value, Operand) else Operand(value)
        for key, value in tensors.items()
        if value is not None
    }
    return Call(name, given, options or {})


def read(reader: Reader, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """The call, checked against its declaration. Raises NotJudged."""
    kwargs = {key: value for key, value in kwargs.items() if key != "out" or value is not None}
    try:
        found = reader(*args, **kwargs)
    except TypeError as error:
        raise NotJudged(f"arguments that the declaration does not have: {error}") from None
    found = _variant(found)
    known = set(signature(operation(found.operation)).parameters)
    unknown = [key for key in (*found.operands, *found.options) if key not in known]
    if unknown:
        raise NotJudged(f"{', '.join(unknown)}: not in the declaration of {found.operation}")
    for name, given in found.operands.items():
        if given.tensor.is_complex() or given.tensor.is_sparse or given.tensor.is_quantized:
            raise NotJudged(f"{name} is complex, sparse or quantized")
    return found


def _variant(call: Call) -> Call:
    """The declaration with the keywords of the call: `reduction="sum"` is a formula of its own."""
    named = [f for f in registry.operations() if (f.called or f.name) == call.operation]
    if not named:
        raise NotJudged(f"{call.operation} is not declared")
    for formula in named:
        if all(call.options.get(key, value) == value for key, value in formula.keywords.items()):
            return replace(call, operation=formula.name)
    asked = ", ".join(f"{key} {call.options[key]}" for key in named[0].keywords if key in call.options)
    raise NotJudged(f"{call.operation} with {asked} is not declared")


def reader_of(name: str) -> Reader:
    """The reader of a function that takes the operation's own arguments."""
    formula = operation(name)
    own, tensors = signature(formula), set(torch_parameters(formula))
    keywords = formula.keywords if formula.called != name else {}  # cross_entropy_sum: reduction="sum"

    def reader(*args: Any, **kwargs: Any) -> Call:
        given = own.bind(*args, **kwargs)
        given.apply_defaults()
        held = {k: v for k, v in given.arguments.items() if isinstance(v, Tensor) and k in tensors}
        options = {k: v for k, v in given.arguments.items() if k not in held and v is not None}
        return call_of(formula.called, {**options, **keywords}, **held)

    return reader
