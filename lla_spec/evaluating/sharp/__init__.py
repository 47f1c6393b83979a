"""Sharp rules: for the core operations, bounds derived by hand that know what cancels.

A rule is a function of torch-named float64 arguments and a contract: `rule(arguments, contract, oracle_u=…)`, giving a
Bounded, or for `<operation>_vjp` a dict of them by argument. It is found by its name, in the file of its topic.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from inspect import isfunction, signature
from typing import Any


@cache
def rule_for(operation: str) -> Callable[..., Any] | None:
    """The sharp rule of an operation (`attention`) or of its VJP (`attention_vjp`); None where there is none.

    >>> rule_for("softmax").__name__
    'softmax'
    >>> rule_for("forward") is None  # a function of that name is there, and is no rule
    True
    """
    for topic in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{topic.name}")
        found = vars(module).get(operation)
        if callable(found) and getattr(found, "__module__", "") == module.__name__ and _is_rule(found):
            return found
    return None


def _is_rule(function: Callable[..., Any]) -> bool:
    return isfunction(function) and list(signature(function).parameters) == ["arguments", "contract", "oracle_u"]


@cache
def stands_alone(operation: str) -> bool:
    """Whether the sharp rule of an operation allows kernels that the generic rule does not (`ALONE` in its file)."""
    rule = rule_for(operation)
    return rule is not None and operation in vars(importlib.import_module(rule.__module__)).get("ALONE", ())
