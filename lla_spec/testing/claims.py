"""LLA_TARGET, what a target says of itself: read once, and refused in one line where it means nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lla_spec.formulas  # noqa: F401  (declares the operations that claims speak of)
from lla_spec.certified import Certified
from lla_spec.evaluating.contracts import contract
from lla_spec.interface import signature
from lla_spec.language import Formula, registry
from lla_spec.testing.cases import DTYPES
from lla_spec.testing.errors import TargetError
from lla_spec.testing.features import features
from lla_spec.testing.layouts import LAYOUTS
from lla_spec.testing.support import ANYTHING, REFUSABLE, Support

TOP_KEYS = ("name", "version", "devices", "dtypes", "differentiable", "supports", "ops")
OPERATION_KEYS = ("dtypes", "differentiable", "contract", "policies", "supports")
POLICIES = {
    "fully_masked_row": ("zeros", "nan", "mean", "undefined"),
    "causal_alignment": ("bottom_right", "top_left"),
    "nan_in_masked": ("ignored", "propagates"),
    "overflow": ("inf",),
    "all_ignored": ("nan", "zero"),
}
SIZES = "write a list of sizes, 'multiple of N', 'at most N', or the name of an equal dimension"
Size = Callable[[int], bool]


def check_claims(name: str, claims: object) -> None:
    """Raise TargetError for an LLA_TARGET whose keys or values mean nothing."""
    try:
        _check(claims)
    except ClaimError as error:
        raise TargetError(f"target {name}: {error}") from None


class ClaimError(ValueError):
    """A claim that means nothing; the message names it and says what may stand there."""


def _check(claims: object) -> None:
    given = _mapping("LLA_TARGET", claims)
    _known("LLA_TARGET", given, TOP_KEYS)
    _words("LLA_TARGET", "dtypes", given, DTYPES)
    _words("LLA_TARGET", "devices", given)
    _truth("LLA_TARGET", given)
    read_support("LLA_TARGET", given.get("supports"), registry.operations())
    operations = [formula.name for formula in registry.operations()]
    for operation, own in _mapping("LLA_TARGET['ops']", given.get("ops", {})).items():
        where = f"LLA_TARGET['ops'][{operation!r}]"
        if operation not in operations:
            raise ClaimError(f"{where} is no operation; there are {', '.join(operations)}")
        own = _mapping(where, own)
        _known(where, own, OPERATION_KEYS)
        _words(where, "dtypes", own, DTYPES)
        _truth(where, own)
        read_support(where, own.get("supports"), [registry.formulas[operation]])
        _policies(where, own)
        _contract(where, own.get("contract"))


def _mapping(where: str, given: object) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ClaimError(f"{where} is {type(given).__name__}, it must be a mapping")
    return given


def _known(where: str, given: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in given:
        if key not in keys:
            raise ClaimError(f"{where} has the unknown key {key!r}; known are {', '.join(keys)}")


def _words(where: str, key: str, given: Mapping[str, Any], there: Sequence[str] = ()) -> None:
    """A list of strings, each one of `there`."""
    found = given.get(key, ())
    if isinstance(found, str) or not isinstance(found, Sequence | set | frozenset):
        raise ClaimError(f"{where} has {key}={found!r}; write a list, {[found] if isinstance(found, str) else '[…]'}")
    for word in found:
        if not isinstance(word, str) or (there and word not in there):
            kind = key.removesuffix("s")
            raise ClaimError(f"{where} has the {kind} {word!r}" + (f"; there are {', '.join(there)}" if there else ""))


def _truth(where: str, given: Mapping[str, Any]) -> None:
    if not isinstance(given.get("differentiable", True), bool):
        raise ClaimError(f"{where} has differentiable={given['differentiable']!r}; write True or False")


def _policies(where: str, own: Mapping[str, Any]) -> None:
    for policy, value in _mapping(f"{where}['policies']", own.get("policies", {})).items():
        if value not in POLICIES.get(policy, ()):
            few = ", ".join(POLICIES.get(policy, POLICIES))
            raise ClaimError(f"{where} has the policy {policy}={value!r}; there are {few}")


def _contract(where: str, declared: Any) -> None:
    per_dtype = isinstance(declared, Mapping) and set(declared) <= set(DTYPES)
    for dtype, value in declared.items() if per_dtype else [("bf16", declared)]:
        try:
            contract(value, dtype)
        except (ValueError, TypeError) as error:
            raise ClaimError(f"{where}: {error}") from None


# ---- supports


def read_support(where: str, given: Any, operations: Sequence[Formula]) -> Support:
    """`supports` of LLA_TARGET: {"d": [64, 128], "n": "multiple of 16"}, `mask: False`, `layouts`, "e": "d", and
    "mean": "shared" for what is never given for each matrix of rows.

    ClaimError for what no operation of these has, or what means nothing.
    """
    if given is None:
        return ANYTHING
    where = f"{where}['supports']"
    given = _mapping(where, given)
    flat = {key: value for key, value in given.items() if key != "dims"}
    flat.update(_mapping(f"{where}['dims']", given.get("dims", {})))
    dims = {dim for formula in operations for dim in dims_of(formula)}
    arguments = {argument for formula in operations for argument in signature(formula).parameters}
    sizes: dict[str, Size] = {}
    choices: dict[str, tuple[int, ...]] = {}
    refused: set[str] = set()
    equal: list[tuple[str, str]] = []
    layouts: tuple[str, ...] | None = None
    shared = False
    for key, value in flat.items():
        if key == "layouts":
            layouts = _layouts(where, value)
        elif key not in dims | arguments:
            there = f"dimensions {', '.join(sorted(dims))}; arguments {', '.join(sorted(arguments))}; layouts"
            raise ClaimError(f"{where} has {key!r}; there are {there}")
        elif value == "shared" and key not in dims:
            _shared(where, key, operations)
            shared = True
        elif value is False and key not in dims - arguments:
            _needed(where, key, operations)
            refused.add(key)
        elif key not in dims and value is not True:
            raise ClaimError(f"{where} has {key}={value!r}; write False for an argument that is not taken")
        elif isinstance(value, str) and value in dims:
            equal.append((key, value))
        elif value is not True:
            found = _sizes(where, key, value)
            if callable(found):
                sizes[key] = found
            else:
                choices[key] = found
    return Support(sizes, choices, frozenset(refused), layouts, tuple(equal), shared, _said(flat))


def _said(flat: Mapping[str, Any]) -> str:
    """The claims for a person.

    >>> _said({"d": [64, 128], "n": "multiple of 16", "e": "d", "mask": False, "layouts": "contiguous"})
    'd in 64, 128; n a multiple of 16; e = d; no mask; layouts contiguous'
    """
    words = []
    for key, value in flat.items():
        several = isinstance(value, list | tuple)
        if value is False:
            words.append(f"no {key}")
        elif value == "shared":
            words.append(f"one {key} for all rows")
        elif key == "layouts":
            words.append(f"layouts {', '.join(value) if several else value}")
        elif several:
            words.append(f"{key} in {', '.join(map(str, value))}")
        elif isinstance(value, str):
            limit = value.replace("multiple", "a multiple")
            words.append(f"{key} {limit}" if " " in limit else f"{key} = {limit}")
    return "; ".join(words)


def dims_of(formula: Formula) -> tuple[str, ...]:
    """The dimensions of an operation's cases, by name."""
    return tuple(dim.name for dim in formula.dims) if isinstance(formula, Certified) else features(formula).dims


def _needed(where: str, name: str, operations: Sequence[Formula]) -> None:
    """Only what may be left out of a call can be refused."""
    for formula in operations:
        if name in signature(formula).parameters:
            optional = () if isinstance(formula, Certified) else features(formula).optional
            if name in optional or name in REFUSABLE:
                return
    raise ClaimError(f"{where} has {name}=False, but {operations[0].name} is never called without {name}")


def _shared(where: str, name: str, operations: Sequence[Formula]) -> None:
    """Only what a matrix of rows may have of its own can be said to be shared."""
    each = {n: None for formula in operations if not isinstance(formula, Certified) for n in features(formula).each}
    if name not in each:
        there = " and ".join(each) or "no argument"
        raise ClaimError(f"{where} has {name}='shared'; {there} may be given for each matrix of rows")


def _sizes(where: str, key: str, value: Any) -> Size | tuple[int, ...]:
    if isinstance(value, list | tuple) and value and all(isinstance(size, int) and size > 0 for size in value):
        return tuple(value)
    if isinstance(value, str):
        for words, test in (("multiple of ", _multiple), ("at most ", _at_most)):
            number = value.removeprefix(words)
            if number != value and number.isdecimal() and int(number) > 0:
                return test(int(number))
    raise ClaimError(f"{where} has {key}={value!r}; {SIZES}")


def _multiple(factor: int) -> Size:
    return lambda size: size % factor == 0


def _at_most(most: int) -> Size:
    return lambda size: size <= most


def _layouts(where: str, value: Any) -> tuple[str, ...]:
    found = ("dense",) if value == "contiguous" else value
    if not isinstance(found, list | tuple) or not found or not all(layout in LAYOUTS for layout in found):
        raise ClaimError(f"{where} has layouts={value!r}; write 'contiguous' or some of {', '.join(LAYOUTS)}")
    return tuple(found)
