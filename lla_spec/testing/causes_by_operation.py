"""Mistakes that belong to one operation, as outputs: the declared formula with one step changed, in float64.

`changes(...)` gives (words, outputs with their bounds) for causes.py. A changed output has the right one's bound, cast
anew, so that one cause is told from another by its value alone; one that sums right outputs has the bound of that sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lla_spec import tensors as spec
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.interface import IGNORE_INDEX, is_per_matrix, torch_parameters
from lla_spec.language import Formula
from lla_spec.testing.inputs import Arguments
from lla_spec.testing.mistakes import BACKWARD, FORWARD, Change, times
from lla_spec.testing.targets import operation_formula
from lla_spec.testing.truth import Truth, as_numpy, truth_of

Named = tuple[str, Callable[[], Truth]]


def changes(formula: Formula, arguments: Arguments, contract: Contract, *, vjp: bool) -> Iterator[Named]:
    """(words for a person, the outputs that this mistake gives) for every mistake known of an operation."""

    def truth(change: Change) -> Truth:
        right = truth_of(formula, arguments, contract, vjp=vjp)
        with np.errstate(all="ignore"):
            found = change({name: as_numpy(value) for name, value in arguments.items()}, right)
        if not set(found) <= set(right):
            raise ValueError("this mistake is in what these arguments do not ask for")
        return {**right, **{key: _recast(value, right[key], contract) for key, value in found.items()}}

    def changed(**other: object) -> Truth:
        given: Arguments = {**arguments, **other}  # pyright: ignore[reportAssignmentType]
        return truth_of(formula, given, contract, vjp=vjp)

    for words, change in (BACKWARD if vjp else FORWARD).get(formula.name, {}).items():
        yield words, lambda change=change: truth(change)
    for words, replaced in (_replaced_backward if vjp else _replaced)(formula, arguments):
        yield words, lambda replaced=replaced: changed(**replaced)
    if not vjp:
        return
    for words, change in _means_over_rows(formula, arguments):
        yield words, lambda change=change: truth(change)
    yield from _sums_over_matrices(formula, arguments, contract)
    if "targets" in arguments and "logits" in arguments:
        yield "positions without a target get P, not 0", lambda: _probability_on_padding(formula, arguments, contract)
    if formula.name == "grouped_query_attention":
        for words, over_group, names in _HEADS:
            yield words, lambda over=over_group, names=names: _by_head(formula, arguments, contract, over, names)


def _recast(value: np.ndarray, right: Bounded, contract: Contract) -> Bounded:
    """A changed value with the right one's bound before the cast."""
    if value.shape != right.value.shape or not np.isfinite(value).all():
        raise ValueError("this mistake gives no such output")
    return Bounded(value, contract.cast(value, right.pre_cast_error))


# ---- other arguments


def _replaced(formula: Formula, arguments: Arguments) -> Iterator[tuple[str, dict[str, object]]]:
    """Mistakes that are the formula itself at other arguments."""
    mean = arguments.get("mean")
    if isinstance(mean, Tensor):
        words = "not subtracted" if formula.name == "pca_transform" else "not added"
        yield f"the mean is {words}", {"mean": torch.zeros_like(mean)}
    yield from _read_wrongly(formula, arguments)
    if formula.name == "grouped_query_attention":
        yield _TILED, _repeated(arguments, tile=True)
    if formula.name == "multi_head_attention":
        yield from _replaced_projections(arguments)
    if formula.name == "cross_entropy_none":
        targets = arguments["targets"]
        assert isinstance(targets, Tensor)
        clamped = targets.masked_fill(targets == arguments["ignore_index"], 0)
        yield "positions without a target get the loss of word 0", {"targets": clamped}


def _replaced_backward(formula: Formula, arguments: Arguments) -> Iterator[tuple[str, dict[str, object]]]:
    g = arguments["grad_output"]
    assert isinstance(g, Tensor)
    yield "the cotangent is ignored, as if it were 1", {"grad_output": torch.ones_like(g)}
    yield from _read_wrongly(formula, arguments)


def _read_wrongly(formula: Formula, arguments: Arguments) -> Iterator[tuple[str, dict[str, object]]]:
    """An argument that is not looked at, or that of another matrix: forward and backward alike."""
    for name, (_, parameter) in torch_parameters(formula).items():
        role, value = parameter.role, arguments.get(name)
        if role is None or not isinstance(value, Tensor):
            continue
        if is_per_matrix(formula, parameter) and math.prod(_lead_of(value, parameter)) > 1:
            own = value.flatten(0, -len(parameter.axes) - 1)
            yield f"every matrix is given the {name} of the first", {name: own[0].expand_as(value)}
            yield f"every matrix is given the {name} of the next", {name: own.roll(-1, 0).reshape(value.shape)}
        ignored = arguments.get(role.ignored) if role.ignored else IGNORE_INDEX
        if ignored != IGNORE_INDEX and bool((value == ignored).any()):
            yield f"the given {role.ignored} is ignored for {IGNORE_INDEX}", {role.ignored: IGNORE_INDEX}


def _replaced_projections(arguments: Arguments) -> Iterator[tuple[str, dict[str, object]]]:
    heads, groups = arguments["num_heads"], arguments["num_kv_heads"]
    assert isinstance(heads, int)
    scaled = {name: _wide(arguments.get(name), heads**-0.5) for name in ("w_q", "b_q")}
    yield "the scores are scaled by all heads' features, 1/√(h a) for 1/√a", scaled
    if isinstance(groups, int) and groups:
        given = {name: arguments.get(name) for name in ("w_k", "w_v", "b_k", "b_v")}
        tiled = {name: _tiled(x, heads // groups) for name, x in given.items()}
        yield _TILED, {**tiled, "num_kv_heads": heads}


def _wide(x: object, factor: float) -> object:
    return x.double() * factor if isinstance(x, Tensor) else x


_TILED = "query head p looks at key-value head p mod g (tile), not p // r (repeat_interleave)"


def _tiled(x: object, times: int) -> object:
    return x.repeat(times, *[1] * (x.dim() - 1)) if isinstance(x, Tensor) else x


def _means_over_rows(formula: Formula, arguments: Arguments) -> Iterator[tuple[str, Change]]:
    """The gradient of what all rows share, averaged where it is a sum."""
    shared = _shared(formula)
    real = (n for n, (_, p) in torch_parameters(formula).items() if p.role and p.role.kind == "real")
    leading = next((arguments[name] for name in real if name not in shared), None)
    if not isinstance(leading, Tensor) or leading.dim() < 2 or formula.name == "multi_head_attention":
        return
    for name, parameter in shared.items():
        value = arguments.get(name)
        if isinstance(value, Tensor):
            rows = leading[..., 0].numel() // max(math.prod(_lead_of(value, parameter)), 1)
            if rows > 1:
                yield f"the gradient of {name} is averaged over the rows, not summed", _divided(rows, name)


def _sums_over_matrices(formula: Formula, arguments: Arguments, contract: Contract) -> Iterator[Named]:
    """The gradient of what each matrix of rows has of its own, summed as if all of them shared it."""

    def summed(name: str, lead: int) -> Truth:
        right = truth_of(formula, arguments, contract, vjp=True)
        return {**right, name: _added(right[name], tuple(range(lead)), contract)}

    for name, parameter in _shared(formula).items():
        value = arguments.get(name)
        if isinstance(value, Tensor) and math.prod(_lead_of(value, parameter)) > 1:
            lead = len(_lead_of(value, parameter))
            yield f"the gradient of {name} is summed over the matrices", lambda name=name, lead=lead: summed(name, lead)


def _added(right: Bounded, over: tuple[int, ...], contract: Contract) -> Bounded:
    """The sum over some axes in each place of them: its terms' errors and its own, cast anew."""
    value, error = right.value.sum(over, keepdims=True), right.pre_cast_error.sum(over, keepdims=True)
    terms = right.value.size // max(value.size, 1)
    error = error + contract.gamma(terms) * (np.abs(right.value).sum(over, keepdims=True) + error)
    value, error = (np.broadcast_to(x, right.value.shape) for x in (value, error))
    return Bounded(value, contract.cast(value, error))


def _shared(formula: Formula) -> dict[str, spec.Tensor]:
    """The real arguments that rows share, by torch name: a weight, and what each matrix of rows may have of its own."""
    real = {n: p for n, (_, p) in torch_parameters(formula).items() if p.role and p.role.kind == "real"}
    return {n: p for n, p in real.items() if (p.role and not p.role.batched) or is_per_matrix(formula, p)}


def _lead_of(value: Tensor, parameter: spec.Tensor) -> tuple[int, ...]:
    return tuple(value.shape[: value.dim() - len(parameter.axes)])


def _divided(rows: int, name: str) -> Change:
    return times(lambda a: 1 / rows, name)


# ---- positions without a target


def _probability_on_padding(formula: Formula, arguments: Arguments, contract: Contract) -> Truth:
    """P where P - onehot has no onehot: the gradient of word 0's loss there, and the onehot given back."""
    logits, targets, g = (arguments[name] for name in ("logits", "targets", "grad_output"))
    assert isinstance(logits, Tensor) and isinstance(targets, Tensor) and isinstance(g, Tensor)
    padding = targets == arguments["ignore_index"]
    count = max(int((~padding).sum()), 1) if formula.keywords["reduction"] == "mean" else 1
    each = (g.double() / count).expand(targets.shape)
    given: Arguments = {**arguments, "targets": targets.masked_fill(padding, 0), "grad_output": each}
    found = truth_of(operation_formula("cross_entropy_none"), given, contract, vjp=True)["logits"]
    value = found.value.copy()
    value[..., 0] += as_numpy(each) * as_numpy(padding)
    return {"logits": _recast(value, found, contract)}


# ---- heads


def _repeated(arguments: Arguments, *, tile: bool) -> dict[str, Any]:
    """k and v once for each query head: tiled, or each head's own (repeat_interleave)."""
    q, k, v = (arguments[name] for name in ("q", "k", "v"))
    assert isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)
    times = q.shape[-3] // k.shape[-3]
    if tile:
        tiles = [1] * (q.dim() - 3) + [times, 1, 1]
        return {"k": k.repeat(tiles), "v": v.repeat(tiles)}
    return {"k": k.repeat_interleave(times, -3), "v": v.repeat_interleave(times, -3)}


_HEADS = (
    (_TILED, "tile", ("k", "v")),
    ("the gradient of k is that of one head of the group, not of all", "first", ("k",)),
    ("the gradient of v is that of one head of the group, not of all", "first", ("v",)),
)


def _by_head(formula: Formula, arguments: Arguments, contract: Contract, over: str, names: tuple[str, ...]) -> Truth:
    """Gradients of keys and values that were repeated for each head, brought back to the groups by a wrong way."""
    right = truth_of(formula, arguments, contract, vjp=True)
    given: Arguments = {**arguments, **_repeated(arguments, tile=over == "tile")}
    each = truth_of(formula, given, contract, vjp=True)
    found = {**right, "q": each["q"]}
    for name in names:
        groups, heads = right[name].value.shape[-3], each[name].value
        split = (*heads.shape[:-3], *((-1, groups) if over == "tile" else (groups, -1)), *heads.shape[-2:])
        value = heads.reshape(split)
        found[name] = _recast(value.sum(-4) if over == "tile" else value[..., 0, :, :], right[name], contract)
    return found
