"""One case again, from its line of text, in another process or on another machine."""

from __future__ import annotations

from lla_spec.certified import Certified
from lla_spec.testing.cases import Case, CaseError
from lla_spec.testing.diagnose import explain
from lla_spec.testing.failure import describe
from lla_spec.testing.features import features
from lla_spec.testing.runner import Options, Session, law_of
from lla_spec.testing.targets import Target, operation_formula
from lla_spec.testing.verdicts import Result, Row


def replay_case(target: Target, case: Case, contract: str | None, target_name: str) -> tuple[bool, str]:
    """(whether it fails, the text): the failure as `verify` writes it, or one line that it passes."""
    formula = operation_formula(case.op)
    row = Row(case.op, case.law, case.dtype, case.device)
    session = Session(target, Options(ops=(case.op,), devices=(case.device,), contract=contract))
    own = case.law in ("definition", "vjp")
    if isinstance(formula, Certified) and own:
        wanted = {dim.name for dim in formula.dims}
    else:
        wanted = set(features(formula).dims) if own else {dim.name for dim in law_of(row).dims}
    if wanted != set(dict(case.sizes)):
        raise CaseError(f"case {case}: {case.op} / {case.law} needs the sizes {', '.join(sorted(wanted))}")
    why = formula.impossible(dict(case.sizes)) if isinstance(formula, Certified) and own else ""
    if why:
        raise CaseError(f"case {case}: {why}")
    declared = session.contract(row)
    found = session.judging(row, declared)(case)
    if not found.failed:
        return False, f"pass {case.short()}   error / bound {found.ratio:.3g}   inputs {found.digest}"
    result = Result(row, "fail", kind=found.kind, message=found.message, failing=found)
    explain(session, result)
    statement = formula if own else law_of(row)
    text = describe(target, result, statement, declared, found, case, target_name=target_name)
    return True, f"{text}\n  inputs    {found.digest}"
