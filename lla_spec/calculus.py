"""Derivatives of declarations: reverse mode over the definitions; each local rule is sympy's `diff` of a declared body.

A formula's VJP is derived, never written. Where a formula calls another one, the chain rule goes through that call's
own VJP, so the derivative keeps the layers of the formula: dS = softmax_vjp(S, M; dP) inside attention's.
"""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.concrete.expr_with_limits import ExprWithLimits

from lla_spec.language import Formula, registry
from lla_spec.substituting import body_at
from lla_spec.tensors import DeclarationError, Dim, Index, Maximum, Role, Tensor, is_input


def vjp(output: Tensor, wrt: Tensor, cotangent: Tensor) -> Tensor:
    """The gradient of ⟨cotangent, output⟩ with respect to the tensor `wrt` from which `output` was made.

    `cotangent` has the axes of `output`; the result has the axes of `wrt`. Raises DeclarationError where `output` does
    not depend on `wrt`, or only through a maximum or a concatenation.
    """
    if cotangent.shape != output.shape:
        raise DeclarationError(
            f"vjp: {cotangent!r} is over {cotangent.shape}, but {output.name} is over {output.shape}"
        )
    return _Reverse(wrt).run(output, cotangent)


def vjp_formula(formula: Formula, parameter: str) -> Formula:
    """The formula of one gradient of `formula`: its parameters, then the cotangent of its result."""
    if parameter not in formula.vjps:
        wrt = formula.parameters[parameter]
        result = formula.result
        seed = Tensor(f"d{result.name}", result.axes, role=Role("grad_output"))
        gradient = _Reverse(wrt).run(result, seed)
        formula.vjps[parameter] = Formula(
            name=f"{formula.name}_vjp",
            topic=formula.topic,
            parameters={**formula.parameters, seed.name: seed},
            result=gradient if gradient.call is None else Tensor(gradient.name, gradient.axes, gradient.entry),
            rows=formula.rows,
            operation=False,
            doc=f"The gradient of {formula.name} with respect to {parameter}, derived.",
            source=formula.source,
            gradient_of=(formula, parameter),
        )
    return formula.vjps[parameter]


def gradient_parameters(formula: Formula) -> list[str]:
    """The parameters that a VJP answers for: the real tensors of the torch signature, in its order."""
    if not formula.differentiable:
        return []
    return [name for name, p in formula.parameters.items() if p.role and p.role.kind == "real" and p.role.argument]


class _Reverse:
    """One reverse sweep: the cotangent of every tensor between the output and `wrt`."""

    def __init__(self, wrt: Tensor) -> None:
        self.wrt = wrt
        self.reaches: dict[Tensor, bool] = {}

    def run(self, output: Tensor, cotangent: Tensor) -> Tensor:
        if not self._depends(output):
            raise DeclarationError(f"vjp: {output.name} does not depend on {self.wrt.name}")
        found: dict[Tensor, list[Tensor]] = {output: [cotangent]}
        for tensor in reversed(self._order(output)):
            if tensor is self.wrt:
                continue
            bar = _total(tensor, found[tensor])
            for child, part in self._through(tensor, bar):
                found.setdefault(child, []).append(part)
        return _total(self.wrt, found[self.wrt])

    def _children(self, tensor: Tensor) -> list[Tensor]:
        return tensor.call.tensors() if tensor.call is not None else list(tensor.dependencies)

    def _depends(self, tensor: Tensor) -> bool:
        if tensor not in self.reaches:
            self.reaches[tensor] = tensor is self.wrt or any(self._depends(c) for c in self._children(tensor))
        return self.reaches[tensor]

    def _order(self, output: Tensor) -> list[Tensor]:
        seen: dict[Tensor, None] = {}

        def visit(tensor: Tensor) -> None:
            if tensor not in seen and self._depends(tensor):
                for child in self._children(tensor) if tensor is not self.wrt else []:
                    visit(child)
                seen[tensor] = None

        visit(output)
        return list(seen)

    def _through(self, tensor: Tensor, bar: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the cotangent of `tensor` contributes to the cotangents of what it was made from."""
        if tensor.call is not None:
            parts = []
            for name, argument in tensor.call.arguments.items():
                if isinstance(argument, Tensor) and self._depends(argument):
                    parts.append((argument, _through_call(tensor, name, argument, bar)))
            return parts
        if is_input(tensor) or tensor.body is None:
            raise DeclarationError(f"vjp: no derivative goes through {tensor.name}, a concatenation")
        return [(child, _local(tensor, child, bar)) for child in tensor.dependencies if self._depends(child)]


def _through_call(tensor: Tensor, parameter: str, argument: Tensor, bar: Tensor) -> Tensor:
    gradient = vjp_formula(tensor.call.formula, parameter)
    given: dict[str, Any] = {**tensor.call.arguments, list(gradient.parameters)[-1]: bar}
    whole = gradient(**given)
    rank = len(tensor.call.formula.parameters[parameter].axes)
    batch, own = whole.axes[: len(whole.axes) - rank], whole.axes[len(whole.axes) - rank :]
    kept = argument.axes[: len(argument.axes) - rank]
    shared = tuple(axis for axis in batch if axis not in kept)  # the call repeated the argument along these
    if not shared and batch == kept:
        return whole
    return Tensor(whole.name, (*kept, *own), collapse_sum(whole.entry, shared))


def _local(tensor: Tensor, child: Tensor, bar: Tensor) -> Tensor:
    """The contribution of one definition: Σ over its entries of cotangent · ∂(its body)/∂(an entry of the child)."""
    where = tuple(axis.fresh() for axis in tensor.axes)
    target = tuple(axis.fresh() for axis in child.axes)
    body = body_at(tensor, where)
    if any(child.label in found.free_symbols or found.has(child.label) for found in body.atoms(Maximum)):
        raise DeclarationError(
            f"vjp: {tensor.name} takes a maximum over {child.name}, which has no derivative at ties; "
            "differentiate the formula without it, and prove that both are equal"
        )
    local = collapse(sp.diff(body, child[target]))
    entry = collapse_sum(bar[where] * local, where)
    return Tensor(f"d{child.name}", child.axes, entry.xreplace(dict(zip(target, child.axes, strict=True))))


def _total(tensor: Tensor, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return Tensor(f"d{tensor.name}", tensor.axes, sp.Add(*[part[tensor.axes] for part in parts]))


def collapse_sum(expr: Any, over: tuple[Any, ...]) -> Any:
    """Σ over `over`, with typed deltas summed away: Σ_k f·δ(k, a) = f at k = a, where both range over one dimension."""
    for bound in over:
        expr = sp.Add(*[_collapse_term(term, bound) for term in sp.Add.make_args(sp.expand_mul(expr))])
    return expr


def _collapse_term(term: Any, bound: Index) -> Any:
    factors = sp.Mul.make_args(term)
    for delta in factors:
        if isinstance(delta, sp.KroneckerDelta) and bound in delta.args[:2]:
            other = delta.args[1] if delta.args[0] == bound else delta.args[0]
            if isinstance(other, Index) and other.dim == bound.dim:
                rest = sp.Mul(*[factor for factor in factors if factor is not delta])
                return collapse(rest.xreplace({bound: other}))
    constant, dependent = term.as_independent(bound, as_Add=False)
    if dependent == 1:
        return constant * bound.dim
    return constant * sp.Sum(dependent, bound.limits)


def collapse(expr: Any) -> Any:
    """`expr` with the deltas inside its sums summed away; a sum in which a delta stands is taken term by term."""
    if not expr.has(sp.KroneckerDelta):
        return expr
    if isinstance(expr, sp.Sum):
        body = collapse(expr.function)
        return collapse_sum(body, tuple(limit[0] for limit in expr.limits))
    if isinstance(expr, (sp.KroneckerDelta, ExprWithLimits)) or not expr.args:
        return expr
    return expr.func(*[collapse(arg) for arg in expr.args])


__all__ = ["Dim", "collapse", "gradient_parameters", "registry", "vjp", "vjp_formula"]
