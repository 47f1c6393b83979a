"""Which formulas a law's function can call, read off its code: about what it does not name, it states nothing.

Stating a law makes its tensors, which takes up to a tenth of a second. Who asks for the laws of one operation should
not wait for the statements of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from lla_spec.calls import Formula, calls
from lla_spec.tensors import Tensor


def formulas_in(function: Callable[..., Any]) -> frozenset[str]:
    """The formulas that `function` names, itself or in the functions and tensors of its page that it names.

    >>> from lla_spec.formulas.softmax import softmax, x
    >>> sorted(formulas_in(lambda: softmax(x)))
    ['softmax']
    """
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        named = waiting.pop()
        if id(named) in seen:
            continue
        seen.add(id(named))
        if isinstance(named, Formula):
            found.add(named.gradient_of[0].name if named.gradient_of else named.name)
        elif isinstance(named, Tensor):
            waiting += [call.formula for call in calls(named)]
        elif isinstance(named, FunctionType) and (named is function or named.__module__ == function.__module__):
            known = named.__globals__
            waiting += [known[name] for name in _names(named.__code__) if name in known]
            waiting += [cell.cell_contents for cell in named.__closure__ or ()]
    return frozenset(found)


def _names(code: CodeType) -> Iterator[str]:
    """Every name that the code or a function inside it looks up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
