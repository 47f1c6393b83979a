"""For people's own tensors and functions: `assert_correct`, `bound`, `verify`.

assert_correct("attention", out, q, k, v, is_causal=True)      # no atol, no rtol
tolerance = bound("attention", q, k, v, dtype=torch.bfloat16)  # element by element
verify({"attention": my_attention})                            # the table
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lla_spec.calculus import gradient_parameters
from lla_spec.certified import Certified
from lla_spec.evaluating.arguments import ArgumentError
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.contracts import contract as named_contract
from lla_spec.evaluating.edges import ratios
from lla_spec.interface import signature
from lla_spec.testing.addresses import address
from lla_spec.testing.certified import complaint, sizes_of
from lla_spec.testing.inputs import DTYPE_NAMES
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.sampled import Part, parts, whole_truth
from lla_spec.testing.targets import load, operation_formula
from lla_spec.testing.truth import as_numpy
from lla_spec.testing.verdicts import Result
from lla_spec.testing.watch_calls import Call, NotJudged, read, reader_of


@dataclass(frozen=True)
class Looked:
    """What `assert_correct` looked at in one output ("" or the argument whose gradient it is).

    `said` is which part of its axes, "" where every entry was judged; `ratio` the worst error / bound of these;
    `unbound` how many have an infinite bound, since something may overflow on the way: there every answer passes.
    """

    output: str
    judged: int
    entries: int
    said: str
    ratio: float
    unbound: int = 0

    def __str__(self) -> str:
        name = f"gradient of {self.output}: " if self.output else ""
        part = f"{self.judged:,} of {self.entries:,} entries" if self.said else f"all {self.entries:,} entries"
        beside = "; the others were not looked at" if self.said else ""
        if self.unbound:
            few = "their" if self.unbound == self.judged else f"{self.unbound:,} of their"
            beside = f"; {few} bounds are infinite (a step may overflow), where every answer passes{beside}"
        where = f" ({self.said})" if self.said else ""
        return f"{name}{part} judged{where}, worst error / bound {self.ratio:.2g}{beside}"


@dataclass(frozen=True)
class Checked:
    """What `assert_correct` found correct, and in how many seconds."""

    operation: str
    looked: tuple[Looked, ...]
    seconds: float

    @property
    def ratio(self) -> float:
        """The worst error / bound."""
        return max((each.ratio for each in self.looked), default=0.0)

    def __str__(self) -> str:
        return "\n".join(f"{self.operation}: {each} ({self.seconds:.1f} s)" for each in self.looked)


def _call(operation: str, args: Any, kwargs: Any) -> tuple[Call, Tensor | None, Tensor]:
    """The call, the cotangent of a `_vjp`, and the first tensor. Raises TypeError or ArgumentError in one line."""
    name, vjp = operation.removesuffix("_vjp"), operation.endswith("_vjp")
    face = signature(operation_formula(name), vjp=vjp)
    try:
        given = face.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{operation}{face}: {error}") from None
    grad = given.pop("grad_output", None)
    first = next((value for value in given.values() if isinstance(value, Tensor)), None)
    if first is None or (vjp and not isinstance(grad, Tensor)):
        raise TypeError(f"{operation}{face}: its tensors must be torch.Tensor")
    try:
        call = read(reader_of(name), (), given)
        if any(operand.tensor.is_meta for operand in call.operands.values()):
            raise NotJudged("an argument is a meta tensor, which has no numbers")
        return call, grad, first
    except NotJudged as reason:
        raise ArgumentError(f"{operation}: {reason}") from None


def _readable(what: str, value: Any) -> Tensor:
    """A tensor whose numbers can be read. Raises AssertionError."""
    if not isinstance(value, Tensor):
        raise AssertionError(f"{what} is {type(value).__name__}, it must be a torch.Tensor")
    if value.is_meta or value.layout != torch.strided:
        kind = "a meta tensor, which has no numbers" if value.is_meta else f"a tensor of the layout {value.layout}"
        raise AssertionError(f"{what} is {kind}; it must be a dense torch.Tensor")
    return value


def _contract(operation: str, dtype: torch.dtype, contract: Any) -> Contract:
    io = DTYPE_NAMES.get(dtype)
    if io is None:
        raise ValueError(f"{operation}: dtype {dtype} has no contract; there are {', '.join(map(str, DTYPE_NAMES))}")
    return named_contract(contract, io)


def bound(operation: str, *args: Any, dtype: torch.dtype | None = None, contract: Any = None, **kwargs: Any) -> Any:
    """What rounding may do to each entry of `operation` at these tensors, in `dtype` (the tensors' unless given).

    A float64 tensor of the result's shape; for an operation's `_vjp` a dict of them by argument name. Raises TooLarge
    (a ValueError) where that would take minutes.

    >>> float(bound("matmul", torch.ones(1, 4), torch.ones(4, 1), dtype=torch.bfloat16)) < 2**-5
    True
    """
    call, grad, first = _call(operation, args, kwargs)
    truth = whole_truth(call, grad, _contract(operation, dtype or first.dtype, contract))
    if "" in truth:
        return torch.from_numpy(np.array(truth[""].error))
    return {name: torch.from_numpy(np.array(b.error)) for name, b in truth.items()}


def assert_correct(operation: str, result: Any, *args: Any, contract: Any = None, **kwargs: Any) -> Checked:
    """Raise AssertionError unless `result` is `operation` at these arguments, within the bound of its dtype.

    For `<operation>_vjp`, `result` is the tuple of gradients. The message names the worst entry. Large tensors are
    judged on rows that are the same in every run, and on those that stand out; the message and what is returned say
    which part was looked at and how long it took. Raises TooLarge (a ValueError), after the others were judged, for
    what no sample decides: the gradient of attention's keys at 8192 queries, the mean loss of 4096 rows of 32000.

    >>> a, b = torch.ones(2, 3), torch.ones(3, 2)
    >>> print(str(assert_correct("matmul", a @ b, a, b)).rpartition(" (")[0])
    matmul: all 4 entries judged, worst error / bound 0
    """
    began = time.monotonic()
    if not isinstance(operation, str):
        way = "assert_correct('softmax', y, x)"
        raise TypeError(
            f"assert_correct: the operation's name comes first, got {type(operation).__name__}; write {way}"
        )
    formula = operation_formula(operation.removesuffix("_vjp"))
    results = list(result) if isinstance(result, tuple | list) else [result]
    first = next((r for r in results if isinstance(r, Tensor)), None)
    if first is None:
        raise AssertionError(f"{operation}: the result is {type(result).__name__}, it must be a torch.Tensor")
    declared = _contract(operation, first.dtype, contract)
    if isinstance(formula, Certified):
        wrong = complaint(formula, result, _certified_arguments(formula, args, kwargs), declared)
        if wrong:
            raise AssertionError(wrong)
        looked = [Looked("", r.numel(), r.numel(), "", 0.0) for r in results]
        return Checked(operation, tuple(looked), time.monotonic() - began)
    call, grad, _ = _call(operation, args, kwargs)
    named = _named(operation, call, results, grad is not None)
    judged = parts(call, named, grad, declared)
    looked = [_look(operation, part, declared, began) for part in judged]
    return Checked(operation, tuple(looked), time.monotonic() - began)


def _certified_arguments(formula: Certified, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """By name. Raises TypeError and ArgumentError for a call of another signature, or a count that is out of range."""
    try:
        given = dict(formula.signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise TypeError(f"{formula.name}{formula.signature}: {error}") from None
    why = formula.impossible(sizes_of(formula, given)[0])
    if why:
        raise ArgumentError(f"{formula.name}: {why}")
    return given


def _named(operation: str, call: Call, results: list[Any], vjp: bool) -> dict[str, Tensor]:
    """The results by output. A gradient that is left out, or None, may be that of an argument that was left out."""
    keys = list(_gradients(call)) if vjp else [""]
    given = results if len(keys) == len(results) else [value for value in results if value is not None]
    if len(given) != len(keys):
        wanted = f"{len(keys)} gradients ({', '.join(keys)})" if vjp else "one tensor"
        raise AssertionError(f"{operation}: the result is {len(results)} values, it must be {wanted}")
    told = [f"{operation}: the {f'gradient of {key}' if key else 'result'}" for key in keys]
    return {key: _readable(what, value) for key, what, value in zip(keys, told, given, strict=True)}


def _gradients(call: Call) -> Iterator[str]:
    formula = operation_formula(call.operation)
    for name in gradient_parameters(formula):
        role = formula.parameters[name].role
        if role is not None and role.argument in call.operands:
            yield role.argument


def _look(operation: str, part: Part, contract: Contract, began: float) -> Looked:
    """Judge one output, or the part of it. Raises AssertionError."""
    output = f", gradient of {part.output}" if part.output else ""
    given = part.computed
    if part.piece is None and tuple(given.shape) != part.shape:
        raise AssertionError(f"{operation}{output}: the result has shape {tuple(given.shape)}, it must be {part.shape}")
    computed, exact = as_numpy(given), part.exact
    ratio = ratios(computed, exact, contract.io)
    size, unbound = int(np.prod(part.shape)), int(np.isinf(exact.error).sum())
    looked = Looked(part.output, ratio.size, size, part.said, float(ratio.max(initial=0.0)), unbound)
    if (ratio <= 1).all():
        return looked
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    where = part.where(tuple(map(int, at)))
    rest = f" of {ratio.size:,} judged" if part.said else f" of {ratio.size}"
    told = (
        f"; judged: {part.said}, in {time.monotonic() - began:.1f} s; the others were not looked at"
        if part.said
        else ""
    )
    raise AssertionError(
        f"{operation}{output}: {int((~(ratio <= 1)).sum())}{rest} entries are outside their bound; worst "
        f"[{','.join(map(str, where))}]: computed {computed[at]:.9g}, exact {exact.value[at]:.9g}, "
        f"error {abs(computed[at] - exact.value[at]):.2g} = {ratio[at]:.3g} × bound {exact.error[at]:.2g} "
        f"(contract {contract.describe()}){told}"
    )


def verify(
    target: Any,
    *,
    ops: Sequence[str] = (),
    laws: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    devices: Sequence[str] = (),
    contract: str | None = None,
    examples: int = 20,
    seed: int = 0,
    show: bool = True,
) -> list[Result]:
    """Check a target (module, mapping, object, path) against every law, print the table, return the rows."""
    from rich.console import Console

    from lla_spec.testing.table import accuracy_table, counts

    found = load(target)
    session = Session(found, Options(tuple(ops), tuple(laws), tuple(dtypes), tuple(devices), contract, examples, seed))
    results = [session.run(row) for row in session.rows()]
    if show:
        console = Console()
        console.print(accuracy_table(results, f"{found.name} {found.version}".strip()))
        for text in _told(session, results, target):
            console.print(text, markup=False, highlight=False, soft_wrap=True)  # a replay line is copied
        console.print(counts(results))
    return results


def _told(session: Session, results: list[Result], target: Any) -> Iterator[str]:
    """The failures, operation by operation: each function may lie in a file of its own."""
    from lla_spec.testing.diagnose import texts

    for operation in dict.fromkeys(result.row.op for result in results):
        own = [result for result in results if result.row.op == operation]
        yield from texts(session, own, address(target, session.target, operation))
