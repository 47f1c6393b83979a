"""False statements about embeddings, the output layer, the loss and the chain rule: both engines must refuse them.

Each is one slip away from a law, and stands with the smallest shape where it is false and both values of an entry there
(as false_statements.py has it). Each is a kernel that somebody has written.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lla_spec.calculus import vjp
from lla_spec.formulas import chain_rule as R
from lla_spec.formulas import cross_entropy as C
from lla_spec.formulas import embedding as E
from lla_spec.formulas import output as O
from lla_spec.formulas.linear import linear
from lla_spec.formulas.softmax import logsumexp, softmax
from lla_spec.language import Eq, Relation
from lla_spec.proving import listed_shapes
from lla_spec.proving.all_dims import prove as prove_all_dimensions
from lla_spec.proving.counterexamples import counterexample
from lla_spec.symbols import Sum, concat, define, exp, log, scalar, tensor
from tests.engine.false_statements import FalseStatement

FALSE: list[FalseStatement] = []


def false(numbers: str, **shape: int) -> Callable[[Callable[[], Relation]], Callable[[], Relation]]:
    """Declare the relation that a function returns as false at `shape`, where the entry shown has these `numbers`."""

    def declare(build: Callable[[], Relation]) -> Callable[[], Relation]:
        FALSE.append(FalseStatement(build.__name__, build, shape, numbers))
        return build

    return declare


# Embedding


@false("left[0, 0] = 2, right[0, 0] = 1", d=1, n=1, v=1)
def embedding_gradient_overwritten():
    """Each word keeps the mean of its cotangents, as if the last one had overwritten equal ones."""
    dY = tensor("dY", E.i, E.k)
    times = Sum(E.T[E.i, E.t], E.i)
    dE = define("dE", (E.t, E.k), Sum(E.T[E.i, E.t] * dY[E.i, E.k], E.i) / times)
    return Eq(vjp(E.embedding(E.T, E.E), E.E, dY), dE)


@false("left[0, 0] = 0, right[0, 0] = 1", d=1, n=1, v=1)
def embedding_of_the_next_word():
    return Eq(E.embedding(E.T, E.E), define("Y", (E.i, E.k), Sum((1 - E.T[E.i, E.t]) * E.E[E.t, E.k], E.t)))


@false("left[0, 0] = 1, right[0, 0] = 0.5", d=1, n=2)
def pooled_gradient_over_all_tokens():
    dy = tensor("dy", E.k)
    return Eq(vjp(E.mean_pool(E.x, E.M), E.x, dy), define("dx", (E.i, E.k), E.M[E.i] * dy[E.k] / E.n))


@false("left[0] = 1, right[0] = 0.5", d=1, n=2)
def pooling_divides_by_all_tokens():
    return Eq(E.mean_pool(E.x, E.M), define("y", (E.k,), Sum(E.M[E.i] * E.x[E.i, E.k], E.i) / E.n))


# The output layer


@false("left[0, 0] = 1, right[0, 0] = 2", d=1, n=1, v=1)
def bias_added_after_the_softmax():
    P = softmax(linear(O.h, O.W))
    return Eq(O.output_softmax(O.h, O.W, O.b), define("P'", (O.i, O.t), P[O.i, O.t] + O.b[O.t]))


@false("left[0, 0] = 0.3775406688, right[0, 0] = 0.119202922", d=1, n=1, v=2)
def temperature_multiplied():
    τ = scalar("τ", positive=True)
    cooled = O.output_softmax(O.h, define("W'", (O.t, O.k), O.W[O.t, O.k] / τ))
    logits = linear(O.h, O.W)
    return Eq(cooled, softmax(define("z·τ", (O.i, O.t), logits[O.i, O.t] * τ)))


@false("left[0, 0] = 0.2689414214, right[0, 0] = 0.3775406688", d=1, n=1, v=2)
def bias_left_undivided_by_the_temperature():
    τ = scalar("τ", positive=True)
    P = O.output_softmax(O.h, O.W, O.b)
    cooled = O.output_softmax(O.h, define("W'", (O.t, O.k), O.W[O.t, O.k] / τ), O.b)
    return Eq(cooled, softmax(define("log P/τ", (O.i, O.t), log(P[O.i, O.t]) / τ)))


# The loss


@false("left[0, 0] = 0.5, right[0, 0] = 1", n=1, v=2)
def loss_gradient_without_the_mean():
    dz = C.logit_gradient(softmax(C.z), C.T)
    return Eq(vjp(C.cross_entropy(C.z, C.T), C.z, C.g), define("dz'", (C.i, C.t), C.g * dz[C.i, C.t]))


@false("left = 0.6931471806, right = 1.386294361", n=1, v=2)
def loss_mean_over_all_positions():
    return Eq(C.cross_entropy(C.z, C.T), C.cross_entropy_sum(C.z, C.T) / C.n)


@false("left[0, 0] = 0, right[0, 0] = 1", n=1, v=1)
def loss_gradient_reaches_ignored_positions():
    dz = define("dz", (C.i, C.t), C.g * (softmax(C.z)[C.i, C.t] - C.T[C.i, C.t]))
    return Eq(vjp(C.cross_entropy_sum(C.z, C.T), C.z, C.g), dz)


@false("left[0] = 0.6931471806, right[0] = 0", n=1, v1=1, v2=1)
def chunks_merged_by_their_sum():
    """L₁ + L₂ instead of log(exp L₁ + exp L₂)."""
    i, t1, t2 = C.i, C.t1, C.t2
    x1, x2, hot = tensor("x1", i, t1), tensor("x2", i, t2), tensor("C1", i, t1)
    whole = C.cross_entropy_none(concat("z", (i, C.tt), x1[i, t1], x2[i, t2]), concat("T", (i, C.tt), hot[i, t1], 0))
    L = logsumexp(x1)[i] + logsumexp(x2)[i]
    return Eq(whole, define("ℓ'", (i,), Sum(hot[i, t1] * (L - x1[i, t1]), t1)))


@false("left[0, 0] = 0.2689414214, right[0, 0] = 0.5", n=1, v1=1, v2=1)
def chunks_merged_without_their_weights():
    """P of two chunks, each normalised on its own, then halved."""
    i, t1, t2 = C.i, C.t1, C.t2
    x1, x2 = tensor("x1", i, t1), tensor("x2", i, t2)
    whole = logsumexp(concat("z", (i, C.tt), x1[i, t1], x2[i, t2]))
    P1 = softmax(x1)
    return Eq(define("P", (i, t1), exp(x1[i, t1] - whole[i])), define("P'", (i, t1), P1[i, t1] / 2))


@false("left = 0.4398901852, right = 0.503204434", n1=1, n2=1, v=2)
def batches_averaged_alike():
    i1, i2, t = C.i1, C.i2, C.t
    whole = C.cross_entropy(C.z_whole, concat("T", (C.ii, t), C.T1[i1, t], C.T2[i2, t]))
    return Eq(whole, (C.cross_entropy(C.z1, C.T1) + C.cross_entropy(C.z2, C.T2)) / 2)


# The chain rule


@false("left[0, 0] = 0, right[0, 0] = 1", d=1, e=1, n=1, r=1)
def chain_in_the_wrong_order():
    """The first layer's weight applied to the cotangent twice, the second one's never."""
    W1, W2 = tensor("W1", R.a, R.k), tensor("W2", R.c, R.a)
    hidden = linear(R.x, W1)
    dY = tensor("dY", R.i, R.c)
    forward_first = Sum(dY[R.i, R.c] * W1[R.a, R.k], R.a, R.c)
    return Eq(vjp(linear(hidden, W2), R.x, dY), define("dX", (R.i, R.k), forward_first))


@false("left[0, 0] = 2, right[0, 0] = 1", d=1, n=1, v=1)
def tied_weight_overwritten():
    F = define("F", (R.t, R.k), R.E[R.t, R.k])
    h0, dZ = E.embedding(R.ids, R.E), tensor("dZ", R.i, R.t)
    return Eq(vjp(linear(h0, R.E), R.E, dZ), vjp(linear(h0, F), F, dZ))


@false("left[0, 0] = 2, right[0, 0] = 1", d=1, n=1)
def residual_branch_left_out():
    Q, K, V = (define(name, (axis, R.k), R.h[axis, R.k]) for name, axis in zip("QKV", (R.i, R.j, R.j), strict=True))
    s = R.attention(Q, K, V)
    dQ, dK, dV = (vjp(s, argument, R.dH) for argument in (Q, K, V))
    dh = define("dh", (R.i, R.k), dQ[R.i, R.k] + dK[R.i, R.k] + dV[R.i, R.k])
    return Eq(vjp(R.residual_attention(R.h), R.h, R.dH), dh)


each = pytest.mark.parametrize("statement", FALSE, ids=lambda statement: statement.name)


def test_there_are_enough_false_statements():
    assert len({statement.name for statement in FALSE}) == len(FALSE) >= 12


@each
def test_numbers_refute_it(statement: FalseStatement):
    law = statement.law()
    found = counterexample(law.left, law.right, "=", [dim.name for dim in law.dims])
    assert found is not None
    assert dict(found.point.sizes) == statement.shape
    assert str(found.difference) == statement.numbers


@each
def test_listed_shapes_refuse_it(statement: FalseStatement):
    law = statement.law()
    for sizes in (statement.shape, listed_shapes.listed_shapes(law)[-1]):
        outcome = listed_shapes.prove(law.left, law.right, sizes)
        assert not outcome.proved
        assert outcome.residual


@each
def test_all_dimensions_refuse_it(statement: FalseStatement):
    law = statement.law()
    outcome = prove_all_dimensions(law.left, law.right)
    assert not outcome.proved
    assert outcome.residual
