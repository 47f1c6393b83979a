"""What is said of failing rows: the cause, the cheapest contract that they meet, one small case per cause, the text."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import replace

from lla_spec.evaluating.contracts import lattice
from lla_spec.language import Formula, Law
from lla_spec.testing.cases import Case
from lla_spec.testing.causes import EVERY_STEP
from lla_spec.testing.explaining import Cause, causes, lessens
from lla_spec.testing.failure import RATIO_KINDS, describe
from lla_spec.testing.judge import Judgement
from lla_spec.testing.runner import Session, law_of
from lla_spec.testing.shrink import shrink
from lla_spec.testing.targets import operation_formula
from lla_spec.testing.verdicts import Result

WIDE = 3  # the least size at which a mean, a transpose and a diagonal are no longer the same
PLAIN = 16.0  # × the bound: what is further off than that is not a rounding which other inputs would show better
DRAWS, ENOUGH = 6, 3  # other draws that are looked at, and how many failing ones are asked for their cause


def explain(session: Session, result: Result, seconds: float = 2.0) -> Judgement:
    """Fill in `cause` and `meets` of a failing row; the judgement in which the cause was seen.

    Where the failing case shows none it is looked for in a small one, which has fewer roundings in the way, and then in
    the one that is furthest off: `seconds` for each.
    """
    found: Judgement = result.failing
    result.cause = _confirmed(session, result, found, seconds)
    if found.kind in RATIO_KINDS and found.case.law in ("definition", "vjp"):
        for other in (_small, _furthest_off):
            if result.cause and not result.cause.startswith(EVERY_STEP):
                break
            seen = other(session, result, seconds)
            if seen is None:
                continue
            if narrower := _confirmed(session, result, seen, seconds):
                found, result.cause = seen, narrower.replace("the output", seen.case.short())
    if found.kind in ("bound", "tight"):
        result.meets = met_contract(session, result)
    return found


def _small(session: Session, result: Result, seconds: float) -> Judgement | None:
    small = shrunk(session, result, seconds, any_cause=True)
    return small if small.kind == result.kind else None


def _furthest_off(session: Session, result: Result, seconds: float) -> Judgement | None:
    """The row's case with the largest ratio, of those that fail in the same way; None if the first was plain enough.

    What one input class shows by chance another shows plainly: a sum that was rounded, in a loss that is nearly 0.
    """
    end, worst = time.monotonic() + seconds, result.failing
    if worst.ratio > PLAIN:
        return None
    judging = session.judging(result.row, session.contract(result.row))
    for name, case in session.cases(result.row):
        if name == "random" or time.monotonic() > end:  # to draw takes longer than to judge, and every regime is listed
            break
        found = judging(case)
        if found.kind == result.kind and found.ratio > worst.ratio:
            worst = found
    return worst if worst is not result.failing else None


def _confirmed(session: Session, result: Result, found: Judgement, seconds: float) -> str:
    """The first cause that explains this case and most of the other draws that fail as well, or a wide case alone."""
    formula, contract = operation_formula(result.row.op), session.contract(result.row)
    wide = all(size >= WIDE for _, size in found.case.sizes)
    others: list[Judgement] | None = None
    likely: list[Cause] = []
    for seen in causes(formula, found, contract):
        if others is None:
            others = _others(session, result, found.case, seconds)
        held = sum(lessens(formula, other, contract, seen.words) for other in others)
        if 2 * held > len(others) or (wide and not others):
            likely.append(seen)
    return str(_clearest(session, result, found.case, likely)) if likely else ""


def _clearest(session: Session, result: Result, case: Case, likely: Sequence[Cause]) -> Cause:
    """Of several causes the one that explains most draws in which no two sizes are equal; the first of those."""
    if len(likely) == 1:
        return likely[0]
    formula, contract = operation_formula(result.row.op), session.contract(result.row)
    judging, base = session.judging(result.row, contract), _apart(case)
    draws = [judging(replace(base, seed=base.seed + step)) for step in range(1, ENOUGH + 1)]
    failing = [found for found in draws if found.kind == result.kind]
    return max(likely, key=lambda seen: sum(any(causes(formula, f, contract, only=seen.words)) for f in failing))


def _others(session: Session, result: Result, case: Case, seconds: float) -> list[Judgement]:
    """Failures at other seeds of this case, at sizes where one thing can be told from another."""
    end = time.monotonic() + seconds
    judging, support = session.judging(result.row, session.contract(result.row)), session.target.support(result.row.op)
    wider = case.with_sizes({name: max(size, WIDE) for name, size in case.sizes})
    bases = [base for base in dict.fromkeys((wider, case)) if support.takes(base)]
    failing: list[Judgement] = []
    for base in bases:
        for step in range(1, DRAWS + 1):
            found = judging(replace(base, seed=base.seed + step))
            failing += [found] if found.kind == result.kind else []
            if len(failing) == ENOUGH or time.monotonic() > end:
                return failing
    return failing


def _apart(case: Case) -> Case:
    """The case with no two sizes equal: 1/√m is not 1/√e there."""
    sizes: dict[str, int] = {}
    for name, size in case.sizes:
        sizes[name] = next(larger for larger in itertools.count(max(size, WIDE)) if larger not in sizes.values())
    return case.with_sizes(sizes)


def met_contract(session: Session, result: Result, shown: Case | None = None) -> str:
    """The first contract of the lattice under which no case of the row fails; "" where there is none.

    `shown`, a smaller case, is to meet it too: many terms can hide what no contract allows of two.
    """
    row = result.row
    if row.law not in ("definition", "vjp"):
        return ""
    first = [case for case in (shown, result.failing.case) if case is not None]
    for words, weaker in lattice(session.contract(row)):
        judging, told = session.judging(row, weaker), f"{weaker.describe()} ({words})"
        if any(judging(case).failed for case in first):
            continue
        if result.meets == told or not any(judging(case).failed for _, case in session.cases(row)):
            return told
    return ""


def texts(
    session: Session, results: Sequence[Result], target_name: str, seconds: float = 10.0, looking: float = 2.0
) -> list[str]:
    """One text for each operation and cause among the failing rows; the other rows of that cause are named in it.

    `seconds` for making a case small, `looking` for finding its cause in other cases.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    homes: dict[
        tuple[str, str], list[Result]
    ] = {}  # where a failing call is told: by "attention:vjp" and dtype, or any
    seen: dict[int, Judgement] = {}  # by row of a group: the case that its text begins from
    for result in sorted(_failing(results), key=lambda r: r.row.law not in ("definition", "vjp")):
        dtype, call = result.row.dtype, result.failing.called or _follows(session, result, results)
        group = homes.get((call, dtype), homes.get((call, "")))
        if group is None:
            found = explain(session, result, looking)
            group = groups.setdefault((result.row.op, _cause_key(result)), [])
            seen.setdefault(id(group), found)
        group.append(result)
        for own in (dtype, ""):  # what fails in this call, or in that which the row checks, is told here
            homes.setdefault((result.failing.called or f"{result.row.op}:{result.row.law}", own), group)
    return [_text(session, group, seen[id(group)], target_name, seconds) for group in groups.values()]


def _follows(session: Session, result: Result, results: Sequence[Result]) -> str:
    """Whose fault a gradient is that autograd makes of a forward pass which fails in this dtype too; "" otherwise."""
    row = result.row
    if row.law != "vjp" or f"{row.op}_vjp" in session.target.functions:
        return ""
    forward = replace(row, law="definition")
    wrong = any(other.row == forward and other.verdict == "fail" for other in results)
    return f"{row.op}:definition" if wrong else ""


def _failing(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.verdict == "fail" and result.failing is not None]


def words_of(cause: str) -> str:
    """A cause without its figures."""
    return cause.split(" (so")[0]


def _cause_key(result: Result) -> str:
    """What two rows with the same mistake share: the cause, or what happened, without figures and the row's dtype."""
    if result.kind not in RATIO_KINDS:
        return re.sub(r"\d+", "#", result.message)
    return words_of(result.cause).replace(result.row.dtype, "io") or f"{result.kind}:{result.row.law}"


def _text(session: Session, group: list[Result], seen: Judgement, target_name: str, seconds: float) -> str:
    """What is told of a group of rows, by its first; `seen`: where its cause was seen."""
    first, original = group[0], group[0].failing.case
    formula, contract = operation_formula(first.row.op), session.contract(first.row)
    found = shrunk(session, first, seconds, start=seen)
    first.cause = (
        next(map(str, causes(formula, found, contract, only=words_of(first.cause))), "") if first.cause else ""
    )
    if first.meets:
        first.meets = met_contract(session, first, found.case)
    statement: Formula | Law = formula if first.row.law in ("definition", "vjp") else law_of(first.row)
    also = ", ".join(f"{r.row.law} {r.row.dtype}" for r in group[1:])
    first.text = describe(
        session.target, first, statement, contract, found, original, target_name=target_name, also=also
    )
    first.case = str(found.case)
    return first.text


def shrunk(
    session: Session, result: Result, seconds: float, *, start: Judgement | None = None, any_cause: bool = False
) -> Judgement:
    """A failing case made small, failing in the same way and (unless `any_cause`) for the same named cause."""
    start = result.failing if start is None else start
    assert start is not None
    if result.kind in ("hangs", "crashes"):  # every attempt costs the whole time limit, or this process
        return start
    row, contract = result.row, session.contract(result.row)
    judging, formula = session.judging(row, contract), operation_formula(row.op)
    words = "" if any_cause else words_of(result.cause)

    def fails(case: Case) -> bool:
        found = judging(case)
        return found.kind == result.kind and (not words or any(causes(formula, found, contract, only=words)))

    found = judging(shrink(start.case, fails, session.target.support(row.op), seconds))
    if found.kind == result.kind:
        return found
    told = f"{row.op}: its answers change from call to call: a case that failed does not fail again"
    return replace(start, kind="changes", message=told)
