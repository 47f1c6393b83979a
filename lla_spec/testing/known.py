"""Failures that are known: cases pinned in a file (known_entries.py), replayed before any row is run.

`Known.read(path)`, then `known.replay(session)`, then the rows, then `settle(session, results, pinned)`. A row is known
where its pinned cases fail as they are recorded, and every other case of it that fails, fails in one of those ways too.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lla_spec.language import registry
from lla_spec.testing.cases import DTYPES, Case, parse
from lla_spec.testing.diagnose import words_of
from lla_spec.testing.explaining import lessens
from lla_spec.testing.judge import Judgement
from lla_spec.testing.known_entries import Entry, KnownError, read_entries, toml
from lla_spec.testing.runner import Session
from lla_spec.testing.targets import TargetError, operation_formula
from lla_spec.testing.verdicts import Result, Row

WITH_RATIO = ("bound", "law", "certificate")
ENDING = ("crashes", "hangs")  # kinds that are not replayed: each would cost this process, or a whole time limit
FIRST_DAYS = 30  # how long an entry that `write` makes holds: it waits for a person to look at it


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
        """Raises KnownError, one line, for a file that is not as known_entries.py says."""
        path = Path(path)
        return cls(path, read_entries(path))

    def replay(self, session: Session) -> list[Pinned]:
        """Judge the pinned cases that the session's options choose, on devices that are here.

        Raises KnownError for an entry that matches nothing: no such row, or a case that does not fit it.
        """
        return [
            Pinned(entry, None if entry.kind in ENDING else self._judged(number, entry, session))
            for number, entry in enumerate(self.entries, 1)
            if self._matches(number, entry, session) and _chosen(entry, session)
        ]

    def absent(self, session: Session) -> list[str]:
        """A line for each chosen entry whose device is not here."""
        here = session.devices()
        return [f"not looked at: {e}: {e.device} is not here" for e in self.entries if _chosen(e, session, here)]

    def _matches(self, number: int, entry: Entry, session: Session) -> bool:
        """Whether the row is here; KnownError where the target has no such row on any device."""
        where, target = f"known {self.path}, entry {number}", session.target
        try:
            formula = operation_formula(entry.op)
        except TargetError as error:
            raise KnownError(f"{where}: {error}") from None
        if entry.law not in ("definition", "vjp", *(law.name for law in registry.laws_of(entry.op))):
            raise KnownError(f"{where}: {entry.op} has no law {entry.law!r}; `lla-spec show {formula.name}` lists them")
        if entry.dtype not in DTYPES:
            raise KnownError(f"{where}: dtype is {entry.dtype!r}; there are {', '.join(DTYPES)}")
        rows: list[Row] = []
        if target.implements(entry.op):
            alone = {"ops": (entry.op,), "laws": (entry.law,), "dtypes": (entry.dtype,), "devices": ()}
            chosen = replace(session.options, **alone)
            rows = list(Session(target, chosen).rows())
        if not rows:
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
        holding: list[tuple[Entry, Judgement]] = []
        condemned = False
        for entry, found in [(pin.entry, _shown(pin, result)) for pin in mine]:
            line, standing = _standing(session, entry, found, today)
            lines.append(line)
            if standing == "holds":
                holding.append((entry, found))
            elif standing == "fails":
                condemned = True
                _fail(session, result, found)
        if holding:
            lines += _cover(session, result, holding, condemned)
    return lines


def _shown(pin: Pinned, result: Result) -> Judgement:
    """What the pinned case shows; where it was not replayed, the row says whether it still ends so."""
    return _end(result, pin.entry.case) if pin.found is None else pin.found


def _end(result: Result, case: str) -> Judgement:
    """How a row ended; a process that died before its first case leaves none, then `case` stands for it."""
    return result.failing or Judgement(parse(result.case or case), kind=result.kind, message=result.message)


def _standing(session: Session, entry: Entry, found: Judgement, today: datetime.date) -> tuple[str, str]:
    """(the line of an entry, whether it "holds", is "fixed", or "fails" its row)."""
    if not found.failed:
        return f"fixed: {entry}: its case passes; remove the entry", "fixed"
    if other := differs(entry, session, found):
        return f"another failure: {entry}: {other}", "fails"
    if entry.expired(today):
        return f"expired: {entry}: on {entry.expires}; mend it, or say why it may stay and until when", "fails"
    return f"known: {entry}, until {entry.expires}", "holds"


def _fail(session: Session, result: Result, found: Judgement) -> None:
    """The row fails by this case, unless it has failed by one of its own."""
    if result.verdict != "fail":
        session.fail(result, found)
        result.verdict = "fail"


def differs(entry: Entry, session: Session, found: Judgement) -> str:
    """How a failing case is another failure than the entry's, in words; "" where it is that one."""
    if found.kind != entry.kind:
        return f"it fails as {found.kind!r}, not as {entry.kind!r}"
    if entry.message and _outline(found.message) != _outline(entry.message):
        return f"it says {found.message!r}, not {entry.message!r}"
    if entry.ratio is not None and not found.ratio <= entry.ratio:
        return f"error / bound is {found.ratio:.3g}, more than {entry.ratio:g}"
    contract = session.contract(entry.row)
    if entry.cause and not lessens(operation_formula(entry.op), found, contract, entry.cause):
        return f"it is not explained by {entry.cause!r}"
    return ""


def _outline(message: str) -> str:
    """A message without its figures; of a certificate, what it is about."""
    return re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", message.partition(" = ")[0])


def _cover(
    session: Session, result: Result, holding: Sequence[tuple[Entry, Judgement]], condemned: bool
) -> Iterator[str]:
    """Make the row known where these cover all that fails in it; else the line that says what they do not."""
    entries = [entry for entry, _ in holding]
    new = _uncovered(session, result, entries)
    if new is not None:
        session.fail(result, new)
        yield f"another failure: {result.row.id}: {differs(entries[0], session, new)}: {new.case}"
    elif not condemned:
        _fail(session, result, holding[0][1])
        result.verdict = "known"


def _uncovered(session: Session, result: Result, entries: Sequence[Entry]) -> Judgement | None:
    """The first failing case of the row that is none of these failures; a run stops at its first failure."""
    if result.verdict != "fail":
        return None
    if result.kind in ENDING:
        return None if any(entry.kind == result.kind for entry in entries) else _end(result, entries[0].case)
    for found in _failures(session, result.row):
        if all(differs(entry, session, found) for entry in entries):
            return found
    return None


def _failures(session: Session, row: Row) -> Iterator[Judgement]:
    judging = session.judging(row, session.contract(row))
    return (found for _, case in session.cases(row) if (found := judging(case)).failed)


def _chosen(entry: Entry, session: Session, not_on: Sequence[str] = ()) -> bool:
    """Whether the options of this run choose the row: what they leave out is not looked at."""
    options, formula = session.options, operation_formula(entry.op)
    return (
        (not options.ops or entry.op in options.ops)
        and (not options.laws or entry.law in options.laws or f"{formula.topic}.{entry.law}" in options.laws)
        and (not options.dtypes or entry.dtype in options.dtypes)
        and (not options.devices or entry.device in options.devices)
        and entry.device not in not_on
    )


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
    first = _end(result, result.case)
    rest = [] if result.kind in ENDING else list(_failures(session, result.row))
    seen: list[tuple[Entry, list[Judgement]]] = []
    for found in [first, *rest]:
        entry = _as_entry(result, found, found.case if seen else parse(result.case), today)
        like = next((group for old, group in seen if not differs(old, session, found)), None)
        if like is None:
            seen.append((entry, [found]))
        else:
            like.append(found)
    return [_narrowed(session, result, entry, group) for entry, group in seen]


def _as_entry(result: Result, found: Judgement, case: Case, today: datetime.date) -> Entry:
    row, says = result.row, found.kind not in ("bound", "law")
    return Entry(
        row.op, row.law, row.dtype, row.device, found.kind, str(case), f"found on {today}, and not looked into",
        issue="", expires=today + datetime.timedelta(days=FIRST_DAYS), message=found.message if says else "",
    )  # fmt: skip


def _narrowed(session: Session, result: Result, entry: Entry, group: Sequence[Judgement]) -> Entry:
    """With the largest ratio of its failures, and the cause where it explains all of them."""
    worst = max(found.ratio for found in group)
    if entry.kind in WITH_RATIO and math.isfinite(worst):
        entry = replace(entry, ratio=_rounded_up(worst))
    named = replace(entry, cause=words_of(result.cause))
    return entry if any(differs(named, session, found) for found in group) else named


def _rounded_up(ratio: float) -> float:
    """To two digits: another machine rounds otherwise in the last place.

    >>> _rounded_up(343.2)
    350.0
    """
    step = 10.0 ** (math.floor(math.log10(ratio)) - 1)
    return float(f"{math.ceil(ratio / step) * step:.2g}")
