"""Functions that torch does not know: impl's, and those that are handed to `watch` by name.

torch tells a TorchFunctionMode of its own functions only. Any other one is replaced, wherever a namespace holds it
under a name, by one that tells the watcher, and put back afterwards.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol

from lla_spec.evaluating.arguments import operation
from lla_spec.language import registry
from lla_spec.testing.watch_calls import Reader, reader_of

Function = Callable[..., Any]
Handed = Function | tuple[Function, Callable[..., Mapping[str, Any]]]


class Watcher(Protocol):
    def through(self, function: Any, label: str, reader: Reader, args: Any, kwargs: Any) -> Any: ...


def watched_functions(functions: Mapping[str, Handed]) -> list[tuple[str, Function, Reader]]:
    """What is to be watched: (operation, function, reader), the reference's functions first where it is imported."""
    found = [(name, function, reader_of(name)) for name, function in _references()]
    for name, given in functions.items():
        operation(name)
        if isinstance(given, tuple):
            found.append((name, given[0], _adapted(name, given[1])))
        else:
            found.append((name, given, reader_of(name)))
    return found


def _adapted(name: str, arguments: Callable[..., Mapping[str, Any]]) -> Reader:
    own = reader_of(name)
    return lambda *args, **kwargs: own(**arguments(*args, **kwargs))


def _references() -> Iterator[tuple[str, Function]]:
    """The reference implementation's functions, in whichever of its modules they stand."""
    names = {formula.name for formula in registry.operations()}
    seen: set[int] = set()
    for title, module in list(sys.modules.items()):
        if title.split(".")[0] != "impl" or module is None:
            continue
        for name, value in list(vars(module).items()):
            if name in names and isinstance(value, types.FunctionType) and id(value) not in seen:
                seen.add(id(value))
                yield name, value


@contextmanager
def replaced(watcher: Watcher, functions: Mapping[str, Handed]) -> Iterator[list[str]]:
    """Let every namespace that holds one of the functions hold a watched one instead; yields the handed ones' labels.

    Raises ValueError for a function that none holds: it could be called, and would not be seen.
    """
    found = watched_functions(functions)
    labels = [_label(name, function) for name, function, _ in found]
    placed: list[tuple[Any, str, Function]] = []
    try:
        places_of = _places([function for _, function, _ in found], functions)
        for (name, function, reader), label, places in zip(found, labels, places_of, strict=True):
            if not places:
                raise ValueError(f"watch: no module, class, object or dict holds the function {label} given for {name}")
            watched = _watched(watcher, function, label, reader)
            for holder, key in places:
                _put(holder, key, watched)
                placed.append((holder, key, function))
        yield labels[len(labels) - len(functions) :]
    finally:
        for holder, key, function in reversed(placed):
            _put(holder, key, function)


def _label(name: str, function: Function) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', name)}"


def _watched(watcher: Watcher, function: Function, label: str, reader: Reader) -> Function:
    @wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        return watcher.through(function, label, reader, args, kwargs)

    return watched


def _put(holder: Any, key: str, value: Any) -> None:
    if isinstance(holder, type):
        setattr(holder, key, value)
    else:
        holder[key] = value


def _places(functions: list[Function], but_not: Any) -> list[list[tuple[Any, str]]]:
    """For each function every (namespace, name) that holds it: a module's globals, a class, an object, a dict."""
    position = {id(function): number for number, function in enumerate(functions)}
    found: list[list[tuple[Any, str]]] = [[] for _ in functions]
    for holder in _referrers(*functions):
        if not isinstance(holder, dict):
            # An object whose attributes have not been asked for as a dict until now. A function holds its globals.
            holder = None if isinstance(holder, types.FunctionType) else getattr(holder, "__dict__", None)
        if not isinstance(holder, dict) or holder is but_not:
            continue
        held = [(key, id(value)) for key, value in list(holder.items()) if id(value) in position]
        target = _owner(holder) if held and "__module__" in holder else holder
        for key, value in held:
            if isinstance(key, str) and key != "__wrapped__":
                found[position[value]].append((target, key))
    return found


def _referrers(*objects: Any) -> list[Any]:
    """Whatever holds them. The collector does not look at what a server froze before it forked (gc.freeze)."""
    frozen = gc.get_freeze_count() > 0
    if frozen:
        gc.unfreeze()
    try:
        return gc.get_referrers(*objects) if objects else []
    finally:
        if frozen:
            gc.freeze()


def _owner(attributes: dict[str, Any]) -> Any:
    """The class whose attributes these are, which alone may change them; else the dict itself."""
    for candidate in _referrers(attributes):
        if isinstance(candidate, type) and any(d is attributes for d in gc.get_referents(vars(candidate))):
            return candidate
    return attributes
