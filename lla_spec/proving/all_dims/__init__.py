"""The prover for all dimensions: Σ-normal form (reading → algebra, sums, canonical numbering → zero)."""

from lla_spec.proving.all_dims.prover import Prover, normal_form, prove, prove_expressions

__all__ = ["Prover", "normal_form", "prove", "prove_expressions"]
