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
from lla_spec.testing.errors import TargetError
from lla_spec.testing.strategies import ANYTHING, Support

TOP_KEYS = ("name", "version", "devices", "dtypes", "differentiable", "supports", "ops")
OPERATION_KEYS = ("dtypes", "differentiable", "contract", "policies", "supports")
POLICIES = {
    "fully_masked_row": ("zeros", "nan", "mean", "undefined"),
    "causal_alignment": ("bottom_right", "top_left"),
    "nan_in_masked": ("ignored", "propagates"),
    "overflow": ("inf",),
    "all_ignored": ("nan", "zero"),
}


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

    def contract(self, operation: str, dtype: str, override: Any = None) -> Contract:
        """The contract that it declares for an operation and dtype (undeclared: fused)."""
        declared = override if override is not None else self._claim(operation, "contract")
        if isinstance(declared, Mapping) and set(declared) <= set(DTYPES):
            declared = declared.get(dtype)
        return contract(declared, dtype)

    def policy(self, operation: str, name: str) -> str | None:
        return self._claim(operation, "policies", {}).get(name)

    def support(self, operation: str) -> Support:
        return read_support(self.name, self._claim(operation, "supports"))


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
            raise TargetError(f"target {name}: {found!r} is not a function, so it cannot stand for {alias}")
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


def check_claims(name: str, claims: object) -> None:
    """Raise TargetError for an LLA_TARGET whose keys or values mean nothing."""
    if not isinstance(claims, Mapping):
        raise TargetError(f"target {name}: LLA_TARGET is {type(claims).__name__}, it must be a mapping")
    _known(name, "LLA_TARGET", claims, TOP_KEYS)
    _check_dtypes(name, "LLA_TARGET", claims.get("dtypes", ()))
    read_support(name, claims.get("supports"))
    for operation, own in claims.get("ops", {}).items():
        where = f"LLA_TARGET['ops'][{operation!r}]"
        if operation not in _operations():
            raise TargetError(f"target {name}: {where} is no operation; there are {', '.join(_operations())}")
        _known(name, where, own, OPERATION_KEYS)
        _check_dtypes(name, where, own.get("dtypes", ()))
        read_support(name, own.get("supports"))
        for policy, value in own.get("policies", {}).items():
            if value not in POLICIES.get(policy, ()):
                few = ", ".join(POLICIES.get(policy, POLICIES))
                raise TargetError(f"target {name}: {where} has the policy {policy}={value!r}; there are {few}")
        declared = own.get("contract")
        per_dtype = isinstance(declared, Mapping) and set(declared) <= set(DTYPES)
        for dtype, value in declared.items() if per_dtype else [("bf16", declared)]:
            try:
                contract(value, dtype)
            except ValueError as error:
                raise TargetError(f"target {name}: {where}: {error}") from None


def _known(name: str, where: str, given: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in given:
        if key not in keys:
            raise TargetError(f"target {name}: {where} has the unknown key {key!r}; known are {', '.join(keys)}")


def _check_dtypes(name: str, where: str, dtypes: Any) -> None:
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise TargetError(f"target {name}: {where} has the dtype {dtype!r}; there are {', '.join(DTYPES)}")


def read_support(name: str, given: Any) -> Support:
    """`supports` of LLA_TARGET: {"d": [64, 128], "n": "multiple of 16"}, `mask: False`, `layouts`, "e": "d"."""
    if not given:
        return ANYTHING
    dims: dict[str, Callable[[int], bool]] = {}
    choices: dict[str, tuple[int, ...]] = {}
    refused: set[str] = set()
    equal: list[tuple[str, str]] = []
    layouts: tuple[str, ...] | None = None
    for key, value in {**given, **given.get("dims", {})}.items():
        if key == "dims":
            continue
        if key == "layouts":
            layouts = ("dense",) if value == "contiguous" else tuple(value)
        elif value is False:
            refused.add(key)
        elif isinstance(value, str) and value.startswith("multiple of "):
            factor = int(value.removeprefix("multiple of "))
            dims[key] = lambda size, factor=factor: size % factor == 0
        elif isinstance(value, str) and value.startswith("at most "):
            most = int(value.removeprefix("at most "))
            dims[key] = lambda size, most=most: size <= most
        elif isinstance(value, str) and value.isidentifier():
            equal.append((key, value))
        elif isinstance(value, list | tuple):
            choices[key] = tuple(value)
        elif value is not True:
            raise TargetError(
                f"target {name}: supports has {key}={value!r}; write a list of sizes, 'multiple of N', 'at most N', "
                "the name of an equal dimension, or False for an argument that is not taken"
            )
    return Support(dims, choices, frozenset(refused), layouts, tuple(equal))


def operation_formula(operation: str) -> Formula:
    """The declaration of an operation; TargetError names those that there are."""
    if operation not in _operations():
        raise TargetError(f"{operation}: no operation of that name; there are {', '.join(_operations())}")
    return registry.formulas[operation]
