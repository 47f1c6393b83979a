"""A failing row looked at as a whole: a run stops at its first failure, which may be two entries of a small case."""

from __future__ import annotations

from lla_spec.testing.runner import Session
from lla_spec.testing.verdicts import Result, worst_as_json

LOOKED_AT = ("bound", "law")  # kinds of failure that have a ratio for every entry


def survey(session: Session, result: Result) -> None:
    """Judge every case of a failing row; fills in `ratios`, `cases`, and `worst` from the case of the largest picture.

    Counts, `case` and the verdict stay those of the run. It ends at a case that fails in another way than by its error:
    what hangs once may hang each time.
    """
    if result.kind not in LOOKED_AT:
        return
    seen, largest = Result(result.row, result.verdict), 0
    judging = session.judging(result.row, session.contract(result.row))
    for name, case in session.cases(result.row):
        found = judging(case)
        if found.failed and found.kind not in LOOKED_AT:
            break
        session.count(seen, name, found)
        heat = found.worst.heat if found.worst is not None else None
        if found.worst is not None and heat is not None and len(heat.values) * len(heat.values[0]) > largest:
            largest, result.worst = len(heat.values) * len(heat.values[0]), worst_as_json(found.worst, str(case))
    result.ratios, result.cases = seen.ratios, seen.cases
