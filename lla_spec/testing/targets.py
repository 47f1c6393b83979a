"""A target: anything with functions of the operations' names, and what it says of itself in LLA_TARGET."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from lla_spec.evaluating.contracts import Contract, contract
from lla_spec.language import Formula, registry
from lla_spec.testing import bundled
from lla_spec.testing.cases import DTYPES
from lla_spec.testing.claims import check_claims, read_support
from lla_spec.testing.errors import TargetError
from lla_spec.testing.support import Support


@dataclass(frozen=True)
class Target:
    """The functions of a target by operation name (`<name>_vjp` among them), and its claims."""

    name: str
    functions: Mapping[str, Callable[..., Any]]
    version: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)

    def implements(self, operation: str) -> bool:
        return operation in self.functions

    def _claim(self, operation: str, key: str, default: Any = None) -> Any:
        declared = self.claims.get("ops", {})
        function = registry.formulas[operation].called if operation in registry.formulas else operation
        own = declared.get(operation, declared.get(function, {}))
        return own.get(key, self.claims.get(key, default))

    def dtypes(self, operation: str) -> tuple[str, ...] | None:
        """The dtypes it declares for an operation; None where it says nothing (then it is probed)."""
        declared = self._claim(operation, "dtypes")
        return None if declared is None else tuple(declared)

    def devices(self) -> tuple[str, ...] | None:
        declared = self.claims.get("devices")
        return None if declared is None else tuple(declared)

    def differentiable(self, operation: str) -> bool:
        return f"{operation}_vjp" in self.functions or bool(self._claim(operation, "differentiable", True))

    def says_differentiable(self, operation: str) -> bool:
        return bool(self._claim(operation, "differentiable", False))

    def contract(self, operation: str, dtype: str, override: Any = None) -> Contract:
        """The contract that it declares for an operation and dtype (undeclared: fused)."""
        declared = override if override is not None else self._claim(operation, "contract")
        if isinstance(declared, Mapping) and set(declared) <= set(DTYPES):
            declared = declared.get(dtype)
        return contract(declared, dtype)

    def policy(self, operation: str, name: str) -> str | None:
        return self._claim(operation, "policies", {}).get(name)

    def support(self, operation: str) -> Support:
        if operation not in self._supports:  # asked for at every case
            said = self._claim(operation, "supports")
            self._supports[operation] = read_support("LLA_TARGET", said, registry.operations())
        return self._supports[operation]

    @functools.cached_property
    def _supports(self) -> dict[str, Support]:
        return {}


def load(spec: str | Mapping[str, Any] | object, alias: str | None = None) -> Target:
    """The target that `spec` names: a module, `module:attribute`, a `.py` file, a mapping or an object.

    `file.py:function` with `alias="attention"` names one function. Raises TargetError with one line for a person.
    """
    if isinstance(spec, Target):
        return spec
    if isinstance(spec, str):
        found, name = _import(spec)
    else:
        found, name = spec, getattr(spec, "__name__", type(spec).__name__)
    return _from_object(found, name, alias)


def _import(spec: str) -> tuple[object, str]:
    path, _, attribute = spec.partition(":")
    if path in bundled.PACKAGES:
        module = _bundled(path)
    else:
        module = _reference() if path == "impl" else _file(path) if path.endswith(".py") else _module(path)
    if not attribute:
        return module, spec
    if not hasattr(module, attribute):
        raise TargetError(f"target {spec}: {path} has no {attribute}")
    return getattr(module, attribute), spec


def _reference() -> ModuleType:
    """The `impl` that is distributed beside this lla_spec, not some other folder of that common name."""
    here = Path(__file__).resolve().parents[2]
    module = _module("impl")
    found = Path(module.__file__ or "").resolve().parent
    if found != here / "impl":
        raise TargetError(f"impl is {found}, not the reference of lla-spec 0.1; name it by path")
    return module


def _bundled(name: str) -> ModuleType:
    """A target that comes with lla-spec, by its short name."""
    try:
        return importlib.import_module(bundled.module_of(name))
    except ModuleNotFoundError as error:
        raise TargetError(bundled.needs(name, error.name or str(error))) from None
    except TargetError:
        raise
    except BaseException as error:
        raise _import_error(name, error) from error


def _module(path: str) -> ModuleType:
    _look_in(Path.cwd())  # a console script does not, other than `python -m`
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and path.split(".")[0] == error.name.split(".")[0]:
            raise TargetError(
                f"target {path}: there is no module of that name; give a module, module:attribute or file.py"
            ) from None
        raise TargetError(f"target {path}: its import fails: {error}") from error
    except BaseException as error:
        raise _import_error(path, error) from error


def _file(path: str) -> ModuleType:
    file = Path(path)
    if not file.is_file():
        raise TargetError(f"target {path}: no such file")
    return _executed(path, file, f"lla_target_{file.stem}")


def declare(page: Path) -> None:
    """Import a page outside of lla_spec.formulas, under the name that `import` gives it; its stem is the topic."""
    if not page.is_file():
        raise TargetError(f"page {page}: no such file")
    if page.stem in sys.modules:
        found = getattr(sys.modules[page.stem], "__file__", None)
        if found is None or Path(found).resolve() != page.resolve():
            raise TargetError(f"page {page}: {page.stem} is the name of another module; rename the file")
        return
    _executed(str(page), page, page.stem)


def _executed(path: str, file: Path, name: str) -> ModuleType:
    _look_in(file.resolve().parent)  # its neighbours can be imported, as those of a script
    made = importlib.util.spec_from_file_location(name, file)
    assert made is not None and made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules[name] = module
    try:
        made.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _import_error(path, error) from error
    return module


def _look_in(folder: Path) -> None:
    """What lies in a folder can be imported; last, so that it hides nothing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_error(path: str, error: BaseException) -> BaseException:
    if isinstance(error, KeyboardInterrupt):
        return error
    line = str(error).splitlines()[0] if str(error) else ""
    return TargetError(f"target {path}: its import raises {type(error).__name__}{': ' + line if line else ''}")


def _from_object(found: object, name: str, alias: str | None) -> Target:
    if alias is not None:
        if alias not in _operation_names():
            raise TargetError(f"--as {alias}: no operation of that name; there are {', '.join(_operations())}")
        if not callable(found):
            way = f"; name one, {name}:FUNCTION" if isinstance(found, ModuleType) else ""
            raise TargetError(f"target {name}: --as {alias} needs a function, and it is {type(found).__name__}{way}")
        return Target(name, {alias: found})
    mapping = found if isinstance(found, Mapping) else None
    claims = (mapping.get("LLA_TARGET") if mapping is not None else getattr(found, "LLA_TARGET", None)) or {}
    check_claims(name, claims)
    functions: dict[str, Callable[..., Any]] = {}
    for formula in _formulas():
        for suffix in ("", "_vjp"):
            name_there = f"{formula.called}{suffix}"
            function = mapping.get(name_there) if mapping is not None else getattr(found, name_there, None)
            if callable(function):
                given = {k: v for k, v in formula.keywords.items() if formula.called != formula.name}
                functions[f"{formula.name}{suffix}"] = functools.partial(function, **given) if given else function
    if not functions:
        raise TargetError(f"target {name}: implements none of the operations ({', '.join(_operations())})")
    return Target(str(claims.get("name", name)), functions, str(claims.get("version", "")), claims)


def _formulas() -> list[Formula]:
    import lla_spec.formulas  # noqa: F401  (declares them)

    return registry.operations()


def _operations() -> list[str]:
    return [formula.name for formula in _formulas()]


def _operation_names() -> list[str]:
    return [name for operation in _operations() for name in (operation, f"{operation}_vjp")]


def operation_formula(operation: str) -> Formula:
    """The declaration of an operation; TargetError names those that there are."""
    if operation not in _operations():
        raise TargetError(f"{operation}: no operation of that name; there are {', '.join(_operations())}")
    return registry.formulas[operation]
