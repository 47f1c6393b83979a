"""What judges the results of the certified operations: for each, an oracle made once, and its certificates in order.

The model behind the allowances stands in certificates.py. Certificates come in the order of what explains what, and the
cheap ones first: whoever looks for one that fails need not wait for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lla_spec.evaluating.balls import DEFAULT_BITS, precision
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.certificates import (
    FLOAT64,
    Casts,
    Certificate,
    at_most,
    backward,
    close_to,
    descending,
    entries_at_most,
    excess,
    not_finite,
    orthonormal,
    subspace,
    tau,
    unit_roundoff,
    within_excess,
)
from lla_spec.evaluating.contracts import Contract
from lla_spec.evaluating.edges import hazards
from lla_spec.evaluating.spectrum import Array, balls, centred, frobenius, norm, spectrum


class TruncatedSvd:
    """(U, S, Vh) of w (m, n), U (m, k), S (k,), Vh (k, n). The oracle is made once; any outputs can be judged by it."""

    def __init__(self, arguments: Mapping[str, Array], k: int, contract: Contract) -> None:
        self.w = arguments["w"]
        self.k, self.contract, self.casts = k, contract, Casts(contract)
        self.oracle = spectrum(balls(self.w))
        self.tau = tau(self.w.shape, contract)
        self.rho = backward(self.w.shape, contract) * self.oracle.norm + math.sqrt(self.w.size) * contract.eta_acc
        self.values = self._values()

    def _values(self) -> Bounded:
        s, before = self.oracle.s[: self.k], self.rho + self.oracle.radius[: self.k]
        return Bounded(s, self.contract.cast(s, before), before)

    @property
    def hazard(self) -> bool:
        return bool(hazards(self.values).any())

    def certificates(self, outputs: Mapping[str, Array]) -> Iterator[Certificate]:
        """The cheap ones first: whoever asks for one that fails need not wait for the others."""
        U, S, V = outputs["U"], outputs["S"], outputs["Vh"].T
        broken = not_finite(outputs, but="S")
        if broken is not None:
            yield broken
            return
        S = np.where(np.isinf(S), self.oracle.s[: self.k], S)  # an overflow is judged by _singular_values
        yield from self._singular_values(outputs["S"])
        yield orthonormal("U", U, self.tau, self.casts)
        yield orthonormal("Vh", V, self.tau, self.casts)
        yield from self._pairs(U, S, V) if not excess(self.contract) else self._near_optimal(U, S, V)

    def _singular_values(self, S: Array) -> Iterator[Certificate]:
        yield from descending("S", "S", S)
        if not excess(self.contract):
            yield close_to(
                "singular values",
                "S",
                "S is not the largest singular values: |S - σ(w)|",
                S,
                self.values,
                self.contract,
            )
            return
        # Singular values of a compression Qᵀ A are at most those of A (interlacing).
        over = np.where(np.isinf(S) & (self.values.value + self.values.error < np.inf), np.inf, S - self.values.value)
        yield entries_at_most(
            "singular values", "S", "S exceeds the singular values: S - σ(w)", over, self.values.error
        )

    def _pairs(self, U: Array, S: Array, V: Array) -> Iterator[Certificate]:
        cu, cv, cs, size = self.casts.of(U), self.casts.of(V), self.casts.of(S), np.abs(self.w)
        rounding = {
            "w Vhᵀ": self._through(size, cv) + frobenius(cu * S + (np.abs(U) + cu) * cs),
            "wᵀ U": self._through(size.T, cu) + frobenius(cv * S + (np.abs(V) + cv) * cs),
        }
        with precision(DEFAULT_BITS):
            A, left, right = balls(self.w), balls(U), balls(V)
            values = balls(np.diag(S))
            found = {
                "w Vhᵀ": norm(A * right - left * values),
                "wᵀ U": norm(A.transpose() * left - right * values),
            }
        other = {"w Vhᵀ": "U S", "wᵀ U": "Vhᵀ S"}
        for side, value in found.items():
            statement = f"U, S, Vh are no singular triplets: ‖{side} - {other[side]}‖"
            yield at_most("singular pairs", "U", statement, value, self.rho + rounding[side])
        residual = math.hypot(*(self.rho + r for r in rounding.values()))
        lost = float(np.max(self.values.error))
        gap = float(self.oracle.s[self.k - 1]) - lost - self.oracle.after(self.k)
        yield from subspace(
            "U", [(self.oracle.u[:, : self.k], U), (self.oracle.vh[: self.k].T, V)], residual, gap, self.oracle
        )

    def _through(self, size: Array, casts: Array) -> float:
        """‖A C‖_F for an unknown |C| ≤ casts: entry by entry, or by ‖A‖₂‖C‖_F, whichever is less."""
        return min(frobenius(size @ casts), (float(self.oracle.s[0]) + float(self.oracle.radius[0])) * frobenius(casts))

    def _near_optimal(self, U: Array, S: Array, V: Array) -> Iterator[Certificate]:
        """The contract svd_excess = t of a randomised method: ‖A - U S Vh‖_F ≤ (1 + t)·optimum."""
        cu, cv, cs = self.casts.of(U), self.casts.of(V), self.casts.of(S)
        rounding = (cu * S) @ np.abs(V.T) + ((np.abs(U) + cu) * cs) @ np.abs(V.T) + ((np.abs(U) + cu) * (S + cs)) @ cv.T
        with precision(DEFAULT_BITS):
            value = norm(balls(self.w) - balls(U) * (balls(np.diag(S)) * balls(V).transpose()))
        yield within_excess(
            "‖w - U S Vh‖", "U", value, self.oracle, self.k, 2 * self.rho + frobenius(rounding), self.contract
        )


class LowRank:
    """W_k of w (m, n): a best approximation of rank k.

    With B the best approximation of W + E, and what was computed B + F, ‖E‖_F and ‖F‖_F ≤ ρ, rounded by C at most:
    the distance is the optimum's up to 2ρ + ‖C‖_F, σ_{k+1} is at most ρ + ‖C‖_F (2ρ is allowed, as for the distance),
    and the residual is orthogonal to the result, since (W + E - B)ᵀB = 0 and B(W + E - B)ᵀ = 0. The distance alone is
    blind to first order: it is at its minimum.
    """

    def __init__(self, arguments: Mapping[str, Array], k: int, contract: Contract) -> None:
        self.w = arguments["w"]
        self.k, self.contract, self.casts = k, contract, Casts(contract)
        self.oracle = spectrum(balls(self.w))
        self.rho = backward(self.w.shape, contract) * self.oracle.norm + math.sqrt(self.w.size) * contract.eta_acc

    hazard = False

    def certificates(self, outputs: Mapping[str, Array]) -> Iterator[Certificate]:
        ((name, W_k),) = outputs.items()
        broken = not_finite(outputs)
        if broken is not None:
            yield broken
            return
        cast = frobenius(self.casts.of(W_k))
        with precision(DEFAULT_BITS):
            result, rest = balls(W_k), balls(self.w) - balls(W_k)
            distance = norm(rest)
        if self.k < self.oracle.s.size:
            own = spectrum(result)
            statement = f"of a rank above k = {self.k}: σ_k+1({name})"
            allowed = 2 * self.rho + cast + float(own.radius[self.k])
            yield at_most("rank", name, statement, own.after(self.k), allowed)
        best, radius = self.oracle.tail(self.k)
        if excess(self.contract):
            yield within_excess(
                f"‖w - {name}‖", name, distance, self.oracle, self.k, 2 * self.rho + cast, self.contract
            )
        else:
            statement = f"not at the least distance: |‖w - {name}‖ - √(σ²_k+1 + …)|"
            yield at_most("distance", name, statement, abs(distance - best), 2 * self.rho + cast + radius)
        if excess(self.contract):
            return
        allowed = self._orthogonality(cast)
        with precision(DEFAULT_BITS):
            sides = {
                f"(w - {name})ᵀ {name}": norm(rest.transpose() * result),
                f"(w - {name}) {name}ᵀ": norm(rest * result.transpose()),
            }
        for side, value in sides.items():
            statement = f"what is left of w is not orthogonal to {name}: ‖{side}‖"
            yield at_most("orthogonal residual", name, statement, value, allowed)

    def _orthogonality(self, cast: float) -> float:
        """R̂ᵀŴ = (R̃+E+F)ᵀF - (E+F)ᵀW̃ + R̃ᵀC - CᵀŴ, ‖R̃‖₂ ≤ σ_{k+1} + 3ρ, ‖W̃‖₂ ≤ σ₁ + 2ρ, Ŵ = W̃ + C, R̂ = R̃ - C."""
        radius, rho = float(self.oracle.radius[0]), self.rho
        rest, result = self.oracle.after(self.k) + radius + 3 * rho, float(self.oracle.s[0]) + radius + 2 * rho
        return (rest + 2 * rho) * rho + 2 * rho * result + (rest + result + cast) * cast


class Pca:
    """(mean, components, explained variance) of x (n, d): mean (d,), components (k, d), explained_variance (k,).

    The centred data Xc take the part of A; the kernel's mean is off by e_μ ≤ γ_{n+1}·mean|x|, so what it factorises is
    Xc + E with ‖E‖_F ≤ ρ = (τ + δ)(‖Xc‖_F + ‖e‖_F) + ‖e‖_F + η√(nd), e = e_μ + u(|x| + |μ| + e_μ).
    """

    def __init__(self, arguments: Mapping[str, Array], k: int, contract: Contract) -> None:
        self.x = x = arguments["x"]
        n, u = len(x), unit_roundoff(contract)
        self.k, self.contract, self.casts = k, contract, Casts(contract)
        means, self.exact = centred(x)
        self.oracle = spectrum(self.exact)
        mean = np.array([float(value.mid()) for value in means])
        off = contract.gamma(n + 1) * np.abs(x).mean(0) * (1 + n * FLOAT64) + contract.eta_acc
        self.mean = Bounded(mean, contract.cast(mean, off), off)
        shift = frobenius(off + u * (np.abs(x) + np.abs(mean) + off))
        self.tau = tau(x.shape, contract)
        self.rho = backward(x.shape, contract) * (self.oracle.norm + shift) + shift
        self.rho += math.sqrt(x.size) * contract.eta_acc
        self.variance = self._variance(n, u)

    def _variance(self, n: int, u: float) -> Bounded:
        """σ̃²/(n-1) with |σ̃ - σ| ≤ ρ, a square and a division, then the cast."""
        s, lost = self.oracle.s[: self.k], self.rho + self.oracle.radius[: self.k]
        with np.errstate(over="ignore", under="ignore"):
            value, before = s**2 / (n - 1), (2 * s + lost) * lost / (n - 1)
            before = before + 4 * u * (value + before) + self.contract.eta_acc
        return Bounded(value, self.contract.cast(value, before), before)

    @property
    def hazard(self) -> bool:
        return bool(hazards(self.variance).any())

    def certificates(self, outputs: Mapping[str, Array]) -> Iterator[Certificate]:
        names = list(outputs)
        mean, components, variance = outputs.values()
        broken = not_finite(outputs, but=names[2])
        if broken is not None:
            yield broken
            return
        yield close_to("mean", names[0], "the mean is off: |mean - Σx/n|", mean, self.mean, self.contract)
        yield from descending(names[2], "explained variance", variance)
        V = components.T
        yield orthonormal(names[1], V, self.tau, self.casts)
        if excess(self.contract):
            over = np.where(np.isinf(variance), 0.0, variance - self.variance.value)
            yield entries_at_most(
                "explained variance",
                names[2],
                "explained variance is too large: λ - σ²/(n-1)",
                over,
                self.variance.error,
            )
            yield self._captured(names[1], V)
            return
        statement = "explained variance is off: |λ - σ²/(n-1)|"
        yield close_to("explained variance", names[2], statement, variance, self.variance, self.contract)
        yield from self._directions(names[1], V)

    def _directions(self, name: str, V: Array) -> Iterator[Certificate]:
        """min over U of ‖(Xc V - U Σ, Xcᵀ U - V Σ)‖_F ≤ √2·2ρ + σ₁‖C‖_F, Σ the exact singular values.

        There is no U among the outputs, and Xcᵀ Xc V = V Σ² would square the condition. The kernel's own U and Σ̃ have
        both residuals ≤ ρ, and ‖Σ̃ - Σ‖_F ≤ ρ (Mirsky); so the best U does as well. In the basis of the oracle it is
        uⱼ = 2σσⱼcⱼ/(σ² + σⱼ²) for v = Σ cⱼvⱼ; it is found in float64, and its residuals in balls.
        """
        s, k = self.oracle.s, self.k
        unit = s / (s[0] or 1.0)
        bottom = unit[:, None] ** 2 + unit[:k] ** 2
        factor = np.where(bottom > 0, 2 * unit[:, None] * unit[:k] / np.where(bottom > 0, bottom, 1.0), 0.0)
        U = self.oracle.u @ (factor * (self.oracle.vh @ V))
        with precision(DEFAULT_BITS):
            values, left, right = balls(np.diag(s[:k])), balls(U), balls(V)
            value = math.hypot(
                norm(self.exact * right - left * values), norm(self.exact.transpose() * left - right * values)
            )
        inexact = 4 * self.oracle.error + 2 * sum(self.x.shape) * FLOAT64 * self.oracle.norm  # of U and of Σ
        allowed = math.sqrt(8) * self.rho + float(s[0] + self.oracle.radius[0]) * frobenius(self.casts.of(V)) + inexact
        yield at_most(
            "principal directions",
            name,
            f"{name} are not principal directions: ‖(Xc V - U Σ, Xcᵀ U - V Σ)‖",
            value,
            allowed,
        )
        gap = float(s[k - 1]) - self.oracle.after(k)
        yield from subspace(name, [(self.oracle.vh[:k].T, V)], allowed, gap, self.oracle)

    def _captured(self, name: str, V: Array) -> Certificate:
        """‖Xc - Xc V Vᵀ‖_F for the contract svd_excess."""
        c = self.casts.of(V)
        with precision(DEFAULT_BITS):
            value = norm(self.exact - (self.exact * balls(V)) * balls(V).transpose())
        rounding = 2 * self.rho + self.oracle.norm * (2 * frobenius(V) + frobenius(c)) * frobenius(c)
        return within_excess("‖Xc - Xc V Vᵀ‖", name, value, self.oracle, self.k, rounding, self.contract)


Judged = TruncatedSvd | LowRank | Pca
CERTIFICATES: Mapping[str, Callable[[Mapping[str, Array], int, Contract], Judged]] = {
    "truncated_svd": TruncatedSvd,
    "low_rank": LowRank,
    "pca": Pca,
}
"""By operation: torch-named float64 arguments of one matrix, k and a contract, to what judges outputs by name."""
