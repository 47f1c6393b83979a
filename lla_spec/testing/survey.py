"""A failing row looked at as a whole: a run stops at its first failure, which may be two entries of a small case."""

from __future__ import annotations

from lla_spec.testing.runner import Session
from lla_spec.testing.verdicts import Result, worst_as_json

LOOKED_AT = ("bound", "law")  # kinds of failure that have a ratio for every entry


def survey(session: Session, result: Result) -> None:
    """Judge every case of a failing row; fills in `ratios`, `cases`, and `worst` from the largest picture of one that is wrong.

    Counts, `case` and the verdict stay those of the run.
    """
    if result.kind not in LOOKED_AT:
        return
    seen = Result(result.row, result.verdict)
    judging, largest = session.judging(result.row, session.contract(result.row)), 0
    for name, case in session.cases(result.row):
        found = judging(case)
        session.count(seen, name, found)
        if found.kind in LOOKED_AT and found.worst is not None and found.worst.heat is not None:
            size = len(found.worst.heat.values) * len(found.worst.heat.values[0])
            if size > largest:
                largest, result.worst = size, worst_as_json(found.worst, str(case))
    result.ratios, result.cases = seen.ratios, seen.cases
