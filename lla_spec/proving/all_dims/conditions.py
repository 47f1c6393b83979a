"""Where an identity has a meaning: the denominators that must not vanish, the arguments that must be positive."""

from __future__ import annotations

import sympy as sp

from lla_spec.substituting import expand
from lla_spec.tensors import Dim, Tensor, definitions


def side_conditions(*sides: Tensor) -> tuple[tuple[sp.Expr, str], ...]:
    """(expression in the inputs, "≠ 0" or "> 0") for each denominator, root and logarithm in the making of `sides`.

    An index that is free in an expression runs through all its values. Conditions on numbers and on products of
    dimensions, which are positive, are left out. Every step of a proof keeps to these: it cancels, or takes apart,
    nothing but factors of what was divided by, rooted or logged.
    """
    found: dict[tuple[sp.Expr, str], None] = {}
    for tensor in definitions(*sides):
        for expr in (tensor.body, *tensor.blocks):
            if expr is not None:
                for node in sp.preorder_traversal(expr):
                    _condition(node, found)
    return tuple((expand(expr), kind) for expr, kind in found)


def _condition(node: sp.Basic, found: dict[tuple[sp.Expr, str], None]) -> None:
    if isinstance(node, sp.log):
        argument, kind = node.args[0], "> 0"
    elif isinstance(node, sp.Pow) and node.exp.is_Integer:
        argument, kind = node.base, "≠ 0"
        if node.exp > 0:
            return
    elif isinstance(node, sp.Pow) and not isinstance(node, sp.exp):
        argument, kind = node.base, "> 0"
    else:
        return
    plain = all(isinstance(symbol, Dim) for symbol in argument.free_symbols)
    if not (plain and argument.is_positive):
        found[argument, kind] = None
