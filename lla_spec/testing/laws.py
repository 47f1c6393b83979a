"""A law on a target: its visible calls run on the target, everything between them is evaluated by the specification.

(a) Each call is judged against the oracle at its actual inputs. (b) Where the glue that feeds the calls is exact in the
dtype, and no call feeds a call, left - right is judged as well, against both sides' call bounds pushed through the glue
that follows. Inputs lie on a dyadic grid, so that glue is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import sympy as sp
import torch
from torch import Tensor as TorchTensor

from lla_spec.calls import calls
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.compiling import compile_results
from lla_spec.evaluating.contracts import Contract, contract
from lla_spec.evaluating.edges import hazards, ratios
from lla_spec.evaluating.plan import Plan
from lla_spec.evaluating.rounding import Rounding
from lla_spec.interface import IGNORE_INDEX, count_values, is_per_matrix, own_axes, torch_axes, torch_shape
from lla_spec.language import Law
from lla_spec.tensors import Tensor, inputs
from lla_spec.testing.calling import Misbehaved
from lla_spec.testing.cases import Case
from lla_spec.testing.features import features
from lla_spec.testing.inputs import TORCH_DTYPES, Arguments
from lla_spec.testing.judge import Judgement, Worst, answer, worst_entry
from lla_spec.testing.law_calls import Visible, feeds, is_plain, visible_calls
from lla_spec.testing.law_inputs import draw, feasible
from lla_spec.testing.targets import Target
from lla_spec.testing.truth import as_numpy, truth_of

ContractOf = Callable[[str, bool], Contract | None]
"""The contract of an operation (False) or its gradient (True) in the case's dtype; None where it offers none there."""

_GLUE = contract("strict", "fp64")


def judge_law(target: Target, law: Law, case: Case, contract_of: ContractOf) -> Judgement:
    """`target` on one case of an identity or theorem."""
    calls_there = visible_calls(law, target)
    run = _Run(target, law, case, contract_of, calls_there)
    found = Judgement(case, inputs=run.drawn)
    visible = [call for call in calls_there if contract_of(call.operation.name, bool(call.gradient))]
    if not visible:
        return replace(found, unimplemented=True)
    try:
        for call in visible:
            run.ask(call)
    except Misbehaved as error:
        return replace(found, kind=error.kind, message=str(error))
    found = replace(found, worst=run.worst, evidence=run.evidence, hazard=run.hazard, outputs=run.outputs)
    if run.worst is not None and not (run.worst.ratio <= 1):
        assert run.worst_call is not None
        called = f"{run.worst_call.operation.name}:{'vjp' if run.worst_call.gradient else 'definition'}"
        return replace(found, kind="bound", message=f"in the call {run.worst_call.name}", called=called)
    if not run.exact or run.nested:
        return found
    worst = run.sides()
    if worst is None or worst.ratio <= 1:
        return replace(found, worst=worst if worst and not (worst.ratio <= found.ratio) else found.worst)
    return replace(
        found, kind="law", worst=worst, message="both sides were computed within their bounds, yet the law fails"
    )


class _Run:
    """The values of one case: the law's inputs, then what the target answered."""

    def __init__(
        self, target: Target, law: Law, case: Case, contract_of: ContractOf, visible: Sequence[Visible]
    ) -> None:
        case = feasible(law, case)
        self.target, self.law, self.case, self.contract_of = target, law, case, contract_of
        self.sizes = dict(case.sizes)
        self.values: dict[Tensor, Bounded] = {}
        self.outputs: dict[str, TorchTensor] = {}
        self.asked: list[Visible] = []
        self._own_sizes: dict[Visible, dict[str, int]] = {}
        self.exact, self.nested, self.evidence, self.hazard = True, False, False, False
        self.worst: Worst | None = None
        self.worst_call: Visible | None = None
        self._draw(visible)
        self.drawn = {t.name: torch.from_numpy(np.array(b.value)) for t, b in self.values.items()}

    def _draw(self, visible: Sequence[Visible]) -> None:
        """The free inputs from the grid, then the constrained ones by their constructions."""
        constructions = {old: new for h in self.law.hypotheses for old, new in h.by.items()}
        free: dict[Tensor, None] = {}
        for tensor in (self.law.left, self.law.right, *constructions.values()):
            free.update((t, None) for t in _free(tensor) if t not in constructions)
        granted: dict[Tensor, Any] = {}
        for call in visible:
            granted = self._granted(call) | granted
        for tensor in free:
            given = granted.get(tensor)
            value = draw(tensor, self.case, self.sizes)
            self.values[tensor] = _sure(value if given is None else np.full(value.shape, float(given)))
            self.exact &= given is None or bool(given.is_Rational)
        for constrained, construction in constructions.items():
            self.values[constrained] = _sure(self.evaluate(construction).value)

    def _granted(self, call: Visible) -> dict[Tensor, Any]:
        """The inputs that stand where the target takes no argument (a mask, a scale), and what it takes for granted."""
        found: dict[Tensor, Any] = {}
        refused = self.target.support(call.operation.name).refused
        for name, parameter in call.operation.parameters.items():
            role, argument = parameter.role, call.tensor.call.arguments[name]
            if role is not None and role.argument in refused and is_plain(argument):
                default, sizes = sp.sympify(role.default), self._sizes_of(call)
                found[argument] = default.subs({dim: sizes[str(dim)] for dim in default.free_symbols})
        return found

    def _can_be_asked(self, call: Visible, shape_case: Case) -> bool:
        """Whether the target takes these sizes, and what it takes for granted is what stands there."""
        granted = all(bool((self.values[t].value == float(v)).all()) for t, v in self._granted(call).items())
        return granted and self.target.support(call.operation.name).takes(shape_case)

    def evaluate(self, tensor: Tensor | sp.Expr) -> Bounded:
        """A tensor from the values so far, with the errors that they carry pushed through."""
        made = tensor if isinstance(tensor, Tensor) else Tensor("scalar", (), tensor)
        if made in self.values:
            return self.values[made]
        plan = _plan(made, tuple(self.values))
        wanted = {entry.name for entry in plan.inputs}
        given = {_key(t): value for t, value in self.values.items() if _key(t) in wanted}
        found = plan.run(Rounding(_GLUE), given, self.sizes)["out"]
        return Bounded(found.value, found.deviation)

    def ask(self, call: Visible) -> None:
        """Run one call on the target and judge it at its actual inputs."""
        arguments = self._arguments(call)
        shape_case = self._shape_case(call, arguments)
        if not self._can_be_asked(call, shape_case):
            return  # the specification evaluates it
        declared = self.contract_of(call.operation.name, bool(call.gradient))
        assert declared is not None
        truth = truth_of(call.operation, arguments, declared, vjp=bool(call.gradient), alignment=self._alignment(call))
        outputs = answer(self.target, call.operation, shape_case, arguments)
        if outputs is None:
            raise Misbehaved("raises", f"{call.name}: the output has no gradient although the target says it has")
        key = ""
        if call.gradient:
            role = call.operation.parameters[call.gradient].role
            assert role is not None
            key = role.argument
        output, bounded = outputs[key], truth[key]
        worst = worst_entry({key: output}, {key: bounded}, declared)
        if worst is not None and (self.worst is None or not (worst.ratio <= self.worst.ratio)):
            self.worst, self.worst_call = worst, call
        self.evidence |= bool((ratios(np.zeros(bounded.value.shape), bounded, declared.io) > 1).any())
        self.hazard |= bool(hazards(bounded).any())
        self.nested |= any(feeds(other.tensor, call.tensor) for other in self.asked)
        self.asked.append(call)
        self.outputs[key] = output
        self.values[call.tensor] = Bounded(
            self._spec_shape(call, as_numpy(output)), self._spec_shape(call, bounded.error)
        )

    def _alignment(self, call: Visible) -> str:
        return self.target.policy(call.operation.name, "causal_alignment") or "bottom_right"

    def _arguments(self, call: Visible) -> Arguments:
        """The torch arguments of a call, rounded to the dtype; whether that was exact is remembered."""
        arguments: Arguments = {}
        refused = self.target.support(call.operation.name).refused
        for name, parameter in call.operation.parameters.items():
            role, argument = parameter.role, call.tensor.call.arguments[name]
            if role is None or not role.argument:
                continue
            if role.kind == "mask" and role.causal:
                arguments.setdefault("is_causal", False)
            if argument is None or role.argument in refused:
                arguments[role.argument] = None
                continue
            value = self.evaluate(argument).value
            if role.kind == "scalar":
                arguments[role.argument] = float(value)
            elif role.kind == "index":
                classes, ignored = _chosen(value)
                arguments[role.argument] = classes
                if role.ignored:
                    arguments[role.ignored] = ignored
            elif role.kind == "mask":
                found = None if argument == 1 else torch.from_numpy(np.array(value != 0))
                arguments[role.argument] = found if found is None else self._merged(call, parameter, found)
            else:
                arguments[role.argument] = self._merged(call, parameter, self._cast(value))
        arguments.update(count_values(call.operation, self._sizes_of(call)))
        if call.gradient:
            seed = list(call.tensor.call.arguments.values())[-1]
            cast = self._cast(self.evaluate(seed).value)
            arguments["grad_output"] = self._merged(call, call.operation.result, cast)
        return {k: v.to(self.case.device) if isinstance(v, TorchTensor) else v for k, v in arguments.items()}

    def _merged(self, call: Visible, parameter: Tensor, value: TorchTensor) -> TorchTensor:
        """An argument in torch's layout: the batch and row axes in front, merged axes as one."""
        own = len(own_axes(call.operation, parameter))
        lead = tuple(value.shape[: value.dim() - own])
        return value.reshape((*lead, *torch_shape(call.operation, parameter, self._sizes_of(call))))

    def _sizes_of(self, call: Visible) -> dict[str, int]:
        """The sizes of the operation's own dimensions in this call."""
        found = self._own_sizes.get(call)
        if found is not None:  # asked for with each argument
            return found
        found = self._own_sizes[call] = {}
        for name, parameter in call.operation.parameters.items():
            argument = call.tensor.call.arguments[name]
            if isinstance(argument, Tensor):
                for own, actual in zip(reversed(parameter.axes), reversed(argument.axes), strict=False):
                    found[own.dim.name] = actual.dim.size(self.sizes)
        return found

    def _cast(self, value: np.ndarray) -> TorchTensor:
        exact = torch.from_numpy(np.array(value, dtype=np.float64))
        cast = exact.to(TORCH_DTYPES[self.case.dtype])
        self.exact &= bool(torch.equal(cast.to(torch.float64), exact))
        return cast

    def _shape_case(self, call: Visible, arguments: Arguments) -> Case:
        """A case with the sizes of this call, so that the expected shapes follow from the declaration."""
        batch, each = (), False
        for parameter in call.operation.parameters.values():
            value = arguments.get(parameter.role.argument) if parameter.role else None
            role = parameter.role
            if isinstance(value, TorchTensor) and role and role.batched and role.kind != "mask":
                lead = tuple(value.shape[: value.dim() - len(torch_axes(call.operation, parameter))])
                if is_per_matrix(call.operation, parameter):
                    each |= bool(lead)
                else:
                    batch = lead
        law = "vjp" if call.gradient else "definition"
        sizes = tuple(self._sizes_of(call).items())
        without = "+".join(name for name in features(call.operation).optional if arguments.get(name) is None)
        return replace(
            self.case, op=call.operation.name, law=law, sizes=sizes, batch=batch, special="none", without=without,
            each=each,
        )  # fmt: skip

    def _spec_shape(self, call: Visible, array: np.ndarray) -> np.ndarray:
        return array.reshape(tuple(axis.dim.size(self.sizes) for axis in call.tensor.axes))

    def sides(self) -> Worst | None:
        """The entry where left - right is largest against both sides' bounds; for ≤, how far left is above right."""
        left, right = self.evaluate(self.law.left), self.evaluate(self.law.right)
        if not left.value.size:
            return None
        over = left.value - right.value
        over = np.maximum(over, 0) if self.law.relation == "<=" else np.abs(over)
        allowed = left.error + right.error
        with np.errstate(all="ignore"):
            ratio = np.where(over == 0, 0.0, np.where(np.isinf(allowed), 0.0, over / allowed))
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        where = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        index = tuple(int(i) for i in where)
        return Worst(
            "", index, float(left.value[where]), float(right.value[where]), float(allowed[where]), float(ratio[where])
        )


@cache
def _free(tensor: Tensor) -> tuple[Tensor, ...]:
    """The inputs that a tensor rests on, those included that a call takes and its result does not depend on."""
    found = dict.fromkeys(inputs(tensor))
    for call in calls(tensor):
        for argument in call.tensors():
            found.update(dict.fromkeys(_free(argument)))
    return tuple(found)


def _chosen(matrix: np.ndarray) -> tuple[TorchTensor, int]:
    """The int64 classes of a matrix of zeros and ones, and the value of ignore_index for rows of zeros."""
    kept = matrix.any(-1)
    return torch.from_numpy(np.where(kept, matrix.argmax(-1), IGNORE_INDEX).astype(np.int64)), IGNORE_INDEX


def _sure(value: np.ndarray) -> Bounded:
    return Bounded(np.asarray(value, dtype=np.float64), np.zeros(np.shape(value)))


def _key(tensor: Tensor) -> str:
    return f"{tensor.name}.{tensor.label.key}"


@cache
def _plan(tensor: Tensor, known: tuple[Tensor, ...]) -> Plan:
    return compile_results({"out": tensor}, {_key(t): t for t in known})
