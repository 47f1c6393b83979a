"""The rows of a pytest run, at its end: the accuracy table in the terminal, and as Markdown where CI asks for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lla_spec.testing.cases import DTYPES
from lla_spec.testing.table import accuracy_table, counts, devices_line
from lla_spec.testing.verdicts import Result, merged, result_of


def print_summary(reporter: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table to pytest's terminal."""
    results = _results(rows)
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


def _results(rows: Sequence[dict[str, Any]]) -> list[Result]:
    """One result per row: under xdist, or with repeats, counts add up and the worst case is kept."""
    by_row: dict[Any, Result] = {}
    for row in rows:
        result = result_of(row)
        by_row[result.row] = merged(by_row[result.row], result) if result.row in by_row else result
    return list(by_row.values())


def markdown(results: Sequence[Result]) -> str:
    """The accuracy table as GitHub Markdown."""
    dtypes = [dtype for dtype in DTYPES if any(r.row.dtype == dtype for r in results)]
    lines = [f"| operation | law | {' | '.join(dtypes)} |", f"|---|---|{'---:|' * len(dtypes)}"]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for r in results:
        text = f"{r.worst_ratio:.2f}" if r.verdict == "pass" else f"**{r.verdict}**"
        cells.setdefault((r.row.op, r.row.law), {})[r.row.dtype] = text
    for (op, law), by_dtype in cells.items():
        lines.append(f"| {op} | {law} | {' | '.join(by_dtype.get(dtype, '-') for dtype in dtypes)} |")
    return "\n".join([f"### lla-spec: {devices_line()}", "", *lines, "", counts(results), ""])


def write_step_summary(rows: Sequence[dict[str, Any]]) -> None:
    """Append the table to the file that GITHUB_STEP_SUMMARY names, if it is set."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(markdown(_results(rows)))
