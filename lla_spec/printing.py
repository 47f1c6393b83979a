"""Reading a declaration as LaTeX, as an explicit sympy Matrix, and a matrix expression as its entries."""

from __future__ import annotations

import itertools
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from lla_spec.substituting import expand
from lla_spec.symbols import Sum
from lla_spec.tensors import DeclarationError, Dim, Index, MatrixOf, Tensor, definitions


class RowSoftmax(sp.MatrixExpr):
    """softmax of every row of a matrix: entry (i, j) is exp(Sᵢⱼ) / Σₗ exp(Sᵢₗ)."""

    def __new__(cls, scores: sp.MatrixExpr) -> RowSoftmax:
        return sp.Basic.__new__(cls, scores)  # pyright: ignore[reportReturnType]

    @property
    def shape(self) -> Any:
        return self.args[0].shape  # pyright: ignore[reportAttributeAccessIssue]

    def _entry(self, i: Any, j: Any, **kwargs: Any) -> sp.Expr:
        scores: Any = self.args[0]
        bound = sp.Dummy("l", integer=True)
        return sp.exp(scores[i, j]) / sp.Sum(sp.exp(scores[i, bound]), (bound, 0, scores.shape[1] - 1))

    def _latex(self, printer: Any) -> str:
        return rf"\operatorname{{softmax}}\left({printer._print(self.args[0])}\right)"


def row_softmax(scores: Any) -> RowSoftmax:
    """The matrix whose rows are the softmax of the rows of `scores`."""
    return RowSoftmax(scores)


def matrix_entry(expr: Any, row: Index, column: Index) -> Any:
    """Entry (row, column) of a matrix expression in index notation, over tensors instead of MatrixSymbols."""
    if isinstance(expr, MatrixOf):
        return expr.tensor[row, column]
    if isinstance(expr, sp.Transpose):
        return matrix_entry(expr.arg, column, row)
    if isinstance(expr, sp.MatAdd):
        return sp.Add(*[matrix_entry(term, row, column) for term in expr.args])
    if isinstance(expr, RowSoftmax):
        scores: Any = expr.args[0]
        other = Index("l", _dim(scores.shape[1]))
        total = Sum(sp.exp(matrix_entry(scores, row, other)), other)
        return sp.exp(matrix_entry(scores, row, column)) / total
    if isinstance(expr, sp.MatMul):
        factor, matrices = expr.as_coeff_matrices()
        return factor * _product(matrices, row, column)
    raise DeclarationError(f"{type(expr).__name__} has no index notation here; extend printing.matrix_entry")


def _product(matrices: list[Any], row: Index, column: Index) -> sp.Expr:
    first, *rest = matrices
    if not rest:
        return matrix_entry(first, row, column)
    inner = Index("k", _dim(first.shape[1])).fresh()
    return Sum(matrix_entry(first, row, inner) * _product(rest, inner, column), inner)


def _dim(size: Any) -> Dim:
    if not isinstance(size, Dim):
        raise DeclarationError(f"{size} is not a declared dimension")
    return size


def explicit(result: Tensor, sizes: dict[str, int]) -> sp.Matrix | sp.NDimArray:
    """`result` as a Matrix (two axes), a column (one) or an array (more) of entries in the inputs, at these sizes."""
    entry = expand(result.entry)
    dims = {symbol for symbol in entry.free_symbols if isinstance(symbol, Dim)}
    dims |= {index.dim for index in entry.atoms(Index)} | set(result.shape)
    missing = sorted(dim.name for dim in dims if dim.name not in sizes and not dim.parts and not dim.factors)
    if missing:
        raise DeclarationError(
            f"{result.name}: the size of {', '.join(missing)} is missing; write at({missing[0]}=2, …)"
        )
    values = {dim: dim.size(sizes) for dim in dims}
    shape = [values[axis.dim] for axis in result.axes]
    known: dict[Any, Any] = {}

    def at(where: tuple[int, ...]) -> sp.Expr:
        placed = entry.xreplace(dict(zip(result.axes, map(sp.Integer, where), strict=True))).xreplace(values)
        return _written_out(placed, known).doit()

    entries = [at(where) for where in itertools.product(*map(range, shape))]
    if len(shape) <= 2:
        rows, columns = (*shape, 1, 1)[:2]
        return sp.Matrix(rows, columns, entries)
    return sp.Array(entries, shape)


def _written_out(expr: Any, known: dict[Any, Any]) -> Any:
    """Sums as their terms side by side. sympy's own doit looks for a closed form of every sum first."""
    if expr not in known:
        if isinstance(expr, sp.Sum):
            terms = [expr.function]
            limits: Any = expr.limits
            for index, low, high in reversed(limits):
                terms = [term.xreplace({index: sp.Integer(v)}) for term in terms for v in range(low, high + 1)]
            known[expr] = sp.Add(*(_written_out(term, known) for term in terms))
        elif expr.has(sp.Sum):
            known[expr] = expr.func(*(_written_out(part, known) for part in expr.args))
        else:
            known[expr] = expr
    return known[expr]


class _Latex(LatexPrinter):
    """Sums without limits (an index knows its range), entries as subscripts, bound indices primed where names clash."""

    def _print_Index(self, expr: Index, exp: Any = None) -> str:
        text = expr.name + "'" * self._settings["symbol_names"].get(expr, 0)
        return text if exp is None else f"{text}^{{{exp}}}"

    def _print_Dim(self, expr: Dim) -> str:
        return self._print_Symbol(sp.Symbol(expr.name))

    def _print_Label(self, expr: Any) -> str:
        return self._print_Symbol(sp.Symbol(expr.name.rstrip("'"))) + "'" * expr.name.count("'")

    def _print_Indexed(self, expr: Any, exp: Any = None) -> str:
        base = self._print(expr.base.label)
        text = f"{base}_{{{' '.join(self._print(i) for i in expr.indices)}}}"
        return text if exp is None else f"{{{text}}}^{{{exp}}}"

    def _over(self, symbol: str, expr: Any) -> str:
        names = ",".join(self._print(limit[0]) for limit in expr.limits)
        return rf"{symbol}_{{{names}}} {self.parenthesize(expr.function, 40)}"

    def _print_Sum(self, expr: sp.Sum) -> str:
        return self._over(r"\sum", expr)

    def _print_Maximum(self, expr: Any) -> str:
        return self._over(r"\max", expr)


def latex(expr: sp.Basic) -> str:
    """LaTeX of an expression in index notation; a bound index that shares a free one's name is primed."""
    primes: dict[Any, int] = {}
    used: dict[str, set[Index]] = {}
    for found in sorted(expr.atoms(Index), key=lambda index: index.key):
        others = used.setdefault(found.name, set())
        primes[found] = 0 if found in others else len(others)
        others.add(found)
    return _Latex({"symbol_names": primes}).doprint(expr)


def definitions_latex(result: Tensor) -> str:
    """The definitions that make `result`, one a line, inputs left out."""
    return " \\\\\n".join(f"{latex(entry)} := {latex(body)}" for entry, body in _steps(result))


def _steps(result: Tensor) -> list[tuple[sp.Expr, sp.Expr]]:
    """(entry, body) of the definitions that make `result`, without those that only repeat another one's name."""
    made = [(tensor.entry, tensor.body) for tensor in definitions(result) if tensor.body is not None]
    return [(entry, body) for entry, body in made if not (isinstance(body, sp.Indexed) and str(body) == str(entry))]


class _Plain(StrPrinter):
    """One line for a terminal: O[i, c] = Σ_j P[i, j]·V[j, c]."""

    def _print_Index(self, expr: Index) -> str:
        return expr.name

    def _over(self, symbol: str, expr: Any) -> str:
        names = ",".join(limit[0].name for limit in expr.limits)
        return f"{symbol}_{names} {self.parenthesize(expr.function, 45)}"

    def _print_Sum(self, expr: sp.Sum) -> str:
        return self._over("Σ", expr)

    def _print_Maximum(self, expr: Any) -> str:
        return self._over("max", expr)

    def _print_Kept(self, expr: Any) -> str:
        return self._print(expr.args[0])

    def _print_Mul(self, expr: sp.Mul) -> str:
        return super()._print_Mul(expr).replace("*", "·")

    def _print_Pow(self, expr: sp.Pow, rational: bool = False) -> str:
        return super()._print_Pow(expr, rational=rational).replace("**", "^").replace("sqrt", "√")


def plain_expression(side: Tensor | sp.Basic) -> str:
    """An expression, or a tensor's body, as plain text."""
    expr = side if isinstance(side, sp.Basic) else side.entry if side.body is None else side.body
    return _Plain().doprint(expr)


def plain(result: Tensor) -> str:
    """The definitions that make `result`, on one line of plain text.

    >>> from lla_spec.formulas.linear import matmul
    >>> plain(matmul.result)
    'C[i, j] = Σ_k A[i, k]·B[k, j]'
    """
    printer = _Plain()
    lines = [f"{printer.doprint(entry)} = {printer.doprint(body)}" for entry, body in _steps(result)]
    return "; ".join(lines)


__all__ = [
    "RowSoftmax",
    "definitions_latex",
    "explicit",
    "latex",
    "matrix_entry",
    "plain",
    "plain_expression",
    "row_softmax",
]
