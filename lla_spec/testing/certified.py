"""Certified operations on a target: the call, and the judgement by certificates.

The oracle is taken first, inputs are verified unchanged, and a batch is judged matrix by matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from lla_spec.certified import Certified
from lla_spec.evaluating.certificates import Certificate
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.witnesses import CERTIFICATES, Judged
from lla_spec.testing.calling import Expected, Misbehaved, call, checked
from lla_spec.testing.cases import Case
from lla_spec.testing.certified_cases import build_certified
from lla_spec.testing.inputs import Arguments
from lla_spec.testing.judge import Judgement, Worst
from lla_spec.testing.targets import Target
from lla_spec.testing.truth import as_numpy

Outputs = dict[str, Tensor]
Matrices = list[tuple[tuple[int, ...], Judged]]  # by batch index: what judges the outputs there

BY_KEYWORD: frozenset[str] = frozenset()  # counts are positional


def answer_certified(target: Target, formula: Certified, case: Case, arguments: Arguments) -> Outputs:
    """What the target returns, by the results' names. Raises Misbehaved."""
    function = target.functions[formula.name]
    if case.special == "reuse":
        arguments = _written_again(function, formula, case, arguments)
    return _checked(call(function, arguments, formula.name, BY_KEYWORD), formula, arguments)


def _written_again(function: Any, formula: Certified, case: Case, arguments: Arguments) -> Arguments:
    """Call once on other values, then write this case's values into the same storage, past the version counter."""
    other = build_certified(formula, replace(case, seed=case.seed + 1, special="none")).arguments
    call(function, other, formula.name, BY_KEYWORD)
    for name, value in arguments.items():
        reused = other[name]
        if isinstance(value, Tensor) and isinstance(reused, Tensor):
            reused.data.copy_(value)
    return other


def _checked(result: Any, formula: Certified, arguments: Arguments) -> Outputs:
    """The results as plain tensors of the shapes, dtype and device that they must have."""
    name, results = formula.name, formula.outputs
    given = result if len(results) > 1 else (result,)
    if len(results) > 1 and (not isinstance(given, tuple | list) or len(given) != len(results)):
        what = f"{type(given).__name__}" + (f" of {len(given)}" if isinstance(given, tuple | list) else "")
        wanted = ", ".join(results)
        raise Misbehaved("returns", f"{name}: returns {what}, it must return a tuple of {len(results)} ({wanted})")
    first = next(value for value in arguments.values() if isinstance(value, Tensor))
    sizes, batch = sizes_of(formula, arguments)
    found: Outputs = {}
    for (output, tensor), value in zip(results.items(), given, strict=True):
        shape = (*batch, *(sizes[dim.name] for dim in tensor.shape))
        where = name if len(results) == 1 else f"{name}, {output}"
        found[output] = checked(value, Expected(shape, first.dtype, first.device), where)
    return found


def sizes_of(formula: Certified, arguments: Arguments) -> tuple[dict[str, int], tuple[int, ...]]:
    """The dimensions and the batch axes that the arguments have."""
    sizes: dict[str, int] = {}
    batch: tuple[int, ...] = ()
    for parameter in formula.parameters.values():
        assert parameter.role is not None
        value = arguments[parameter.role.argument]
        assert isinstance(value, Tensor)
        cut = value.dim() - len(parameter.axes)
        batch = tuple(value.shape[:cut])
        sizes.update(zip((dim.name for dim in parameter.shape), value.shape[cut:], strict=True))
    for name, dim in formula.counted.items():
        sizes[dim.name] = int(arguments[name])  # pyright: ignore[reportArgumentType]  a count is an int
    return sizes, batch


def judge_certified(target: Target, formula: Certified, case: Case, contract: Contract) -> Judgement:
    """`target` on one case. A case without arguments (k > min(m, n), from a shrinker) shows nothing and cannot fail."""
    why = formula.impossible(dict(case.sizes))
    if why:
        return Judgement(case, message=why)
    inputs = build_certified(formula, case)
    oracle = oracles(formula, inputs.arguments, contract)
    found = Judgement(case, inputs=inputs.arguments)
    try:
        outputs = answer_certified(target, formula, case, inputs.arguments)
    except Misbehaved as error:
        return replace(found, kind=error.kind, message=str(error))
    seen = list(certificates(oracle, outputs))
    found = replace(found, outputs=outputs, hazard=any(judged.hazard for _, judged in oracle))
    if not seen:  # an empty batch
        return found
    where, worst = max(seen, key=lambda pair: pair[1].ratio)
    found = replace(
        found,
        worst=Worst(worst.output, (*where, *worst.index), worst.value, 0.0, worst.allowed, worst.ratio),
        evidence=all(rejected(oracle, fake) for fake in fakes(inputs.arguments, outputs)),
    )
    message = told(seen)
    return replace(found, kind="certificate", message=message) if message else found


def complaint(formula: Certified, result: Any, arguments: Arguments, contract: Contract) -> str:
    """What is wrong with somebody's result at their arguments (by torch name, counts too); "" where nothing is."""
    try:
        outputs = _checked(result, formula, arguments)
    except Misbehaved as error:
        return str(error)
    message = told(list(certificates(oracles(formula, arguments, contract), outputs)))
    return f"{formula.name}: {message} (contract {contract.describe()})" if message else ""


def told(seen: Sequence[tuple[tuple[int, ...], Certificate]]) -> str:
    """What is wrong with the worst matrix: its first certificate that fails, with numbers, and the names of the others.

    Certificates stand in the order of what explains what: pairs cannot hold where a value is wrong.
    """
    if all(certificate.ratio <= 1 for _, certificate in seen):
        return ""
    where, _ = max(seen, key=lambda pair: pair[1].ratio)
    first, *rest = [found for at, found in seen if at == where and not (found.ratio <= 1)]
    matrix = f" (matrix {', '.join(map(str, where))} of the batch)" if where else ""
    others = [name for name in dict.fromkeys(found.name for found in rest) if name != first.name]
    return f"{first.name}: {first}{matrix}" + (f"; so do not hold: {', '.join(others)}" if others else "")


def oracles(formula: Certified, arguments: Arguments, contract: Contract) -> Matrices:
    """What judges the outputs, matrix by matrix."""
    if formula.name not in CERTIFICATES:
        raise LookupError(f"{formula.id}: no certificate is written for it; there are {', '.join(CERTIFICATES)}")
    tensors = {name: as_numpy(value) for name, value in arguments.items() if isinstance(value, Tensor)}
    sizes, batch = sizes_of(formula, arguments)
    (count,) = (sizes[dim.name] for dim in formula.counted.values())
    make = CERTIFICATES[formula.name]
    return [
        (where, make({name: array[where] for name, array in tensors.items()}, count, contract))
        for where in np.ndindex(*batch)
    ]


def certificates(oracle: Matrices, outputs: Mapping[str, Any]) -> Iterator[tuple[tuple[int, ...], Certificate]]:
    """(batch index, certificate) for every certificate of every matrix."""
    arrays = {name: as_numpy(value) for name, value in outputs.items()}
    for where, judged in oracle:
        for found in judged.certificates({name: array[where] for name, array in arrays.items()}):
            yield where, found


def rejected(oracle: Matrices, outputs: Mapping[str, Any]) -> bool:
    return any(not (found.ratio <= 1) for _, found in certificates(oracle, outputs))


def fakes(arguments: Arguments, outputs: Outputs) -> Iterator[dict[str, Any]]:
    """Zeros, the input's mean everywhere, and a copy of the input in the place of each result of its shape."""
    own = {name: as_numpy(value) for name, value in outputs.items()}
    first = as_numpy(next(value for value in arguments.values() if isinstance(value, Tensor)))
    yield {name: np.zeros(value.shape) for name, value in own.items()}
    yield {name: np.full(value.shape, first.mean()) for name, value in own.items()}
    for name, value in own.items():
        if value.shape == first.shape:
            yield {**own, name: first}
