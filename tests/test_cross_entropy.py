"""Cross-entropy, of logits and of the output layer, on random shapes against lla_spec/formulas/cross_entropy.py."""

from hypothesis import given
from hypothesis import strategies as st

import lla_spec.formulas.cross_entropy as page
from lla_spec.testing import each_law, each_operation


@each_operation(page)
@given(data=st.data())
def test_equals_its_formula(row, data):
    """Within the bound that formula, data, dtype and contract imply."""
    row.check(data.draw(row.cases()))


@each_operation(page, "vjp")
@given(data=st.data())
def test_gradient_is_the_derived_one(row, data):
    """The gradient is the derivative of the formula, within its bound."""
    row.check(data.draw(row.cases()))


@each_law(page)
@given(data=st.data())
def test_law(row, data):
    """An identity or theorem of the page holds on the target."""
    row.check(data.draw(row.cases()))
