"""Rows and verdicts. A row is operation × law × dtype × device; its verdict is the first that applies:

fail            a case failed, and no known entry covers it
unimplemented   the target lacks the operation (or its gradient)
known           a case failed as a known entry says
hazard          too few cases are evidence, because of overflow hazards alone
no_evidence     too few cases are evidence: zeros, copies or constants would have passed
pass
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lla_spec.testing.judge import Worst

VERDICTS = ("fail", "unimplemented", "known", "hazard", "no_evidence", "pass")
FAILING = ("fail", "no_evidence")


@dataclass(frozen=True)
class Row:
    """`law` is "definition", "vjp", or the name of an identity or theorem of the operation."""

    op: str
    law: str
    dtype: str
    device: str = "cpu"

    @property
    def id(self) -> str:
        return f"{self.op}:{self.law}:{self.dtype}:{self.device}"


@dataclass
class Result:
    """What a row showed; `classes` are the input classes of its covering list that were run.

    `ratios`: the worst error / bound of each judged case in their order, `cases` a digest of these cases: two rows with
    the same digest ran the same ones. `text`: what is told of a failure, for a person. `worst`: the worst entry of the
    failing case as it was found (`case` is the one it was shrunk to), as JSON. `within`: what the target says that it
    takes, where that is not everything: no case lies outside.
    """

    row: Row
    verdict: str
    examples: int = 0
    evidence: int = 0
    hazards: int = 0
    no_power: int = 0
    classes: list[str] = field(default_factory=list)
    contract: str = ""
    within: str = ""
    meets: str = ""
    worst_ratio: float = 0.0
    tight_ratio: float | None = None
    case: str = ""
    message: str = ""
    cause: str = ""
    kind: str = ""
    text: str = ""
    worst: dict[str, Any] | None = None
    ratios: list[float] = field(default_factory=list)
    cases: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failing: Any = field(default=None, repr=False)  # the Judgement of the failing case

    def as_json(self) -> dict[str, Any]:
        """The row of the JSON report; ratios that are not finite are strings."""
        return {
            "op": self.row.op, "law": self.row.law, "dtype": self.row.dtype, "device": self.row.device,
            "verdict": self.verdict, "examples": self.examples, "evidence": self.evidence, "hazards": self.hazards,
            "no_power": self.no_power, "classes": self.classes, "contract": self.contract, "within": self.within,
            "meets": self.meets, "worst_ratio": number(self.worst_ratio), "tight_ratio": number(self.tight_ratio),
            "case": self.case,
            "kind": self.kind, "cause": self.cause, "message": self.message, "text": self.text, "worst": self.worst,
            "cases": self.cases, "ratios": [short(ratio) for ratio in self.ratios], "notes": self.notes,
        }  # fmt: skip


def number(value: float | None) -> float | str | None:
    """JSON has no infinity: a ratio that is not finite is written as a string."""
    return value if value is None or abs(value) < float("inf") else str(value)


def short(value: float) -> float | str:
    """Three digits, for a distribution or a picture: more would only make the report long.

    >>> [short(0.123456), short(float("inf"))]
    [0.123, 'inf']
    """
    found = number(float(f"{value:.3g}"))
    assert found is not None
    return found


def worst_as_json(worst: Worst, case: str) -> dict[str, Any]:
    """The worst entry of a failing case: where it is, its numbers, and error / bound over the matrix that holds it."""
    heat = worst.heat
    return {
        "case": case, "output": worst.output, "index": list(worst.index), "computed": number(worst.computed),
        "exact": number(worst.exact), "bound": number(worst.bound), "ratio": number(worst.ratio),
        "heat": heat and {
            "at": list(heat.at), "shape": list(heat.shape),
            "values": [[short(value) for value in row] for row in heat.values],
        },
    }  # fmt: skip


def chained(digest: str, case: str) -> str:
    """The digest of some cases and one more."""
    return hashlib.sha256(f"{digest} {case}".encode()).hexdigest()[:16]


def verdict(
    *, failed: bool, known: bool, unimplemented: bool, examples: int, evidence: int, hazards: int, no_power: int
) -> str:
    """The first verdict that applies. The floor is half of the cases; empty outputs and hazards count against it.

    >>> verdict(failed=False, known=False, unimplemented=False, examples=20, evidence=20, hazards=0, no_power=0)
    'pass'
    >>> verdict(failed=False, known=False, unimplemented=False, examples=20, evidence=4, hazards=0, no_power=16)
    'no_evidence'
    """
    if failed and not known:
        return "fail"
    if unimplemented:
        return "unimplemented"
    if failed:
        return "known"
    if 2 * evidence < max(examples, 1):
        return "hazard" if hazards and 2 * (evidence + hazards) >= examples else "no_evidence"
    return "pass"


def exit_status(results: list[Result]) -> int:
    """0: all pass; 1: a row failed or has no evidence; 2: there is nothing that the target implements."""
    if any(result.verdict in FAILING for result in results):
        return 1
    return 2 if all(result.verdict == "unimplemented" for result in results) else 0


def result_of(row: dict[str, Any]) -> Result:
    """The result that a row of the JSON report states."""
    own = {key: row[key] for key in ("op", "law", "dtype", "device")}
    rest = {key: value for key, value in row.items() if key not in own}
    for key in ("worst_ratio", "tight_ratio"):
        rest[key] = None if rest[key] is None else float(rest[key])
    return Result(Row(**own), **{**rest, "ratios": [float(ratio) for ratio in rest["ratios"]]})


def merged(first: Result, second: Result) -> Result:
    """Two parts of one row: counts add up, the worse verdict and the worst case stay."""
    worse = min(first, second, key=lambda r: (VERDICTS.index(r.verdict), -r.worst_ratio))
    other = second if worse is first else first
    return replace(
        worse,
        examples=first.examples + second.examples,
        evidence=first.evidence + second.evidence,
        hazards=first.hazards + second.hazards,
        no_power=first.no_power + second.no_power,
        classes=list(dict.fromkeys([*first.classes, *second.classes])),
        ratios=[*first.ratios, *second.ratios],
        cases=chained(first.cases, second.cases),
        worst_ratio=max(worse.worst_ratio, other.worst_ratio),
    )
