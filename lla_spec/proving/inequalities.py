"""left ≤ right: an identity right - left = because, and a certificate `because` that is ≥ 0 by the way it is written.

`why_not_nonnegative` reads structure only. It never evaluates, so it can refuse what is true, and says in words why.
"""

from __future__ import annotations

from collections.abc import Collection

import sympy as sp

from lla_spec.language import Hypothesis, Law
from lla_spec.proving.conditions import readable
from lla_spec.proving.hypotheses import claim
from lla_spec.tensors import Dim, Kept, Label, Maximum, Tensor, is_input


def why_not_nonnegative(law: Law, dropped: Hypothesis | None = None) -> str:
    """Why the certificate of an inequality is not seen to be ≥ 0; empty where it is (and for an equation)."""
    if law.because is None:
        return ""
    made = claim(law, dropped)
    return _tensor_refusal(made.statement.right, made.slacks)


def _tensor_refusal(tensor: Tensor, assumed: Collection[Tensor]) -> str:
    """A declared nonnegative input, an assumed slack, or a definition all of whose entries are ≥ 0."""
    if tensor in assumed:
        return ""
    if tensor.blocks:
        return next(filter(None, (_refusal(block, assumed) for block in tensor.blocks)), "")
    if is_input(tensor):
        return "" if tensor.nonnegative else f"{tensor!r} is not declared nonnegative"
    assert tensor.body is not None
    why = _refusal(tensor.body, assumed)
    return f"{tensor!r}: {why}" if why else ""


def _refusal(expr: sp.Basic, assumed: Collection[Tensor]) -> str:
    """Why `expr` is not seen to be ≥ 0. A denominator that is ≥ 0 is > 0: that it is not 0 is a recorded condition."""
    if isinstance(expr, sp.Rational):
        return "" if expr >= 0 else f"{expr} is negative"
    if isinstance(expr, (Dim, sp.exp, sp.Abs, sp.KroneckerDelta)) or expr is sp.E:
        return ""
    if isinstance(expr, sp.Indexed):
        return _tensor_refusal(expr.base.label.tensor, assumed)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(expr, Label):
        return _tensor_refusal(expr.tensor, assumed)
    if isinstance(expr, (sp.Add, sp.Mul)):
        return next(filter(None, (_refusal(part, assumed) for part in expr.args)), "")
    if isinstance(expr, (sp.Sum, Maximum)):
        inside = expr.function
        return _refusal(inside.args[0] if isinstance(inside, Kept) else inside, assumed)
    if isinstance(expr, sp.Pow):
        exponent = expr.exp
        if exponent.is_Integer and exponent.is_even:
            return ""
        if exponent.is_Rational and int(exponent.q) == 2:  # pyright: ignore[reportAttributeAccessIssue]
            return ""  # a real root is ≥ 0, and so are its powers
        if exponent.is_Rational:
            return _refusal(expr.base, assumed)
    return f"{readable(expr)} may be negative"
