"""The generic rule: every step of a plan carries a value and a bound on what a kernel's value may differ from it.

It holds for kernels that evaluate the declaration's own steps, with these freedoms: sums (n-ary ones of a definition
too) in any order; products of a matrix product rounded as the contract says; exp with the contract's errors, its
maximum subtracted in one pass or online; scores and weights rounded to io at the edges of inner calls where the
contract says so.
Rules per step: Higham, Accuracy and Stability, ch. 2-4. It needs no derivation per formula, and is loose: errors that
cancel in softmax (numerator against denominator) are added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.float64 import numpy_power
from lla_spec.evaluating.plan import Move
from lla_spec.evaluating.sharp.roundings import ORACLE_U, Roundings, join

Array = np.ndarray

FEW = 4
"""Up to this many additions the order is free and none is saved by a tree: a declared depth does not count for them."""


@dataclass(frozen=True)
class Approximate:
    """`value` and `error` (None: exact), of one shape.

    A sum also knows its `terms`: the number of additions in it, the sum of the magnitudes and the sum of the errors
    that its terms bring; a further addition counts from these, because a kernel may add in another order (start the
    accumulator of a matrix product from the bias, for one).
    """

    value: Array
    error: Array | None = None
    terms: tuple[int, Array, Array] | None = None

    @property
    def deviation(self) -> Array:
        return np.zeros(np.shape(self.value)) if self.error is None else self.error

    def as_terms(self) -> tuple[int, Array, Array]:
        return self.terms or (0, np.abs(self.value), self.deviation)


class Rounding:
    """The domain of `Approximate`, under a contract. `oracle_u`: unit roundoff of the value itself (0: it is exact).

    `backward`: the plan is a gradient, and a kernel may recompute weights from a result that it saved in io: from
    log-sum-exp L as exp(x - L), or from y = x - L as exp(y).
    """

    def __init__(self, contract: Contract, oracle_u: float = ORACLE_U, *, backward: bool = False) -> None:
        self.contract, self.backward = contract, backward
        self.model = Roundings(contract, oracle_u)
        self.infinite = False  # an input holds -inf: an infinite value is exact

    # ---- one rounding

    def rounded(self, value: Array, error: Array, relative: float, zero: Array | None = None) -> Approximate:
        """The error after a relative error and an underflow; entries where `zero` is True are 0 and stay it."""
        reach = np.abs(value) + error
        total = error + relative * reach + self.model.eta
        over = reach * (1 + relative) >= self.contract.acc.overflow_threshold
        if over.any():
            total = np.where(over, np.inf, total)
        if zero is not None:
            total = np.where(zero, 0.0, total)
        if self.infinite:
            total = np.where(np.isinf(value), 0.0, total)
        return Approximate(value, total)

    # ---- the domain

    def input(self, array: Array, kind: str) -> Approximate:
        value = array.astype(np.float64)
        if kind == "scalar":  # a number of the host, rounded to the accumulator
            return self.rounded(value, np.zeros(value.shape), self.model.few(1), zero=np.equal(value, 0))
        self.infinite = self.infinite or bool(np.isinf(value).any())
        return Approximate(value, None if kind == "mask" else self.model.flushed(value))

    def bounded(self, given: Bounded) -> Approximate:
        return Approximate(given.value, given.error)

    def number(self, value: Fraction) -> Approximate:
        rounded = np.array(value.numerator / value.denominator)
        small = value.denominator == 1 and abs(value.numerator) <= 256
        return Approximate(rounded, None if small else self.model.few(1) * np.abs(rounded))

    def move(self, function: Move, *values: Approximate) -> Approximate:
        value = function(*(v.value for v in values))
        exact = all(v.error is None for v in values)
        error = None if exact else function(*(v.deviation for v in values))
        terms = values[0].terms
        if terms is None or len(values) > 1:
            return Approximate(value, error)
        return Approximate(value, error, (terms[0], function(terms[1]), function(terms[2])))

    def add(self, a: Approximate, b: Approximate) -> Approximate:
        (count_a, size_a, error_a), (count_b, size_b, error_b) = a.as_terms(), b.as_terms()
        count, size, error = count_a + count_b + 1, size_a + size_b, error_a + error_b
        value = a.value + b.value
        gamma = self.model.few(count) if count <= FEW else self.model.gamma(count)
        total = error + gamma * (size + error) + count * self.model.eta
        total = np.where((size == 0) & (error == 0), 0.0, total)
        if self.infinite:
            total = np.where(np.isinf(value), 0.0, total)
        total = np.where(size + total >= self.contract.acc.overflow_threshold, self._beyond(value), total)
        return Approximate(value, total, (count, size, error))

    def _beyond(self, value: Array) -> Array:
        return np.where(np.isinf(value), 0.0, np.inf) if self.infinite else np.full(np.shape(value), np.inf)

    def negate(self, a: Approximate) -> Approximate:
        return Approximate(-a.value, a.error, a.terms)

    def multiply(self, a: Approximate, b: Approximate) -> Approximate:
        value = a.value * b.value
        # 0 times what may be infinite is NaN, not 0
        zero = (a.value == 0) & (a.deviation == 0) & np.isfinite(b.deviation)
        zero = zero | ((b.value == 0) & (b.deviation == 0) & np.isfinite(a.deviation))
        return self.rounded(value, self._product_error(a, b), self.model.few(1), zero)

    def _product_error(self, a: Approximate, b: Approximate) -> Array:
        error = np.zeros(np.broadcast_shapes(np.shape(a.value), np.shape(b.value)))
        if a.error is not None:
            error = error + a.error * np.abs(b.value)
        if b.error is not None:
            error = error + (np.abs(a.value) + a.deviation) * b.error
        return np.where(np.isnan(error), np.inf, error)

    def mask(self, a: Approximate, mask: Approximate) -> Approximate:
        hidden = mask.value == 0
        value = np.where(hidden, 0.0, a.value * mask.value)
        error = None if a.error is None else np.where(hidden, 0.0, a.error * np.abs(mask.value))
        if bool(((mask.value == 0) | (mask.value == 1)).all()):
            return Approximate(value, error)
        return self.rounded(value, np.zeros(value.shape) if error is None else error, self.model.few(1), zero=hidden)

    def keep(self, a: Approximate, mask: Approximate) -> Approximate:
        hidden = mask.value == 0
        error = None if a.error is None else np.where(hidden, 0.0, a.error)
        return Approximate(np.where(hidden, -np.inf, a.value), error)

    def maximum(self, a: Approximate, axes: int) -> Approximate:
        """max is 1-Lipschitz in the largest of the entries' errors; finding it rounds nothing."""
        over = tuple(range(-axes, 0))
        error = None if a.error is None else a.error.max(axis=over, initial=0.0)
        return Approximate(a.value.max(axis=over, initial=-np.inf), error)

    def power(self, a: Approximate, exponent: Fraction) -> Approximate:
        """Monotone in |a|: the relative error at both ends of the interval, by expm1 and log1p so that none is lost."""
        value = numpy_power(a.value, exponent)
        magnitude, relative = np.abs(a.value), 0.0
        if a.error is not None:
            ratio = np.where(magnitude > 0, a.error / magnitude, np.where(a.error > 0, np.inf, 0.0))
            below = np.abs(np.expm1(float(exponent) * np.log1p(-np.minimum(ratio, 1.0))))
            above = np.abs(np.expm1(float(exponent) * np.log1p(ratio)))
            relative = np.maximum(below, above)
            relative = np.where((ratio >= 1) & (exponent < 0), np.inf, relative)
        roundings = 1 if exponent in (2, Fraction(1, 2)) else 2 if exponent in (-1, Fraction(-1, 2)) else 4
        error = np.abs(value) * relative
        if exponent > 0 and a.error is not None:
            error = np.where(magnitude == 0, numpy_power(a.error, exponent), error)
        return self.rounded(value, error, self.model.few(roundings))

    def exp(self, a: Approximate, shifted: int) -> Approximate:
        """exp(x): κ roundings of x, exp_ulp ulps of the result; online, one more factor per rescaling of the row."""
        value = np.exp(a.value)
        incoming, magnitude = a.deviation, np.where(np.isinf(a.value), 0.0, np.abs(a.value))
        if shifted and a.terms is not None and a.terms[0] == 1:  # its subtraction is the first of the κ roundings
            incoming = a.terms[2]
        moved = incoming + self.model.exp_argument * (magnitude + incoming) + self.model.exp_log
        rescalings = 0
        if shifted and a.value.size:
            over = tuple(range(-shifted, 0))
            length = int(np.prod(a.value.shape[a.value.ndim - shifted :]))
            if self.contract.blocks != 1:
                rescalings = length if self.contract.blocks == "n_k" else min(int(self.contract.blocks), length)
                spread = magnitude.max(axis=over, keepdims=True)
                moved = moved + rescalings * (self.model.exp_log + self.model.few(2)) + self.model.exp_argument * spread
            if self.backward:
                moved = moved + self._saved(a, length)
        error = np.where(moved < 1, value * np.expm1(np.minimum(moved, 1.0)), np.exp(a.value + moved))
        return Approximate(value, np.where(np.isneginf(a.value), 0.0, error + (1 + rescalings) * self.model.eta))

    def _saved(self, a: Approximate, length: int) -> Array:
        """Error of x - L, L = peak + log s saved in io, 0 <= log s <= log(length): 4 roundings, and one to io."""
        size = np.where(np.isfinite(a.value), a.as_terms()[1], 0.0) + math.log(length)
        return join(self.model.few(4), self.contract.u_out) * size + self.contract.eta_out

    def log(self, a: Approximate) -> Approximate:
        value = np.log(a.value)
        ratio = np.minimum(a.deviation / np.where(a.value > 0, a.value, 1.0), 1.0)
        return self.rounded(value, -np.log1p(-ratio), self.model.few(4))

    def sum(self, a: Approximate, axes: int) -> Approximate:
        """The terms may be sums themselves (a matrix product for each of a batch): all of theirs, in any order."""
        over = tuple(range(-axes, 0))
        length = int(np.prod(a.value.shape[a.value.ndim - axes :]))
        each, sizes, errors = a.as_terms()
        count, value = length * (each + 1), a.value.sum(axis=over)
        size, error = sizes.sum(axis=over), errors.sum(axis=over)
        reach, gamma = size + error, self.model.gamma(count)
        total = np.where(reach == 0, 0.0, error + gamma * reach + count * self.model.eta)
        total = np.where(reach * (1 + gamma) >= self.contract.acc.overflow_threshold, np.inf, total)
        return Approximate(value, total, (count, size, error))

    def scale_casts(self) -> float:
        """Operands rounded to io after the scale went into them."""
        if self.contract.io == self.contract.acc:
            return 0.0
        return join(*[self.contract.io.unit_roundoff] * self.contract.scale_casts)

    def matmul(self, a: Approximate, b: Approximate) -> Approximate:
        extra, length = self.scale_casts(), a.value.shape[-1]
        value, error, magnitude = self.model.contraction(a.value, b.value, a.error, b.error, extra=extra)
        if a.error is not None or b.error is not None or extra or self.model.operands:
            return Approximate(value, error, (length, magnitude, error))
        error = np.where(magnitude == 0, 0.0, error)
        # Every term may underflow twice, as a product and as a sum; what else is wrong with the sum is its γ.
        underflow = np.where(magnitude == 0, 0.0, 2 * length * self.model.eta * (1 + self.model.gamma(length)))
        return Approximate(value, error, (length, magnitude, underflow))

    def edge(self, a: Approximate, kind: str) -> Approximate:
        casts = self.contract.score_casts if kind == "argument" else int(self.contract.weight_cast or self.backward)
        if not casts or self.contract.io == self.contract.acc:
            return a
        # The relative error of a cast, not half a spacing at this value: a kernel may cast before it multiplies by the
        # scale, or before it divides by the sum, where the spacing is another one.
        io, error = self.contract.io, a.deviation
        for _ in range(casts):
            reach = np.abs(a.value) + error
            error = error + io.unit_roundoff * reach + self.contract.eta_out
            error = np.where(reach >= io.overflow_threshold, np.inf, error)
        return Approximate(a.value, np.where((a.value == 0) & (a.deviation == 0), 0.0, error))
