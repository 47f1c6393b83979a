"""What of a person's result is judged: all of it where that takes seconds, else sampled rows and those that stand out.

A large output is cut as `watch` cuts it: along the axes that its entries do not mix, to positions that are the same in
every run. To these come the rows of its largest entry, of its first entry that is not finite, and its smallest row, so
that a tile that was never written is looked at wherever it lies. The rest is not looked at, and `Part.said` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lla_spec.evaluating.arguments import prepare
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.testing.targets import operation_formula
from lla_spec.testing.truth import Truth, as_numpy, truth_of
from lla_spec.testing.watch_calls import Call, NotJudged
from lla_spec.testing.watch_pieces import _LEAD, LAYOUTS, Cutter, Piece

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Effort:
    """`products`: multiplications of one evaluation in float64; `entries`: of the largest array on its way."""

    products: int
    entries: int

    def times(self, factor: int) -> Effort:
        return Effort(self.products * factor, self.entries * factor)


SAMPLED, SAMPLED_EXACT = Effort(1 << 26, 1 << 21), Effort(1 << 19, 1 << 16)
"""About two seconds. Results in float64 are judged by balls, each of which costs as much as a hundred float64."""

WHOLE = 8
"""What no sample decides, such as a gradient that sums over the rows, may take so many times as much (some 3 GB)."""


class TooLarge(ValueError):
    """An output that no sample decides, and that is too large to be judged whole."""


@dataclass(frozen=True)
class Part:
    """What is judged of one output: `output` is "" or the argument whose gradient it is, of `shape`; `exact` its truth.

    `computed` is the judged part of the result, and `said` how much of its axes that is, "" where it is all.
    """

    output: str
    shape: Shape
    computed: Tensor
    exact: Bounded
    said: str = ""
    piece: Piece | None = None

    def where(self, index: Shape) -> Shape:
        """The place in the whole output of an entry of the part."""
        return self.piece.where(index) if self.piece is not None else index


def whole_truth(call: Call, grad: Tensor | None, contract: Contract) -> Truth:
    """Value and bound of every entry. Raises TooLarge, and ArgumentError for arguments that do not fit."""
    whole = _Judging(call, grad, contract)
    if not whole.fits(whole.effort.times(WHOLE)):
        raise TooLarge(f"{whole}: too large for the bound of every entry; ask for it at some of the rows")
    return whole.truth(whole.arguments)


def parts(call: Call, results: Mapping[str, Tensor], grad: Tensor | None, contract: Contract) -> Iterator[Part]:
    """The judged part of each output by name. Raises TooLarge at last, for those that could not be judged at all."""
    judging = _Judging(call, grad, contract)
    if judging.fits(judging.effort):
        truth = judging.truth(judging.arguments)
        yield from (Part(name, truth[name].value.shape, given, truth[name]) for name, given in results.items())
        return
    refused = []
    for output, result in results.items():
        part = judging.part(output, result)
        if part is None:
            refused.append(output)
        else:
            yield part
    if refused:
        what = f"the gradient of {' and of '.join(refused)}" if grad is not None else "the result"
        raise TooLarge(
            f"{judging}: {what} was not judged: it is too large to be judged whole, and no sample of rows decides it, "
            f"since each of its entries depends on all of them; judge it at fewer rows{_instead(call)}"
        )


def _instead(call: Call) -> str:
    return ', or the loss with reduction="none"' if call.operation in ("cross_entropy", "cross_entropy_sum") else ""


class _Judging:
    """One call whose outputs are to be judged."""

    def __init__(self, call: Call, grad: Tensor | None, contract: Contract) -> None:
        self.call, self.grad, self.contract = call, grad, contract
        self.formula = operation_formula(call.operation)
        self.effort = SAMPLED_EXACT if contract.io.name == "fp64" else SAMPLED
        given = {name: operand.tensor for name, operand in call.operands.items()}
        self.arguments: dict[str, Any] = {**given, **call.options, **self._cotangent(grad)}

    def __str__(self) -> str:
        given = ", ".join(f"{name} {tuple(operand.tensor.shape)}" for name, operand in self.call.operands.items())
        return f"{self.call.operation}({given})"

    @staticmethod
    def _cotangent(grad: Tensor | None) -> dict[str, Any]:
        return {} if grad is None else {"grad_output": grad}

    def truth(self, arguments: Mapping[str, Any]) -> Truth:
        return truth_of(self.formula, dict(arguments), self.contract, vjp=self.grad is not None)

    def fits(self, effort: Effort) -> bool:
        """Whether all outputs take no more than that. Shapes that do not fit are left to the oracle: it names them."""
        try:
            cutter = _Cutter(self.call, effort)
        except NotJudged:
            return True
        if self.grad is not None and self.call.operation in LAYOUTS and tuple(self.grad.shape) != cutter.shape(""):
            return True
        return not cutter.too_much() and self._entries(self.arguments) <= effort.entries

    def _entries(self, arguments: Mapping[str, Any]) -> int:
        given = {name: as_numpy(value) for name, value in arguments.items()}
        return prepare(self.formula, given, vjp=self.grad is not None).entries

    def part(self, output: str, result: Tensor) -> Part | None:
        """What is judged of an output that is too large; None where nothing can be."""
        if self.call.operation in LAYOUTS:
            return self._sampled(output, result, self.effort) or self._sampled(output, result, self.effort.times(WHOLE))
        if not self.fits(self.effort.times(WHOLE)):
            return None
        exact = self.truth(self.arguments)[output]
        return Part(output, exact.value.shape, result, exact)

    def _sampled(self, output: str, result: Tensor, effort: Effort) -> Part | None:
        """The output on sampled positions; None where even one of each axis is too much."""
        cutter = _Cutter(self.call, effort)
        shape = cutter.shape(output)
        if tuple(result.shape) != shape:
            return Part(output, shape, result, Bounded(as_numpy(result), as_numpy(result)))  # its shape is the news
        cutter.also = cutter.outstanding(output, result.detach())
        while True:
            try:
                piece = cutter.piece(output, torch.Generator().manual_seed(0))
            except NotJudged:
                return None
            grad = None if self.grad is None else piece.cut("", self.grad)
            arguments = {**piece.arguments, **self._cotangent(grad)}
            if self._entries(arguments) <= effort.entries:
                exact = self.truth(arguments)[output]
                return Part(output, shape, piece.cut(output, result), exact, cutter.said(piece), piece)
            cutter.entries //= 2


class _Cutter(Cutter):
    """A cutter to an effort, whose samples contain the positions `also`, by letter."""

    def __init__(self, call: Call, effort: Effort) -> None:
        super().__init__(call, effort.products)
        self.also: Mapping[str, Tensor] = {}
        for name, value in self.values.items():
            own = self.layout.axes.get(name, "").removeprefix(_LEAD)
            spread = (1,) if name == "mask" else ()
            fit = [n in (self.sizes[x], *spread) for x, n in zip(own[::-1], value.shape[::-1], strict=False)]
            if not all(fit):
                raise NotJudged(f"{name} has shape {tuple(value.shape)}, which does not fit the others")
        whole = any(set(self.sizes) <= set(own) for own in self.layout.axes.values())
        if whole and not self.layout.work:  # nothing but an argument's entries is run through
            self.entries = effort.entries

    def too_much(self) -> bool:
        """Whether the call has to be cut."""
        return self._work({}) > self.entries

    def shape(self, output: str) -> Shape:
        """That of the whole output."""
        if output:
            return tuple(self.values[output].shape)
        own = self.layout.axes[""]
        return (*(self.lead if own[:1] == _LEAD else ()), *(self.sizes[letter] for letter in own.removeprefix(_LEAD)))

    def _choose(self, free: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        for letter, positions in super()._choose(free, generator):
            more = self.also.get(letter, positions)
            few = len(positions) < len(more)  # then another one would be another half of the work
            yield letter, more[: len(positions)].unique() if few else torch.cat([positions, more]).unique()

    def outstanding(self, output: str, result: Tensor) -> dict[str, Tensor]:
        """Where its first entry that is not finite, its smallest row and its largest entry are, by letter."""
        if not result.numel():
            return {}
        width = result.shape[-1] if result.dim() else 1
        rows = result.reshape(-1, width)
        largest = rows.abs().amax(1)  # NaN where the row has one
        wild = ~torch.isfinite(largest)
        chosen = [int(wild.int().argmax()), int(largest.argmin()), int(torch.where(wild, -1, largest).argmax())]
        flat = [row * width + int(rows[row].abs().argmax()) for row in chosen]  # argmax takes NaN for the largest
        places = torch.unravel_index(torch.tensor(flat), tuple(result.shape) or (1,))
        own = self.layout.axes[output].removeprefix(_LEAD)
        cut = len(places) - len(own) if result.dim() else 0
        found = dict(zip(own, places[cut:], strict=True)) if own else {}
        if cut and tuple(result.shape[:cut]) == self.lead:
            found[_LEAD] = _flattened(places[:cut], self.lead)
        return found

    def said(self, piece: Piece) -> str:
        """ "16 of 8,192 on axis -2, 32 of 64 on axis -1"."""
        own = self.layout.axes[piece.output].removeprefix(_LEAD)
        told = []
        for letter, positions in piece.chosen.items():
            if letter == _LEAD:
                where = "on axis 0" if len(self.lead) == 1 else "of the leading axes"
            else:
                where = f"on axis {own.index(letter) - len(own)}"
            told.append(f"{len(positions):,} of {self.sizes[letter]:,} {where}")
        return ", ".join(told)


def _flattened(places: Sequence[Tensor], shape: Shape) -> Tensor:
    flat = torch.zeros_like(places[0])
    for place, size in zip(places, shape, strict=True):
        flat = flat * size + place
    return flat
