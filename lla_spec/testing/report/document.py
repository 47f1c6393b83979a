"""The JSON report of a run: made, written, read and validated. docs/report.md says what each field means.

The same target, seed and versions give the same bytes: rows stand in the order of the pages, and no time is in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lla_spec.language import registry
from lla_spec.testing.cases import DTYPES
from lla_spec.testing.errors import ReportError
from lla_spec.testing.verdicts import Result, Row

SCHEMA = Path(__file__).with_name("schema.json")
VERSION = 1
TOP = {"schema", "target", "run", "environment", "results"}

Document = dict[str, Any]


def document(
    target: str, results: Sequence[Result], environment: Mapping[str, Any], run: Mapping[str, Any] | None = None
) -> Document:
    """What `--json` writes: the target by name and version, what the figures depend on, and a row per result.

    `environment`: `table.environment()`, with `command` and `spec` (the target as it was typed) where there are any.
    `run`: what was asked for, by the names of runner.Options.
    """
    import lla_spec.formulas  # noqa: F401  (declares the pages, whose order this is)

    ordered = sorted(results, key=lambda result: _place(result.row))
    return {
        "schema": VERSION,
        "target": target,
        "run": dict(run or {}),
        "environment": dict(environment),
        "results": [result.as_json() for result in ordered],
    }


def _place(row: Row) -> tuple[Any, ...]:
    """The order of the pages: operation, the formula itself, its gradient, its laws, dtype, device; strangers last."""
    operations = [formula.name for formula in registry.operations()]
    laws = ["definition", "vjp", *(law.name for law in registry.laws_of(row.op))]
    orders = ((row.op, operations), (row.law, laws), (row.dtype, DTYPES))
    return (*((order.index(name) if name in order else len(order), name) for name, order in orders), row.device)


def text_of(document: Document) -> str:
    """The document as JSON text, a row a line: small, and a difference of two files shows rows.

    >>> print(text_of({"schema": 1, "target": "t", "environment": {}, "results": [{"op": "softmax"}]}))
    {
    "schema": 1,
    "target": "t",
    "environment": {},
    "results": [
    {"op": "softmax"}
    ]
    }
    """
    head = [f"{_json(key)}: {_json(value)}," for key, value in document.items() if key != "results"]
    rows = ",\n".join(_json(row) for row in document["results"])
    return "\n".join(["{", *head, '"results": [', *([rows] if rows else []), "]", "}"])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write(path: str | Path, document: Document) -> None:
    """Write the report; a run that is cut off while writing leaves the file as it was before."""
    path = Path(path)
    made = path.with_name(path.name + ".part")
    made.write_text(text_of(document) + "\n", encoding="utf-8")
    made.replace(path)


def read(path: str | Path) -> Document:
    """The report in a file. ReportError where it is none, OSError where it cannot be read."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not a report, it is no JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("results"), list) or "schema" not in found:
        raise ReportError(f"{path}: not a report; `lla-spec verify --json {path}` writes one")
    if found["schema"] != VERSION:
        raise ReportError(f"{path}: a report of schema {found['schema']}; this lla-spec reads schema {VERSION}")
    row_keys = set(Result(Row("", "", ""), "").as_json())
    for keys, part in [(TOP, found), *((row_keys, row) for row in found["results"])]:
        wrong = keys ^ set(part)
        if wrong or not isinstance(part, dict):
            named = f", which {'lacks' if min(wrong) in keys else 'has'} {min(wrong)!r}" if wrong else ""
            raise ReportError(f"{path}: written by another version of lla-spec{named}; run it again")
    return found


def validate(document: Document) -> None:
    """Check a document against schema.json (JSON Schema 2020-12). ReportError names the first place that breaks it.

    It needs the package jsonschema, which is a part of `lla-spec[dev]`.
    """
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        raise ReportError('validating a report needs jsonschema: pip install "lla-spec[dev]"') from None
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    for error in sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.absolute_path))):
        where = "".join(f"[{key!r}]" for key in error.absolute_path)
        raise ReportError(f"report{where}: {error.message}")
