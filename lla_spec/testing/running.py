"""Two ways to run a target: loaded by this process, or met only by workers (`--isolate`), whatever it does to them.

Both say what the target is and which rows it has, give the results one by one, and put failures into words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lla_spec.testing.errors import TargetError
from lla_spec.testing.known import Known, Pinned
from lla_spec.testing.targets import load
from lla_spec.testing.verdicts import Result, Row
from lla_spec.testing.workers import WORTH_IT, Died, Job, Worker, crashed, run_on, told

MOST_JOBS = 4
MEMORY = 8 << 30  # bytes of data that an isolated worker may hold, where the machine has twice as much


class Run(Protocol):
    """What `lla-spec verify` asks for."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    def rows(self) -> list[Row]: ...
    def why(self) -> str: ...
    def results(self, rows: Sequence[Row]) -> Iterator[Result]: ...
    def texts(self, results: Sequence[Result], shown: str, *, survey: bool = False) -> list[str]: ...
    def pinned(self, known: Known) -> tuple[list[Pinned], list[str]]: ...
    def settle(self, results: Sequence[Result], pinned: Sequence[Pinned]) -> list[str]: ...
    def write_known(self, path: Path, results: Sequence[Result]) -> int: ...
    def interrupt(self) -> None: ...


class Here:
    """A session of this process; its rows on `jobs` processes (0: as many as are worth it)."""

    def __init__(self, job: Job, jobs: int = 0) -> None:
        from lla_spec.testing.runner import Session

        self.session = Session(load(job.spec, job.alias), job.options)
        self.job, self.jobs = job, jobs
        self.name, self.version = self.session.target.name, self.session.target.version

    def rows(self) -> list[Row]:
        return list(self.session.rows())

    def why(self) -> str:
        """Why there may be no rows, to be read after a statement."""
        return self.session.why()

    def results(self, rows: Sequence[Row]) -> Iterator[Result]:
        jobs = self.jobs
        if jobs == 0:
            implemented = [row for row in rows if self.session.target.implements(row.op)]
            alone = len(implemented) < WORTH_IT or any(row.device != "cpu" for row in rows)
            jobs = 1 if alone else min(os.cpu_count() or 1, MOST_JOBS)
        yield from map(self.session.run, rows) if jobs == 1 else run_on(self.job, rows, jobs)

    def texts(self, results: Sequence[Result], shown: str, *, survey: bool = False) -> list[str]:
        """What is told of the failures; with `survey` every case of a told row is judged, for its picture."""
        return told(self.session, results, shown, survey)

    def pinned(self, known: Known) -> tuple[list[Pinned], list[str]]:
        """What the pinned cases show now, and a line for each that cannot be looked at here."""
        return known.replay(self.session), known.absent(self.session)

    def settle(self, results: Sequence[Result], pinned: Sequence[Pinned]) -> list[str]:
        """Set the verdicts of rows with pinned cases; a line for each."""
        from lla_spec.testing.known import settle

        return settle(self.session, results, pinned)

    def write_known(self, path: Path, results: Sequence[Result]) -> int:
        """Write a first file of known failures; the number of its entries."""
        from lla_spec.testing.known import write

        return write(path, self.session, results)

    def interrupt(self) -> None:
        """Stop before the next case: code under test may swallow the exception that Ctrl-C raises."""
        self.session.interrupted = True


class Isolated:
    """A target that this process never loads. It may end its process, hold the interpreter or eat memory."""

    def __init__(self, job: Job, jobs: int = 0) -> None:
        self.job = replace(job, memory=memory_limit())
        self.jobs = jobs or min(os.cpu_count() or 1, MOST_JOBS)

    @cached_property
    def _about(self) -> tuple[str, str, list[Row], str]:
        """Name, version, rows, and why there may be none.

        A probe that ends its process is left out the next time: its rows will show it.
        """
        while True:
            worker = Worker(self.job)
            try:
                return worker.ask("about")
            except Died as end:
                if end.case is None:
                    raise TargetError(f"target {self.job.spec}: while it is imported, {end}") from None
                probe = (end.case.op, end.case.dtype, end.case.device, end.case.law)
                self.job = replace(self.job, untried=(*self.job.untried, probe))
            finally:
                worker.end()

    @property
    def name(self) -> str:
        return self._about[0]

    @property
    def version(self) -> str:
        return self._about[1]

    def rows(self) -> list[Row]:
        return self._about[2]

    def why(self) -> str:
        return self._about[3]

    def results(self, rows: Sequence[Row]) -> Iterator[Result]:
        yield from run_on(self.job, rows, self.jobs)

    def texts(self, results: Sequence[Result], shown: str, *, survey: bool = False) -> list[str]:
        """In a worker as well, for a cause is found by calling the target again. Where that ends the process, the
        operation's failures are told as they were found."""
        results, left = list(results), {result.row.op for result in results}
        while True:
            worker = Worker(self.job)
            try:
                told, explained = worker.ask("texts", (results, shown, survey))
                for result, found in zip(results, explained, strict=True):
                    vars(result).update(vars(found))
                return told
            except Died as end:
                left.remove(end.case.op)
                for result in results:
                    if result.verdict == "fail" and result.row.op == end.case.op:
                        vars(result).update(vars(_as_found(result, end)))
            finally:
                worker.end()

    def pinned(self, known: Known) -> tuple[list[Pinned], list[str]]:
        """One worker for each entry: a case that ends its process says so, and the others are replayed all the same."""
        found: list[Pinned] = []
        told: list[str] = []
        for entry in known.entries:
            pins, absent = self._pinned(replace(known, entries=(entry,)))
            found += pins
            told += absent
        return found, told

    def _pinned(self, known: Known) -> tuple[list[Pinned], list[str]]:
        try:
            return self._asked("pinned", known)
        except Died as end:
            (entry,) = known.entries
            return [Pinned(entry, crashed(entry.row, end.case, str(end), end.kind).failing)], []

    def settle(self, results: Sequence[Result], pinned: Sequence[Pinned]) -> list[str]:
        lines, settled = self._asked("settle", (list(results), pinned)) if pinned else ([], results)
        for result, found in zip(results, settled, strict=True):
            vars(result).update(vars(found))
        return lines

    def write_known(self, path: Path, results: Sequence[Result]) -> int:
        return self._asked("write_known", (path, list(results)))

    def _asked(self, kind: str, content: Any) -> Any:
        worker = Worker(self.job)
        try:
            return worker.ask(kind, content)
        finally:
            worker.end()

    def interrupt(self) -> None:
        """Nothing to do: workers end with the iterator of results."""


def _as_found(result: Result, end: Died) -> Result:
    """A failure that is not looked at again: doing so ends the process."""
    told = crashed(result.row, result.failing.case, str(end), end.kind)
    message = f"{result.message or result.row.op} (and when it was looked at again, {end})"
    return replace(result, kind=end.kind, message=message, failing=replace(told.failing, message=message))


def memory_limit() -> int:
    """Bytes of data for an isolated worker: half of the machine's memory, at most `MEMORY`."""
    return min(MEMORY, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
