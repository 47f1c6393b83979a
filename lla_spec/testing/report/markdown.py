"""A run as GitHub Markdown: how many rows fail, the worst error / bound of each operation, the failures, every row."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from lla_spec.testing.cases import DTYPES
from lla_spec.testing.report.document import Document
from lla_spec.testing.table import CAPTION, counts, devices_in, limits
from lla_spec.testing.verdicts import FAILING, VERDICTS, Result, result_of

TOLD = 20  # failures in full: a summary that GitHub cuts off tells less
MARK = {"pass": "", "fail": "❌ ", "no_evidence": "⚠️ "}


def markdown(document: Document) -> str:
    """The summary for CI of a report: a heading with the verdict, a table by operation, failures, and every row."""
    results = [result_of(row) for row in document["results"]]
    dtypes = [dtype for dtype in DTYPES if any(result.row.dtype == dtype for result in results)]
    bad = [result for result in results if result.verdict in FAILING]
    verdict = f"❌ {len(bad)} of {len(results)} rows fail" if bad else f"✅ none of {len(results)} rows fails"
    ops = list(dict.fromkeys(result.row.op for result in results))
    return "\n".join([
        f"### lla-spec: {escaped(document['target'])}: {verdict}", "",
        f"{counts(results)}; {escaped(devices_in(document['environment']))}", "",
        *(part for line in limits(results) for part in (escaped(line), "")),
        *_table(["operation"], [([op], [r for r in results if r.row.op == op]) for op in ops], dtypes), "", CAPTION, "",
        *_failures(bad),
        *_folded("every row", _table(["operation", "law"], _by_law(results), dtypes)),
    ])  # fmt: skip


def append_markdown(path: str | Path, document: Document) -> None:
    """Append the summary to a file, as GITHUB_STEP_SUMMARY wants it."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(markdown(document) + "\n")


def _by_law(results: Sequence[Result]) -> list[tuple[list[str], list[Result]]]:
    lines: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        lines.setdefault((result.row.op, result.row.law), []).append(result)
    return [(list(names), found) for names, found in lines.items()]


def _table(heads: list[str], lines: list[tuple[list[str], list[Result]]], dtypes: list[str]) -> list[str]:
    columns = [*heads, *dtypes]
    made = [_line(columns), _line([*("---" for _ in heads), *("---:" for _ in dtypes)])]
    for names, results in lines:
        cells = [_cell([r for r in results if r.row.dtype == dtype]) for dtype in dtypes]
        made.append(_line([*map(escaped, names), *cells]))
    return made


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(results: Sequence[Result]) -> str:
    """The worst of some rows of one dtype: the verdict that comes first, and the largest ratio of those with it."""
    if not results:
        return "-"
    verdict = min((result.verdict for result in results), key=VERDICTS.index)
    ratio = max(result.worst_ratio for result in results if result.verdict == verdict)
    if verdict == "pass":
        return f"{ratio:.2f}"
    words = f"fail {ratio:.3g}" if verdict == "fail" and ratio > 1 else verdict.replace("_", " ")
    return f"{MARK.get(verdict, '')}**{words}**"


def _failures(bad: Sequence[Result]) -> list[str]:
    """The failures that are told in full, each folded under its first line."""
    told = [result for result in bad if result.text]
    lines = [line for result in told[:TOLD] for line in _folded(result.text.splitlines()[0], _fenced(result.text))]
    return lines + ([f"… and {len(told) - TOLD} more: see the report.", ""] if len(told) > TOLD else [])


def _folded(title: str, content: Sequence[str]) -> list[str]:
    return [f"<details><summary>{html.escape(title)}</summary>", "", *content, "", "</details>", ""]


def _fenced(text: str) -> list[str]:
    """A code block that nothing inside can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.splitlines(), fence]


def escaped(text: str) -> str:
    """Text of a target, without power over the Markdown and the HTML around it.

    >>> escaped("<script>|*x*")
    '&lt;script&gt;\\\\|\\\\*x\\\\*'
    """
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(text.replace("\n", " "), quote=False))
