"""What is cited and not proved: facts about matrices that exist, which no identity states. `prove` prints each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lla_spec.language import Law
from lla_spec.proving.orthonormal import is_constrained

HORN = "Horn & Johnson, Matrix Analysis, 2nd ed."


@dataclass(frozen=True)
class Cited:
    """A fact, its source, and the laws that mean less without it: by id, or by the operation that they are about."""

    fact: str
    source: str
    laws: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    constrained: bool = False  # every law that assumes an orthonormal or a centred matrix

    def rests_under(self, law: Law) -> bool:
        made = self.constrained and any(is_constrained(new) for h in law.hypotheses for new in h.by.values())
        return law.id in self.laws or law.operation in self.operations or made

    def __str__(self) -> str:
        return f"cited, not proved: {self.fact} ({self.source})"


CITED = (
    Cited(
        "every matrix has a singular value decomposition: the witness that laws about truncated_svd and low_rank "
        "assume, and of the centred data, those about pca",
        f"{HORN}, §2.6",
        operations=("truncated_svd", "low_rank", "pca"),
    ),
    Cited(
        "a matrix of rank ≤ k is QC with k orthonormal columns Q: eckart_young and pca_is_optimal speak of all of them",
        f"{HORN}, §2.1",
        laws=("low_rank.eckart_young", "pca.pca_is_optimal"),
    ),
    Cited(
        "rank and nullity: k vectors span some x ≠ 0 with Bx = 0 where rank(B) < k, which spectral_lower_bound assumes",
        f"{HORN}, §0.2",
        laws=("low_rank.spectral_lower_bound",),
    ),
    Cited(
        "Cayley's transform reaches a dense set of the matrices with orthonormal columns, of each component where they "
        "are square: what the exact field proves of its free parameters holds for all; the proof for all dimensions "
        "uses ΣUU = δ alone",
        "Jauch, Hoff & Dunson 2020, Bernoulli 26(2)",
        constrained=True,
    ),
)


def cited_by(laws: Iterable[Law]) -> list[str]:
    """A line for each fact that `laws` lean on."""
    chosen = list(laws)
    return [str(cited) for cited in CITED if any(cited.rests_under(law) for law in chosen)]
