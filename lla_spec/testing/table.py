"""The accuracy table: one line per operation and law, one column per dtype; and what its figures depend on."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lla_spec.testing.cases import DTYPES
from lla_spec.testing.verdicts import VERDICTS, Result

STYLE = {
    "fail": "bold red",
    "no_evidence": "red",
    "unimplemented": "dim",
    "known": "yellow",
    "hazard": "yellow",
    "pass": "green",
}


CAPTION = "worst error / bound per row; 1 is what the formula, the data and the contract allow"


def accuracy_table(results: Sequence[Result], title: str) -> Group:
    """Worst error / bound of each row that passes (1 is the bound), the verdict of each that does not.

    Operations of which the target offers nothing are named in one line.
    """
    offered = {result.row.op for result in results if result.verdict != "unimplemented"}
    shown = [result for result in results if result.row.op in offered]
    missing = [op for op in dict.fromkeys(result.row.op for result in results) if op not in offered]
    notes = [CAPTION, *([f"unimplemented: {', '.join(missing)}"] if missing else [])]
    return Group(Text(title, style="bold"), _table(shown), *(Text(note, style="dim") for note in notes))


def _table(results: Sequence[Result]) -> Table:
    dtypes = [dtype for dtype in DTYPES if any(r.row.dtype == dtype for r in results)]
    devices = sorted({r.row.device for r in results})
    table = Table(header_style="bold")
    table.add_column("operation")
    table.add_column("law")
    for device in devices:
        for dtype in dtypes:
            table.add_column(f"{dtype} {device}" if len(devices) > 1 else dtype, justify="right")
    lines: dict[tuple[str, str], dict[tuple[str, str], Result]] = {}
    for result in results:
        row = result.row
        lines.setdefault((row.op, row.law), {})[row.device, row.dtype] = result
    before = ""
    ops = list(dict.fromkeys(op for op, _ in lines))
    for (op, law), cells in sorted(lines.items(), key=lambda line: _place(ops, *line[0])):
        if op != before and before:
            table.add_section()
        shown = [_cell(cells.get((device, dtype))) for device in devices for dtype in dtypes]
        table.add_row("" if op == before else op, law, *shown)
        before = op
    return table


def _place(ops: Sequence[str], op: str, law: str) -> tuple[int, int]:
    """The formula itself first, then its gradient, then its laws as they came."""
    return ops.index(op), {"definition": 0, "vjp": 1}.get(law, 2)


def _cell(result: Result | None) -> Text:
    if result is None:
        return Text("-", style="dim")
    if result.verdict == "pass":
        return Text(f"{result.worst_ratio:.2f}", style=STYLE["pass"])
    words = result.verdict
    if result.verdict == "fail" and result.kind in ("bound", "law"):
        words = f"fail {result.worst_ratio:.3g}"
    elif result.verdict == "fail":
        words = f"fail: {result.kind}"
    return Text(words, style=STYLE[result.verdict])


def counts(results: Sequence[Result]) -> str:
    """ "120 rows: 118 pass, 2 fail; 5,112 cases, 4,987 of them evidence"."""
    by_verdict = {v: sum(r.verdict == v for r in results) for v in reversed(VERDICTS)}
    told = ", ".join(f"{count} {name}" for name, count in by_verdict.items() if count)
    return f"{len(results)} rows: {told or 'none'}; {evidence(results)}"


def limits(results: Sequence[Result]) -> list[str]:
    """A line for each operation of which the target takes only a part."""
    said = dict.fromkeys((r.row.op, r.within) for r in results if r.within)
    return [f"{op}: checked where the target takes it: {within}" for op, within in said]


def evidence(results: Sequence[Result]) -> str:
    """ "5,112 cases, 4,987 of them evidence"."""
    return f"{sum(r.examples for r in results):,} cases, {sum(r.evidence for r in results):,} of them evidence"


def environment() -> dict[str, Any]:
    """What the figures depend on. A command adds `command`, `spec` and `options` (docs/report.md)."""
    cuda = torch.cuda.is_available()
    return {
        "lla_spec": metadata.version("lla-spec"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if cuda else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def devices_line() -> str:
    """What a reader must know of the devices here."""
    return devices_in(environment())


def devices_in(environment: Mapping[str, Any]) -> str:
    """What a reader must know of a run's devices: a GPU that is absent was not checked."""
    if environment.get("cuda"):
        return f"devices cpu, cuda:0 {environment['cuda']}"
    return "devices cpu; cuda not available: nothing on a GPU was checked"
