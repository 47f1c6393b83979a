"""The rows of a pytest run, at its end: the accuracy table in the terminal, and as Markdown where CI asks for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lla_spec.testing.report import append_markdown, document
from lla_spec.testing.table import accuracy_table, counts, devices_line, environment
from lla_spec.testing.verdicts import Result, merged, result_of


def print_summary(reporter: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table to pytest's terminal."""
    results = results_of(rows)
    console = Console(
        width=max(getattr(reporter._tw, "fullwidth", 80), 100),
        no_color=not reporter.hasmarkup,
        force_terminal=reporter.hasmarkup,
    )
    with console.capture() as capture:
        console.print(accuracy_table(results, devices_line()))
        console.print(counts(results), highlight=False)
    reporter.section("lla-spec")
    reporter.write(capture.get())


def results_of(rows: Sequence[dict[str, Any]]) -> list[Result]:
    """One result per row: under xdist, or with repeats, counts add up and the worst case is kept."""
    by_row: dict[Any, Result] = {}
    for row in rows:
        result = result_of(row)
        by_row[result.row] = merged(by_row[result.row], result) if result.row in by_row else result
    return list(by_row.values())


def write_step_summary(rows: Sequence[dict[str, Any]], target: str) -> None:
    """Append the summary to the file that GITHUB_STEP_SUMMARY names, if it is set."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        append_markdown(path, document(target, results_of(rows), environment()))
