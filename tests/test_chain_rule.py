"""The chain rule through the operations, on random shapes against lla_spec/formulas/chain_rule.py."""

from hypothesis import given
from hypothesis import strategies as st

import lla_spec.formulas.chain_rule as page
from lla_spec.testing import each_law


@each_law(page)
@given(data=st.data())
def test_law(row, data):
    """A law of the page holds on the target: each layer's own VJP, composed and added up."""
    row.check(data.draw(row.cases()))
