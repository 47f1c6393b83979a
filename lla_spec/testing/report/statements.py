"""Formulas and laws as the LaTeX of a page: a law as it was written, its calls by name, and what they are called on.

attention(Q, K', V, M) = attention(Q, K, V, M),   K'_{jk} := K_{jk} + b_k
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import sympy as sp

from lla_spec.certified import SIGNS
from lla_spec.language import Formula, Law
from lla_spec.printing import latex
from lla_spec.substituting import keep, transform
from lla_spec.tensors import Tensor, is_input


def formula_latex(formula: Formula) -> str:
    """The definitions of an operation, or the properties of a certified one, a line each."""
    return formula.latex()


def law_latex(law: Law) -> str:
    """Both sides of a law on the first line, then its hypotheses, then what it names."""
    names = _Names(law)
    right = sp.latex(law.matrix) if law.matrix is not None else names.side(law.right)
    lines = [f"{names.side(law.left)} {SIGNS[law.relation][1]} {right}"]
    for hypothesis in law.hypotheses:
        sides = (hypothesis.relation.left, hypothesis.relation.right)
        first, second = (names.expression(side) if isinstance(side, sp.Basic) else names.side(side) for side in sides)
        lines.append(f"{first} {SIGNS[hypothesis.relation.kind][1]} {second}")
    return " \\\\\n".join([*lines, *names.definitions()])


class _Names:
    """The tensors of a law by name. Two of one name are told apart by primes; an operation's call is not opened."""

    def __init__(self, law: Law) -> None:
        self.names: dict[Tensor, str] = {}
        for side in (law.left, law.right):
            for tensor in self._inside(side):
                self._visit(tensor)

    def _visit(self, tensor: Tensor) -> None:
        if tensor in self.names:
            return
        for other in self._inside(tensor):
            self._visit(other)
        name = tensor.name
        while name in self.names.values():
            name += "'"
        self.names[tensor] = name

    def _inside(self, tensor: Tensor) -> Iterable[Tensor]:
        """What a tensor is written with: a call's arguments, or what its body names."""
        return tensor.call.tensors() if _is_call(tensor) else tensor.dependencies

    def side(self, tensor: Tensor) -> str:
        """A side: the call that it is, or its body."""
        if _is_call(tensor):
            return self._call(tensor)
        return self.expression(tensor.entry if tensor.body is None else tensor.body)

    def _call(self, tensor: Tensor) -> str:
        call = tensor.call
        gradient = call.formula.gradient_of
        name = call.formula.name if gradient is None else f"{gradient[0].name}_vjp"
        given = [self._argument(argument) for argument in call.arguments.values() if argument is not None]
        output = "" if gradient is None else f"_{{{_tex(gradient[1])}}}"
        return rf"\operatorname{{{name}}}{output}\left({', '.join(given)}\right)"

    def _argument(self, argument: Tensor | sp.Basic) -> str:
        return self._named(argument) if isinstance(argument, Tensor) else self.expression(argument)

    def _named(self, tensor: Tensor) -> str:
        return _tex(self.names.get(tensor, tensor.name))

    def expression(self, expr: sp.Basic) -> str:
        """An expression with the names of this law."""

        def leaf(tensor: Tensor, where: tuple[sp.Expr, ...]) -> Any:
            name = self.names.get(tensor, tensor.name)
            if name == tensor.name:
                return keep(tensor, where)
            return sp.Indexed(sp.IndexedBase(sp.Symbol(name)), *where) if where else sp.Symbol(name)

        return latex(transform(expr, leaf))

    def definitions(self) -> Iterator[str]:
        """What is neither an input nor a side, each after what it is written with."""
        for tensor in self.names:
            if is_input(tensor):
                continue
            entry = self._named(tensor)
            if _is_call(tensor):
                yield f"{entry} := {self._call(tensor)}"
                continue
            entry += f"_{{{' '.join(axis.name for axis in tensor.axes)}}}" if tensor.axes else ""
            blocks = ", ".join(self.expression(block) for block in tensor.blocks)
            yield f"{entry} := " + (rf"\left[{blocks}\right]" if tensor.body is None else self.expression(tensor.body))


def _is_call(tensor: Tensor) -> bool:
    """Whether a tensor is what an operation, or its gradient, gives; a formula of the page's own is opened instead."""
    return tensor.call is not None and bool(tensor.call.formula.operation or tensor.call.formula.gradient_of)


def _tex(name: str) -> str:
    return name.replace("_", "")
