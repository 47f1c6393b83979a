"""Split dimensions, m = m₁ + m₂, are eliminated: what is proved of the parts is what was said of the whole."""

import pytest
import sympy as sp

from lla_spec.proving.all_dims import prove, prove_expressions
from lla_spec.proving.splitting import Unsplittable, eliminate
from lla_spec.symbols import Max, Sum, concat, define, dims, index, mask, permutation, split, tensor
from lla_spec.tensors import Dim, Index, Tensor

n, m, m1, m2, m21, m22 = dims("n m m1 m2 m21 m22")
i, j, j1, j2 = index("i", n), index("j", m), index("j1", m1), index("j2", m2)
whole = split(j, j1, j2)
x1, x2, y1, y2 = tensor("x1", i, j1), tensor("x2", i, j2), tensor("y1", j1), tensor("y2", j2)
x = concat("x", (i, whole), x1[i, j1], x2[i, j2])
y = concat("y", (whole,), y1[j1], y2[j2])
v = tensor("v", whole)  # an input over the whole


def test_a_sum_over_the_whole_is_the_sum_over_the_parts():
    outcome = prove_expressions(
        Sum(x[i, whole] * y[whole], whole), Sum(x1[i, j1] * y1[j1], j1) + Sum(x2[i, j2] * y2[j2], j2)
    )
    assert outcome.proved, outcome.residual


def test_a_dropped_part_is_refused_and_named():
    outcome = prove_expressions(Sum(y[whole], whole), Sum(y1[j1], j1))
    assert not outcome.proved
    assert outcome.residual == "(Σ_j2 y2[j2])"


def test_blocks_in_the_wrong_order_are_refused():
    a1, a2 = tensor("a1", j1), tensor("a2", j2)
    other = concat("a", (whole,), a1[j1], a2[j2])
    assert not prove_expressions(
        Sum(y[whole] * other[whole], whole), Sum(y1[j1] * a1[j1], j1) + Sum(y2[j2] ** 2, j2)
    ).proved


def test_the_dimension_itself_is_the_sum_of_its_parts():
    assert prove_expressions(Sum(sp.S.One, whole), m1 + m2).proved
    assert prove_expressions(1 / sp.sqrt(whole.dim), 1 / sp.sqrt(m1 + m2)).proved
    assert not prove_expressions(sp.sympify(whole.dim), sp.sympify(m1)).proved


def test_a_free_axis_over_the_whole_gives_one_statement_for_each_part():
    statements = eliminate(define("a", (whole, i), x[i, whole]), define("b", (whole, i), x[i, whole] + 0))
    assert [left.shape for left, _ in statements] == [(m1, n), (m2, n)]
    assert prove(define("a", (whole, i), x[i, whole] / 2), define("b", (whole, i), x[i, whole] * sp.S.Half)).proved


def test_a_statement_that_fails_on_one_part_only_is_refused():
    changed = concat("x", (i, whole), x1[i, j1], 2 * x2[i, j2])
    outcome = prove(define("a", (whole, i), x[i, whole]), define("b", (whole, i), changed[i, whole]))
    assert not outcome.proved
    assert outcome.residual == "-x2[i,j2]"


def test_an_input_over_the_whole_becomes_one_input_for_each_part():
    assert prove_expressions(Sum(v[whole] * y[whole], whole) - Sum(y[whole] * v[whole], whole), sp.S.Zero).proved
    assert not prove_expressions(Sum(v[whole] * y[whole], whole), Sum(y[whole], whole)).proved
    statements = eliminate(define("a", (), Sum(v[whole], whole)), define("b", (), Sum(v[whole], whole)))
    for side in statements[0]:
        assert not [s for s in side.body.free_symbols if isinstance(s, Dim) and s.parts]
        assert not [s for s in side.body.atoms(Index) if s.dim.parts]


def test_a_positive_input_has_positive_parts():
    w = tensor("w", whole, positive=True)
    assert prove(define("a", (whole,), sp.log(w[whole] ** 2 * sp.exp(y[whole]))),
                 define("b", (whole,), 2 * sp.log(w[whole]) + y[whole])).proved  # fmt: skip


def test_a_delta_between_two_parts_is_zero_and_within_one_part_a_delta():
    other = whole.fresh()
    assert prove_expressions(
        Sum(sp.KroneckerDelta(whole, other) * y[whole] * y[other], whole, other), Sum(y[whole] ** 2, whole)
    ).proved


def test_a_maximum_over_the_whole_cancels_with_itself_only():
    peak = Max(x[i, whole], whole)
    again = Max(x[i, whole], whole)
    assert prove_expressions(sp.exp(peak) * sp.exp(-again), sp.S.One).proved
    assert not prove_expressions(sp.exp(peak) * sp.exp(-Max(x1[i, j1], j1)), sp.S.One).proved


def test_a_part_that_the_mask_hides_leaves_the_maximum():
    M = concat("M", (i, whole), 1, 0)
    keys = mask("keys", i, j1)
    hidden = Max(x[i, whole], whole, where=M[i, whole])
    assert prove_expressions(hidden, Max(x1[i, j1], j1)).proved
    assert not prove_expressions(hidden, Max(x1[i, j1], j1, where=keys[i, j1])).proved
    assert not prove_expressions(hidden, Max(x2[i, j2], j2)).proved


def test_a_maximum_of_which_nothing_is_kept_is_refused():
    nothing = concat("M", (i, whole), 0, 0)
    hidden = Max(x[i, whole], whole, where=nothing[i, whole])
    outcome = prove_expressions(hidden, hidden)
    assert not outcome.proved
    assert "of which no part is kept" in outcome.residual


def test_parts_of_parts():
    deep2 = split(j2, index("j21", m21), index("j22", m22))
    k21, k22 = deep2.dim.parts
    u21, u22, u1 = tensor("u21", k21), tensor("u22", k22), tensor("u1", j1)
    u2 = concat("u2", (deep2,), u21[k21], u22[k22])
    deep = split(j, j1, deep2)
    u = concat("u", (deep,), u1[j1], u2[deep2])
    right = Sum(u1[j1] ** 2, j1) + Sum(u21[k21] ** 2, k21) + Sum(u22[k22] ** 2, k22)
    outcome = prove_expressions(Sum(u[deep] ** 2, deep), right)
    assert outcome.proved, outcome.residual
    assert prove_expressions(sp.sympify(deep.dim), m1 + m21 + m22).proved


def test_an_index_of_one_part_in_the_block_of_another_never_mixes():
    square = concat("q", (i, whole), x1[i, j1], Sum(x1[i, j1], j1) + y2[j2])
    total = Sum(square[i, whole], whole)
    assert prove_expressions(total, Sum(x1[i, j1], j1) * (1 + m2) + Sum(y2[j2], j2)).proved


def test_a_permutation_of_the_whole_is_refused_because_it_mixes_the_parts():
    π = permutation("π", whole)
    outcome = prove_expressions(Sum(v[π[whole]], whole), Sum(v[whole], whole))
    assert not outcome.proved
    assert "does not name a part of it" in outcome.residual


def test_a_sum_over_less_than_the_whole_is_refused():
    short = sp.Sum(y[whole], (whole, 0, m1 - 1))
    outcome = prove_expressions(short, Sum(y[whole], whole))
    assert not outcome.proved
    assert "it must run through all of its dimension" in outcome.residual


def test_a_product_over_the_whole_is_refused():
    product = sp.Product(y[whole], whole.limits)
    with pytest.raises(Unsplittable, match="only sums and maxima may run over indices"):
        eliminate(Tensor("a", (), product), Tensor("b", (), product))


def test_statements_without_split_dimensions_pass_through_as_they_are():
    left, right = define("a", (i,), Sum(x1[i, j1], j1)), define("b", (i,), Sum(x1[i, j1], j1))
    assert eliminate(left, right) == [(left, right)]
