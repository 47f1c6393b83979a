"""Certificates: inequalities that a witness must meet, where any of many results is right (signs, bases of a cluster).

A factorisation is judged by what it must satisfy, never against the factors of another program. Each certificate is one
number and the most that it may be, for one matrix; a batch is judged matrix by matrix.

The model behind every allowance: a kernel's factors are those of A + E, orthonormal up to τ = 6(m + n)u, with
‖E‖_F ≤ ρ = (τ + δ)‖A‖_F + η√(mn), and are rounded once to the io dtype. The 6 is chosen (TRUST.md). δ is LAPACK's
convergence criterion (xBDSQR, Demmel and Kahan 1990): an off-diagonal |e| ≤ δ|d| of the bidiagonal form counts as zero,
δ = max(10, min(100, u^(-1/8)))·u, so that together they move A by δ‖A‖_F: 99u in float64, and small matrices show it.
η: an entry of the argument or of the result may be flushed to zero; squares that underflow on the way are not excused.
Casts are counted entry by entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lla_spec.evaluating.balls import DEFAULT_BITS, precision
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import PRECISIONS, Contract
from lla_spec.evaluating.edges import ratios
from lla_spec.evaluating.spectrum import Array, Spectrum, balls, frobenius, nearest

TAU = 6.0  # of τ = 6(m + n)u: the one constant that is chosen
FLOAT64 = 2.0**-53  # of what is evaluated here in float64 outside the balls


@dataclass(frozen=True)
class Certificate:
    """`value` may be at most `allowed`. `statement` says for a person what is wrong where it is more.

    `index` is the entry of `output` that `value` was found at, () where it is a norm.
    """

    name: str
    output: str
    statement: str
    value: float
    allowed: float
    ratio: float
    index: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.name == "finite":
            return f"{self.statement}: {self.value} at ({', '.join(map(str, self.index))})"
        where = f" at ({', '.join(map(str, self.index))})" if self.index else ""
        return f"{self.statement} = {self.value:.3g}{where}, allowed {self.allowed:.3g}"


def at_most(name: str, output: str, statement: str, value: float, allowed: float) -> Certificate:
    """A certificate about one number."""
    ratio = 0.0 if value <= allowed == 0 else math.inf if not allowed else value / allowed
    return Certificate(name, output, statement, value, allowed, ratio if ratio == ratio else math.inf)


def entries_at_most(name: str, output: str, statement: str, value: Array, allowed: Array | float) -> Certificate:
    """A certificate about every entry: the one with the largest ratio; an allowance of 0 asks for value ≤ 0."""
    allowed = np.broadcast_to(allowed, value.shape)
    if not value.size:
        return Certificate(name, output, statement, 0.0, 0.0, 0.0)
    with np.errstate(all="ignore"):
        ratio = np.where(value <= 0, 0.0, value / allowed)
    where = np.unravel_index(int(np.argmax(ratio)), value.shape)
    index = tuple(int(i) for i in where)
    return Certificate(name, output, statement, float(value[where]), float(allowed[where]), float(ratio[where]), index)


def close_to(
    name: str, output: str, statement: str, computed: Array, bounded: Bounded, contract: Contract
) -> Certificate:
    """A certificate about the distance from known values, with the overflow of io respected (edges.ratios)."""
    ratio = ratios(computed, bounded, contract.io)
    where = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    value = abs(float(computed[where]) - float(bounded.value[where]))
    index = tuple(int(i) for i in where)
    return Certificate(name, output, statement, value, float(bounded.error[where]), float(ratio[where]), index)


def not_finite(outputs: Mapping[str, Array], but: str = "") -> Certificate | None:
    """The first output with a NaN or an infinity, as a certificate that fails; infinities in `but` are judged later."""
    for name, value in outputs.items():
        wrong = np.isnan(value) if name == but else ~np.isfinite(value)
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            return Certificate("finite", name, f"{name} is not finite", float(value[index]), 0.0, math.inf, index)
    return None


class Casts:
    """What the last rounding, to the io dtype, may have changed: `of(x)` ≥ |x - (x before it)|, entry by entry."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    def of(self, rounded: Array) -> Array:
        if self.contract.io == self.contract.acc:
            return np.zeros(rounded.shape)
        return self.contract.io.half_spacing(np.abs(rounded)) + self.contract.eta_out


def unit_roundoff(contract: Contract) -> float:
    """u of the kernel's arithmetic: its accumulator's, or TF32's where products may be taken in it."""
    return max(contract.u_acc, PRECISIONS["tf32"].unit_roundoff if contract.tf32 else 0.0)


def excess(contract: Contract) -> float:
    """t of the contract svd_excess = t: what a randomised method may lose against the optimum; 0 where it is exact."""
    return contract.svd_excess


def tau(shape: tuple[int, ...], contract: Contract) -> float:
    return TAU * sum(shape) * unit_roundoff(contract)


def backward(shape: tuple[int, ...], contract: Contract) -> float:
    """τ + δ: what a kernel's factors may be off by, relative to ‖A‖_F."""
    u = unit_roundoff(contract)
    return tau(shape, contract) + max(10.0, min(100.0, u**-0.125)) * u


def orthonormal(name: str, factor: Array, tau: float, casts: Casts) -> Certificate:
    """The columns of `factor`: |FᵀF - I| ≤ τ + |F|ᵀc + cᵀ|F| + cᵀc with the casts c."""
    c, size = casts.of(factor), np.abs(factor)
    with precision(DEFAULT_BITS):
        gram = balls(factor).transpose() * balls(factor) - balls(np.eye(factor.shape[1]))
    cross = c.T @ size
    statement = f"{name} {'are' if name.endswith('s') else 'is'} not orthonormal: |{_gram(name)} - I|"
    return entries_at_most("orthonormal", name, statement, np.abs(nearest(gram)), tau + cross + cross.T + c.T @ c)


def _gram(name: str) -> str:
    return {"U": "Uᵀ U", "Vh": "Vh Vhᵀ"}.get(name, "V Vᵀ")


def descending(name: str, what: str, values: Array) -> Iterator[Certificate]:
    """Both are exact: rounding keeps signs and order."""
    yield entries_at_most("nonnegative", name, f"{what} is negative: -{name}", -values, 0.0)
    statement = f"{what} is not in descending order: {name}[i+1] - {name}[i]"
    yield entries_at_most("sorted", name, statement, values[1:] - values[:-1], 0.0)


def within_excess(
    what: str, output: str, value: float, oracle: Spectrum, k: int, rounding: float, contract: Contract
) -> Certificate:
    best, radius = oracle.tail(k)
    allowed = (1 + excess(contract)) * (best + radius) + rounding
    return at_most("distance", output, f"farther than (1 + {excess(contract):g}) × optimum: {what}", value, allowed)


def subspace(
    output: str, pairs: list[tuple[Array, Array]], residual: float, gap: float, oracle: Spectrum
) -> Iterator[Certificate]:
    """sin Θ ≤ ‖R‖ / gap (Wedin 1972), by projectors, where the gap is at least 2‖R‖; R: the residuals that are allowed.

    The components of the factors on the singular vectors that were left out solve σⱼcᵢⱼ - σ̂ᵢdᵢⱼ = R₁ᵢⱼ and
    σⱼdᵢⱼ - σ̂ᵢcᵢⱼ = R₂ᵢⱼ, whose matrix has no singular value below σ̂ᵢ - σⱼ: no orthonormality is needed.
    """
    own = math.sqrt(2) * oracle.error  # the oracle's subspace has a residual too
    if not gap > 2 * (residual + own):
        return
    value = math.hypot(*(frobenius(factor - basis @ (basis.T @ factor)) for basis, factor in pairs))
    evaluation = FLOAT64 * sum(4 * basis.size for basis, _ in pairs)
    statement = "another subspace than that of the k largest singular values: sin Θ"
    yield at_most("subspace", output, statement, value, (residual + own) / (gap - own) + evaluation)
