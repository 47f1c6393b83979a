"""`lla-spec verify`: results as they come, then the table, the failures in words, the counts and the reports."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lla_spec.testing import report
from lla_spec.testing.errors import TargetError
from lla_spec.testing.journal import Journal, finished
from lla_spec.testing.known import Known
from lla_spec.testing.runner import Options
from lla_spec.testing.running import Run
from lla_spec.testing.table import accuracy_table, counts, devices_line, environment, limits
from lla_spec.testing.verdicts import Result, Row, exit_status


@dataclass(frozen=True)
class Reports:
    """Files to read (`resume`, `known`) and to write: `json` while the run goes on, `markdown` is added to."""

    json: Path | None = None
    resume: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    known: Path | None = None
    write_known: Path | None = None

    @property
    def journal(self) -> Path | None:
        return self.json or self.resume

    def check(self) -> None:
        """Raise ReportError before a run whose results could not be written after it."""
        for option in ("json", "html", "markdown", "write_known"):
            path = getattr(self, option)
            if path is not None and not path.resolve().parent.is_dir():
                name = option.replace("_", "-")
                raise report.ReportError(f"--{name} {path}: there is no folder {path.resolve().parent}")
        if self.html is not None:
            report.need_jinja2()

    def write(self, document: report.Document) -> None:
        if self.html is not None:
            report.write_html(self.html, document)
        if self.markdown is not None:
            report.append_markdown(self.markdown, document)


@dataclass
class Verification:
    """One run of the command; `run()` gives its exit status."""

    target: Run
    options: Options
    shown: str  # the target as it was named on the command line
    reports: Reports
    out: Console
    err: Console
    progress: Progress

    @cached_property
    def title(self) -> str:
        return f"{self.target.name} {self.target.version}".strip()

    @cached_property
    def asked(self) -> dict[str, Any]:
        """The options as JSON knows them: lists for tuples."""
        return json.loads(json.dumps(asdict(self.options)))

    def document(self, results: Sequence[Result]) -> report.Document:
        command = shlex.join(["lla-spec", *sys.argv[1:]])
        about = {**environment(), "command": command, "spec": self.shown}
        return report.document(self.title, results, about, self.asked)

    def run(self) -> int:
        self.reports.check()
        rows = self.target.rows()
        if not rows:
            raise TargetError(f"target {self.target.name}: nothing to check with these options{self.target.why()}")
        journal = Journal(self.reports.journal, self.document)
        resume, known = self.reports.resume, self.reports.known
        results = finished(resume, self.title, self.asked, rows) if resume else []
        told: list[str] = []
        with self._interruptible() as interrupted:
            pinned, told = self.target.pinned(Known.read(known)) if known else ([], [])
            self._collect(rows, results, journal, interrupted)
            told += self.target.settle(results, pinned)
        places = {row: place for place, row in enumerate(rows)}
        results.sort(key=lambda result: places[result.row])
        journal.write(results)  # now, and again with the causes: finding these may be interrupted too
        self.out.print(accuracy_table(results, f"target {self.title}   {devices_line()}"))
        if not interrupted:
            for text in self.target.texts(results, self.shown, survey=self.reports.html is not None):
                self.out.print(f"\n{text}", markup=False, highlight=False)
        for line in [*limits(results), *_reported(results), *told]:
            self.out.print(line, markup=False, highlight=False)
        self.out.print(counts(results), highlight=False)
        journal.write(results)
        self.reports.write(self.document(results))
        if self.reports.write_known is not None and not interrupted:
            number = self.target.write_known(self.reports.write_known, results)
            self.out.print(f"{number} known failures written to {self.reports.write_known}", highlight=False)
        return self._status(results, rows, bool(interrupted))

    def _collect(self, rows: Sequence[Row], results: list[Result], journal: Journal, interrupted: list[bool]) -> None:
        """Add the result of every row that has none yet."""
        there = {result.row for result in results}
        left = [row for row in rows if row not in there]
        with self.progress as bar:
            task = bar.add_task(self.title, total=len(rows), completed=len(there))
            for result in self.target.results(left):
                results.append(result)
                journal.note(results)
                bar.update(task, advance=1, description=f"{result.row.op} {result.row.law} {result.row.dtype}")
                if interrupted:  # in a place where nothing can be raised
                    raise KeyboardInterrupt

    @contextmanager
    def _interruptible(self) -> Iterator[list[bool]]:
        """Ctrl-C ends what happens inside; the list is empty where it was not pressed.

        Where it comes while Python collects garbage nothing is raised, and Python would print a traceback for that.
        """
        pressed: list[bool] = []

        def interrupt(*_: Any) -> None:
            pressed.append(True)
            self.target.interrupt()
            raise KeyboardInterrupt

        def unraisable(told: Any) -> None:
            if not (pressed and told.exc_type is KeyboardInterrupt):
                hook(told)

        before = signal.signal(signal.SIGINT, interrupt)
        hook, sys.unraisablehook = sys.unraisablehook, unraisable
        try:
            yield pressed
        except KeyboardInterrupt:
            pressed.append(True)
        finally:
            signal.signal(signal.SIGINT, before)
            sys.unraisablehook = hook

    def _status(self, results: Sequence[Result], rows: Sequence[Row], interrupted: bool) -> int:
        if interrupted:
            self.err.print(f"interrupted after {len(results)} of {len(rows)} rows{self._way_on()}", highlight=False)
            return 130
        status = exit_status(list(results))
        if status == 2:
            self.err.print(f"lla-spec: target {self.target.name}: implements none of the operations asked for")
        return status

    def _way_on(self) -> str:
        file = self.reports.journal
        return f"; go on with --resume {file}" if file else ""


def _reported(results: Sequence[Result]) -> list[str]:
    seen: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            seen.setdefault(f"{result.row.op}: {note}", []).append(f"{result.row.law} {result.row.dtype}")
    return [f"reported, not judged: {note} ({', '.join(rows)})" for note, rows in seen.items()]
