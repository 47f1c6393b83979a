"""From a target to its rows, and from a row to its result: the covering list first, then random cases."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from hypothesis.strategies import SearchStrategy

from lla_spec.certified import Certified
from lla_spec.evaluating.contracts import Contract
from lla_spec.language import Formula, Law, registry
from lla_spec.testing.calling import CLOCK, TIME_LIMIT_S, Misbehaved
from lla_spec.testing.cases import DTYPES, Case
from lla_spec.testing.certified import answer_certified, judge_certified
from lla_spec.testing.certified_cases import build_certified, certified_cases, certified_covering
from lla_spec.testing.claims import dims_of
from lla_spec.testing.covering import covering, law_covering
from lla_spec.testing.drawing import draw
from lla_spec.testing.guarding import Surroundings
from lla_spec.testing.inputs import build
from lla_spec.testing.judge import Judgement, answer, judge
from lla_spec.testing.law_calls import not_taken
from lla_spec.testing.laws import ContractOf, judge_law
from lla_spec.testing.strategies import cases, law_cases
from lla_spec.testing.support import ANYTHING
from lla_spec.testing.targets import Target, TargetError, operation_formula
from lla_spec.testing.threads import one_blas_thread, threads_for
from lla_spec.testing.verdicts import Result, Row, chained, verdict, worst_as_json


@dataclass(frozen=True)
class Options:
    """What to run: empty tuples mean everything. `at` sets sizes of the random cases, `limit` the seconds of a call."""

    ops: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    contract: str | None = None
    examples: int = 20
    seed: int = 0
    at: Mapping[str, int] = field(default_factory=dict)
    limit: float = TIME_LIMIT_S


class Session:
    """A target and options: `rows()`, and `run(row)` for each."""

    def __init__(self, target: Target, options: Options = Options()) -> None:
        self.target, self.options = target, options
        self.interrupted = False  # set by a signal's handler: an exception alone may be swallowed by code under test
        self.announce: Callable[[Case], None] = lambda case: None  # hears each case before the target meets it
        self._surroundings = Surroundings()
        self._probed: dict[tuple[str, str, str, str], str] = {}
        self._contracts_in: dict[tuple[str, str], ContractOf] = {}
        for operation in options.ops:
            operation_formula(operation)
            if not target.implements(operation):
                raise TargetError(f"target {target.name}: has no {operation}, which was asked for")
        for dtype in options.dtypes:
            if dtype not in DTYPES:
                raise TargetError(f"{dtype}: no dtype of that name; there are {', '.join(DTYPES)}")
        known = {"definition", "vjp", *(law.name for law in registry.laws.values()), *registry.laws}
        for law in options.laws:
            if law not in known:
                raise TargetError(f"{law}: no law of that name; `lla-spec list` shows them")

        self._check_sizes()

    def _check_sizes(self) -> None:
        """A size that no operation has would be passed over; a law may have dimensions of its own."""
        names = [f.name for f in registry.operations() if self.target.implements(f.name)]
        names = [name for name in names if name in (self.options.ops or names)]
        there = {dim for name in names for dim in dims_of(operation_formula(name))}
        for name in self.options.at:
            if names and name not in there and not self.options.laws:
                few = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
                raise TargetError(f"size {name}: no dimension of {few}; there are {', '.join(sorted(there))}")

    # ---- which rows there are

    def why(self) -> str:
        """ ": it takes cuda alone, …" where no device that it takes is here."""
        declared = self.target.devices()
        if declared is None or self.devices():
            return ""
        return f": it takes {' and '.join(declared)} alone, and that is not available here"

    def devices(self) -> list[str]:
        if self.options.devices:
            for device in self.options.devices:
                if device.startswith("cuda") and not torch.cuda.is_available():
                    raise TargetError(f"{device}: cuda is not available here")
            return list(self.options.devices)
        present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        declared = self.target.devices()
        return [d for d in present if declared is None or d in declared]

    def rows(self) -> Iterator[Row]:
        """Every row, in the order of the pages; a dtype that the target does not support has none."""
        for formula in registry.operations():
            if self.options.ops and formula.name not in self.options.ops:
                continue
            kinds = [(d, device) for d in self.options.dtypes or DTYPES for device in self.devices()]
            taken = [kind for kind in kinds if self._supported(formula.name, *kind)]
            if not taken and self._takes_nothing(formula.name):
                taken = kinds  # offered, and it raises whatever it is given: its rows say so
            for law in self._laws(formula.name):
                yield from (Row(formula.name, law, dtype, device) for dtype, device in taken)

    def _laws(self, operation: str) -> Iterator[str]:
        chosen = self.options.laws
        formula = operation_formula(operation)
        theorems = [] if isinstance(formula, Certified) else registry.laws_of(operation)  # witnesses: proved
        names = ["definition", *(["vjp"] if formula.differentiable else []), *(law.name for law in theorems)]
        for name in names:
            if not chosen or name in chosen or f"{formula.topic}.{name}" in chosen:
                yield name

    def _supported(self, operation: str, dtype: str, device: str) -> bool:
        declared = self.target.dtypes(operation)
        if declared is not None:
            return dtype in declared
        return not self.target.implements(operation) or not self.probe(operation, dtype, device)

    def _takes_nothing(self, operation: str, law: str = "definition") -> bool:
        """Whether the plainest call raises in every dtype, on every device."""
        return all(self.probe(operation, dtype, device, law) for dtype in DTYPES for device in self.devices())

    def probe(self, operation: str, dtype: str, device: str, law: str = "definition") -> str:
        """Why the target does not take this dtype (or gradient), found by one plain call; "" where it does."""
        key = (operation, dtype, device, law)
        if key not in self._probed:
            formula = operation_formula(operation)
            listed = _listed(Row(operation, law, dtype, device))
            case = self.target.support(operation).nearest(listed[0][1])
            self.announce(case)
            try:
                if isinstance(formula, Certified):
                    found = answer_certified(self.target, formula, case, build_certified(formula, case).arguments)
                else:
                    found = answer(self.target, formula, case, build(formula, case).arguments)
                self._probed[key] = "" if found is not None else "autograd finds no way back from its result"
            except Misbehaved as error:
                self._probed[key] = str(error) if error.kind == "raises" else ""
        return self._probed[key]

    def skip_probes(self, probes: Iterable[tuple[str, str, str, str]]) -> None:
        """Take these (operation, dtype, device, law) for answered: the rows themselves show what happens."""
        self._probed.update(dict.fromkeys(probes, ""))

    # ---- one row

    def run(self, row: Row) -> Result:
        """Every case of the row, until one fails. Raises only KeyboardInterrupt."""
        begin = time.monotonic()
        if not self.target.implements(row.op):
            return Result(row, "unimplemented", message=f"the target has no {row.op}")
        contract = self.contract(row)
        result = Result(row, "pass", contract=contract.describe(), within=self.target.support(row.op).words)
        why = self._no_gradient(row) if row.law == "vjp" else ""
        if why:
            return replace(result, verdict="unimplemented", message=f"{row.op} offers no gradient{why}")
        judging = self.judging(row, contract)
        unimplemented = False
        for name, case in self.cases(row):
            if self.interrupted:
                raise KeyboardInterrupt
            found = judging(case)
            self.count(result, name, found)
            unimplemented |= found.unimplemented
            if found.failed:
                self.fail(result, found)
                break
        self._surroundings.rewind()
        result.verdict = verdict(
            failed=bool(result.kind), known=False, unimplemented=unimplemented, examples=result.examples,
            evidence=result.evidence, hazards=result.hazards, no_power=result.no_power,
        )  # fmt: skip
        if result.verdict == "no_evidence" and row.law not in ("definition", "vjp"):
            away = not_taken(law_of(row), self.target)
            if away:
                result.verdict = "unimplemented"
                result.message = f"without {' and '.join(away)} this law says nothing of {row.op}"
        result.seconds = time.monotonic() - begin
        return result

    def contract(self, row: Row) -> Contract:
        return self.target.contract(row.op, row.dtype, self.options.contract)

    def _no_gradient(self, row: Row) -> str:
        """ " (it says so)" or the like where the target has no gradient to offer here; "" where it has."""
        if not self.target.differentiable(row.op):
            return " (it says so)"
        why = self.probe(row.op, row.dtype, row.device, "vjp")
        promised = self.target.says_differentiable(row.op) or (
            f"{row.op}_vjp" in self.target.functions and self._takes_nothing(row.op, "vjp")
        )
        return f" ({why})" if why and not promised else ""

    def judging(self, row: Row, contract: Contract) -> Callable[[Case], Judgement]:
        """The function that judges one case of this row."""
        formula = operation_formula(row.op)
        law = None if row.law in ("definition", "vjp") else law_of(row)

        def judging(case: Case) -> Judgement:
            self.announce(case)
            CLOCK.limit = self.options.limit
            with one_blas_thread(), threads_for(case):
                found = self._judged(formula, law, case, contract)
            if meddling := self._surroundings.mend():
                return Judgement(case, kind="meddles", message=f"{row.op}: {meddling}; call it, do not change it")
            return found

        return judging

    def _judged(self, formula: Formula, law: Law | None, case: Case, contract: Contract) -> Judgement:
        if law is not None:
            return judge_law(self.target, law, case, self._contract_in(case.dtype, case.device))
        if isinstance(formula, Certified):
            return judge_certified(self.target, formula, case, contract)
        return judge(self.target, formula, case, contract)

    def _contract_in(self, dtype: str, device: str) -> ContractOf:
        """The contract of each operation that a law calls, where the target takes it in this dtype and device."""
        key = (dtype, device)
        if key not in self._contracts_in:  # asked for at every case

            @functools.cache
            def contract_of(operation: str, gradient: bool) -> Contract | None:
                row = Row(operation, "vjp" if gradient else "definition", dtype, device)
                taken = self._supported(operation, dtype, device) or self._takes_nothing(operation)
                return self.contract(row) if taken and not (gradient and self._no_gradient(row)) else None

            self._contracts_in[key] = contract_of
        return self._contracts_in[key]

    def cases(self, row: Row) -> Iterator[tuple[str, Case]]:
        """(class, case): the covering list inside the target's support, then `examples` random cases ("random")."""
        support = self.target.support(row.op)
        if not self.options.at:
            listed = _listed(row)
            yield from listed if support == ANYTHING else support.inside(listed)
        for case in draw(self.random_cases(row), self.options.examples, self.options.seed, row.id):
            at = {name: size for name, size in self.options.at.items() if name in dict(case.sizes)}
            yield "random", case.with_sizes(at)

    def random_cases(self, row: Row) -> SearchStrategy[Case]:
        """What hypothesis draws the row's random cases from, inside what the target supports."""
        formula, support = operation_formula(row.op), self.target.support(row.op)
        if row.law not in ("definition", "vjp"):
            return law_cases(law_of(row), row.dtype, row.device, support)
        if isinstance(formula, Certified):
            return certified_cases(formula, row.dtype, row.device, support)
        return cases(formula, row.law, row.dtype, row.device, support)

    def count(self, result: Result, name: str, found: Judgement) -> None:
        result.examples += 1
        result.cases = chained(result.cases, str(found.case))
        result.evidence += found.evidence
        result.hazards += found.hazard
        result.no_power += not found.evidence and not found.hazard
        if name != "random":
            result.classes.append(name)
        if found.reported and found.reported not in result.notes:
            result.notes.append(found.reported)
        if found.tight_ratio is not None:
            result.tight_ratio = max(result.tight_ratio or 0.0, found.tight_ratio)
        if found.worst is not None:
            result.ratios.append(found.ratio)
        if not (found.ratio <= result.worst_ratio):
            result.worst_ratio, result.case = found.ratio, str(found.case)

    def fail(self, result: Result, found: Judgement) -> None:
        result.kind, result.message, result.case, result.failing = found.kind, found.message, str(found.case), found
        if found.worst is not None:
            result.worst_ratio = max(result.worst_ratio, found.ratio)
            result.worst = worst_as_json(found.worst, str(found.case))


def _listed(row: Row) -> list[tuple[str, Case]]:
    """The covering list of a row, by class."""
    if row.law not in ("definition", "vjp"):
        return law_covering(law_of(row), row.dtype, row.device)
    formula = operation_formula(row.op)
    if isinstance(formula, Certified):
        return certified_covering(formula, row.dtype, row.device)
    return covering(formula, row.law, row.dtype, row.device)


def law_of(row: Row) -> Law:
    for law in registry.laws_of(row.op):
        if law.name == row.law:
            return law
    raise TargetError(f"{row.op}: has no law {row.law}")
