"""From a failing case to a small one: one field at a time to its simplest value, while it fails for the same cause.

A case has a dozen fields with an obvious simplest value each, so a greedy descent from the failing case itself ends in
seconds and needs no search; hypothesis would have to find the failure again first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from lla_spec.testing.cases import Case
from lla_spec.testing.support import Support

SIZES = (1, 2, 3, 4, 5, 7, 9)


def shrink(case: Case, fails: Callable[[Case], bool], support: Support, seconds: float = 10.0) -> Case:
    """The smallest case reached from `case` for which `fails` still holds, within `seconds`."""
    end = time.monotonic() + seconds
    tried = {case}
    improved = True
    while improved:
        improved = False
        for simpler in _simpler(case):
            if time.monotonic() > end:
                return case
            if simpler in tried or not support.takes(simpler):
                continue
            tried.add(simpler)
            if fails(simpler):
                case, improved = simpler, True
                break
    return case


def _alone_and_together(case: Case) -> Iterator[list[str]]:
    """Each size by itself, then those that are equal: a kernel may ask for n = m, or for d = e."""
    equal: dict[int, list[str]] = {}
    for name, size in case.sizes:
        yield [name]
        equal.setdefault(size, []).append(name)
    yield from (names for names in equal.values() if len(names) > 1)


def _fewer(batch: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """One leading axis less, or one that is shorter."""
    if len(batch) > 1:
        yield batch[1:]
    for position, size in enumerate(batch):
        yield from ((*batch[:position], s, *batch[position + 1 :]) for s in SIZES if s < size)


def _simpler(case: Case) -> Iterator[Case]:
    """Cases with one field simpler, the largest steps first."""
    for names in _alone_and_together(case):
        size = case.size(names[0])
        for smaller in (*(s for s in SIZES if s < size), size // 2):
            if 0 < smaller < size:
                yield case.with_sizes(dict.fromkeys(names, smaller))
    if case.batch:
        yield replace(case, batch=())
        yield from (replace(case, batch=ones) for ones in ((1,), (1,) * len(case.batch)) if ones != case.batch)
        yield from (replace(case, batch=batch) for batch in _fewer(case.batch))
    plain = {
        "layout": "dense", "grad": "dense", "mask": "none", "index": "random", "causal": False, "scale": None,
        "special": "none", "without": "", "exponent": 0, "each": False,
    }  # fmt: skip
    for name, value in plain.items():
        if getattr(case, name) != value:
            yield replace(case, **{name: value})
    for family in ("ints", "normal"):
        if case.family != family and case.family not in ("ints", "grid"):
            yield replace(case, family=family)
    for seed in range(4):
        if case.seed > seed:
            yield replace(case, seed=seed)
    if abs(case.exponent) > 1:
        yield replace(case, exponent=case.exponent // 2)
