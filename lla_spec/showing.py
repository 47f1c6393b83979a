"""Formulas and laws as text for a terminal, or as LaTeX."""

from __future__ import annotations

from lla_spec.certified import Certified
from lla_spec.language import Formula, Law, registry
from lla_spec.printing import definitions_latex, latex, plain, plain_expression
from lla_spec.substituting import expand


def show_formula(formula: Formula, *, latex: bool = False) -> str:
    """Definitions, torch signature, source and laws of a formula; with `latex`, the definitions as LaTeX alone."""
    own = isinstance(formula, Certified)
    if latex:
        return formula.latex() if own else definitions_latex(formula.result)
    from lla_spec.interface import signature

    lines = [f"{formula.id}    {formula.source}", ""]
    lines += [f"  {text}" for text in (formula.text() if own else plain(formula.result).split("; "))]
    if formula.operation:
        lines += ["", f"  torch     {formula.name}{signature(formula)}"]
        lines += [f"  law       {law.name:<28} {_first_line(law)}" for law in registry.laws_of(formula.name)]
    return "\n".join(lines)


def show_law(law: Law, *, latex: bool = False) -> str:
    """Both sides of a law, with its hypotheses and its docstring."""
    sign = {"=": "=", "<=": r"\le" if latex else "≤"}[law.relation]
    if latex:
        return f"{_latex_side(law, 0)} {sign} {_latex_side(law, 1)}"
    lines = [f"{law.id}    {law.kind} of {law.operation}    {law.source}", "", f"  {law.doc}", ""]
    for hypothesis in law.hypotheses:
        relation = hypothesis.relation
        left, right = (plain_expression(side) for side in (relation.left, relation.right))
        lines.append(f"  given     {left} {'≤' if relation.kind == '<=' else '='} {right}")
    lines += [f"  left      {plain(law.left)}", f"  {sign} right   {plain(law.right)}"]
    if law.because is not None:
        lines.append(f"  because   right - left = {plain_expression(law.because)} ≥ 0")
    return "\n".join(lines)


def _latex_side(law: Law, which: int) -> str:
    if which == 1 and law.matrix is not None:
        from sympy import latex as sympy_latex

        return sympy_latex(law.matrix)
    return latex(expand((law.left, law.right)[which].entry))


def _first_line(law: Law) -> str:
    return law.doc.splitlines()[0] if law.doc else ""


def listing() -> str:
    """Every page: its operations with their torch signatures, its laws with their first lines."""
    from lla_spec.interface import signature

    lines = []
    for topic in dict.fromkeys(formula.topic for formula in registry.formulas.values()):
        lines += ["", topic]
        for formula in registry.operations():
            if formula.topic == topic:
                lines.append(f"  {formula.name}{signature(formula)}")
        for law in registry.laws.values():
            if law.topic == topic:
                lines.append(f"    {law.name:<30} {law.kind:<9} {_first_line(law)}")
    return "\n".join(lines[1:])
