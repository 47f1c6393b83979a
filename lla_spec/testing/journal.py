"""The JSON of a run, written while it runs: whatever ends the process, the file is whole, and `--resume` goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lla_spec.testing.targets import TargetError
from lla_spec.testing.verdicts import Result, Row, result_of

EVERY_S = 2.0  # between two writings

Document = Callable[[Sequence[Result]], dict[str, Any]]


class Journal:
    """Writes `document(results)` to `path`: now and then as results come, and at the end."""

    def __init__(self, path: Path | None, document: Document) -> None:
        self.path, self.document = path, document
        self._written = time.monotonic()

    def note(self, results: Sequence[Result]) -> None:
        if time.monotonic() - self._written > EVERY_S:
            self.write(results)

    def write(self, results: Sequence[Result]) -> None:
        """Whole or not at all: beside the file, then in its place."""
        if self.path is None:
            return
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.document(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, self.path)
        self._written = time.monotonic()


def finished(path: Path, run: Mapping[str, Any], rows: Sequence[Row]) -> list[Result]:
    """The rows of an earlier run that need not be run again: those that did not fail. Empty where there is no file.

    Raises TargetError where that run was of something else: `run` says of what this one is.
    """
    if not path.exists():
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        there, results = before["run"], [result_of(row) for row in before["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"--resume {path}: it is no report of `lla-spec verify --json`: {error}") from None
    for key, value in run.items():
        if there.get(key) != value:
            raise TargetError(
                f"--resume {path}: {key} was {there.get(key)!r} and is {value!r}; resume with the same options, "
                "or begin anew without --resume"
            )
    wanted = set(rows)
    return [result for result in results if result.row in wanted and result.verdict != "fail"]
