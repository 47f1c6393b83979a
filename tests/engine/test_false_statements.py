"""A false statement is refused by both engines, and numbers refute it."""

import pytest
import sympy as sp

from lla_spec.printing import explicit
from lla_spec.proving import listed_shapes
from lla_spec.proving.all_dims import prove as prove_all_dimensions
from lla_spec.proving.counterexamples import Counterexample, counterexample
from lla_spec.tensors import Tensor, order
from tests.engine.false_statements import FALSE, FalseStatement


def _sympy_evaluates(statement: FalseStatement) -> bool:
    """sympy evaluates sums and functions; concatenations and permutations are ours."""
    law = statement.law()
    return not any(tensor.blocks or tensor.permutation for tensor in order(law.left, law.right))


each = pytest.mark.parametrize("statement", FALSE, ids=lambda statement: statement.name)


def smallest(statement: FalseStatement) -> Counterexample:
    law = statement.law()
    found = counterexample(law.left, law.right, "=", [dim.name for dim in law.dims])
    assert found is not None, f"{statement.name}: no counterexample was found"
    return found


def test_there_are_enough_false_statements():
    assert len({statement.name for statement in FALSE}) == len(FALSE) >= 25


@each
def test_numbers_refute_it(statement: FalseStatement):
    found = smallest(statement)
    assert dict(found.point.sizes) == statement.shape
    assert str(found.difference) == statement.numbers


@pytest.mark.parametrize("statement", list(filter(_sympy_evaluates, FALSE)), ids=lambda statement: statement.name)
def test_sympy_agrees_with_the_numbers(statement: FalseStatement):
    """sympy's own sums, at the same point, in 30 digits: the balls' evaluator is not trusted alone."""
    law = statement.law()
    found = counterexample(law.left, law.right, "=", [dim.name for dim in law.dims])
    assert found is not None
    assert abs(found.difference.left - found.difference.right) > 1e-3
    for side, value in ((law.left, found.difference.left), (law.right, found.difference.right)):
        assert abs(_by_sympy(side, found) - value) < 1e-12


def _by_sympy(side: Tensor, found: Counterexample) -> float:
    array = explicit(side, dict(found.point.sizes))
    where = found.difference.where
    entry = array[(*where, 0, 0)[:2]] if len(where) <= 2 else array[where]
    values = {}
    for tensor, entries in found.point.values.items():
        for position, number in entries.items():
            values[tensor[position] if position else tensor.label] = sp.Rational(number.numerator, number.denominator)
    return float(sp.N(entry.xreplace(values), 30))


@each
def test_listed_shapes_refuse_it(statement: FalseStatement):
    law = statement.law()
    distinct = listed_shapes.listed_shapes(law)[-1]
    for sizes in (statement.shape, distinct):
        outcome = listed_shapes.prove(law.left, law.right, sizes)
        assert not outcome.proved
        assert outcome.residual


@each
def test_all_dimensions_refuse_it(statement: FalseStatement):
    law = statement.law()
    outcome = prove_all_dimensions(law.left, law.right)
    assert not outcome.proved
    assert outcome.residual
