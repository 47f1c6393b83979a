"""One case, judged: oracle and bound first, then the target, then a ratio |error| / bound for every entry.

A case is evidence only if the same ratios reject the fakes: zeros, a copy of an input, a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lla_spec.calculus import gradient_parameters
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.edges import hazards, ratios
from lla_spec.interface import IGNORE_INDEX, keyword_names, torch_shape
from lla_spec.language import Formula
from lla_spec.testing.calling import Expected, Misbehaved, autograd_vjp, call, checked, checked_gradients
from lla_spec.testing.cases import Case
from lla_spec.testing.families import FAMILIES
from lla_spec.testing.heat import Heat, heat_of
from lla_spec.testing.inputs import Arguments, arguments_of, build, digest, hidden_columns, lead, mask_of, shape_of
from lla_spec.testing.targets import Target
from lla_spec.testing.truth import Truth, as_numpy, truth_of, truths_of

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Worst:
    """The entry with the largest ratio. `output` is "" for a forward result, else the argument whose gradient it is."""

    output: str
    index: tuple[int, ...]
    computed: float
    exact: float
    bound: float
    ratio: float
    heat: Heat | None = field(default=None, repr=False, compare=False)  # where it is above its bound


@dataclass(frozen=True)
class Judgement:
    """What one case showed. `kind` is "" where it passed, else how it failed: "bound", "law", "tight", "raises", …"""

    case: Case
    kind: str = ""
    message: str = ""
    worst: Worst | None = None
    tight_ratio: float | None = None
    evidence: bool = False
    hazard: bool = False
    reported: str = ""  # something seen and not judged, such as NaN that leaks where no policy forbids it
    unimplemented: bool = False
    called: str = ""  # for a law: the call that failed, "attention:definition"
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    outputs: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def failed(self) -> bool:
        return bool(self.kind)

    @property
    def digest(self) -> str:
        """Of the inputs' values, as they are now: what the code under test has written is in it."""
        return digest(self.inputs)

    @property
    def ratio(self) -> float:
        return self.worst.ratio if self.worst else 0.0


def judge(target: Target, formula: Formula, case: Case, contract: Contract) -> Judgement:
    """`target` on one case of the law "definition" or "vjp" of an operation.

    Over the statistical bound (λ = 3) here and on at least 5 of 8 redrawn seeds is a failure (6 of 9).
    """
    found = _judged_once(target, formula, case, contract)
    if found.failed or not _is_over(found):
        return found
    redrawn = [replace(case, seed=case.seed + 7919 * step) for step in range(1, 9)]
    over = 1 + sum(_is_over(_judged_once(target, formula, again, contract)) for again in redrawn)
    if over < 6:
        return found
    return replace(found, kind="tight", message=f"over the statistical bound (λ = 3) on {over} of 9 seeds")


def _is_over(found: Judgement) -> bool:
    return found.kind == "bound" or (found.tight_ratio is not None and not (found.tight_ratio <= 1))


def _judged_once(target: Target, formula: Formula, case: Case, contract: Contract) -> Judgement:
    vjp = case.law == "vjp"
    alignment = target.policy(formula.name, "causal_alignment") or "bottom_right"
    inputs = build(formula, case)
    contracts = (contract, contract.tight()) if _tight_applies(case, contract) else (contract,)
    truths = truths_of(formula, inputs.arguments, contracts, vjp=vjp, alignment=alignment)
    found = Judgement(case, inputs=inputs.arguments)
    try:
        outputs = answer(target, formula, case, inputs.arguments)
    except Misbehaved as error:
        return replace(found, kind=error.kind, message=str(error))
    if outputs is None:
        return replace(found, unimplemented=True)
    parts = [_judged_part(target, formula, case, inputs.arguments, truth, outputs) for truth in truths]
    (truth, reported), *narrower = parts
    worst = worst_entry(outputs, truth, contract)
    found = replace(
        found,
        worst=worst,
        evidence=rejects_fakes(inputs.arguments, outputs, truth, contract),
        hazard=any(hazards(b).any() for b in truth.values()),
        reported=reported,
        outputs=outputs,
    )
    if worst is not None and not (worst.ratio <= 1):
        return replace(found, kind="bound")
    for truth, _ in narrower:
        worst = worst_entry(outputs, truth, contract)
        found = replace(found, tight_ratio=worst.ratio if worst else 0.0)
    return found


def answer(target: Target, formula: Formula, case: Case, arguments: Arguments) -> Outputs | None:
    """What the target computes, by output; None where it has no gradient to offer. Raises Misbehaved."""
    name = formula.name
    if case.special == "reuse":
        arguments = _written_again(target, formula, case, arguments)
    keywords = keyword_names(formula)
    first = next(v for v in arguments.values() if isinstance(v, Tensor) and v.is_floating_point())
    forward = Expected(shape_of(formula, formula.result, case), first.dtype, first.device)
    if case.law != "vjp":
        return {"": checked(call(target.functions[name], arguments, name, keywords), forward, name)}
    wanted: dict[str, Expected | None] = {}
    for parameter in gradient_parameters(formula):
        role = formula.parameters[parameter].role
        assert role is not None
        value = arguments[role.argument]
        wanted[role.argument] = (
            Expected(tuple(value.shape), value.dtype, value.device) if isinstance(value, Tensor) else None
        )
    if f"{name}_vjp" in target.functions:
        result = call(target.functions[f"{name}_vjp"], arguments, f"{name}_vjp", keywords)
    else:
        if not target.differentiable(name):
            return None
        result = autograd_vjp(target.functions[name], name, arguments, forward, formula)
        if result is None:
            return None
        result = tuple(None if wanted[k] is None else v for k, v in zip(wanted, result, strict=True))
    return checked_gradients(result, wanted, f"{name}_vjp")


def _written_again(target: Target, formula: Formula, case: Case, arguments: Arguments) -> Arguments:
    """Call once on other values, then write this case's values into the same storage, past the version counter."""
    other = build(formula, replace(case, seed=case.seed + 1, special="none")).arguments
    function = target.functions.get(
        f"{formula.name}_vjp" if case.law == "vjp" else formula.name, target.functions[formula.name]
    )
    first = {k: v for k, v in other.items() if k != "grad_output" or f"{formula.name}_vjp" in target.functions}
    call(function, first, formula.name, keyword_names(formula))
    for name, value in arguments.items():
        reused = other[name]
        if isinstance(value, Tensor) and isinstance(reused, Tensor):
            reused.data.copy_(value)
    return other


def _judged_part(
    target: Target, formula: Formula, case: Case, arguments: Arguments, truth: Truth, outputs: Outputs
) -> tuple[Truth, str]:
    """Leave out what no declared policy settles: gradients of empty rows, NaN behind a mask. Where nothing is declared,
    rows that see nothing are zeros, and their gradients 0, or NaN of the 0/0 that was replaced."""
    name = formula.name
    if case.special.startswith("masked") and target.policy(name, "nan_in_masked") != "ignored":
        leaks = any(not torch.isfinite(value).all() for value in outputs.values())
        return {
            key: _free(b, np.True_) for key, b in truth.items()
        }, "a value behind the mask leaks into the result" if leaks else ""
    if case.law == "definition" and _keeps_nothing(formula, arguments):
        return _of_nothing(target.policy(name, "all_ignored"), truth), ""
    policy = target.policy(name, "fully_masked_row")
    empty: np.ndarray | None = empty_rows(formula, case, arguments, target.policy(name, "causal_alignment"))
    if empty is None or not empty.any() or policy == "zeros" or (policy is None and case.law == "definition"):
        return truth, ""
    rows = np.asarray(empty)[..., None]
    if case.law == "definition":
        return {key: _free(b, rows) for key, b in truth.items()}, ""
    # Whatever such a row gives, it may give to every gradient of its matrix.
    matrices = np.asarray(empty.any(tuple(range(len(case.batch), empty.ndim))))
    where = {key: _over(matrices, formula, case, key, b) for key, b in truth.items()}
    if policy is None:
        where = {key: open_ & ~np.isfinite(as_numpy(outputs[key])) for key, open_ in where.items()}
    return {key: _free(b, where[key]) for key, b in truth.items()}, ""


def _keeps_nothing(formula: Formula, arguments: Arguments) -> bool:
    """Whether every target of a loss is ignored: the class of cases that is made so, or one row that happens to be."""
    for parameter in formula.parameters.values():
        role = parameter.role
        if role is not None and role.ignored:
            targets, ignored = arguments[role.argument], arguments.get(role.ignored, IGNORE_INDEX)
            return bool((as_numpy(targets) == ignored).all())
    return False


def _of_nothing(policy: str | None, truth: Truth) -> Truth:
    """The mean loss over no target: NaN, 0, or (undeclared) either of both, so not judged."""
    undefined = {key: np.isnan(bounded.value) for key, bounded in truth.items()}
    if policy == "nan":
        return truth
    if policy == "zero":
        return {k: Bounded(np.where(undefined[k], 0.0, b.value), b.error) for k, b in truth.items()}
    return {key: _free(bounded, undefined[key]) for key, bounded in truth.items()}


def _over(matrices: np.ndarray, formula: Formula, case: Case, argument: str, bounded: Bounded) -> np.ndarray:
    """Which matrices of the batch, spread over one argument's gradient; any of them concerns what the batch shares."""
    if not lead(formula, arguments_of(formula)[argument], case):
        return np.asarray(matrices.any())
    return matrices.reshape(*matrices.shape, *(1,) * (bounded.value.ndim - matrices.ndim))


def _free(bounded: Bounded, where: np.ndarray | np.bool_) -> Bounded:
    """The bound with some entries not judged: value NaN, error infinite."""
    free = np.broadcast_to(where, bounded.value.shape)
    return Bounded(np.where(free, np.nan, bounded.value), np.where(free, np.inf, bounded.error))


def empty_rows(formula: Formula, case: Case, arguments: Arguments, alignment: str | None = None) -> np.ndarray | None:
    """Which rows of the mask see nothing, (*batch, heads…, n), (*batch) for a mask of one axis; None without a mask.
    Causal is aligned bottom-right unless `alignment` is "top_left"."""
    parameter = mask_of(formula)
    if parameter is None:
        return None
    shape = torch_shape(formula, parameter, dict(case.sizes))
    keep = arguments["mask"]
    seen = np.ones(shape, bool) if keep is None else as_numpy(keep)
    if case.causal:
        last = 0 if alignment == "top_left" else shape[-1] - shape[-2]
        seen = seen & np.tri(shape[-2], shape[-1], last, dtype=bool)
    return np.broadcast_to(~seen.any(-1), (*case.batch, *shape[:-1]))


def worst_entry(outputs: Outputs, truth: Truth, contract: Contract) -> Worst | None:
    """The entry whose error is largest against its bound; None where every output is empty."""
    found: Worst | None = None
    for key, output in outputs.items():
        computed, bounded = as_numpy(output), truth[key]
        ratio = ratios(computed, bounded, contract.io)
        if not ratio.size:
            continue
        where = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        if found is None or not (ratio[where] <= found.ratio):
            index = tuple(int(i) for i in where)
            found = Worst(
                key,
                index,
                float(computed[where]),
                float(bounded.value[where]),
                float(bounded.error[where]),
                float(ratio[where]),
                heat_of(ratio, index) if not (ratio[where] <= 1) else None,
            )
    return found


def rejects_fakes(arguments: Arguments, outputs: Outputs, truth: Truth, contract: Contract) -> bool:
    """Whether the check would refuse zeros, a copy of an input, and the first input's mean."""
    return all(
        any((ratios(value, truth[key], contract.io) > 1).any() for key, value in fake.items())
        for fake in fakes(arguments, outputs)
    )


def fakes(arguments: Arguments, outputs: Outputs) -> Iterator[dict[str, np.ndarray]]:
    """Whole answers: zeros, a constant, and a copy of an input wherever it has the shape (zeros elsewhere)."""
    shapes = {key: tuple(value.shape) for key, value in outputs.items()}
    zeros = {key: np.zeros(shape) for key, shape in shapes.items()}
    yield zeros
    tensors = [as_numpy(v) for v in arguments.values() if isinstance(v, Tensor) and v.is_floating_point()]
    first = tensors[0][np.isfinite(tensors[0])]
    yield {key: np.full(shape, first.mean() if first.size else 0.0) for key, shape in shapes.items()}
    for tensor in tensors:
        copies = {key: tensor for key, shape in shapes.items() if shape == tensor.shape}
        if copies:
            yield {**zeros, **copies}


def _tight_applies(case: Case, contract: Contract) -> bool:
    """The statistical tier assumes independent rounding errors: random mantissas, and round to nearest."""
    return (
        contract.rounding == "nearest"
        and case.special == "none"
        and not {"expanded", "scalar"} & {*case.layout.split("+"), case.grad}
        and all(FAMILIES[name].random_mantissas for name in case.family.split("+"))
        and max((size for _, size in case.sizes), default=0) >= 64
    )


Judge = Callable[[Case], Judgement]
__all__ = ["Judge", "Judgement", "Worst", "answer", "as_numpy", "hidden_columns", "judge", "truth_of", "worst_entry"]
