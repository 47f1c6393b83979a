"""`--html`: one page that needs nothing else, no network and no script to be read. jinja2 escapes what a target says.

The page itself forbids the browser every request, and every script but its own, in a Content-Security-Policy.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from lla_spec.language import Law, registry
from lla_spec.testing.cases import DTYPES, CaseError, parse
from lla_spec.testing.report.document import Document, ReportError
from lla_spec.testing.report.mathml import mathml
from lla_spec.testing.report.pictures import distribution, heat_map
from lla_spec.testing.report.statements import formula_latex, law_latex
from lla_spec.testing.table import CAPTION, devices_in, evidence
from lla_spec.testing.verdicts import FAILING, VERDICTS, Result, result_of

HERE = Path(__file__).parent
OWN_LAWS = {
    "definition": ("The target against the formula.", "the formula itself"),
    "vjp": ("The gradients against those of the formula.", "derived from the formula"),
}


def write_html(path: str | Path, document: Document, date: str | None = None) -> None:
    """Write the page of a report. `date` is when it was made, now unless given. ReportError without jinja2."""
    Path(path).write_text(html(document, date), encoding="utf-8")


def need_jinja2() -> None:
    """ReportError where jinja2 is missing; to be asked before a long run rather than after it."""
    if importlib.util.find_spec("jinja2") is None:
        raise ReportError('an HTML report needs jinja2: pip install "lla-spec[report]"')


def html(document: Document, date: str | None = None) -> str:
    """The page of a report as text."""
    need_jinja2()
    import jinja2

    import lla_spec.formulas  # noqa: F401  (declares the formulas and laws that are shown)

    loader = jinja2.FileSystemLoader(HERE)
    made = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = _Page(document)
    return made.get_template("page.html.j2").render(
        page=page, style=style, script=script, script_hash=_hash(script), caption=CAPTION,
        date=date or f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    )  # fmt: skip


def _hash(script: str) -> str:
    """What a Content-Security-Policy calls this script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


class _Page:
    """What the template shows, in the order in which it does."""

    def __init__(self, document: Document) -> None:
        self.target: str = document["target"]
        self.environment: Mapping[str, Any] = document["environment"]
        self.run: Mapping[str, Any] = document["run"]
        self.command: str = self.environment.get("command", "")
        self.results = [result_of(row) for row in document["results"]]
        self.spec: str = self.environment.get("spec", "")
        self.evidence = evidence(self.results)
        self.devices = devices_in(self.environment)
        self.bad = [result for result in self.results if result.verdict in FAILING]
        devices = sorted({result.row.device for result in self.results})
        dtypes = [dtype for dtype in DTYPES if any(r.row.dtype == dtype for r in self.results)]
        self.columns = [_Column(dtype, device, len(devices) > 1) for device in devices for dtype in dtypes]
        self.dtypes = dtypes

    @property
    def verdicts(self) -> list[tuple[str, int]]:
        """How many rows have each verdict, the worst first."""
        found = [(verdict, sum(r.verdict == verdict for r in self.results)) for verdict in VERDICTS]
        return [(verdict, count) for verdict, count in found if count]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The head's table: what was run, with what, where."""
        named = {"lla_spec": "lla-spec", "cpu_capability": "vector instructions", "matmul_precision": "float32 matmul"}
        told = {"target": self.spec, **self.environment} | {"spec": None, "command": None}
        given = [(key, value) for key, value in self.run.items() if key != "target"]
        shown = [(str(named.get(key, key)), value) for key, value in [*told.items(), *given]]
        return [(key, _told(value)) for key, value in shown if value not in (None, "", [], {}, ())]

    @property
    def cards(self) -> list[_Card]:
        """The failures in full: those with a text, or where nobody told any, all of them."""
        told = [result for result in self.bad if result.text]
        return [_Card(result, self.spec) for result in told or self.bad]

    @property
    def operations(self) -> list[_Operation]:
        recorded = statuses()
        return [
            _Operation(name, found, self, recorded) for name, found in self.by_op.items() if name not in self.absent
        ]

    @cached_property
    def by_op(self) -> dict[str, list[Result]]:
        return {op: [r for r in self.results if r.row.op == op] for op in dict.fromkeys(r.row.op for r in self.results)}

    @cached_property
    def absent(self) -> list[str]:
        """The operations that the target has not."""
        return [op for op, found in self.by_op.items() if all(r.verdict == "unimplemented" for r in found)]


@dataclass(frozen=True)
class _Column:
    dtype: str
    device: str
    several: bool

    @property
    def label(self) -> str:
        return f"{self.dtype} {self.device}" if self.several else self.dtype


class _Card:
    """A failure: its first line, the rest of its text, where in the matrix the error is, how to see it again."""

    def __init__(self, result: Result, spec: str) -> None:
        self.result = result
        row = result.row
        lines = result.text.splitlines() or [f"{row.op} / {row.law}   {row.device}   {row.dtype}: {result.verdict}"]
        self.title, self.text = " ".join(lines[0].split()), "\n".join(lines[1:]) or result.message or _little(result)
        self.fields = [(label, text) for label, text in fields_of(lines[1:]) if label not in ("row", "replay")]
        self.math = statement(row.op, row.law)
        self.replay = replay_line(result, spec) if result.verdict == "fail" else ""
        self.heat = _heat(result)
        self.anchor = f"fail-{row.op}-{row.law}-{row.dtype}-{row.device}"


def fields_of(lines: Sequence[str]) -> list[tuple[str, str]]:
    """(label, text) of a failure's lines; what stands below a text belongs to it. Empty where they are not so written.

    >>> fields_of(["  cause     the sum is rounded", "            to bf16"])
    [('cause', 'the sum is rounded\\nto bf16')]
    """
    found: list[tuple[str, str]] = []
    for line in lines:
        label, text = line[:12].strip(), line[12:]
        if not line.startswith("  ") or line[11:12].strip() or (not label and not found):
            return []
        if label:
            found.append((label, text))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{text}")
    return found


def statement(op: str, law: str) -> str:
    """A law as MathML, or the formula where it is one of its own; "" where this process has no such declaration."""
    formula, found = registry.formulas.get(op), _law(op, law)
    if law in OWN_LAWS:
        return mathml(formula_latex(formula)) if formula else ""
    return mathml(law_latex(found)) if found else ""


def _law(op: str, name: str) -> Law | None:
    return next((law for law in registry.laws_of(op) if law.name == name), None)


@dataclass(frozen=True)
class _Heat:
    picture: str
    caption: str


def _heat(result: Result) -> _Heat | None:
    worst = result.worst
    heat = worst and worst["heat"]
    if not worst or not heat:
        return None
    what = f"the gradient of {worst['output']}" if worst["output"] else "the result"
    rows, columns = heat["shape"]
    blocks = " (the worst of each block)" if (rows, columns) != (len(heat["values"]), len(heat["values"][0])) else ""
    place = f", matrix {', '.join(map(str, heat['at']))} of the batch" if heat["at"] else ""
    return _Heat(
        heat_map(heat), f"error / bound over {what}, {rows} × {columns}{blocks}{place}, of {_short(worst['case'])}"
    )


def _short(case: str) -> str:
    try:
        return parse(case).short()
    except CaseError:  # written by hand
        return case


class _Operation:
    """An operation's section: its formula, and a line for each law."""

    def __init__(self, name: str, results: Sequence[Result], page: _Page, recorded: Mapping[str, str]) -> None:
        self.name = name
        formula = registry.formulas.get(name)
        self.math = statement(name, "definition")
        self.source = formula.source if formula else ""
        self.within = next((result.within for result in results if result.within), "")
        laws = dict.fromkeys(result.row.law for result in results)
        self.laws = [_Line(name, law, [r for r in results if r.row.law == law], page, recorded) for law in laws]


class _Line:
    """A law of an operation: what it states, its proof, a cell for each dtype and device."""

    def __init__(self, op: str, name: str, results: Sequence[Result], page: _Page, recorded: Mapping[str, str]) -> None:
        self.op, self.name = op, name
        law = _law(op, name)
        words, status = OWN_LAWS.get(name, ("", ""))
        self.words = " ".join(law.doc.split()) if law else words
        self.status = recorded.get(law.id, "not in the ledger") if law else status
        self.proved = self.status.startswith("proved") or name in OWN_LAWS
        self.math = statement(op, name) if law else ""
        self.source = law.source if law else ""
        by_column = {(result.row.dtype, result.row.device): result for result in results}
        found = [(column, by_column.get((column.dtype, column.device))) for column in page.columns]
        self.cells = [(column, result, result and _cell(result)) for column, result in found]
        self.results = [(column, result, replay_line(result, page.spec)) for column, result in found if result]
        self.failing = any(result.verdict in FAILING for result in results)

    @property
    def picture(self) -> str:
        """The distributions, where anything was judged."""
        ratios = {column.label: result.ratios for column, result, _ in self.results if result.ratios}
        return distribution(ratios) if ratios else ""


def _cell(result: Result) -> str:
    """What a cell says: the worst ratio of what passes, the verdict (and by how much) of what does not."""
    if result.verdict == "pass":
        return f"{result.worst_ratio:.2f}"
    worst = max([result.worst_ratio, *result.ratios])  # of all cases, where the row was looked at after it had failed
    if result.verdict == "fail":
        return f"{worst:.3g} ×".replace("inf", "∞") if worst > 1 else result.kind or "fail"
    return {"no_evidence": "no evidence", "unimplemented": "–"}.get(result.verdict, result.verdict)


def _little(result: Result) -> str:
    """A failure that nobody told in full."""
    if result.verdict == "no_evidence":
        return f"{result.evidence} of {result.examples} cases are evidence, fewer than half"
    worst = result.worst
    if worst is None:
        return result.kind
    return f"computed {worst['computed']}   exact {worst['exact']}   error {worst['ratio']} × bound {worst['bound']}"


def replay_line(result: Result, spec: str) -> str:
    """The command that runs a row's case again, "" where it has none."""
    return f"lla-spec replay '{result.case}'" + (f" --target {spec}" if spec else "") if result.case else ""


def statuses() -> dict[str, str]:
    """What the committed ledger says of each law; it is read as the file that it is, without the provers."""
    ledger = resources.files("lla_spec") / "proving" / "ledger.json"
    return json.loads(ledger.read_text(encoding="utf-8"))["laws"]


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
