"""What an engine answers: proved or refused ("refused" never means "false"), and under which side conditions."""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp


@dataclass(frozen=True)
class Outcome:
    """`residual` is what remained of left - right where it was refused, readable; empty where proved.

    `conditions` are the expressions that the proof needs to be nonzero (denominators) or positive (roots, logarithms),
    as (expression in the inputs, "≠ 0" | "> 0").
    """

    proved: bool
    residual: str = ""
    conditions: tuple[tuple[sp.Expr, str], ...] = ()
