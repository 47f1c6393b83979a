"""The ledger: what is known of each law, in four words, and by how much it could have been wrong.

    proved (all dimensions)           the Σ-normal form, and the exact field at the listed shapes
    proved (listed shapes)            the exact field, at every listed shape
    certified (balls, listed points)  an inequality that balls confirm strictly at every listed point
    tested                            balls find no difference, and no engine proves it: the residual says what is left

A law that balls refute is "refuted", with its smallest counterexample; that is a failure, not a status.
`python -m lla_spec.proving.ledger` prints the ledger; `--write` records the statuses in ledger.json beside this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lla_spec.language import Law, registry
from lla_spec.proving import listed_shapes
from lla_spec.proving.cited import CITED, cited_by
from lla_spec.proving.conditions import (
    Condition,
    Point,
    differ,
    failing_condition,
    is_strictly_less,
    random_point,
    readable,
)
from lla_spec.proving.counterexamples import counterexample
from lla_spec.proving.entries import Unreadable
from lla_spec.proving.hypotheses import Claim, Obligation, claim, constructed
from lla_spec.proving.inequalities import why_not_nonnegative
from lla_spec.proving.outcome import Outcome
from lla_spec.proving.teeth import Teeth, teeth
from lla_spec.tensors import Tensor, inputs

ALL_DIMENSIONS = "proved (all dimensions)"
LISTED_SHAPES = "proved (listed shapes)"
CERTIFIED = "certified (balls, listed points)"
TESTED = "tested"
REFUTED = "refuted"
STATUSES = (ALL_DIMENSIONS, LISTED_SHAPES, CERTIFIED, TESTED)  # strongest first

SCHEMA = 1
FILE = Path(__file__).with_name("ledger.json")
POINTS = 3  # at each listed shape
TRIES = 60  # random points until the conditions hold at that many


@dataclass
class LedgerEntry:
    """What is known of one law. `residual` is what the engines left of it; `message` is for its author."""

    id: str
    status: str
    all_dims: bool = False
    listed_shapes: list[dict[str, int]] = field(default_factory=list)
    teeth: dict[str, int] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=list)
    residual: str = ""
    message: str = ""
    corollary_of: str | None = None
    cited: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.status == REFUTED

    def details(self) -> list[str]:
        """Shapes, teeth and conditions, a line each."""
        shapes = "; ".join(map(_shape, self.listed_shapes)) or "none"
        mutants = ", ".join(f"{number} {word.replace('_', ' ')}" for word, number in self.teeth.items()) or "not asked"
        return [f"    shapes: {shapes}", f"    mutants: {mutants}", *(f"    where {line}" for line in self.conditions)]

    def __str__(self) -> str:
        notes = [note for note in (self.message, self.residual and f"left over: {self.residual}") if note]
        instance = f" (an instance of {self.corollary_of})" if self.corollary_of else ""
        return f"{self.id}: {self.status}{instance}" + "".join(f"\n    {note}" for note in notes)


@dataclass
class Ledger:
    """The entries of several laws, in their order."""

    entries: list[LedgerEntry]

    def counts(self) -> dict[str, int]:
        """Laws by status; an instance of another law is not one more law."""
        counted = [entry for entry in self.entries if entry.corollary_of is None]
        return {status: sum(entry.status == status for entry in counted) for status in (*STATUSES, REFUTED)}

    def as_json(self) -> dict[str, Any]:
        keys = ("id", "status", "all_dims", "listed_shapes", "teeth", "conditions", "seconds", "residual", "message")
        laws = [{**{key: getattr(e, key) for key in keys}, "corollary_of": e.corollary_of} for e in self.entries]
        return {"schema": SCHEMA, "laws": laws}

    def statuses(self) -> dict[str, str]:
        return {entry.id: entry.status for entry in sorted(self.entries, key=lambda entry: entry.id)}


def prove_all_dimensions() -> Callable[[Tensor, Tensor], Outcome]:
    """The Σ-normal form engine for one law and its mutants, imported when it is first needed."""
    from lla_spec.proving.all_dims import Prover

    return Prover().prove


def prove_law(law: Law) -> LedgerEntry:
    """Everything that is known of a law: both engines, conditions, numbers, teeth.

    >>> import lla_spec.formulas
    >>> prove_law(registry.laws["softmax.row_sums"]).status
    'proved (all dimensions)'
    """
    started = time.perf_counter()
    entry = LedgerEntry(law.id, TESTED, corollary_of=law.corollary_of, cited=cited_by([law]))
    try:
        _Proof(law, entry).run()
    except Unreadable as error:  # balls cannot evaluate it, so its conditions cannot be checked
        entry.message = str(error)
    entry.seconds = round(time.perf_counter() - started, 3)
    return entry


class _Proof:
    """One law's way through the engines; fills its ledger entry."""

    def __init__(self, law: Law, entry: LedgerEntry) -> None:
        self.law, self.entry = law, entry
        self.claim: Claim = claim(law)
        self.shapes = listed_shapes.listed_shapes(law)
        self.at_shapes = [listed_shapes.Prover(sizes) for sizes in self.shapes]
        self.everywhere = prove_all_dimensions()

    def run(self) -> None:
        equations = [self.claim.statement, *self.claim.checks]
        listed = {o: [prover.prove(o.left, o.right) for prover in self.at_shapes] for o in equations}
        everywhere = {o: self.everywhere(o.left, o.right) for o in equations}
        conditions = _merged([*everywhere.values(), *(outcome for found in listed.values() for outcome in found)])
        self.entry.conditions = sorted({f"{readable(expr)} {kind}" for expr, kind in conditions})
        points = [self._points(conditions, sizes) for sizes in self.shapes]
        if self._refuted([point for found in points for point in found]):
            return
        blocks = [
            f"balls confirm the conditions at no point of {_shape(sizes)}"
            for sizes, found in zip(self.shapes, points, strict=True)
            if not found
        ]
        certificate = why_not_nonnegative(self.law)
        blocks += [f"certificate: {certificate}"] if certificate else []
        self.entry.residual = "; ".join([*blocks, *self._refusals(listed, everywhere)])
        self._decide(listed, everywhere, bool(blocks), points)
        if self.entry.status in (ALL_DIMENSIONS, LISTED_SHAPES):
            self._bite(points[-1])

    def _decide(
        self,
        listed: Mapping[Obligation, Sequence[Outcome]],
        everywhere: Mapping[Obligation, Outcome],
        blocked: bool,
        points: Sequence[Sequence[Point]],
    ) -> None:
        proved = [all(found[number].proved for found in listed.values()) for number in range(len(self.shapes))]
        self.entry.all_dims = all(outcome.proved for outcome in everywhere.values()) and not blocked
        self.entry.listed_shapes = [s for s, good in zip(self.shapes, proved, strict=True) if good and not blocked]
        if all(proved) and not blocked:
            self.entry.status = ALL_DIMENSIONS if self.entry.all_dims else LISTED_SHAPES
        elif self.law.relation == "<=" and all(points) and self._strict([p for found in points for p in found]):
            self.entry.status = CERTIFIED

    def _refusals(
        self, listed: Mapping[Obligation, Sequence[Outcome]], everywhere: Mapping[Obligation, Outcome]
    ) -> list[str]:
        """What each engine left over, for each equation that it refused."""
        found = []
        for obligation, outcome in everywhere.items():
            of = "" if obligation is self.claim.statement else f"{obligation.name}: "
            if not outcome.proved:
                found.append(f"{of}all dimensions: {outcome.residual}")
            refused = [(s, o) for s, o in zip(self.shapes, listed[obligation], strict=True) if not o.proved]
            found += [f"{of}{_shape(sizes)}: {one.residual}" for sizes, one in refused[:1]]
        return found

    def _points(self, conditions: Sequence[Condition], sizes: dict[str, int]) -> list[Point]:
        """Random points at which balls confirm the conditions; they give a value to every input, constructed or not."""
        sides = [*constructed(self.law), *(c for h in self.law.hypotheses for c in constructed(self.law, h))]
        equations = [side for o in (self.claim.statement, *self.claim.checks) for side in (o.left, o.right)]
        tensors = inputs(self.law.left, self.law.right, *sides, *equations)
        rng = random.Random(f"{self.law.id} {sorted(sizes.items())}")
        drawn = (random_point(tensors, sizes, rng) for _ in range(TRIES))
        good = (point for point in drawn if not failing_condition(conditions, point))
        return [point for point, _ in zip(good, range(POINTS), strict=False)]

    def _refuted(self, points: Sequence[Point]) -> bool:
        """Whether balls refute the law, or that a construction satisfies its hypothesis, at one of `points`."""
        for check in self.claim.checks:
            wrong = next(filter(None, (differ(check.left, check.right, point) for point in points)), None)
            if wrong:
                self.entry.status, self.entry.message = REFUTED, f"{check.name}: it does not, {wrong}"
                return True
        left, right = constructed(self.law)
        if any(differ(left, right, point, self.law.relation) for point in points):
            smallest = counterexample(left, right, self.law.relation, list(self.shapes[0]))
            self.entry.status = REFUTED
            self.entry.message = f"false {smallest or 'at a random point of a listed shape'}"
            return True
        return False

    def _strict(self, points: Sequence[Point]) -> bool:
        """Whether left < right certainly holds in every entry: then balls certify the inequality at these points."""
        left, right = constructed(self.law)
        return all(is_strictly_less(left, right, point) for point in points)

    def _bite(self, points: Sequence[Point]) -> None:
        def everywhere(left: Tensor, right: Tensor) -> bool:
            return not self.everywhere(left, right).proved

        found: Teeth = teeth(self.law, [self.at_shapes[-1].refutes, everywhere], points)
        self.entry.teeth = found.counts()
        if not found.bite:
            self.entry.status = TESTED
            self.entry.message = f"its proof has no teeth: {found}"


def _merged(outcomes: Iterable[Outcome]) -> list[Condition]:
    """The conditions of all outcomes, each once."""
    return list({(readable(expr), kind): (expr, kind) for o in outcomes for expr, kind in o.conditions}.values())


def _shape(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def prove_all(laws: Iterable[Law] | None = None, *, jobs: int | None = None) -> Ledger:
    """The ledger of `laws` (all of the registry unless given), on `jobs` processes (as many as CPUs, at most 4)."""
    return Ledger(list(prove_each(laws, jobs=jobs)))


def prove_each(laws: Iterable[Law] | None = None, *, jobs: int | None = None) -> Iterator[LedgerEntry]:
    """The entries of `prove_all` one by one, in the order of the laws, each as soon as it is known."""
    chosen = list(registry.laws.values() if laws is None else laws)
    jobs = min(4, os.cpu_count() or 1) if jobs is None else jobs
    registered = all(registry.laws.get(law.id) is law for law in chosen)
    if jobs < 2 or len(chosen) < 2 or not registered:
        yield from map(prove_law, chosen)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_prove_registered, [law.id for law in chosen])


def _prove_registered(law_id: str) -> LedgerEntry:
    import lla_spec.formulas  # noqa: F401  (declares the laws where the process was not forked)

    gc.disable()  # polynomials are many small objects in no cycle: collecting while they are made costs a tenth
    try:
        return prove_law(registry.laws[law_id])
    finally:
        gc.enable()


def read(path: Path = FILE) -> dict[str, str]:
    """The recorded statuses by law; empty where nothing is recorded."""
    return json.loads(path.read_text())["laws"] if path.exists() else {}


def write(ledger: Ledger, path: Path = FILE) -> None:
    """Record the statuses of a ledger, in the order of the laws' names."""
    content = {"schema": SCHEMA, "laws": ledger.statuses()}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Comparison:
    """A ledger against the recorded one: `fallen` and `missing` fail, `new` and `risen` do not."""

    fallen: tuple[str, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]
    risen: tuple[str, ...]


def compare(ledger: Ledger, recorded: Mapping[str, str]) -> Comparison:
    """Which statuses fell or rose, which laws are new, which are no longer there."""
    ranks = {status: rank for rank, status in enumerate(reversed(STATUSES), start=1)}
    now = ledger.statuses()
    change = {i: ranks.get(now[i], 0) - ranks.get(recorded[i], 0) for i in now if i in recorded}

    def told(sign: int) -> tuple[str, ...]:
        return tuple(f"{i}: {recorded[i]} → {now[i]}" for i, step in change.items() if step * sign > 0)

    missing = tuple(i for i in recorded if i not in now)
    return Comparison(told(-1), missing, tuple(i for i in now if i not in recorded), told(1))


def fallen(entries: Sequence[LedgerEntry], recorded: Mapping[str, str] | None = None) -> list[str]:
    """What is worse than recorded among `entries`, a line each: statuses that fell, and laws that are refuted."""
    comparison = compare(Ledger(list(entries)), read() if recorded is None else recorded)
    refuted = [f"{entry.id}: {entry.message}" for entry in entries if entry.failed]
    return [*(f"{line} (its status fell)" for line in comparison.fallen), *refuted]


def render(entries: Sequence[LedgerEntry], *, detailed: bool = False) -> tuple[list[str], dict[str, Any]]:
    """`entries` as lines for people, with everything that is known of each where `detailed`, and as JSON.

    The last lines say what they lean on that is cited and not proved.
    """
    ledger = Ledger(list(entries))
    lines = [line for entry in entries for line in (str(entry).splitlines() + (entry.details() if detailed else []))]
    counted = ", ".join(f"{number} {status}" for status, number in ledger.counts().items() if number)
    cited = {fact for entry in entries for fact in entry.cited}
    facts = [str(fact) for fact in CITED if str(fact) in cited]
    return [*lines, counted or "no laws", *facts], ledger.as_json()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m lla_spec.proving.ledger [--write | --json]`: exit 1 where a law is refuted or a status fell."""
    parser = argparse.ArgumentParser(prog="python -m lla_spec.proving.ledger", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="record the statuses in ledger.json")
    parser.add_argument("--json", action="store_true", help="print the ledger as JSON")
    options = parser.parse_args(arguments)
    import lla_spec.formulas  # noqa: F401  (declares the laws)

    ledger = prove_all()
    lines, content = render(ledger.entries)
    print(*([json.dumps(content, indent=1, ensure_ascii=False)] if options.json else lines), sep="\n")
    if options.write:
        write(ledger)
    missing = [f"{law}: recorded, and no longer declared" for law in compare(ledger, read()).missing]
    worse = [*fallen(ledger.entries), *missing]
    print(*worse, sep="\n", end="\n" if worse else "", file=sys.stderr)
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
