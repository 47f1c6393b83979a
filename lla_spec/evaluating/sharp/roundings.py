"""The two sources of error in |kernel - float64 oracle|, and the last steps that every rule shares.

`Roundings` joins what the contract allows the kernel with what the oracle's own float64 may do. All bounds here are
convex in u and vanish at u = 0, hence f(u_kernel) + f(u_oracle) <= f(u_kernel + u_oracle): one evaluation with the
sum of both covers both errors. Only γ_n is added separately, since a declared depth or λ binds the kernel alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, overload

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import PRECISIONS, Contract, hard_gamma

Array: TypeAlias = np.ndarray
Arguments: TypeAlias = Mapping[str, "np.ndarray | float | None"]
Forward: TypeAlias = Callable[..., Bounded]
Vjp: TypeAlias = Callable[..., "dict[str, Bounded]"]

SAFETY = 1.01
"""Factor on every bound, for the roundings of evaluating the bound itself; declared in TRUST.md."""

ORACLE_U = 2.0**-53

# log2(e) rounded to a format is off by at most 0.22 u; a kernel that uses exp2 carries it beside its two roundings.
_CONSTANT_LOG2E = 0.25


def array(arguments: Arguments, name: str) -> Array:
    """The argument as a float64 array; TypeError where it is missing."""
    value = arguments[name]
    if value is None or isinstance(value, int | float):
        raise TypeError(f"sharp rule: {name} must be an array, got {value!r}")
    return np.asarray(value, dtype=np.float64)


def optional_array(arguments: Arguments, name: str) -> Array | None:
    return None if arguments.get(name) is None else array(arguments, name)


@overload
def join(*relative: float) -> float: ...
@overload
def join(*relative: Array | float) -> Array | float: ...
def join(*relative: Any) -> Any:
    """Relative errors one after another: Π(1+r) - 1."""
    total = 0.0
    for error in relative:
        total = total + error + total * error
    return total


class Roundings:
    """The rounding model of one kernel together with the float64 oracle (oracle_u = 0: the value is exact)."""

    def __init__(self, contract: Contract, oracle_u: float = ORACLE_U) -> None:
        self.contract = contract
        self.oracle_u = oracle_u
        self.u = contract.u_acc + oracle_u
        self.eta = contract.eta_acc

    def gamma(self, n: int) -> float:
        """Relative error of a sum of n rounded terms, against Σ|terms|."""
        return self.contract.gamma(n) + hard_gamma(max(n, 0), self.oracle_u)

    def few(self, k: float) -> float:
        """Relative error of k roundings in a row."""
        return hard_gamma(k, self.u)

    @property
    def exp_argument(self) -> float:
        """Relative error of the argument of exp: kappa roundings, and the constant of exp2 where it is used."""
        kappa = self.contract.kappa
        return self.few(kappa + (_CONSTANT_LOG2E if kappa >= 2 else 0.0))

    @property
    def exp_log(self) -> float:
        """|log(computed exp / exp)| <= -log(1 - ε), ε = exp_ulp ulps (the lower side is the larger one)."""
        relative = 2 * self.contract.exp_ulp * self.u
        return float(-np.log1p(-relative)) if relative < 1 else np.inf

    @property
    def operands(self) -> float:
        """Relative error of a product whose two factors were rounded to tf32."""
        if not self.contract.tf32:
            return 0.0
        u = PRECISIONS["tf32"].unit_roundoff * (2 if self.contract.rounding == "truncate" else 1)
        return 2 * u + u * u

    def flushed(self, operand: Array) -> Array | None:
        """|operand| where it is subnormal for the accumulator and may be read as zero; None: nowhere."""
        if not self.contract.flush_to_zero or self.contract.acc.name == "fp16":
            return None
        magnitude = np.abs(operand)
        small = (magnitude > 0) & (magnitude < self.contract.acc.smallest_normal)
        return np.where(small, magnitude, 0.0) if small.any() else None

    def contraction(
        self,
        a: Array,
        b: Array,
        error_a: Array | None = None,
        error_b: Array | None = None,
        *,
        extra: float = 0.0,
        terms: int | None = None,
        underflow: float = 1.0,
    ) -> tuple[Array, Array, Array]:
        """(ab, error, |a||b|) of a kernel that multiplies matrices within error_a, error_b of a (…, n, K), b (…, K, m).

        Let â = a + δa, b̂ = b + δb. Every product passes `operands`, `extra` and the summation, so that
        |ĉ - âb̂| <= ρ|â||b̂| + underflow with ρ = γ_K ∘ operands ∘ extra (Higham, (3.13)), and
        |âb̂ - ab| <= δa|b| + |a|δb + δaδb. Each of the K products and K additions may underflow by η.
        `terms`: length of the sum where it is longer than K. `underflow`: what the underflow is multiplied by later.
        +inf where a partial sum may overflow, except where all terms have one sign: there the result itself decides.
        """
        length = a.shape[-1] if terms is None else terms
        rho = join(self.gamma(length), self.operands, extra)
        wide_a, wide_b = np.abs(a), np.abs(b)
        value, magnitude = a @ b, wide_a @ wide_b
        moved: Array | float = 0.0
        if error_a is not None:
            moved = error_a @ wide_b
        if error_b is not None:
            moved = moved + (wide_a if error_a is None else wide_a + error_a) @ error_b
        reach = magnitude + moved
        error = moved + rho * reach + 2 * length * underflow * self.eta * (1 + rho)
        overflow = reach * (1 + rho) >= self.contract.acc.overflow_threshold
        cancels = np.abs(value) < magnitude * (1 - 2.0**-40)
        return value, np.where(overflow & cancels, np.inf, error), magnitude


def finish(
    value: Array,
    error: Array,
    contract: Contract,
    *,
    exact: Array | None = None,
    nan: Array | None = None,
    unjudged: Array | None = None,
) -> Bounded:
    """The last cast and the factor 1.01. `exact`: entries that admit no error; `nan`, `unjudged`: see Bounded."""
    with np.errstate(all="ignore"):
        before = SAFETY * np.where(np.isnan(error), np.inf, error)
        finite_value = np.where(np.isfinite(value), value, 0.0)
        after = SAFETY * contract.cast(finite_value, before)
    # A value beyond float64 itself says only that the result overflows; edges want the same infinity.
    if exact is not None:
        before, after = np.where(exact, 0.0, before), np.where(exact, 0.0, after)
    for mask, bound in ((unjudged, np.inf), (nan, 0.0)):
        if mask is not None:
            value = np.where(mask, np.nan, value)
            before, after = np.where(mask, bound, before), np.where(mask, bound, after)
    return Bounded(value, after, before)


def fold_to(shape: tuple[int, ...], summand: Array) -> Array:
    """Sum the axes of `summand` that broadcasting added to `shape`."""
    lead = summand.ndim - len(shape)
    summand = summand.sum(axis=tuple(range(lead))) if lead else summand
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and summand.shape[axis] != 1)
    return summand.sum(axis=axes, keepdims=True) if axes else summand
