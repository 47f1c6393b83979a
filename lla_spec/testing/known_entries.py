"""One known failure, as it is written: an entry of a TOML file.

    [[known]]
    op = "log_softmax"
    law = "definition"
    dtype = "bf16"
    device = "cpu"
    kind = "bound"
    case = "log_softmax:definition:bf16:cpu:m=2,…"
    reason = "the sum of exponentials is rounded to bf16"
    issue = "https://github.com/…"
    expires = 2027-01-31

Optional: `ratio`, the most that error / bound may be; `cause`, which must explain the failure; `message`, what it says.
"""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lla_spec.testing.cases import CaseError, parse
from lla_spec.testing.errors import TargetError
from lla_spec.testing.verdicts import Row

TEXTS = ("op", "law", "dtype", "device", "kind", "case", "reason")
REQUIRED = (*TEXTS, "issue", "expires")
OPTIONAL = ("ratio", "cause", "message")


class KnownError(TargetError):
    """A file of known failures that cannot be used: one line that names the entry, its key, and the way out."""


@dataclass(frozen=True)
class Entry:
    """One known failure of one row; the optional keys are None or "" where they are left out."""

    op: str
    law: str
    dtype: str
    device: str
    kind: str
    case: str
    reason: str
    issue: str
    expires: datetime.date
    ratio: float | None = None
    cause: str = ""
    message: str = ""

    @property
    def row(self) -> Row:
        return Row(self.op, self.law, self.dtype, self.device)

    def expired(self, today: datetime.date) -> bool:
        return today > self.expires

    def __str__(self) -> str:
        said = f"{self.reason}; {self.issue}" if self.issue else self.reason
        return f"{self.row.id} ({' '.join(said.split())})"


def read_entries(path: Path) -> tuple[Entry, ...]:
    """The entries of a file. Raises KnownError with one line for a person."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KnownError(f"known {path}: {str(error.strerror).lower()}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise KnownError(f"known {path}: it does not read as TOML: {error}") from None
    for key in content:
        if key != "known":
            raise KnownError(f"known {path}: unknown key {key!r}; entries are written [[known]]")
    tables = content.get("known", [])
    if not isinstance(tables, list):
        raise KnownError(f"known {path}: entries are written [[known]], with two brackets")
    entries = tuple(_entry(f"known {path}, entry {number}", table) for number, table in enumerate(tables, 1))
    for number, entry in enumerate(entries, 1):
        if entry.case in [other.case for other in entries[: number - 1]]:
            raise KnownError(f"known {path}, entry {number}: its case is pinned by an earlier entry; keep one")
    return entries


def _entry(where: str, table: Any) -> Entry:
    """An entry from its table. Raises KnownError that names the key."""
    if not isinstance(table, Mapping):
        raise KnownError(f"{where}: it is {table!r}; entries are written [[known]]")
    for key in table:
        if key not in (*REQUIRED, *OPTIONAL):
            raise KnownError(f"{where}: unknown key {key!r}; there are {', '.join((*REQUIRED, *OPTIONAL))}")
    for key in REQUIRED:
        if key not in table:
            raise KnownError(f"{where}: {key} is missing; an entry has {', '.join(REQUIRED)}")
    for key in (*TEXTS, "issue", "cause", "message"):
        value = table.get(key, "")
        if not isinstance(value, str) or (key in TEXTS and not value.strip()):
            raise KnownError(f"{where}: {key} is {value!r}, it must be a text")
    if table["issue"] and not re.match(r"https?://\S+$", table["issue"]):
        raise KnownError(f'{where}: issue is {table["issue"]!r}, it must be a URL, or "" while there is none')
    if type(table["expires"]) is not datetime.date:
        raise KnownError(f"{where}: expires is {table['expires']!r}, it must be a date without quotes: 2027-01-31")
    ratio = table.get("ratio")
    if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio > 1):
        raise KnownError(f"{where}: ratio is {ratio!r}, it must be a number above 1: error / bound, at the most")
    try:
        case = parse(table["case"])
    except CaseError as error:
        raise KnownError(f"{where}: {error}") from None
    for key in ("op", "law", "dtype", "device"):
        if getattr(case, key) != table[key]:
            raise KnownError(f"{where}: {key} is {table[key]!r}, and that of its case is {getattr(case, key)!r}")
    return Entry(**table)


def toml(entry: Entry) -> str:
    """An entry as TOML; what is left out stays so."""
    lines = ["[[known]]"]
    for key in (*REQUIRED, *OPTIONAL):
        value = getattr(entry, key)
        if key in REQUIRED or value:
            lines.append(f"{key} = {value if isinstance(value, datetime.date | float | int) else _string(value)}")
    return "\n".join(lines) + "\n"


def _string(text: str) -> str:
    """A TOML basic string: JSON's escapes, and DEL, which JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
