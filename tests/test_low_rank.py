"""Truncated singular value decompositions on random shapes against lla_spec/formulas/low_rank.py.

What is checked is a certificate: a matrix has many decompositions. The page's laws are theorems about every one of
them, so no kernel is called for them, and none of the operations has a gradient.
"""

from hypothesis import given
from hypothesis import strategies as st

import lla_spec.formulas.low_rank as page
from lla_spec.testing import each_operation


@each_operation(page)
@given(data=st.data())
def test_equals_its_formula(row, data):
    """Within the bound that formula, data, dtype and contract imply."""
    row.check(data.draw(row.cases()))
