"""What a kernel promises about its roundings: the only thing that a bound knows of the code under test.

A bound is computed from the formula, the data and a `Contract`; no tolerance is chosen. Three contracts have names
(strict, fused, whiteboard); any field can be overridden.

    >>> c = contract("fused", "bf16")
    >>> c.describe()
    'io=bf16 acc=fp32 weight_cast grad_partials=io'
    >>> contract({"base": "strict", "tf32": True}, "fp32").describe()
    'io=fp32 acc=fp32 tf32'

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., ch. 2-4 (model, γ_n); Higham and Mary,
SIAM J. Sci. Comput. 41 (2019), Theorem 2.4 (γ̃_n(λ), the statistical version).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Precision:
    """A binary floating-point format with round to nearest.

    `unit_roundoff` is u = 2^-p: |fl(x) - x| <= u|x| where x is in the normal range.
    """

    name: str
    unit_roundoff: float
    largest: float
    smallest_normal: float
    smallest_subnormal: float

    @cached_property
    def overflow_threshold(self) -> float:
        """The smallest magnitude that rounds to infinity, (2-u)·2^emax; for fp64 `largest`, as it has no double."""
        threshold = self.largest * ((2 - self.unit_roundoff) / (2 - 2 * self.unit_roundoff))
        return threshold if math.isfinite(threshold) else self.largest

    def half_spacing(self, magnitude: np.ndarray) -> np.ndarray:
        """Half the distance of the format's numbers around `magnitude` >= 0: the most that rounding moves it.

        Equals u·2^⌊log2 magnitude⌋ <= u·magnitude in the normal range; the subnormal part is the caller's η.
        """
        finite = np.isfinite(magnitude)
        _, exponent = np.frexp(np.where(finite, magnitude, 0.0))
        spacing = np.where(magnitude > 0, np.ldexp(self.unit_roundoff, exponent - 1), 0.0)
        return np.where(finite, spacing, np.inf)

    def settles(self, value: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Where rounding a number within `error` of `value` must give `value`: one of the format's own normal numbers,
        and nearer than half the way to its neighbours. A power of two has one at half the spacing below it.

        >>> PRECISIONS["bf16"].settles(np.array([0.25, 0.25, 0.3]), np.array([1e-6, 1e-3, 1e-6])).tolist()
        [True, False, False]
        """
        magnitude = np.abs(value)
        half = self.half_spacing(magnitude)
        with np.errstate(all="ignore"):
            steps = magnitude / (2 * half)
            normal = (magnitude - error >= self.smallest_normal) & (magnitude <= self.largest)
            return (normal & (steps == np.rint(steps)) & (error < half / 2)) | ((magnitude == 0) & (error == 0))


def _precision(name: str, bits: int, exponent_max: int, *, subnormal_bits: int | None = None) -> Precision:
    """`bits` of significand with the hidden one; emin = 1 - emax, as IEEE 754 has it."""
    normal = 2.0 ** (1 - exponent_max)
    return Precision(
        name,
        unit_roundoff=2.0**-bits,
        largest=(2.0 - 2.0 ** (1 - bits)) * 2.0**exponent_max,
        smallest_normal=normal,
        smallest_subnormal=normal * 2.0 ** (1 - (subnormal_bits or bits)),
    )


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "fp64": _precision("fp64", 53, 1023),
        "fp32": _precision("fp32", 24, 127),
        "tf32": _precision("tf32", 11, 127),
        "bf16": _precision("bf16", 8, 127),
        "fp16": _precision("fp16", 11, 15),
    }
)


def hard_gamma(n: float, u: float) -> float:
    """γ_n = nu/(1-nu), Higham's Lemma 3.1: n roundings in any order; +inf where nu >= 1.

    >>> hard_gamma(1, 2.0**-24) > 2.0**-24
    True
    """
    product = n * u
    return product / (1 - product) if product < 1 else math.inf


def _pairwise(n: int) -> int:
    return 1 + math.ceil(math.log2(n)) if n > 1 else 1


DEPTHS: Mapping[str, Callable[[int], int]] = MappingProxyType({"pairwise": _pairwise})
"""Named reduction trees: number of terms -> longest chain of roundings that a term passes (its product included)."""

TIGHT_LAMBDA = 3.0
"""λ of the statistical tier: an assumption-laden 1 - 2exp(-λ²/2) per sum; declared, see TRUST.md."""


@dataclass(frozen=True)
class Contract:
    """Which roundings a kernel may make. The defaults are `strict`.

    io, acc           dtype of inputs and result; dtype of everything in between
    rounding          "nearest" or "truncate": of the accumulator (truncation doubles its u)
    flush_to_zero     subnormal operands and results of the accumulator may become 0 (fp16 is never flushed)
    depth             None: sums in any order; a name of `DEPTHS` or a callable n -> longest chain of roundings
    exp_ulp           error of exp, in ulps of acc (1 ulp <= 2u)
    kappa             roundings of the argument of exp: 1 = subtract; 2 = also times log2(e)
    score_casts       how often scores (in a VJP: their gradients) are rounded to io
    weight_cast       softmax weights (in a VJP also dS) may be rounded to io before they enter a product
    scale_casts       roundings to io of q and k when the scale is multiplied into them
    blocks            online softmax: number of key blocks; "n_k" = any number
    variance          "two_pass", "welford" (covers two-pass) or "naive" (E[x²]-μ²)
    grad_partials     "acc", or "io": attention gradients summed over blocks of >= 32 terms, kept in io
    tf32              operands of matrix products are rounded to tf32
    svd_excess        t: a randomised SVD, ‖A - Â_k‖ <= (1+t)·optimum instead of singular pairs; 0: exact
    statistical       λ > 0: γ_n is replaced by min(γ_n, γ̃_n(λ)); 0: hard

    Raises ValueError for a value outside these.
    """

    io: Precision
    acc: Precision
    rounding: str = "nearest"
    flush_to_zero: bool = True
    depth: str | Callable[[int], int] | None = None
    exp_ulp: float = 2.0
    kappa: float = 2.0
    score_casts: int = 0
    weight_cast: bool = False
    scale_casts: int = 0
    blocks: str | int = "n_k"
    variance: str = "welford"
    grad_partials: str = "acc"
    tf32: bool = False
    svd_excess: float = 0.0
    statistical: float = 0.0

    def __post_init__(self) -> None:
        for name in ("io", "acc"):
            if not isinstance(getattr(self, name), Precision):
                raise ValueError(f"contract: {name} is {getattr(self, name)!r}, expected one of {_names(PRECISIONS)}")
        _require("rounding", self.rounding, ("nearest", "truncate"))
        _require("variance", self.variance, ("two_pass", "welford", "naive"))
        _require("grad_partials", self.grad_partials, ("acc", "io"))
        for name in ("flush_to_zero", "weight_cast", "tf32"):
            _require(name, getattr(self, name), (True, False))
        if not (self.depth is None or callable(self.depth)):
            _require("depth", self.depth, tuple(DEPTHS))
        if not (self.blocks == "n_k" or (isinstance(self.blocks, int) and _is_count(self.blocks) and self.blocks >= 1)):
            raise ValueError(f"contract: blocks is {self.blocks!r}, expected 'n_k' or an integer >= 1")
        for name in ("score_casts", "scale_casts"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"contract: {name} is {getattr(self, name)!r}, expected an integer >= 0")
        for name in ("exp_ulp", "kappa", "svd_excess", "statistical"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"contract: {name} is {value!r}, expected a finite number >= 0")

    # ---- roundings of the accumulator

    @property
    def u_acc(self) -> float:
        """Relative error of one operation of the accumulator."""
        return self.acc.unit_roundoff * (2 if self.rounding == "truncate" else 1)

    @property
    def eta_acc(self) -> float:
        """Absolute error of one operation of the accumulator whose result underflows."""
        return _eta(self.acc, self.flush_to_zero)

    def gamma(self, n: int) -> float:
        """Relative error (against Σ|terms|) of a sum of n rounded terms, or of a dot product of length n."""
        if n <= 0:
            return 0.0
        depth = DEPTHS[self.depth] if isinstance(self.depth, str) else self.depth
        bound = hard_gamma(min(n, depth(n)) if depth else n, self.u_acc)
        if self.statistical:
            u = self.u_acc
            bound = min(bound, math.expm1(min(self.statistical * math.sqrt(n) * u + n * u * u / (1 - u), 700.0)))
        return bound

    # ---- the cast to io

    @property
    def u_out(self) -> float:
        """Unit roundoff of a cast from acc to io; 0 where they are the same format and nothing is rounded."""
        return 0.0 if self.io == self.acc else self.io.unit_roundoff

    @property
    def eta_out(self) -> float:
        """Absolute error of a cast to io that underflows."""
        return 0.0 if self.io == self.acc else _eta(self.io, self.flush_to_zero)

    def cast(self, value: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Error after rounding to io a number within `error` of `value`.

        The number has magnitude <= |value| + error, so rounding to nearest moves it by at most half the spacing
        there, plus η_out where it underflows; and not away from a value that the format has, if it is near enough.
        """
        if self.io == self.acc:
            return error
        moved = self.io.half_spacing(np.abs(value) + error) + self.eta_out
        return error + np.where(self.io.settles(value, error), 0.0, moved)

    def inner_cast(self, value: np.ndarray, error: np.ndarray) -> np.ndarray:
        """`cast` in the middle of a computation: +inf where the cast may overflow, since nothing is known after it."""
        if self.io == self.acc:
            return error
        after = self.cast(value, error)
        return np.where(np.abs(value) + error >= self.io.overflow_threshold, np.inf, after)

    # ---- variants

    def override(self, **changes: Any) -> Contract:
        """A copy with fields replaced; precisions may be given by name. ValueError for an unknown field or value."""
        known = [field.name for field in fields(self)]
        for key in changes:
            if key not in known:
                raise ValueError(f"contract: unknown key {key!r}; known are {', '.join(known)}")
        for key in ("io", "acc"):
            if isinstance(changes.get(key), str):
                changes[key] = _named_precision(key, changes[key])
        return replace(self, **changes)

    def tight(self) -> Contract:
        """The statistical version, λ = 3. A truncating accumulator has biased errors: it stays hard."""
        return self if self.rounding == "truncate" else self.override(statistical=TIGHT_LAMBDA)

    def describe(self) -> str:
        """One line: io, acc and whatever differs from strict."""
        words = [f"io={self.io.name}", f"acc={self.acc.name}"]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if value is True:
                words.append(field.name)
            elif callable(value):
                words.append(f"{field.name}={getattr(value, '__name__', 'callable')}")
            else:
                words.append(f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}")
        return " ".join(words)


def _eta(precision: Precision, flush_to_zero: bool) -> float:
    if flush_to_zero and precision.name != "fp16":
        return precision.smallest_normal
    return max(precision.smallest_subnormal / 2, 5e-324)


def _require(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in allowed):
        raise ValueError(f"contract: {name} is {value!r}, expected one of {', '.join(map(str, allowed))}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _names(table: Mapping[str, object]) -> str:
    return ", ".join(table)


def _named_precision(role: str, name: str) -> Precision:
    if name not in PRECISIONS:
        raise ValueError(f"contract: {role} is {name!r}, expected one of {_names(PRECISIONS)}")
    return PRECISIONS[name]


_FUSED: Mapping[str, Any] = MappingProxyType({"weight_cast": True, "grad_partials": "io"})
# A whiteboard kernel rounds Q Kᵀ to io, and again after the multiplication by the scale.
_WHITEBOARD: Mapping[str, Any] = MappingProxyType({**_FUSED, "score_casts": 2})
NAMED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"strict": MappingProxyType({}), "fused": _FUSED, "whiteboard": _WHITEBOARD}
)
DEFAULT = "fused"


def contract(name_or_mapping: str | Mapping[str, Any] | Contract | None, io: str) -> Contract:
    """The contract of a name (strict, fused, whiteboard; None = fused) or of a mapping of overrides for dtype `io`.

    A mapping may name the contract that it starts from as "base" (default fused). For fp32 and fp64 the three are the
    same: acc is io there, and rounding to io is no rounding. ValueError for an unknown name, key or value.
    """
    precision = _named_precision("io", io)
    if isinstance(name_or_mapping, Contract):
        return name_or_mapping
    overrides: dict[str, Any] = {}
    name = DEFAULT if name_or_mapping is None else name_or_mapping
    if isinstance(name, Mapping):
        overrides = dict(name)
        name = overrides.pop("base", DEFAULT)
    if name not in NAMED:
        raise ValueError(f"contract: {name!r} is not a contract; there are {_names(NAMED)}")
    acc = PRECISIONS["fp64" if io == "fp64" else "fp32"]
    base = Contract(io=precision, acc=acc)
    if precision != acc:
        base = base.override(**NAMED[name])
    return base.override(**overrides)


def lattice(base: Contract) -> list[tuple[str, Contract]]:
    """Contracts weaker than `base`, the closest first: which one would a failing kernel meet?

    Each entry keeps what `base` allows already and allows more. The label says what the kernel seems to do.
    """
    steps: list[tuple[str, dict[str, Any]]]
    one_pass = ("variance in one pass, E[x²] - μ²", {"variance": "naive"})
    if base.io == base.acc:
        steps = [("operands rounded to tf32", {"tf32": True})] if base.io.name == "fp32" else []
        narrower = {"fp64": ("fp32",), "fp32": ("fp16", "bf16")}.get(base.io.name, ())
        steps += [one_pass, *((f"accumulated in {name}", {"acc": name}) for name in narrower)]
    else:
        io = base.io.name
        scores = max(base.score_casts, 1)
        steps = [
            (f"weights rounded to {io}", {"weight_cast": True}),
            (f"gradient partials kept in {io}", {"grad_partials": "io"}),
            (f"weights and gradient partials in {io} (fused)", dict(_FUSED)),
            (f"scores rounded to {io}", {"score_casts": scores}),
            (f"scores and weights rounded to {io}", {"score_casts": scores, "weight_cast": True}),
            (f"scores, weights and gradient partials in {io} (whiteboard)", dict(_WHITEBOARD)),
            (f"q and k rounded to {io} after scaling, scores and weights too", {**_WHITEBOARD, "scale_casts": 2}),
            one_pass,
            (f"accumulated in {io}", {**_WHITEBOARD, "acc": io}),
        ]
    found: list[tuple[str, Contract]] = []
    for label, changes in steps:
        candidate = base.override(**changes)
        if candidate != base and candidate not in [weaker for _, weaker in found]:
            found.append((label, candidate))
    return found
