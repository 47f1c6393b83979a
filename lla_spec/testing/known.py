"""Failures that are known: a TOML file of pinned cases, each with a reason, an issue and the day on which it expires.

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

`Known.read(path)`, then `replay(session)` before any row is run, then `settle(session, results, pinned)`. A row is known
where its pinned cases fail as they are recorded and every other case of the row that fails, fails in that way too.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lla_spec.testing.cases import Case, CaseError, parse
from lla_spec.testing.causes import lessens
from lla_spec.testing.errors import TargetError
from lla_spec.testing.judge import Judgement
from lla_spec.testing.runner import Session
from lla_spec.testing.targets import operation_formula
from lla_spec.testing.verdicts import Result, Row

TEXTS = ("op", "law", "dtype", "device", "kind", "case", "reason")
REQUIRED = (*TEXTS, "issue", "expires")
OPTIONAL = ("ratio", "cause", "message")
WITH_RATIO = ("bound", "law", "certificate")
ENDING = ("crashes", "hangs")  # kinds that are not replayed: each would cost this process, or a whole time limit
FIRST_DAYS = 30  # how long an entry that `write` makes holds: it waits for a person to look at it


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
        return f"{self.row.id} ({self.reason}{'; ' + self.issue if self.issue else ''})"

    def differs(self, session: Session, found: Judgement) -> str:
        """How a failing case is another failure than this one, in words; "" where it is this one."""
        if found.kind != self.kind:
            return f"it fails as {found.kind!r}, not as {self.kind!r}"
        if self.message and _outline(found.message) != _outline(self.message):
            return f"it says {found.message!r}, not {self.message!r}"
        if self.ratio is not None and not found.ratio <= self.ratio:
            return f"error / bound is {found.ratio:.3g}, more than {self.ratio:g}"
        contract = session.contract(self.row)
        if self.cause and not lessens(operation_formula(self.op), found, contract, self.cause):
            return f"it is not explained by {self.cause!r}"
        return ""


@dataclass(frozen=True)
class Pinned:
    """An entry, and what its case shows now; None where it is of a kind that is not replayed."""

    entry: Entry
    found: Judgement | None


@dataclass(frozen=True)
class Known:
    """The entries of one file."""

    path: Path
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, path: str | Path) -> Known:
        """Raises KnownError for a file that is not as above."""
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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
        return cls(path, entries)

    def replay(self, session: Session) -> list[Pinned]:
        """Judge the pinned cases that the session's options choose, on devices that are here.

        Raises KnownError for an entry that matches nothing: no such row, or a case that does not fit it.
        """
        return [
            Pinned(entry, None if entry.kind in ENDING else self._judged(number, entry, session))
            for number, entry in enumerate(self.entries, 1)
            if self._matches(number, entry, session) and _chosen(entry, session)
        ]

    def _matches(self, number: int, entry: Entry, session: Session) -> bool:
        """Whether the row is here; KnownError where the target has no such row on any device."""
        where, target = f"known {self.path}, entry {number}", session.target
        try:
            options = replace(session.options, ops=(entry.op,), laws=(entry.law,), dtypes=(entry.dtype,), devices=())
            rows = list(Session(target, options).rows())
        except TargetError as error:
            raise KnownError(f"{where}: {error}; remove the entry") from None
        if not any((row.law, row.dtype) == (entry.law, entry.dtype) for row in rows):
            raise KnownError(f"{where}: target {target.name} has no row {entry.row.id}; remove the entry")
        return entry.row in rows

    def _judged(self, number: int, entry: Entry, session: Session) -> Judgement:
        try:
            found = session.judging(entry.row, session.contract(entry.row))(parse(entry.case))
        except (LookupError, ValueError, TypeError, AssertionError) as error:
            raise KnownError(
                f"known {self.path}, entry {number}: its case does not fit {entry.op} / {entry.law}: {error!r}; "
                "copy it from a replay line"
            ) from None
        if found.unimplemented:
            raise KnownError(
                f"known {self.path}, entry {number}: target {session.target.name} does not offer {entry.row.id}; "
                "remove the entry"
            )
        return found


def settle(
    session: Session, results: Sequence[Result], pinned: Sequence[Pinned], today: datetime.date | None = None
) -> list[str]:
    """Set the verdict of rows with pinned cases; a line for each entry: known, fixed, expired, or another failure."""
    today = today or datetime.date.today()
    lines: list[str] = []
    for result in results:
        mine = [pin for pin in pinned if pin.entry.row == result.row]
        holding: list[Pinned] = []
        for pin in mine:
            line, still = _standing(session, result, pin, today)
            lines.append(line)
            holding += [pin] if still else []
        if holding and (line := _cover(session, result, holding, whole=len(holding) == len(mine))):
            lines.append(line)
    return lines


def _standing(session: Session, result: Result, pin: Pinned, today: datetime.date) -> tuple[str, bool]:
    """What is to be said of one entry, and whether it holds. Where its case fails otherwise, so does the row."""
    entry, found = pin.entry, pin.found or result.failing
    failed = result.verdict == "fail" if pin.found is None else pin.found.failed
    if not failed:
        return f"fixed: {entry}: its case passes; remove the entry", False
    differs = entry.differs(session, found) if found is not None else ""
    if not differs and not entry.expired(today):
        return f"known: {entry}, until {entry.expires}", True
    if result.verdict != "fail":
        session.fail(result, found)
        result.verdict = "fail"
    if differs:
        return f"another failure: {entry}: {differs}", False
    return f"expired: {entry}: on {entry.expires}; mend it, or say why it may stay and until when", False


def _cover(session: Session, result: Result, holding: Sequence[Pinned], *, whole: bool) -> str:
    """Make the row known if entries that hold cover all that fails in it; else the line that says what they do not."""
    new = _uncovered(session, result, [pin.entry for pin in holding])
    if new is not None:
        session.fail(result, new)
        result.verdict = "fail"
        return f"another failure: {result.row.id}: {holding[0].entry.differs(session, new)}: {new.case}"
    if result.verdict != "fail":
        session.fail(result, holding[0].found)
    elif not whole:
        return ""  # an entry that expired, or whose case fails otherwise, has failed the row
    result.verdict = "known"
    return ""


def _uncovered(session: Session, result: Result, entries: Sequence[Entry]) -> Judgement | None:
    """The first failing case of the row that is none of these failures; a run stops at its first failure."""
    if result.verdict != "fail":
        return None
    if result.kind in ENDING:
        return None if any(entry.kind == result.kind for entry in entries) else result.failing
    for found in _failures(session, result.row):
        if all(entry.differs(session, found) for entry in entries):
            return found
    return None


def _failures(session: Session, row: Row) -> Iterator[Judgement]:
    judging = session.judging(row, session.contract(row))
    return (found for _, case in session.cases(row) if (found := judging(case)).failed)


def _chosen(entry: Entry, session: Session) -> bool:
    """Whether the options of this run choose the row: what they leave out is not looked at."""
    options, formula = session.options, operation_formula(entry.op)
    return (
        (not options.ops or entry.op in options.ops)
        and (not options.laws or entry.law in options.laws or f"{formula.topic}.{entry.law}" in options.laws)
        and (not options.dtypes or entry.dtype in options.dtypes)
        and (not options.devices or entry.device in options.devices)
    )


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


def _outline(message: str) -> str:
    """A message without its figures; of a certificate, its name."""
    return re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", message.partition(" = ")[0])


# ---- writing


def write(path: str | Path, session: Session, results: Sequence[Result], today: datetime.date | None = None) -> int:
    """A first file from the failing rows of a run, to be completed by a person; the number of entries.

    One entry for each way in which a row fails: its first case, which the report has shrunk already, and the largest
    ratio. Raises KnownError where the file exists: reasons in it would be lost.
    """
    path, today = Path(path), today or datetime.date.today()
    if path.exists():
        raise KnownError(f"--write-known {path}: it exists; write another file and move its entries over")
    entries = [entry for result in results if result.verdict == "fail" for entry in _found(session, result, today)]
    told = f"# Known failures of {session.target.name}. Say the reason and the issue of each; docs/known_failures.md\n"
    path.write_text(told + "".join(f"\n{toml(entry)}" for entry in entries), encoding="utf-8")
    return len(entries)


def _found(session: Session, result: Result, today: datetime.date) -> list[Entry]:
    """The entries that cover a failing row as it is now."""
    until = today + datetime.timedelta(days=FIRST_DAYS)
    seen: list[Entry] = []
    ending = result.kind in ENDING or result.failing is None
    for found in [result.failing] if ending else [result.failing, *_failures(session, result.row)]:
        case = str(found.case) if found is not None and seen else result.case
        entry = _as_entry(result, found, case, until)
        place = next((i for i, old in enumerate(seen) if not replace(old, ratio=None).differs(session, found)), None)
        if place is None:
            seen.append(entry)
        elif entry.ratio is None or seen[place].ratio is None:
            seen[place] = replace(seen[place], ratio=None)
        else:
            seen[place] = replace(seen[place], ratio=max(entry.ratio, seen[place].ratio or 0.0))
    return seen


def _as_entry(result: Result, found: Judgement, case: str, until: datetime.date) -> Entry:
    row, figures = result.row, found.kind in WITH_RATIO
    ratio = math.inf if not figures else found.ratio
    return Entry(
        row.op, row.law, row.dtype, row.device, found.kind, case,
        reason=f"found on {until - datetime.timedelta(days=FIRST_DAYS)}, and not looked into", issue="", expires=until,
        ratio=_rounded_up(ratio) if math.isfinite(ratio) else None,
        message="" if figures and found.kind != "certificate" else found.message,
    )  # fmt: skip


def _rounded_up(ratio: float) -> float:
    """To two digits: another machine rounds otherwise in the last place.

    >>> _rounded_up(343.2)
    350.0
    """
    step = 10.0 ** (math.floor(math.log10(ratio)) - 1)
    return float(f"{math.ceil(ratio / step) * step:.2g}")


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
