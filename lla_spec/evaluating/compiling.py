"""From a declaration to a plan: sympy is read once, every later evaluation is array code.

What is the same up to the names of its indices is computed once (exp(x[i, l]) and exp(x[i, j])). Calls are compiled
through `rewrites`: where a law says that a formula may be computed as another one, it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from lla_spec.calculus import vjp_formula
from lla_spec.evaluating import layout
from lla_spec.evaluating.contracting import Contractions, Value, alignment
from lla_spec.evaluating.plan import Input, Plan
from lla_spec.evaluating.rewrites import rewrite_of
from lla_spec.language import Formula
from lla_spec.tensors import DeclarationError, Dim, Index, Kept, Label, Maximum, Tensor, is_input, split_axis


def compile_results(results: Mapping[str, Tensor], parameters: Mapping[str, Tensor] | None = None) -> Plan:
    """One plan for several results. Inputs are known by their parameter name, or else by their tensor's own name.

    A definition or call among `parameters` is an input as well: its value is given, its making is not looked at.
    """
    compiler = _Compiler({tensor.label: name for name, tensor in (parameters or {}).items()})
    return compiler.plan(results)


@functools.cache
def compile_formula(formula: Formula, omitted: frozenset[str] = frozenset()) -> Plan:
    """The plan of a formula's result, named as its tensor; parameters in `omitted` take their defaults."""
    return compile_results({formula.result.name: _applied(formula, omitted)}, formula.parameters)


@functools.cache
def compile_vjp(formula: Formula, wrt: tuple[str, ...], omitted: frozenset[str] = frozenset()) -> Plan:
    """One plan for the gradients with respect to `wrt`; its inputs are the formula's and "grad_output"."""
    gradients = {name: vjp_formula(formula, name) for name in wrt}
    seed = Tensor(f"d{formula.result.name}", formula.result.axes)
    results = {}
    for name, gradient in gradients.items():
        seed_name = list(gradient.parameters)[-1]
        results[name] = _applied(gradient, omitted, {seed_name: seed})
    return compile_results(results, {**formula.parameters, "grad_output": seed})


def _applied(formula: Formula, omitted: frozenset[str], replaced: Mapping[str, Tensor] | None = None) -> Tensor:
    arguments = {name: None if name in omitted else p for name, p in formula.parameters.items()}
    return formula(**{**arguments, **(replaced or {})})


NESTED = 16  # calls of one formula inside each other that are rewritten: more is a law that goes in circles


class _Compiler(Contractions):
    """The walk over definitions and expressions."""

    def __init__(self, names: Mapping[Label, str]) -> None:
        super().__init__()
        self.names = names
        self.inputs: list[Input] = []
        self.tensors: dict[Label, Value] = {}
        self.open: list[Formula] = []  # the formulas whose rewrites are being compiled, outermost first

    def plan(self, results: Mapping[str, Tensor]) -> Plan:
        found = {}
        for name, tensor in results.items():
            value = self.tensor(tensor, outermost=True)
            found[name] = self.spread(value, tensor.axes)
        return Plan(self.inputs, self.steps, found, self.registers, frozenset(self.extents))

    # ---- tensors

    def tensor(self, tensor: Tensor, *, outermost: bool = False) -> Value:
        """The value of a tensor at its own axes."""
        if tensor.label not in self.tensors:
            if tensor.label in self.names or is_input(tensor):
                value = self.input(tensor)
            elif tensor.call is not None:
                value = self.call(tensor, outermost)
            elif tensor.blocks:
                value = self.concatenation(tensor)
            else:
                assert tensor.body is not None
                self.wanted, outer = tensor.axes, self.wanted
                value = self.expression(tensor.body)
                self.wanted = outer
            self.tensors[tensor.label] = value
        return self.tensors[tensor.label]

    def input(self, tensor: Tensor) -> Value:
        name = self.names.get(tensor.label, tensor.name)
        if any(entry.name == name for entry in self.inputs):
            raise DeclarationError(f"{name}: two inputs have this name; rename one")
        role = tensor.role.kind if tensor.role else "real"
        kind = "mask" if role in ("mask", "index", "live") else role
        self.inputs.append(Input(name, self.registers, tensor, kind, sized=role not in ("mask", "live")))
        self.registers += 1
        return Value(self.registers - 1, tensor.axes, mask=kind == "mask", onehot=role == "index")

    def call(self, tensor: Tensor, outermost: bool) -> Value:
        """A call, through the law that says how to compute its formula, if there is one."""
        call = tensor.call
        if not outermost:
            for argument in call.tensors():
                self.edge(argument, "argument")
        computed = rewrite_of(call.formula)
        if computed is None:
            assert tensor.body is not None
            value = self.expression(tensor.body)
        else:
            if self.open.count(call.formula) >= NESTED:
                raise DeclarationError(f"{call.formula.id}: the laws marked evaluate compute it from itself")
            self.open.append(call.formula)
            value = self.instance(computed(**call.arguments), tensor.axes)
            self.open.pop()
        return value if outermost else replace(value, register=self.method("edge", [value.register], "result"))

    def instance(self, made: Tensor, axes: tuple[Index, ...]) -> Value:
        """The value of a rewrite's result, over `axes`. Where it is nothing but another call, that call is no edge."""
        body: Any = made.body
        assert body is not None
        if isinstance(body, sp.Indexed) and _tensor(body).call is not None:
            self.tensor(_tensor(body), outermost=True)
        value = self.expression(body)
        return value.renamed(dict(zip(made.axes, axes, strict=True)))

    def edge(self, argument: Tensor, kind: str) -> None:
        """Marks a definition that a call inside takes as its argument; inputs are what they are."""
        if argument.label in self.tensors or is_input(argument) or argument.call is not None:
            return
        value = self.tensor(argument)
        self.tensors[argument.label] = replace(value, register=self.method("edge", [value.register], kind))

    def concatenation(self, tensor: Tensor) -> Value:
        if not any(axis.dim.parts for axis in tensor.axes):
            return self.merged(tensor)
        position = split_axis(tensor)
        values, registers = [], []
        for part, block in zip(tensor.axes[position].dim.parts, tensor.blocks, strict=True):
            axes = (*tensor.axes[:position], part, *tensor.axes[position + 1 :])
            values.append(self.expression(block))
            registers.append(self.spread(values[-1], axes))
        joined = self.move(layout.Join(len(tensor.axes), position), *registers)
        return Value(joined, tensor.axes, mask=all(value.mask for value in values))

    def merged(self, tensor: Tensor) -> Value:
        """Product axes: the factors side by side, then as one."""
        groups = tuple(axis.dim.factors or (axis,) for axis in tensor.axes)
        value = self.expression(tensor.blocks[0])
        whole = self.spread(value, [axis for group in groups for axis in group])
        return Value(self.move(layout.Merge(tuple(map(len, groups))), whole), tensor.axes, mask=value.mask)

    def entry(self, value: Value, axes: Sequence[Index], where: Sequence[Any]) -> Value:
        """The value of a tensor over `axes`, read at the indices `where`: plain ones rename, all others gather."""
        given = dict(zip(axes, where, strict=True))
        read = [given.get(axis, axis) for axis in value.axes]
        if all(isinstance(index, Index) for index in read) and len(set(read)) == len(read):
            return value.renamed(dict(zip(value.axes, read, strict=True)))
        out: dict[Index, None] = {}
        parts: list[Value | int] = []
        for index in read:
            part = int(index) if isinstance(index, sp.Integer) else self.position(index)
            parts.append(part)
            out.update({} if isinstance(part, int) else dict.fromkeys(part.axes))
        final = tuple(out)
        fixed = tuple(part if isinstance(part, int) else None for part in parts)
        indexed = [part for part in parts if isinstance(part, Value)]
        others, alignments = [part.register for part in indexed], tuple(alignment(part, final) for part in indexed)
        gathered = self.emit("gather", [value.register, *others], layout.gather(fixed, alignments), fixed, alignments)
        return Value(gathered, final, mask=value.mask)

    def position(self, index: Any) -> Value:
        """An index expression as a register of integers: an index itself, or an entry of a permutation."""
        if isinstance(index, Index):
            dim = index.dim
            return Value(self.emit("positions", [], lambda _, sizes: np.arange(dim.size(sizes)), dim), (index,))
        if isinstance(index, sp.Indexed) and _tensor(index).permutation:
            table = _tensor(index)
            return self.entry(self.tensor(table), table.axes, index.indices)
        raise DeclarationError(f"{index} stands as an index; that must be an index, a number or a permutation's entry")

    # ---- expressions

    def expression(self, expr: Any) -> Value:
        if isinstance(expr, sp.Indexed):
            tensor = _tensor(expr)
            return self.entry(self.tensor(tensor), tensor.axes, expr.indices)
        if isinstance(expr, Label):
            return self.tensor(expr.tensor)
        if isinstance(expr, sp.Rational):
            value = Fraction(int(expr.p), int(expr.q))
            return Value(self.method("number", [], value), mask=value in (0, 1))
        if isinstance(expr, Dim):
            return self.size(expr)
        if isinstance(expr, sp.Add):
            return functools.reduce(self.add, [self.expression(term) for term in expr.args])
        if isinstance(expr, sp.Mul):
            return self.product(expr.args)
        if isinstance(expr, sp.Pow) and isinstance(expr.exp, sp.Rational):
            return self.elementwise("power", self.expression(expr.base), Fraction(int(expr.exp.p), int(expr.exp.q)))
        if isinstance(expr, sp.exp):
            argument = self.expression(expr.args[0])
            return self.exponential(argument)
        if isinstance(expr, sp.log):
            return self.elementwise("log", self.expression(expr.args[0]))
        if isinstance(expr, sp.KroneckerDelta):
            return self.delta(*expr.args[:2])
        if isinstance(expr, sp.Sum):
            return self.sum(expr)
        if isinstance(expr, Maximum):
            return self.maximum(expr)
        raise DeclarationError(f"{type(expr).__name__} in {expr} has no evaluation here; extend compiling.expression")

    def elementwise(self, name: str, value: Value, *detail: Any) -> Value:
        return Value(self.method(name, [value.register], *detail), value.axes)

    def size(self, dim: Dim) -> Value:
        return Value(self.emit("size", [], lambda domain, sizes: domain.number(Fraction(dim.size(sizes))), dim))

    def add(self, a: Value, b: Value) -> Value:
        return replace(self.binary("add", a, b), peak=b.peak if a.peak is None else a.peak)

    def exponential(self, argument: Value) -> Value:
        """exp; the axes that a maximum inside was taken over come last, so that a domain knows the row's range."""
        if argument.peak is None:
            return self.elementwise("exp", argument, 0)
        over = tuple(axis for axis in argument.axes if axis not in argument.peak)
        axes = (*(axis for axis in argument.axes if axis in argument.peak), *over)
        return Value(self.method("exp", [self.align(argument, axes)], len(over)), axes)

    def product(self, factors: Iterable[Any]) -> Value:
        negative, values = self.factors(factors)
        value = self.multiply_all(values)
        if not negative:
            return value
        peak = values[0].peak if len(values) == 1 else None
        return Value(self.method("negate", [value.register]), value.axes, peak=peak)

    def factors(self, factors: Iterable[Any]) -> tuple[bool, list[Value]]:
        """The factors' values, and whether a -1 stands among them."""
        found, negative = [], False
        for factor in factors:
            if factor == -1:
                negative = not negative
            else:
                found.append(self.expression(factor))
        return negative, found

    def delta(self, a: Any, b: Any) -> Value:
        dim = next((index.dim for index in (a, b) if isinstance(index, Index)), None)
        if dim is None:
            raise DeclarationError(f"δ({a}, {b}): one of the two must be an index")
        eye = self.emit("eye", [], lambda domain, sizes: domain.input(np.eye(dim.size(sizes)), "mask"), dim)
        axes = (Index("row", dim), Index("column", dim))
        return self.entry(Value(eye, axes, mask=True), axes, (a, b))

    def maximum(self, expr: Any) -> Value:
        bound = tuple(limit[0] for limit in expr.limits)
        entry = expr.function
        if isinstance(entry, Kept) and entry.args[1] != 1:
            value = self.binary("keep", self.expression(entry.args[0]), self.expression(entry.args[1]))
        else:
            value = self.expression(entry.args[0] if isinstance(entry, Kept) else entry)
        over = [axis for axis in bound if axis in value.axes]
        kept = tuple(axis for axis in value.axes if axis not in over)
        register = self.method("maximum", [self.align(value, (*kept, *over))], len(over))
        return Value(register, kept, peak=kept)

    # ---- sums

    def sum(self, expr: Any) -> Value:
        body = expr
        bound: list[Any] = []
        while isinstance(body, sp.Sum):
            bound += [limit[0] for limit in body.limits]
            body = body.function
        negative, values = self.factors(body.args if isinstance(body, sp.Mul) else [body])
        for index in bound:
            if not any(index in value.axes for value in values):
                values.append(self.size(index.dim))
        value = self.contraction(values, [index for index in bound if any(index in v.axes for v in values)])
        return Value(self.method("negate", [value.register]), value.axes) if negative else value


def _tensor(entry: Any) -> Tensor:
    return entry.base.label.tensor
