"""Declarations with some tensors replaced or some bodies changed: everything that rests on them is made anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp

from lla_spec.substituting import keep
from lla_spec.tensors import DeclarationError, Label, Tensor, is_input


class Rewriter:
    """`Rewriter(replace={K: K2}, bodies={S: expr})(O)` is O with K2 for K and with the new body of S.

    A replacement may itself name tensors that are replaced. What does not rest on a change is returned as it is.
    """

    def __init__(
        self, replace: Mapping[Tensor, Tensor] | None = None, bodies: Mapping[Tensor, sp.Expr] | None = None
    ) -> None:
        self.replace, self.bodies = dict(replace or {}), dict(bodies or {})
        for old, new in self.replace.items():
            if old.shape != new.shape:
                raise DeclarationError(f"{old.name} over {old.shape} cannot be replaced by {new!r} over {new.shape}")
        self._done: dict[Tensor, Tensor] = {}
        self._open: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor not in self._done:
            if tensor in self._open:
                names = " → ".join(t.name for t in [*self._open, tensor])
                raise DeclarationError(f"{tensor.name} is constructed from itself: {names}")
            self._open.append(tensor)
            self._done[tensor] = self._made(tensor)
            self._open.pop()
        return self._done[tensor]

    def _made(self, tensor: Tensor) -> Tensor:
        if tensor in self.replace:
            return self(self.replace[tensor])
        if is_input(tensor):
            return tensor
        if tensor not in self.bodies and all(self(other) is other for other in tensor.dependencies):
            return tensor
        body = self.bodies.get(tensor, tensor.body)
        return Tensor(
            tensor.name,
            tensor.axes,
            None if body is None else self.expression(body),
            nonnegative=tensor.nonnegative,
            blocks=tuple(self.expression(block) for block in tensor.blocks),
        )

    def expression(self, expr: Any) -> Any:
        """An expression over the rewritten tensors; its bound indices stay, for nothing is written inside it."""
        if isinstance(expr, Label):
            return keep(self(expr.tensor), ()) if not expr.tensor.axes else expr
        if isinstance(expr, sp.Indexed):
            old = expr.base.label.tensor  # pyright: ignore[reportAttributeAccessIssue]
            new, where = self(old), tuple(map(self.expression, expr.indices))
            return expr if new is old and where == expr.indices else keep(new, where)
        args = tuple(map(self.expression, expr.args))
        return expr if all(new is old for new, old in zip(args, expr.args, strict=True)) else expr.func(*args)
