"""Two runs compared: what broke, what was mended, and whose accuracy fell by more than the noise.

The same seed draws the same cases (a row's digest proves it), so the ratios error / bound of a row come in pairs.
Rounding that is merely done in another order moves a ratio up as often as down. Where n pairs differ, noise alone makes
w or more of them go up with the chance Σ_{u ≥ w} C(n, u) / 2ⁿ: the sign test. The accuracy of a row fell where that
chance is below LEVEL / rows compared, so that at most one comparison in 1 / LEVEL of equally accurate runs names a
row that it should not; it rose where the same holds of the other direction. Rows whose cases or contract differ are
compared by their verdicts alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from lla_spec.testing.report.document import Document
from lla_spec.testing.verdicts import FAILING, Result, Row, result_of

LEVEL = 0.01
CHOOSE = ("ops", "laws", "dtypes", "devices")  # options that decide which rows there are


@dataclass(frozen=True)
class Change:
    """A row in both runs; `pairs`: the ratios of the cases where they differ, none where the cases are not the same."""

    before: Result
    after: Result
    paired: bool
    pairs: tuple[tuple[float, float], ...] = ()

    @property
    def row(self) -> Row:
        return self.after.row

    @property
    def ups(self) -> int:
        return sum(after > before for before, after in self.pairs)

    @property
    def factor(self) -> float:
        """The median of after / before over the cases that differ."""
        return statistics.median(after / before if before else math.inf for before, after in self.pairs)

    def chance(self, *, up: bool) -> float:
        """How likely noise alone moves at least as many cases in that direction."""
        return chance(self.ups if up else len(self.pairs) - self.ups, len(self.pairs))


def chance(count: int, of: int) -> float:
    """The chance of at least `count` heads in `of` throws of a fair coin.

    >>> chance(3, 3), chance(0, 5)
    (0.125, 1.0)
    """
    return sum(math.comb(of, heads) for heads in range(count, of + 1)) / 2**of


@dataclass(frozen=True)
class Comparison:
    """What changed: `lines()` for a person, `failed` for an exit status, and the rows themselves by what they did."""

    titles: tuple[str, str]
    broke: list[Change] = field(default_factory=list)
    mended: list[Change] = field(default_factory=list)
    fell: list[Change] = field(default_factory=list)
    rose: list[Change] = field(default_factory=list)
    moved: list[Change] = field(default_factory=list)  # between other verdicts
    gone: list[Result] = field(default_factory=list)
    new: list[Result] = field(default_factory=list)
    rows: int = 0
    unpaired: int = 0
    differences: list[str] = field(default_factory=list)  # in the environments

    @property
    def failed(self) -> bool:
        """Whether something that was judged and right is now wrong, or is judged no more."""
        return bool(self.broke or self.gone)

    def lines(self) -> list[str]:
        """The comparison as text, the worst first."""
        count = f"{self.rows} rows in both"
        lines = [f"before  {self.titles[0]}", f"after   {self.titles[1]}    {count}"]
        lines += [f"differs {difference}" for difference in self.differences]
        for word, changes in (("broke", self.broke), ("mended", self.mended), ("moved", self.moved)):
            lines += [f"{word:<7} {_verdicts(change)}" for change in changes]
        for word, changes, up in (("fell", self.fell, True), ("rose", self.rose, False)):
            lines += [f"{word:<7} {_accuracy(change, up)}" for change in changes]
        lines += [f"gone    {_label(result.row)}    was {result.verdict}" for result in self.gone]
        lines += [
            f"new     {_label(result.row)}    {result.verdict}" for result in self.new if result.verdict != "pass"
        ]
        return [*lines, self._total()]

    def _total(self) -> str:
        words = {
            "broke": self.broke, "mended": self.mended, "fell in accuracy": self.fell, "rose in accuracy": self.rose,
            "moved": self.moved, "gone": self.gone, "new": self.new,
        }  # fmt: skip
        told = ", ".join(f"{len(found)} {word}" for word, found in words.items() if found) or "nothing changed"
        rest = f"; {self.unpaired} compared by verdict alone (other cases or another contract)" if self.unpaired else ""
        return told + rest


def compare(before: Document, after: Document) -> Comparison:
    """What changed from one report to the other.

    A row that is in `before` alone is `gone`, unless the runs were asked for different rows (--op, --law, --dtype or
    --device): then nobody knows.
    """
    old, new = ({result.row: result for result in map(result_of, run["results"])} for run in (before, after))
    changes = [_change(old[row], result) for row, result in new.items() if row in old]
    level = LEVEL / max(len(changes), 1)
    asked_alike = all(before["run"].get(key) == after["run"].get(key) for key in CHOOSE)
    settled = [c for c in changes if c.before.verdict == c.after.verdict]
    differing = [c for c in changes if c.before.verdict != c.after.verdict]
    return Comparison(
        titles=(before["target"], after["target"]),
        broke=[c for c in differing if _worse(c)],
        mended=[c for c in differing if _better(c)],
        moved=[c for c in differing if not _worse(c) and not _better(c)],
        fell=sorted((c for c in settled if c.chance(up=True) < level), key=lambda c: -c.factor),
        rose=sorted((c for c in settled if c.chance(up=False) < level), key=lambda c: c.factor),
        gone=[result for row, result in old.items() if row not in new] if asked_alike else [],
        new=[result for row, result in new.items() if row not in old],
        rows=len(changes),
        unpaired=sum(not change.paired for change in changes),
        differences=_differences(before, after),
    )


def _change(before: Result, after: Result) -> Change:
    paired = (before.cases, before.contract, len(before.ratios)) == (after.cases, after.contract, len(after.ratios))
    pairs = zip(before.ratios, after.ratios, strict=True) if paired else ()
    return Change(before, after, paired, tuple((b, a) for b, a in pairs if a != b))


def _worse(change: Change) -> bool:
    """From a verdict that does not fail to one that does, or from something judged to nothing."""
    before, after = change.before.verdict, change.after.verdict
    return after in FAILING and before not in FAILING or before == "pass" and after == "unimplemented"


def _better(change: Change) -> bool:
    """From a failure, a known one too, to a pass."""
    return change.after.verdict == "pass" and change.before.verdict in (*FAILING, "known")


def _differences(before: Document, after: Document) -> list[str]:
    old, new = before["environment"], after["environment"]
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in ("command", "spec")]
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _label(row: Row) -> str:
    return f"{row.op} {row.law} {row.dtype} {row.device}"


def _verdicts(change: Change) -> str:
    after = change.after
    words = f"{_label(change.row)}    {change.before.verdict} → {after.verdict}"
    words += f", {after.worst_ratio:.3g} × bound" if after.worst_ratio > 1 else ""
    words += f": {after.cause or after.message}" if after.cause or after.message else ""
    return words + (f"\n        replay '{after.case}'" if after.verdict == "fail" and after.case else "")


def _accuracy(change: Change, up: bool) -> str:
    count = change.ups if up else len(change.pairs) - change.ups
    return (
        f"{_label(change.row)}    worst {change.before.worst_ratio:.2g} → {change.after.worst_ratio:.2g} of the bound; "
        f"{count} of {len(change.pairs)} cases that differ are {'worse' if up else 'better'}, "
        f"{change.factor:.2g} × in the median (by chance: {change.chance(up=up):.0e})"
    )


__all__: Sequence[str] = ["Change", "Comparison", "chance", "compare"]
