"""Which cause explains a wrong output: the knob of causes.py whose changed formula reproduces it.

A cause is named only if the changed formula reproduces the output within its own bound (NEARLY says how closely) and
the formula itself does not; diagnose.py asks the same of other draws, so that none is named by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lla_spec.calls import Formula
from lla_spec.certified import Certified
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.edges import ratios
from lla_spec.testing.causes import knobs
from lla_spec.testing.inputs import build
from lla_spec.testing.judge import Judgement
from lla_spec.testing.truth import Truth, as_numpy, truth_of

NEARLY, SHARE = 8.0, 1e-3
"""A changed formula has the bound of the right one, which knows nothing of the steps that the change adds: it may be
exceeded up to NEARLY times where no more than this SHARE of the error is left."""


@dataclass(frozen=True)
class Cause:
    """What a person did, in `words`, and how well the formula so changed reproduces the output."""

    words: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.words} (so changed, the formula reproduces the output at {self.ratio:.2g} × its bound)"


def causes(formula: Formula, found: Judgement, contract: Contract, only: str = "") -> Iterator[Cause]:
    """What explains the outputs of a failing case of "definition" or "vjp", the likeliest first.

    `only`: no other knob than that of these words is turned.
    """
    for words, truth in _turned(formula, found, contract, only):
        ratio = _ratio(found, truth, contract)
        if ratio is not None and ratio <= max(1.0, min(NEARLY, SHARE * found.ratio)):
            yield Cause(words, ratio)


def lessens(formula: Formula, found: Judgement, contract: Contract, words: str) -> bool:
    """Whether most entries that are wrong are within the bound of what the knob of these words gives, or lose more than
    half of their error to it: that bound is the right one's, which a kernel that rounds elsewhere may exceed.
    """
    arguments, vjp = build(formula, found.case).arguments, found.case.law == "vjp"
    right = truth_of(formula, arguments, contract, vjp=vjp)
    for _, truth in _turned(formula, found, contract, words):
        wrong = closer = 0
        for key, output in found.outputs.items():
            computed = as_numpy(output)
            off = ratios(computed, right[key], contract.io) > 1
            wrong += np.count_nonzero(off)
            if key in truth and truth[key].value.shape == computed.shape:
                before, after = (_distance(computed, bounded.value) for bounded in (right[key], truth[key]))
                within = np.isfinite(truth[key].error) & (after <= truth[key].error)
                closer += np.count_nonzero(off & ((2 * after < before) | within))
        if 2 * closer > wrong:
            return True
    return False


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|, 0 where both are the same infinity or NaN, infinite where only one is."""
    with np.errstate(all="ignore"):
        return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf))


def _turned(formula: Formula, found: Judgement, contract: Contract, only: str) -> Iterator[tuple[str, Truth]]:
    """(words, outputs) of every knob that turns on these arguments."""
    if found.case.law not in ("definition", "vjp") or not found.outputs or isinstance(formula, Certified):
        return  # a witness has no formula to change: its certificate is the cause
    arguments = build(formula, found.case).arguments
    for knob in knobs(formula, found, arguments, contract):
        if only and knob.words != only:
            continue
        try:
            truth = knob.truth()
        except (ValueError, ArithmeticError, IndexError):  # this knob does not turn on these arguments
            continue
        yield knob.words, truth


def _ratio(found: Judgement, truth: Truth, contract: Contract) -> float | None:
    """The worst ratio against the changed formula; None where that says nothing."""
    worst = 0.0
    informative = False
    for key, output in found.outputs.items():
        if key not in truth or truth[key].value.shape != tuple(output.shape):
            return None
        worst = max(worst, float(ratios(as_numpy(output), truth[key], contract.io).max(initial=0.0)))
        informative |= bool(np.isfinite(truth[key].error).any())
    return worst if informative else None
