"""The JSON of a run, written while it runs: whatever ends the process, the file is whole, and `--resume` goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lla_spec.testing import report
from lla_spec.testing.errors import TargetError
from lla_spec.testing.verdicts import Result, Row, result_of

EVERY_S = 2.0  # between two writings

Document = Callable[[Sequence[Result]], report.Document]


class Journal:
    """Writes `document(results)` to `path`: now and then as results come, and at the end. Nothing without a path."""

    def __init__(self, path: Path | None, document: Document) -> None:
        self.path, self.document = path, document
        self._written = time.monotonic()

    def note(self, results: Sequence[Result]) -> None:
        if time.monotonic() - self._written > EVERY_S:
            self.write(results)

    def write(self, results: Sequence[Result]) -> None:
        if self.path is not None:
            report.write(self.path, self.document(results))
            self._written = time.monotonic()


def finished(path: Path, target: str, run: Mapping[str, Any], rows: Sequence[Row]) -> list[Result]:
    """The rows of an earlier run in which nothing failed: they need not be run again. Empty where there is no file.

    Raises TargetError where that run was of something else than `target` and `run` say.
    """
    if not path.exists():
        return []
    before = report.read(path)
    there = {"target": before["target"], **before["run"]}
    for key, value in {"target": target, **run}.items():
        if there.get(key) != value:
            raise TargetError(
                f"--resume {path}: {key} was {there.get(key)!r} and is {value!r}; resume with the same options, "
                "or begin anew without --resume"
            )
    wanted = set(rows)
    found = [result_of(row) for row in before["results"]]
    return [result for result in found if result.row in wanted and result.verdict not in ("fail", "known")]
