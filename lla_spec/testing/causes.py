"""Why a kernel is wrong, as hypotheses that are cheap to try: the formula with ONE knob changed, and what it gives.

explaining.py says which of them gives the output of a kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sympy as sp
import torch
from torch import Tensor

from lla_spec.calls import Formula, calls
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.contracts import contract as contract_of
from lla_spec.evaluating.knobs import edges_in, float32_without_maximum, hidden_by, steps_in_io, sums_in_io
from lla_spec.interface import torch_parameters, torch_shape, unmerged_sizes
from lla_spec.tensors import Dim
from lla_spec.testing.cases import Case
from lla_spec.testing.causes_by_operation import changes
from lla_spec.testing.inputs import Arguments, arguments_of, build, mask_of
from lla_spec.testing.judge import Judgement, empty_rows
from lla_spec.testing.truth import Truth, as_numpy, truth_of

FINITE_SCORE = -1e4  # where a lower one is not low enough, this one is not either, and gives the same
EVERY_STEP = "every step is rounded to"  # the vaguest cause: a narrower one is looked for in a smaller case


@dataclass(frozen=True)
class Knob:
    """`words` for a person; `truth()` the outputs that the changed formula gives, with their bounds."""

    words: str
    truth: Callable[[], Truth]


def knobs(formula: Formula, found: Judgement, arguments: Arguments, contract: Contract) -> Iterator[Knob]:
    """Every knob of the formula, the likeliest first."""
    vjp = found.case.law == "vjp"

    def changed(**changes: object) -> Callable[[], Truth]:
        given: Arguments = {**arguments, **changes}  # pyright: ignore[reportAssignmentType]
        return lambda: truth_of(formula, given, contract, vjp=vjp)

    yield from (Knob(*known) for known in changes(formula, arguments, contract, vjp=vjp))
    yield from _scalar_knobs(formula, arguments, changed)
    yield from _mask_knobs(formula, found, arguments, contract, changed)
    yield from _operand_knobs(arguments, changed)
    yield from _kept_knobs(formula, found, contract)
    if vjp:
        yield from _gradient_knobs(formula, found, arguments, contract)
    yield from _rounding_knobs(formula, found, arguments, contract)


def _scalar_knobs(
    formula: Formula, arguments: Arguments, changed: Callable[..., Callable[[], Truth]]
) -> Iterator[Knob]:
    for name, parameter in arguments_of(formula).items():
        role = parameter.role
        assert role is not None
        if role.kind != "scalar" or role.default is None:
            continue
        sizes = _sizes(formula, arguments)
        own = sorted((s for s in role.default.free_symbols if isinstance(s, Dim)), key=str)
        if not own:  # eps: its square and its inverse are nobody's mistake
            yield Knob(f"{name} is left out ({name} = 0)", changed(**{name: float(np.finfo(np.float64).tiny)}))
            yield Knob(f"the given {name} is ignored for {float(role.default):g}", changed(**{name: None}))
            continue
        yield Knob(f"the {name} {role.default} is missing ({name} = 1)", changed(**{name: 1.0}))
        if arguments[name] is not None:
            yield Knob(f"the given {name} is ignored for {role.default}", changed(**{name: None}))
            continue
        for dim in own:
            for other, size in sizes.items():
                value = float(role.default.subs({dim: size}))
                if other != dim.name:
                    words = f"the {name} is {role.default.subs(dim, sp.Symbol(other))} instead of {role.default}"
                    yield Knob(words, changed(**{name: value}))
        default = role.default.subs({dim: sizes[dim.name] for dim in own})
        yield Knob(f"the {name} is {role.default**2} instead of {role.default}", changed(**{name: float(default**2)}))
        yield Knob(f"the {name} is {1 / role.default} instead of {role.default}", changed(**{name: float(1 / default)}))


def _sizes(formula: Formula, arguments: Arguments) -> dict[str, int]:
    """The declared dimensions as the arguments have them."""
    given = {n: arguments[a] for a, (n, p) in torch_parameters(formula).items() if p.role and p.role.kind != "mask"}
    shapes = {name: tuple(value.shape) for name, value in given.items() if isinstance(value, Tensor)}
    counts = {name: arguments[name] for name in formula.counts}
    return unmerged_sizes(formula, shapes, counts)[0]  # pyright: ignore[reportArgumentType]


def _mask_knobs(
    formula: Formula,
    found: Judgement,
    arguments: Arguments,
    contract: Contract,
    changed: Callable[..., Callable[[], Truth]],
) -> Iterator[Knob]:
    vjp = found.case.law == "vjp"
    mask = arguments.get("mask")
    if (isinstance(mask, Tensor) or arguments.get("is_causal")) and not vjp:
        given = {name: as_numpy(value) for name, value in arguments.items()}
        yield Knob(
            "what the mask hides gets a finite score, and all that is kept may be below it",
            lambda: _as_truth(hidden_by(formula.name, given, contract, FINITE_SCORE)),
        )
    if isinstance(mask, Tensor):
        yield Knob("the mask is ignored", changed(mask=None))
        yield Knob("the mask is inverted (True hides instead of shows)", changed(mask=~mask))
    if arguments.get("is_causal"):
        yield Knob("is_causal is ignored", changed(is_causal=False))
        yield Knob(
            "causal is aligned top-left, where n ≠ m asks for bottom-right",
            lambda: truth_of(formula, arguments, contract, vjp=vjp, alignment="top_left"),
        )
        for shift, words in ((1, "one key too many is visible"), (-1, "a query does not see its own key")):
            yield Knob(
                f"the causal diagonal is off by one: {words}",
                changed(is_causal=False, mask=_diagonal(formula, found.case, arguments, shift)),
            )
    empty = empty_rows(formula, found.case, arguments)
    if empty is not None and empty.any() and not vjp:
        what = "a row without keys" if "is_causal" in arguments else "a mask that keeps nothing"
        yield Knob(f"{what} gives NaN, not zeros", _nan_for_nothing(formula, arguments, contract, empty))
    if empty is not None and empty.any() and "q" in arguments:
        yield Knob(
            "a row without keys gives the mean of the values, not zeros",
            _mean_of_values(formula, found.case, arguments, contract, empty, vjp),
        )


def _diagonal(formula: Formula, case: Case, arguments: Arguments, shift: int) -> Tensor:
    """The mask that a causal diagonal moved by `shift` leaves open, and the given mask as well."""
    parameter, mask = mask_of(formula), arguments.get("mask")
    assert parameter is not None
    n, m = torch_shape(formula, parameter, dict(case.sizes))[-2:]
    visible = torch.ones(n, m, dtype=torch.bool, device=case.device).tril(m - n + shift)
    return visible & mask if isinstance(mask, Tensor) else visible


def _mean_of_values(
    formula: Formula, case: Case, arguments: Arguments, contract: Contract, empty: np.ndarray, vjp: bool
) -> Callable[[], Truth]:
    """Empty rows made to see every key with equal scores: their query is zero, their mask is open."""

    def truth() -> Truth:
        q = arguments["q"]
        assert isinstance(q, Tensor)
        hole = torch.from_numpy(empty.copy()).to(q.device)
        shown = _diagonal(formula, case, arguments, 0) if arguments.get("is_causal") else arguments.get("mask")
        assert isinstance(shown, Tensor)
        given: Arguments = {
            **arguments,
            "q": q.masked_fill(hole[..., None], 0),
            "mask": shown | hole[..., None],
            "is_causal": False,
        }
        found = truth_of(formula, given, contract, vjp=vjp)
        return found

    return truth


def _nan_for_nothing(
    formula: Formula, arguments: Arguments, contract: Contract, empty: np.ndarray
) -> Callable[[], Truth]:
    """0/0 in the rows that see nothing; every other row is right."""

    def truth() -> Truth:
        right = truth_of(formula, arguments, contract, vjp=False)[""]
        hole = np.broadcast_to(np.asarray(empty)[..., None], right.value.shape)
        return {"": Bounded(np.where(hole, np.nan, right.value), np.where(hole, 0.0, right.error))}

    return truth


def _kept_knobs(formula: Formula, found: Judgement, contract: Contract) -> Iterator[Knob]:
    """An answer that was kept, where the case gave the same storage other values before."""
    if found.case.special != "reuse":
        return
    before = build(formula, replace(found.case, seed=found.case.seed + 1, special="none")).arguments
    yield Knob(
        "the answer is that of the values that the same storage held before",
        lambda: truth_of(formula, before, contract, vjp=found.case.law == "vjp"),
    )


def _operand_knobs(arguments: Arguments, changed: Callable[..., Callable[[], Truth]]) -> Iterator[Knob]:
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or name == "grad_output":
            continue
        if value.dim() >= 2 and value.shape[-1] == value.shape[-2]:
            yield Knob(f"{name} is transposed", changed(**{name: value.transpose(-1, -2)}))
        if name == "bias":
            yield Knob("the bias is left out", changed(bias=None))


def _gradient_knobs(formula: Formula, found: Judgement, arguments: Arguments, contract: Contract) -> Iterator[Knob]:
    """Gradients that are missing; one gradient times a factor that a forgotten step of the chain rule would leave."""
    truth = truth_of(formula, arguments, contract, vjp=True)
    wanted = {key: output for key, output in found.outputs.items() if key in truth and truth[key].value.any()}
    none = [key for key, output in wanted.items() if not as_numpy(output).any()]
    if none:
        words = f"{' and '.join(none)} get{'' if none[1:] else 's'} no gradient"
        zeros = {**truth, **{key: _times(truth[key], 0.0) for key in none}}
        yield Knob(words, lambda: zeros)
    factors = {"its sign is flipped": -1.0, "it is doubled": 2.0, "it is halved": 0.5}
    scale = arguments.get("scale")
    if "scale" in arguments:
        default = next(p for p in formula.parameters.values() if p.role and p.role.argument == "scale").role
        assert default is not None and default.default is not None
        sizes = _sizes(formula, arguments)
        dims: Any = {dim: sizes[str(dim)] for dim in default.default.free_symbols}
        value = float(scale) if isinstance(scale, int | float) else float(default.default.subs(dims))
        if value:
            factors = {"it lacks the scale": 1 / value, "the scale is applied twice": value, **factors}
    for words, factor in factors.items():
        for key in truth:
            scaled = {**truth, key: _times(truth[key], factor)}
            yield Knob(f"the gradient of {key}: {words}", lambda scaled=scaled: scaled)


def _times(bounded: Bounded, factor: float) -> Bounded:
    """The bound grows by the cast's share as well: rounding is relative, so |factor| covers it for |factor| ≥ 1."""
    return Bounded(bounded.value * factor, bounded.error * max(abs(factor), 1.0))


def _rounding_knobs(formula: Formula, found: Judgement, arguments: Arguments, contract: Contract) -> Iterator[Knob]:
    given = {name: as_numpy(value) for name, value in arguments.items()}
    vjp = found.case.law == "vjp"
    yield Knob(
        "the maximum is not subtracted before exp: the exponentials over- or underflow",
        lambda: _as_truth(float32_without_maximum(formula.name, given, contract, vjp=vjp)),
    )
    if contract.io.name == "fp64":
        yield Knob("float64 is computed in float32", lambda: _in_float32(formula, found, arguments))
    if contract.io != contract.acc:
        for each, words in ((False, "are rounded to {} on their way"), (True, "are accumulated in {}")):
            yield Knob(
                f"sums {words.format(contract.io.name)}",
                lambda each=each: _as_truth(sums_in_io(formula.name, given, contract, vjp=vjp, each=each)),
            )
        for divides, declared in itertools.product((True, False), (False,) if vjp else (False, True)):
            yield Knob(
                f"{EVERY_STEP} {contract.io.name}",
                lambda divides=divides, declared=declared: _as_truth(
                    steps_in_io(formula.name, given, contract, vjp=vjp, divides=divides, declared=declared)
                ),
            )
    else:
        yield from _low_precision_knobs(formula, given, contract, vjp)


def _in_float32(formula: Formula, found: Judgement, arguments: Arguments) -> Truth:
    """What float32 may give where the arguments are rounded to it first; ValueError where an output has more digits."""
    outputs = [as_numpy(output) for output in found.outputs.values()]
    with np.errstate(over="ignore"):
        if not all(np.array_equal(x, x.astype(np.float32), equal_nan=True) for x in outputs):
            raise ValueError("an output is no float32 number")
    short: Arguments = {
        name: value.float().double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    return truth_of(formula, short, contract_of(None, "fp32"), vjp=found.case.law == "vjp")


def _low_precision_knobs(formula: Formula, given: dict[str, object], contract: Contract, vjp: bool) -> Iterator[Knob]:
    """fp32 or fp64 promised, and something inside kept in 16 bits."""
    inner = next(calls(formula.result), None)
    if inner is None:
        return
    for precision in ("bf16", "fp16"):
        for kind, words in (("result", "the result of"), ("argument", "the argument of")):
            yield Knob(
                f"{words} {inner.formula.name} is rounded to {precision}",
                lambda kind=kind, precision=precision: _as_truth(
                    edges_in(formula.name, given, contract, vjp=vjp, kind=kind, precision=precision)
                ),
            )


def _as_truth(found: Bounded | dict[str, Bounded]) -> Truth:
    return found if isinstance(found, dict) else {"": found}
