"""What is said of failing rows: the cause, the cheapest contract that they meet, one small case per cause, the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from lla_spec.evaluating.contracts import lattice
from lla_spec.language import Formula, Law
from lla_spec.testing.cases import Case
from lla_spec.testing.causes import EVERY_STEP, cause
from lla_spec.testing.failure import describe
from lla_spec.testing.judge import Judgement
from lla_spec.testing.runner import Session, law_of
from lla_spec.testing.shrink import shrink
from lla_spec.testing.targets import operation_formula
from lla_spec.testing.verdicts import Result

RATIO_KINDS = ("bound", "law", "tight")


def explain(session: Session, result: Result) -> None:
    """Fill in `cause` and `meets` of a failing row."""
    found: Judgement = result.failing
    formula, contract = operation_formula(result.row.op), session.contract(result.row)
    result.cause = cause(formula, found, contract)
    vague = not result.cause or result.cause.startswith(EVERY_STEP)
    if vague and found.case.law in ("definition", "vjp"):  # a small case has fewer roundings in the way
        small = shrunk(session, result, seconds=2.0, any_cause=True)
        result.cause = cause(formula, small, contract) or result.cause
    if found.kind in ("bound", "tight"):
        result.meets = met_contract(session, result)


def met_contract(session: Session, result: Result) -> str:
    """The first contract of the lattice under which no case of the row fails; "" where there is none."""
    row = result.row
    if row.law not in ("definition", "vjp"):
        return ""
    failing = result.failing.case
    for words, weaker in lattice(session.contract(row)):
        judging = session.judging(row, weaker)
        if not judging(failing).failed and not any(judging(case).failed for _, case in session.cases(row)):
            return f"{weaker.describe()} ({words})"
    return ""


def texts(session: Session, results: Sequence[Result], target_name: str, seconds: float = 10.0) -> list[str]:
    """One text for each operation and cause among the failing rows; the other rows of that cause are named in it."""
    groups: dict[tuple[str, str], list[Result]] = {}
    homes: dict[
        str, list[Result]
    ] = {}  # the group in which a failing call is told, by "operation:definition" or ":vjp"
    for result in sorted(_failing(results), key=lambda r: r.row.law not in ("definition", "vjp")):
        home = homes.get(result.failing.called)
        if home is not None:  # a law that fails in a call which is told already
            home.append(result)
            continue
        explain(session, result)
        group = groups.setdefault((result.row.op, _cause_key(result)), [])
        group.append(result)
        homes.setdefault(result.failing.called or f"{result.row.op}:{result.row.law}", group)
    return [_text(session, group, target_name, seconds) for group in groups.values()]


def _failing(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.verdict == "fail" and result.failing is not None]


def _words(cause: str) -> str:
    return cause.split(" (so")[0]


def _cause_key(result: Result) -> str:
    """What two rows with the same mistake share: the cause, or what happened, without figures and the row's dtype."""
    if result.kind not in RATIO_KINDS:
        return re.sub(r"\d+", "#", result.message)
    return _words(result.cause).replace(result.row.dtype, "io") or f"{result.kind}:{result.row.law}"


def _text(session: Session, group: list[Result], target_name: str, seconds: float) -> str:
    first = group[0]
    found = shrunk(session, first, seconds)
    formula = operation_formula(first.row.op)
    first.cause = cause(formula, found, session.contract(first.row)) or first.cause
    statement: Formula | Law = formula if first.row.law in ("definition", "vjp") else law_of(first.row)
    contract = session.contract(first.row)
    text = describe(session.target, first, statement, contract, found, first.failing.case, target_name=target_name)
    first.case = str(found.case)
    if len(group) > 1:
        others = ", ".join(f"{r.row.law} {r.row.dtype}" for r in group[1:9]) + (" …" if len(group) > 9 else "")
        text += f"\n  also      {others}"
    return text


def shrunk(session: Session, result: Result, seconds: float, *, any_cause: bool = False) -> Judgement:
    """The failing case made small, failing in the same way and (unless `any_cause`) for the same named cause."""
    if result.kind in ("hangs", "crashes"):  # every attempt costs the whole time limit, or this process
        return result.failing
    row, contract = result.row, session.contract(result.row)
    judging, formula = session.judging(row, contract), operation_formula(row.op)

    def fails(case: Case) -> bool:
        found = judging(case)
        if found.kind != result.kind:
            return False
        return any_cause or not result.cause or _words(cause(formula, found, contract)) == _words(result.cause)

    small = shrink(result.failing.case, fails, session.target.support(row.op), seconds)
    found = judging(small)
    if found.kind != result.kind:  # a target whose answers change from call to call
        return replace(
            result.failing, message=f"{result.failing.message} (it does not fail again: the target's answers change)"
        )
    return found
