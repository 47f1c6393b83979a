"""What of a call is judged: whole where it is small, else sampled entries, on arguments cut to what these depend on.

Each tensor of an operation has letters for its axes, * for all leading ones together. An output's *free* letters are
those that its entries do not mix: cutting arguments, cotangent and output along one gives the same entries as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lla_spec.testing.watch_calls import Call, NotJudged, Operand

Shape = tuple[int, ...]
_LEAD = "*"


@dataclass(frozen=True)
class Layout:
    """`axes`: letters by torch name, "" for the result; `free`: letters that may be cut, by output ("" or argument);
    `work`: the letters of the arrays that an evaluation runs through, all letters unless given."""

    axes: Mapping[str, str]
    free: Mapping[str, str]
    work: tuple[str, ...] = ()


_ATTENTION = {"": "*ie", "q": "*i", "k": "*", "v": "*e"}  # free letters: a key's gradient mixes all queries
LAYOUTS: Mapping[str, Layout] = {
    "matmul": Layout({"a": "*nk", "b": "*km", "": "*nm"}, {"": "*nm", "a": "*nk", "b": "*km"}),
    "linear": Layout(
        {"x": "*k", "weight": "ck", "bias": "c", "": "*c"}, {"": "*c", "x": "*k", "weight": "ck", "bias": "ck"}
    ),
    "weighted_average": Layout({"weights": "*nm", "v": "*me", "": "*ne"}, {"": "*ne", "weights": "*nm", "v": "*me"}),
    "softmax": Layout({"x": "*j", "": "*j"}, {"": "*", "x": "*"}),
    "log_softmax": Layout({"x": "*j", "": "*j"}, {"": "*", "x": "*"}),
    "logsumexp": Layout({"x": "*j", "": "*"}, {"": "*", "x": "*"}),
    "attention": Layout({"q": "*id", "k": "*jd", "v": "*je", "mask": "*ij", "": "*ie"}, _ATTENTION, ("*ijd", "*ije")),
    "grouped_query_attention": Layout(
        {"q": "*hid", "k": "*gjd", "v": "*gje", "mask": "*hij", "": "*hie"}, _ATTENTION, ("*hijd", "*hije")
    ),
    "layer_norm": Layout({"x": "*k", "weight": "k", "bias": "k", "": "*k"}, {"": "*", "x": "*"}),
    "rms_norm": Layout({"x": "*k", "weight": "k", "": "*k"}, {"": "*", "x": "*"}),
    "residual_layer_norm": Layout(
        {"h": "*k", "sublayer": "*k", "weight": "k", "bias": "k", "": "*k"}, {"": "*", "h": "*", "sublayer": "*"}
    ),
    "embedding": Layout({"ids": "*", "weight": "vk", "": "*k"}, {"": "*k", "weight": "k"}, ("*v", "*k", "vk")),
    "output_softmax": Layout({"h": "*k", "w_out": "vk", "bias": "v", "": "*v"}, {"": "*", "h": "*"}),
    "cross_entropy": Layout({"logits": "*v", "targets": "*", "": ""}, {}),  # a mean knows how many rows there are
    "cross_entropy_sum": Layout({"logits": "*v", "targets": "*", "": ""}, {"logits": "*"}),
    "cross_entropy_none": Layout({"logits": "*v", "targets": "*", "": "*"}, {"": "*", "logits": "*"}),
    "linear_cross_entropy": Layout({"h": "*k", "w_out": "vk", "bias": "v", "targets": "*", "": ""}, {}),
}
"""An operation that is not here is judged whole."""


@dataclass
class Piece:
    """One output of a call (`output`: "" forward, else the argument whose gradient it is), cut to what is judged.

    `chosen` holds the positions that were kept, by letter (leading axes as one flat position).
    """

    output: str
    arguments: dict[str, Any]
    chosen: Mapping[str, Tensor]
    cutter: Cutter

    def cut(self, name: str, value: Tensor) -> Tensor:
        """A copy of the judged part of a tensor that lies as argument `name` (or the result, "") does."""
        return self.cutter.cut(name, value.detach(), self.chosen)

    def where(self, index: Shape) -> Shape:
        """The place in the whole output of an entry of the judged part."""
        return self.cutter.where(self.output, index, self.chosen)


class Cutter:
    """The shapes of a call, and how its tensors are cut. Raises NotJudged where they do not fit its layout."""

    def __init__(self, call: Call, entries: int) -> None:
        self.call, self.entries, self.layout = call, entries, LAYOUTS.get(call.operation, Layout({}, {}))
        self.values = {name: viewed(given) for name, given in call.operands.items()}
        self.sizes: dict[str, int] = {}
        self.leads: dict[str, Shape] = {}
        for name, value in self.values.items():
            self._measure(name, tuple(value.shape))
        try:
            self.lead = torch.broadcast_shapes(*self.leads.values()) if self.leads else ()
        except RuntimeError as error:
            raise NotJudged(str(error)) from None
        self.sizes[_LEAD] = math.prod(self.lead)

    def _measure(self, name: str, shape: Shape) -> None:
        axes = self.layout.axes.get(name)
        if axes is None:
            return
        own = axes.removeprefix(_LEAD)
        if len(shape) < len(own) or (axes[:1] != _LEAD and len(shape) > len(own)):
            raise NotJudged(f"{name} has shape {shape}, the declaration's axes are {axes}")
        if axes[:1] == _LEAD:
            self.leads[name] = shape[: len(shape) - len(own)]
        for letter, size in zip(own, shape[len(shape) - len(own) :], strict=True):
            known = self.sizes.get(letter, 1)
            self.sizes[letter] = max(known, size) if name != "mask" else known

    def free(self, output: str) -> str:
        """The letters that may be cut; a gradient summed over leading axes needs all of them."""
        letters = self.layout.free.get(output, "")
        if output and self.leads.get(output, self.lead) != self.lead:
            letters = letters.replace(_LEAD, "")
        return letters

    def piece(self, output: str, generator: torch.Generator, *, whole: bool = False) -> Piece:
        """The judged part of one output. Raises NotJudged where even one entry of each free letter is too much."""
        chosen = dict(self._choose("" if whole else self.free(output), generator))
        options = dict(self.call.options)
        if options.get("is_causal") and "i" in chosen:  # the triangle is square to the uncut queries
            options["is_causal"] = False
        arguments: dict[str, Any] = {}
        for name, value in self.values.items():
            arguments[name] = self.cut(name, value, chosen)
        if self.call.options.get("is_causal") and not options["is_causal"]:
            arguments["mask"] = self._triangle(chosen, arguments.get("mask"))
        return Piece(output, {**arguments, **options}, chosen, self)

    def _choose(self, free: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Positions by letter: halve the largest until the work fits. The last and the first are kept the longest."""
        kept = {letter: self.sizes[letter] for letter in free if letter in self.sizes}
        while self._work(kept) > self.entries:
            largest = max(kept, key=lambda letter: kept[letter], default=None)
            if largest is None or kept[largest] <= 1:
                shape = ", ".join(f"{name} {tuple(v.shape)}" for name, v in self.values.items())
                raise NotJudged(f"too large to judge with entries={self.entries}: {shape}")
            kept[largest] //= 2
        for letter, count in kept.items():
            size = self.sizes[letter]
            if count < size:
                ends = torch.tensor([size - 1, 0])[:count]
                inner = torch.randperm(max(size - 2, 0), generator=generator)[: max(count - 2, 0)] + 1
                yield letter, torch.cat([ends, inner]).sort().values

    def _work(self, kept: Mapping[str, int]) -> int:
        if not self.layout.axes:
            return max(value.numel() for value in self.values.values())
        groups = self.layout.work or ("".join(self.sizes),)
        return sum(math.prod(kept.get(letter, self.sizes.get(letter, 1)) for letter in group) for group in groups)

    def cut(self, name: str, value: Tensor, chosen: Mapping[str, Tensor]) -> Tensor:
        axes = self.layout.axes.get(name, "")
        own = axes.removeprefix(_LEAD)
        value = value.detach()
        for position, letter in enumerate(own, start=-len(own)):
            if letter in chosen and value.shape[position] != 1:
                value = value.index_select(position, chosen[letter].to(value.device))
        if axes[:1] == _LEAD and _LEAD in chosen:
            value = value.expand(*self.lead, *value.shape[value.dim() - len(own) :])
            at = torch.unravel_index(chosen[_LEAD].to(value.device), self.lead)
            value = value[at]
        return value.clone()

    def where(self, output: str, index: Shape, chosen: Mapping[str, Tensor]) -> Shape:
        axes = self.layout.axes.get(output, "")
        own = axes.removeprefix(_LEAD)
        split = len(index) - len(own)
        lead, rest = index[:split], index[split:]
        if _LEAD in chosen and axes[:1] == _LEAD:
            flat = chosen[_LEAD][lead[0]]
            lead = tuple(int(i) for i in torch.unravel_index(flat, self.lead))
        found = (int(chosen[letter][at]) if letter in chosen else at for letter, at in zip(own, rest, strict=True))
        index = (*lead, *found)
        rows = self.call.operands[output].rows if output else None
        return index if rows is None else (int(rows[index[0]]), *index[1:])

    def has_empty_rows(self) -> bool:
        """Whether some query may look at no key."""
        mask, causal = self.values.get("mask"), self.call.options.get("is_causal")
        if "i" not in self.sizes or (mask is None and not causal):
            return False
        visible = self._triangle({"i": torch.arange(self.sizes["i"])}, mask) if causal else mask
        assert visible is not None
        return not bool(visible.any(-1).all())

    def _triangle(self, chosen: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        n, m = self.sizes["i"], self.sizes["j"]
        shift = 0 if self.call.alignment == "top_left" else m - n
        rows = chosen["i"].to(self.values["q"].device)
        visible = torch.arange(m, device=rows.device) <= rows[:, None] + shift
        return visible if mask is None else visible & mask


def viewed(given: Operand) -> Tensor:
    return given.view(given.tensor.detach())
