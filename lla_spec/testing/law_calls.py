"""The calls of a law that a target can be asked for; the specification evaluates everything else."""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from lla_spec.calls import Call, Formula
from lla_spec.language import Law
from lla_spec.tensors import Tensor, is_input
from lla_spec.testing.targets import Target


@dataclass(frozen=True)
class Visible:
    """A call that the target can be asked for: its operation, and the parameter whose gradient it is ("" forward)."""

    tensor: Tensor
    operation: Formula
    gradient: str

    @property
    def name(self) -> str:
        call: Call = self.tensor.call
        given = ", ".join(a.name if isinstance(a, Tensor) else str(a) for a in call.arguments.values() if a is not None)
        return f"{self.operation.name}{'_vjp' if self.gradient else ''}({given})"


def visible_calls(law: Law, target: Target) -> list[Visible]:
    """The calls of both sides that the target can run, arguments before what they feed."""
    found: dict[Tensor, Visible] = {}

    def visit(tensor: Tensor) -> None:
        for other in tensor.call.tensors() if tensor.call is not None else tensor.dependencies:
            visit(other)
        call = _visible(tensor, target)
        if call is not None:
            found.setdefault(tensor, call)

    for side in (law.left, law.right):
        visit(side)
    return list(found.values())


def not_taken(law: Law, target: Target) -> list[str]:
    """The arguments in a law's calls that the target does not take."""
    found: dict[str, None] = {}
    for call in visible_calls(law, target):
        refused = target.support(call.operation.name).refused
        roles = {name: parameter.role for name, parameter in call.operation.parameters.items()}
        given = [role.argument for name, role in roles.items() if role and call.tensor.call.arguments[name] is not None]
        found.update((argument, None) for argument in given if argument in refused)
    return list(found)


def _visible(tensor: Tensor, target: Target) -> Visible | None:
    if tensor.call is None:
        return None
    formula, gradient = tensor.call.formula.gradient_of or (tensor.call.formula, "")
    if not formula.operation or not target.implements(formula.name):
        return None
    if gradient and not target.differentiable(formula.name):
        return None
    refused = target.support(formula.name).refused
    wanted = formula.parameters[gradient].role if gradient else None
    if wanted is not None and wanted.argument in refused:
        return None
    for name, parameter in formula.parameters.items():
        argument, role = tensor.call.arguments[name], parameter.role
        if argument is None or role is None:
            continue
        hidden = not role.argument and not _at_default(argument)
        hidden |= role.argument in refused and not (is_plain(argument) or argument == role.default)
        shared = isinstance(argument, Tensor) and not role.batched and len(argument.axes) > len(parameter.axes)
        if hidden or shared or (role.argument and role.kind == "mask" and not _boolean(argument)):
            return None  # the torch signature cannot say this: the specification evaluates the call
    return Visible(tensor, formula, gradient)


def _at_default(argument: Tensor | sp.Expr) -> bool:
    """An input that no torch signature has (softmax's mask): on a target it stands at its default."""
    return isinstance(argument, Tensor) and argument.role is not None and not argument.role.argument


def is_plain(argument: Tensor | sp.Expr | None) -> bool:
    """Whether an argument is an input of the law as it is."""
    return isinstance(argument, Tensor) and is_input(argument)


def _boolean(argument: Tensor | sp.Expr) -> bool:
    if isinstance(argument, Tensor):
        if argument.blocks:
            return all(block in (0, 1) for block in argument.blocks)
        return argument.role is not None and argument.role.kind == "mask"
    return argument in (0, 1)


def feeds(call: Tensor, other: Tensor) -> bool:
    """Whether `other` is made from `call`."""
    parts = other.call.tensors() if other.call is not None else other.dependencies
    return any(part is call or feeds(call, part) for part in parts)
