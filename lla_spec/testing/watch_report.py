"""What `watch` saw: the calls outside their bound, the worst of the others, and what was not judged and why."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.contracts import contract as named_contract
from lla_spec.evaluating.edges import hazards, ratios
from lla_spec.testing.inputs import DTYPE_NAMES
from lla_spec.testing.judge import Worst, worst_entry
from lla_spec.testing.threads import one_blas_thread
from lla_spec.testing.truth import as_numpy
from lla_spec.testing.watch_judging import Found, Site, bounded_of, cause_of


@dataclass(frozen=True)
class Failure:
    """An output with entries outside their bound. `worst` is the worst entry, at its place in the whole output."""

    site: Site
    operation: str
    output: str  # "" for the result, else the argument whose gradient it is
    outside: int
    judged: int
    worst: Worst
    contract: str
    cause: str = ""

    @property
    def ratio(self) -> float:
        return self.worst.ratio

    def __str__(self) -> str:
        output = f", gradient of {self.output}" if self.output else ""
        place = ",".join(map(str, self.worst.index))
        error = abs(self.worst.computed - self.worst.exact)
        text = (
            f"{self.site}: {self.operation}{output}: {self.outside} of {self.judged} judged entries are outside their "
            f"bound; worst [{place}]: computed {self.worst.computed:.9g}, exact {self.worst.exact:.9g}, "
            f"error {error:.2g} = {self.worst.ratio:.3g} × bound {self.worst.bound:.2g} (contract {self.contract})"
        )
        return f"{text}\n  cause: {self.cause}" if self.cause else text


@dataclass
class _Line:
    """One line of the table: an output of an operation, over its calls."""

    calls: int = 0
    entries: int = 0
    outside: int = 0
    evidence: int = 0
    hazards: int = 0
    worst: float = 0.0
    at: str = ""


class Seen:
    """The calls that a `watch` saw. Asking for anything judges what has been seen until then."""

    def __init__(self, contract: str | Mapping[str, Any] | None) -> None:
        self.contract = contract
        self.calls = 0
        self.functions: Counter[str] = Counter()  # how often each was called
        self.seconds_watching = 0.0
        self.seconds_judging = 0.0
        self._waiting: list[Found] = []
        self._failures: list[Failure] = []
        self._lines: dict[tuple[str, str, str], _Line] = {}
        self._skipped: Counter[tuple[str, str]] = Counter()
        self._explained: set[tuple[str, str, str]] = set()

    # ---- asked by people

    @property
    def failures(self) -> list[Failure]:
        """Every output outside its bound, in the order in which the model computed them."""
        self.judge()
        return self._failures

    @property
    def first(self) -> Failure | None:
        """The first output outside its bound; None where all are inside."""
        return next(iter(self.failures), None)

    @property
    def judged(self) -> int:
        """How many outputs (results and gradients) were judged."""
        self.judge()
        return sum(line.calls for line in self._lines.values())

    @property
    def not_judged(self) -> dict[tuple[str, str], int]:
        """How many outputs were seen and not judged, by what they are and why."""
        self.judge()
        return dict(self._skipped)

    def assert_correct(self) -> None:
        """Raise AssertionError with the first output that is outside its bound, or where nothing was judged at all."""
        if self.first is not None:
            more = f"\n{len(self.failures) - 1} more; see table()" if len(self.failures) > 1 else ""
            raise AssertionError(f"{self.first}{more}")
        if not self.judged:
            raise AssertionError(f"watch: nothing was judged\n{self.table()}")

    def table(self) -> str:
        """Worst error / bound for each operation, output and function; then what was not judged; then the time."""
        self.judge()
        head = ("operation", "output", "function", "calls", "entries", "evidence", "outside", "worst", "at")
        rows = [
            (op, output, function, line.calls, line.entries, line.evidence, line.outside, f"{line.worst:.3g}", line.at)
            for (op, output, function), line in sorted(self._lines.items())
        ]
        text = _columns([head, *rows])
        skipped = [f"  {count} × {what}: {why}" for (what, why), count in sorted(self._skipped.items())]
        unknown = sum(line.hazards for line in self._lines.values())
        text += ["seen, not judged:", *skipped] if skipped else []
        text += [f"{unknown} entries not judged: their bound is infinite (an overflow on the way)"] if unknown else []
        text += [
            f"{self.calls} calls seen; {self.seconds_watching:.2f} s watching, {self.seconds_judging:.2f} s judging"
        ]
        return "\n".join(text)

    # ---- told by the watcher

    def site(self, module: str, function: str) -> Site:
        """The next call."""
        self.calls += 1
        self.functions[function] += 1
        return Site(self.calls, module, function)

    def skip(self, site: Site, what: str, why: str) -> None:
        self._skipped[what or site.function, why] += 1

    def add(self, found: Found) -> None:
        self._waiting.append(found)

    def judge(self) -> None:
        """Judge everything that waits."""
        began = time.perf_counter()
        waiting, self._waiting = self._waiting, []
        with one_blas_thread():
            for found in waiting:
                try:
                    self._judge(found)
                except ValueError as error:  # arguments that the declaration refuses
                    gradient = f", gradient of {found.output}" if found.output else ""
                    self.skip(found.site, f"{found.call.operation}{gradient}", str(error))
        self.seconds_judging += time.perf_counter() - began

    def _judge(self, found: Found) -> None:
        operation, output = found.call.operation, found.output
        declared = named_contract(self.contract, DTYPE_NAMES[found.computed.dtype])
        bounded = bounded_of(found, declared)
        if tuple(found.computed.shape) != bounded.value.shape:
            self._failures.append(_misshapen(found, bounded, declared))
            return
        unknown = hazards(bounded)
        if unknown.size and unknown.all():
            raise ValueError("its bound is infinite: an overflow on the way, or too many terms for the rule")
        ratio = ratios(as_numpy(found.computed), bounded, declared.io)
        line = self._lines.setdefault(
            (operation, f"gradient of {output}" if output else "", found.site.function), _Line()
        )
        line.calls += 1
        line.entries += ratio.size
        line.outside += int((~(ratio <= 1)).sum())
        line.hazards += int(unknown.sum())
        zeros = np.zeros_like(bounded.value)
        line.evidence += bool((ratios(zeros, bounded, declared.io) > 1).any())
        worst = worst_entry({output: found.computed}, {output: bounded}, declared)
        if worst is None:
            return
        if not (worst.ratio <= line.worst):
            line.worst, line.at = worst.ratio, found.site.module
        if not (worst.ratio <= 1):
            self._failures.append(self._failure(found, ratio, worst, declared))

    def _failure(self, found: Found, ratio: np.ndarray, worst: Worst, declared: Contract) -> Failure:
        key = (found.call.operation, found.output, found.site.function)
        cause = "" if key in self._explained else cause_of(found, declared)
        self._explained.add(key)
        place = found.pieces[0].where(worst.index)
        moved = Worst(worst.output, place, worst.computed, worst.exact, worst.bound, worst.ratio)
        outside = int((~(ratio <= 1)).sum())
        return Failure(
            found.site, found.call.operation, found.output, outside, ratio.size, moved, declared.describe(), cause
        )


def _misshapen(found: Found, bounded: Bounded, declared: Contract) -> Failure:
    why = f"the judged part has shape {tuple(found.computed.shape)}, it must be {bounded.value.shape}"
    nothing = Worst(found.output, (), math.nan, math.nan, 0.0, math.inf)
    count = bounded.value.size
    return Failure(found.site, found.call.operation, found.output, count, count, nothing, declared.describe(), why)


def _columns(rows: list[tuple[Any, ...]]) -> list[str]:
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]
