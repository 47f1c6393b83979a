"""Rows as pytest tests: the decorators of our topic files, and `parametrize_with_laws` for other people's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st

from lla_spec.language import registry
from lla_spec.testing.addresses import address
from lla_spec.testing.cases import Case
from lla_spec.testing.diagnose import texts
from lla_spec.testing.drawing import BACKEND, EVERY_CHECK
from lla_spec.testing.judge import Judgement
from lla_spec.testing.known import Known, settle
from lla_spec.testing.runner import Options, Session, law_of
from lla_spec.testing.targets import TargetError, load
from lla_spec.testing.verdicts import Result, Row, verdict

Test = Callable[..., Any]


def each_operation(page: ModuleType, law: str = "definition") -> Callable[[Test], Test]:
    """Parametrise `row` over the page's operations, each dtype and device; `law` is "definition" or "vjp"."""
    return _marked(page, law)


def each_law(page: ModuleType) -> Callable[[Test], Test]:
    """Parametrise `row` over the identities and theorems that the page declares."""
    return _marked(page, "laws")


def _marked(page: ModuleType, kind: str) -> Callable[[Test], Test]:
    topic = page.__name__.rsplit(".", 1)[-1]

    def mark(test: Test) -> Test:
        test.lla_rows = (topic, kind)  # pyright: ignore[reportFunctionMemberAccess]
        return test

    return mark


class RowTests:
    """Every row of a session as a test's parameter; `known`: a file of failures that are known."""

    def __init__(self, session: Session, profile: str, target_name: str, known: str | None = None) -> None:
        self.session, self.profile, self.target_name = session, profile, target_name
        self.pinned = Known.read(known).replay(session) if known else []
        self.rows = list(session.rows())
        self.explained: dict[tuple[str, str], str] = {}

    def of_page(self, topic: str, kind: str) -> list[RowTest]:
        chosen = []
        for row in self.rows:
            own = row.law in ("definition", "vjp")
            home = registry.formulas[row.op].topic if own else law_of(row).topic
            if home == topic and (row.law == kind if own else kind == "laws"):
                chosen.append(RowTest(self, row))
        return chosen

    def settle(self, test: Test) -> None:
        """Give a hypothesis test the profile's settings. Failures are shrunk by our own shrinker, once per cause.

        A test that has its settings keeps them: another pytest of this process may have collected it before.
        """
        if getattr(test, "lla_settled", False):
            return
        test.lla_settled = True
        nightly = self.profile == "nightly"
        kept: dict[str, Any] = {} if nightly else {"database": None}
        settings(
            max_examples=max(self.session.options.examples, 1),
            derandomize=not nightly,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=[Phase.explicit, Phase.generate, Phase.target],
            suppress_health_check=EVERY_CHECK,
            backend=BACKEND,
            **kept,
        )(test)

    def settle_known(self, result: Result) -> None:
        """Set the verdict of a row with known failures; what is said of them goes into its notes."""
        mine = [pin for pin in self.pinned if pin.entry.row == result.row]
        if mine:
            result.notes = [*result.notes, *settle(self.session, [result], mine)]

    def explain(self, result: Result) -> str:
        """The failure's text; a cause that was told already is told in one line."""
        text = texts(self.session, [result], self.target_name)[0]
        key = (result.row.op, result.cause or result.kind)
        if self.explained.setdefault(key, text) is not text:
            said = result.cause or result.message or result.kind
            return f"{result.row.id}: {said}, as shown for this operation above\n{text}"
        return text


class RowTest:
    """One row under pytest. The first `check` runs its covering list; what fails once fails on every replay."""

    def __init__(self, tests: RowTests, row: Row) -> None:
        self.tests, self.row = tests, row
        self.id = (
            f"{row.op}-{row.dtype}-{row.device}"
            if row.law in ("definition", "vjp")
            else f"{row.law}-{row.dtype}-{row.device}"
        )
        self.result: Result | None = None
        self.complaint = ""

    @property
    def target_name(self) -> str:
        return self.tests.target_name

    def cases(self) -> st.SearchStrategy[Case]:
        """Random cases of this row, inside what the target supports."""
        return self._cases

    @cached_property
    def _cases(self) -> st.SearchStrategy[Case]:
        return self.tests.session.random_cases(self.row)

    def check(self, case: Case) -> None:
        """Judge the covering list (once) and `case`; AssertionError with the whole text where one fails."""
        __tracebackhide__ = True
        if self.result is None:
            # The covering list alone: hypothesis draws the random cases in the test itself.
            listed = Session(self.tests.session.target, replace(self.tests.session.options, examples=0))
            self.result = listed.run(self.row)
            if self.result.verdict == "fail":
                self._failed(self.result)
        if self.result.verdict in ("unimplemented", "known"):
            return
        if not self.complaint:
            self._judge(case)
        if self.complaint:
            raise AssertionError(self.complaint)

    def _judge(self, case: Case) -> None:
        session, result = self.tests.session, self.result
        assert result is not None
        found: Judgement = session.judging(self.row, session.contract(self.row))(case)
        session.count(result, "random", found)
        if found.failed:
            session.fail(result, found)
            result.verdict = "fail"
            self._failed(result)

    def _failed(self, result: Result) -> None:
        self.tests.settle_known(result)
        if result.verdict == "fail":
            self.complaint = self.tests.explain(result)

    def finish(self) -> tuple[dict[str, Any], str]:
        """(the row as JSON, what is wrong with it as a whole: too little evidence, or a known failure that is not)."""
        result = self.result or Result(self.row, "no_evidence", message="no case was run")
        if result.verdict not in ("fail", "unimplemented", "known"):
            result.verdict = verdict(
                failed=False, known=False, unimplemented=False, examples=result.examples, evidence=result.evidence,
                hazards=result.hazards, no_power=result.no_power,
            )  # fmt: skip
            self.tests.settle_known(result)
            if result.verdict == "fail":
                return result.as_json(), "\n".join([*result.notes, self.tests.explain(result)])
        if result.verdict == "no_evidence":
            return result.as_json(), _too_little(result)
        return result.as_json(), ""


class LawCheck:
    """One row of somebody's target as a test's parameter: calling it raises AssertionError where the row fails."""

    def __init__(self, session: Session, row: Row, address: str) -> None:
        self.session, self.row, self.address = session, row, address
        self.result: Result | None = None

    def __call__(self) -> None:
        __tracebackhide__ = True
        self.result = result = self.session.run(self.row)
        if result.verdict == "fail":
            raise AssertionError(texts(self.session, [result], self.address)[0])
        if result.verdict == "no_evidence":
            raise AssertionError(_too_little(result))

    def finish(self) -> tuple[dict[str, Any] | None, str]:
        """(the row as JSON, a complaint about it as a whole); a row whose test did not call it shows nothing."""
        if self.result is None:
            return None, f"{self.row.id}: the test did not call law_check(), so nothing was checked"
        return self.result.as_json(), ""

    @property
    def target_name(self) -> str:
        return self.session.target.name


def _too_little(result: Result) -> str:
    return f"{result.row.id}: {result.evidence} of {result.examples} cases are evidence, fewer than half"


def parametrize_with_laws(
    target: Any,
    *,
    ops: Sequence[str] = (),
    laws: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    devices: Sequence[str] = (),
    contract: str | None = None,
    examples: int = 20,
) -> Callable[[Test], Test]:
    """Parametrise `law_check` over every row of `target` that it implements; calling it raises where the row fails.

    @parametrize_with_laws({"attention": my_attention}, dtypes=["bf16"], devices=["cuda"])
    def test_attention(law_check):
        law_check()

    Everything that is present is checked unless given. A device that is named and absent is a test that fails: skip it
    by `@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")` above. Raises TargetError for a target
    that cannot be used, and where no row is left: a test of nothing would pass.
    """
    found = load(target)
    absent = [device for device in devices if not _present(device)]
    present = [device for device in devices if device not in absent]
    checks: list[Callable[[], None]] = [_absence(device) for device in absent]
    names = [f"{device} is not available" for device in absent]
    if present or not devices:
        options = Options(tuple(ops), tuple(laws), tuple(dtypes), tuple(present), contract, examples)
        session = Session(found, options)
        rows = [row for row in session.rows() if found.implements(row.op)]
        checks += [LawCheck(session, row, address(target, found, row.op)) for row in rows]
        names += [f"{row.op}-{row.law}-{row.dtype}-{row.device}" for row in rows]
    if not checks:
        asked = {"ops": ops, "laws": laws, "dtypes": dtypes, "devices": devices}
        told = ", ".join(f"{name}={list(given)}" for name, given in asked.items() if given)
        raise TargetError(f"parametrize_with_laws: {found.name} has no row with {told or 'its dtypes and devices'}")
    return pytest.mark.parametrize("law_check", checks, ids=names)


def _present(device: str) -> bool:
    return not device.startswith("cuda") or torch.cuda.is_available()


def _absence(device: str) -> Callable[[], None]:
    def law_check() -> None:
        __tracebackhide__ = True
        raise AssertionError(
            f"devices=[{device!r}]: {device} is not available here, so nothing was checked on it; where that is right, "
            "skip it: @pytest.mark.skipif(not torch.cuda.is_available(), reason=...)"
        )

    return law_check
