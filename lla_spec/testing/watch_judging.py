"""One output of a watched call against its oracle: value, bound, and what explains an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.interface import is_per_matrix, torch_parameters, unmerged_sizes
from lla_spec.language import Formula
from lla_spec.testing.cases import Case
from lla_spec.testing.causes import knobs
from lla_spec.testing.inputs import DTYPE_NAMES
from lla_spec.testing.judge import Judgement, worst_entry
from lla_spec.testing.targets import operation_formula
from lla_spec.testing.truth import Truth, truth_of
from lla_spec.testing.watch_calls import Call
from lla_spec.testing.watch_pieces import Piece


@dataclass(frozen=True)
class Site:
    """Where a call stands: its number in time, the module whose forward made it, and the function that was called."""

    number: int
    module: str
    function: str

    def __str__(self) -> str:
        return f"call {self.number}, {self.module or 'outside of the model'}, {self.function}"


@dataclass
class Found:
    """An output that waits to be judged. Several pieces: one tensor was passed as several arguments."""

    site: Site
    call: Call
    pieces: list[Piece]
    computed: Tensor
    grad_outputs: list[Tensor] | None  # one for each piece; None for a forward result

    @property
    def output(self) -> str:
        return "+".join(piece.output for piece in self.pieces)


def _truth(found: Found, piece: Piece, grad: Tensor | None, contract: Contract) -> Truth:
    formula = operation_formula(found.call.operation)
    given = piece.arguments if grad is None else {**piece.arguments, "grad_output": grad}
    return truth_of(formula, given, contract, vjp=grad is not None, alignment=found.call.alignment)


def bounded_of(found: Found, contract: Contract) -> Bounded:
    """Value and bound of the output; the sum over the arguments as which one tensor was passed."""
    if found.grad_outputs is None:
        return _truth(found, found.pieces[0], None, contract)[""]
    parts = [
        _truth(found, piece, grad, contract)[piece.output]
        for piece, grad in zip(found.pieces, found.grad_outputs, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    value, error = sum(p.value for p in parts), sum(p.error for p in parts)
    for _ in parts[1:]:  # each addition rounds to the gradient's dtype
        error = error + contract.io.half_spacing(np.abs(value) + error) + contract.io.smallest_normal
    return Bounded(np.asarray(value), np.asarray(error))


def cause_of(found: Found, contract: Contract) -> str:
    """The changed formula that gives this output, where one does; "" otherwise."""
    if len(found.pieces) > 1:
        return ""
    formula = operation_formula(found.call.operation)
    piece = found.pieces[0]
    arguments = {**dict.fromkeys(torch_parameters(formula)), **piece.arguments}
    vjp = found.grad_outputs is not None
    if vjp:
        assert found.grad_outputs is not None
        arguments["grad_output"] = found.grad_outputs[0]
    outputs = {found.output: found.computed}
    judgement = Judgement(_case(formula, found, arguments, vjp), outputs=outputs, inputs=arguments)
    try:
        for knob in knobs(formula, judgement, arguments, contract):
            words = _explains(knob, outputs, contract)
            if words:
                return words
    except (ValueError, ArithmeticError, IndexError, KeyError, AssertionError):
        return ""  # a knob that does not turn on these arguments ends the list
    return ""


def _explains(knob: Any, outputs: Mapping[str, Tensor], contract: Contract) -> str:
    try:
        truth = knob.truth()
        (key,) = outputs
        if key not in truth or truth[key].value.shape != tuple(outputs[key].shape):
            return ""
        worst = worst_entry(dict(outputs), {key: truth[key]}, contract)
    except (ValueError, ArithmeticError, IndexError):
        return ""
    if worst is None or not (worst.ratio <= 1) or not np.isfinite(truth[key].error).any():
        return ""
    return f"{knob.words} (so changed, the formula reproduces the output at {worst.ratio:.2g} × its bound)"


def _case(formula: Formula, found: Found, arguments: Mapping[str, Any], vjp: bool) -> Case:
    """The sizes of the judged part, for the knobs that ask for them."""
    names = torch_parameters(formula)
    shapes = {
        names[key][0]: tuple(value.shape)
        for key, value in arguments.items()
        if isinstance(value, Tensor) and key in names and value.dtype != torch.bool
    }
    counts = {key: int(arguments[key]) for key in formula.counts if arguments.get(key) is not None}
    sizes, _ = unmerged_sizes(formula, shapes, counts)
    own = len(formula.result.axes) - (formula.rows is not None)
    result = arguments["grad_output"] if vjp else found.computed
    return Case(
        formula.name,
        "vjp" if vjp else "definition",
        DTYPE_NAMES[found.computed.dtype],
        sizes=tuple(sizes.items()),
        batch=tuple(result.shape[: result.dim() - own]),
        causal=bool(arguments.get("is_causal")),
        each=any(
            is_per_matrix(formula, formula.parameters[n]) and len(s) > len(formula.parameters[n].axes)
            for n, s in shapes.items()
        ),
    )
