"""left = right for all dimensions: both sides are brought into normal form, and their difference must be zero."""

from __future__ import annotations

from collections.abc import Mapping

import sympy as sp

from lla_spec.proving.all_dims.conditions import side_conditions
from lla_spec.proving.all_dims.reading import Reader
from lla_spec.proving.all_dims.showing import show
from lla_spec.proving.all_dims.terms import Leaf, Poly, Refused
from lla_spec.proving.all_dims.zero import residual
from lla_spec.proving.outcome import Outcome
from lla_spec.proving.products import Factoring, Unfactorable, factored
from lla_spec.proving.splitting import Splitting, Unsplittable, eliminate
from lla_spec.tensors import Tensor, free_indices

FUEL = 400_000


class Prover:
    """The prover of one statement and of what is like it (a law's mutants): what they share is read once."""

    def __init__(self, orthonormal: Mapping[Tensor, int] | None = None, fuel: int = FUEL) -> None:
        self.reader = Reader(fuel, orthonormal)
        self.factoring, self.splitting = Factoring(), Splitting()

    def prove(self, left: Tensor, right: Tensor) -> Outcome:
        """As the function `prove`."""
        if left.shape != right.shape:
            return Outcome(False, f"left is over {left.shape} and right over {right.shape}")
        try:
            statements = eliminate(*factored(left, right, self.factoring), self.splitting)
        except (Unsplittable, Unfactorable) as error:
            return Outcome(False, str(error))
        self.reader.engine.refuel()
        for left_part, right_part in statements:
            rest = _difference(self.reader, left_part, right_part)
            if rest:
                return Outcome(False, rest)
        return Outcome(True, conditions=side_conditions(left, right))


def prove(left: Tensor, right: Tensor, *, orthonormal: Mapping[Tensor, int] | None = None, fuel: int = FUEL) -> Outcome:
    """Does left = right hold for every size of every dimension, and all real inputs that meet the conditions?

    Axes are matched by position. `orthonormal` maps an input with two axes to the one along which its columns are
    orthonormal: {U: 0} says Σᵢ U[i, a] U[i, b] = δ(a, b). Maxima are any real numbers, equal where their contents are.
    `fuel` bounds the work in steps, not in seconds, so the answer is the same on every machine.

    >>> from lla_spec.formulas.softmax import x, softmax
    >>> prove(softmax(x), softmax(x)).proved
    True
    """
    return Prover(orthonormal, fuel).prove(left, right)


def prove_expressions(
    left: sp.Expr, right: sp.Expr, *, orthonormal: Mapping[Tensor, int] | None = None, fuel: int = FUEL
) -> Outcome:
    """`prove` for two expressions over the same free indices."""
    left, right = sp.sympify(left), sp.sympify(right)
    axes = sorted(free_indices(left) | free_indices(right), key=lambda index: (index.name, index.key))
    return prove(Tensor("left", axes, left), Tensor("right", axes, right), orthonormal=orthonormal, fuel=fuel)


def normal_form(tensor: Tensor, *, fuel: int = FUEL) -> str:
    """The normal form of an entry, as text; tensors over split dimensions give their first part."""
    (side, _), *_ = eliminate(*factored(tensor, tensor))
    reader = Reader(fuel)
    return show(_read(reader, side, _axes(reader, side)), reader.display)


def _difference(reader: Reader, left: Tensor, right: Tensor) -> str:
    """Empty where left = right was proved, else what stands in the way."""
    try:
        axes = _axes(reader, left)
        rest = residual(
            reader.engine,
            reader.engine.add(_read(reader, left, axes), reader.engine.scale(_read(reader, right, axes), -1)),
        )
        return show(rest, reader.display) if rest else ""
    except Refused as refusal:
        return str(refusal)


def _axes(reader: Reader, tensor: Tensor) -> list[Leaf]:
    """The free indices of a statement, called as people call them."""
    leaves: list[Leaf] = []
    for axis in tensor.axes:
        name = "".join(c if c.isalnum() or c in "_'" else "_" for c in axis.name)
        while any(leaf.name == name for leaf in leaves):
            name += "'"
        leaves.append(Leaf(name, reader.dim(axis.dim)))
    return leaves


def _read(reader: Reader, tensor: Tensor, axes: list[Leaf]) -> Poly:
    return reader.entry(tensor, axes)
