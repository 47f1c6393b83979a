"""How the command line names a target that was given as an object, so that the line that replays a failure works."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lla_spec.testing.targets import Target, operation_formula

UNKNOWN = "FILE.py:FUNCTION"  # a lambda, or a function of another function: the reader puts it into a file


def address(given: Any, target: Target, operation: str) -> str:
    """What stands after `--target` to name the functions of an operation; `target` is what `load(given)` made.

    >>> import torch.nn.functional as kernels
    >>> from lla_spec.testing.targets import load
    >>> address(kernels, load(kernels), "softmax")
    'torch.nn.functional'
    >>> address({"softmax": abs}, load({"softmax": abs}), "softmax")
    'builtins:abs --as softmax'
    """
    if isinstance(given, str):
        return given
    if isinstance(given, ModuleType):
        return _module(given)
    forward, gradient = (_given(target, operation, suffix) for suffix in ("", "_vjp"))
    module = sys.modules.get(getattr(forward, "__module__", None) or "")
    if module is None or not (hasattr(module, "__file__") or module.__name__ in sys.builtin_module_names):
        return f"{UNKNOWN} --as {operation}"
    name = getattr(forward, "__name__", "")
    if gradient is not None:  # two functions: only the module names both
        both = getattr(module, operation, None) is forward and getattr(module, f"{operation}_vjp", None) is gradient
        return _module(module) if both else f"FILE.py    # with {operation} and {operation}_vjp"
    known = name.isidentifier() and getattr(module, name, None) is forward
    return f"{_module(module) if known else 'FILE.py'}:{name if known else 'FUNCTION'} --as {operation}"


def _given(target: Target, operation: str, suffix: str) -> Any:
    """The function as it was given: `load` has bound the keywords of the operation's formula, reduction="sum" say."""
    function = target.functions.get(f"{operation}{suffix}")
    bound = function.keywords if isinstance(function, functools.partial) and not function.args else {}
    return function.func if bound and bound == operation_formula(operation).keywords else function  # pyright: ignore


def _module(module: ModuleType) -> str:
    """Its name where it lies in a package, else its file, as a path from here."""
    file = getattr(module, "__file__", None)
    if module.__package__ or file is None:
        return module.__name__
    try:
        return os.path.relpath(file)
    except ValueError:  # another drive
        return str(Path(file))
