"""A plan computes what its declaration says: against loops at tiny sizes, and both sides of every identity."""

from __future__ import annotations

import functools
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy as sp

from lla_spec import formulas  # noqa: F401
from lla_spec.calculus import gradient_parameters, vjp_formula
from lla_spec.certified import Certified
from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.compiling import compile_formula, compile_results, compile_vjp
from lla_spec.evaluating.contracts import hard_gamma
from lla_spec.evaluating.float64 import Float64
from lla_spec.evaluating.plan import Plan, PlanError
from lla_spec.evaluating.rewrites import rewrite_of, rewrites
from lla_spec.evaluating.rounding import Rounding
from lla_spec.evaluating.sharp.roundings import ORACLE_U
from lla_spec.language import Formula, Law, registry
from lla_spec.substituting import expand
from lla_spec.symbols import Sum, concat, define, dims, exp, index, permutation, split, tensor
from lla_spec.tensors import DeclarationError, Dim, Index, Kept, Label, Maximum, Tensor, inputs
from tests.engine.float64_bounds import FP64, assert_within, float64_bounds

SIZES = {"n": 2, "m": 3, "d": 2, "e": 1, "p": 2, "k": 2, "v": 3, "g": 2, "r": 1, "a": 2, "o": 2}
FORMULAS = [formula for formula in registry.formulas.values() if not isinstance(formula, Certified)]
GRADIENTS = [(f, name) for f in FORMULAS if f.operation for name in gradient_parameters(f)]
IDENTITIES = [law for law in registry.laws.values() if law.kind == "identity" and not law.hypotheses]


def numbers(rng: np.random.Generator, given: Tensor, sizes: dict[str, int]) -> np.ndarray:
    """Random entries of an input; masks keep the first key."""
    shape = tuple(axis.dim.size(sizes) for axis in given.axes)
    if given.permutation:
        return rng.permutation(shape[0])
    if given.role is not None and given.role.kind == "mask":
        keep = rng.random(shape) < 0.6
        keep[..., 0] = True
        return keep.astype(float)
    drawn = rng.normal(size=shape)
    return np.exp(drawn) if given.positive else drawn


class Naive:
    """Entries by the letter of the declaration, in 30 digits: every definition is put in, every sum is a loop."""

    def __init__(self, values: dict[Label, np.ndarray], sizes: dict[str, int]) -> None:
        self.values, self.sizes = values, sizes
        self.known: dict[Any, Any] = {}

    def __call__(self, result: Tensor) -> np.ndarray:
        shape = [axis.dim.size(self.sizes) for axis in result.axes]
        entry = expand(result.entry)
        with mpmath.workdps(30):
            flat = [float(self.at(entry, dict(zip(result.axes, where, strict=True)))) for where in np.ndindex(*shape)]
        return np.array(flat).reshape(shape)

    def at(self, expr: Any, where: dict[Any, int]) -> Any:
        key = (expr, *(where[symbol] for symbol in _free(expr) if symbol in where))
        if key not in self.known:
            self.known[key] = self.evaluated(expr, where)
        return self.known[key]

    def evaluated(self, expr: Any, where: dict[Any, int]) -> Any:
        if isinstance(expr, Index):
            return where[expr]
        if isinstance(expr, Dim):
            return expr.size(self.sizes)
        if isinstance(expr, sp.Indexed):
            return self.number(expr.base.label, tuple(int(self.at(index, where)) for index in expr.indices))
        if isinstance(expr, Label):
            return self.number(expr, ())
        if isinstance(expr, sp.Rational):
            return mpmath.mpf(int(expr.p)) / int(expr.q)
        if isinstance(expr, sp.Sum | Maximum):
            whole = mpmath.fsum if isinstance(expr, sp.Sum) else max
            bound = [limit[0] for limit in expr.limits]
            ranges = np.ndindex(*(index.dim.size(self.sizes) for index in bound))
            return whole(self.at(expr.function, {**where, **dict(zip(bound, found, strict=True))}) for found in ranges)
        parts = [self.at(part, where) for part in expr.args]
        if isinstance(expr, Kept):
            return parts[0] if parts[1] != 0 else -mpmath.inf
        if isinstance(expr, sp.KroneckerDelta):
            return int(parts[0] == parts[1])
        ways = {sp.Add: mpmath.fsum, sp.Mul: mpmath.fprod}
        if type(expr) in ways:
            return ways[type(expr)](parts)
        return {sp.Pow: mpmath.power, sp.exp: mpmath.exp, sp.log: mpmath.log}[type(expr)](*parts)

    def number(self, label: Label, where: tuple[int, ...]) -> Any:
        found = self.values[label][where]
        return int(found) if np.issubdtype(np.asarray(found).dtype, np.integer) else mpmath.mpf(float(found))


@functools.cache
def _free(expr: Any) -> tuple[Any, ...]:
    return tuple(expr.free_symbols)


@pytest.mark.parametrize(
    ("formula", "wrt"), [*((f, "") for f in FORMULAS), *GRADIENTS], ids=lambda of: of if isinstance(of, str) else of.id
)
def test_plan_equals_the_naive_evaluation(formula: Formula, wrt: str) -> None:
    formula, sizes = vjp_formula(formula, wrt) if wrt else formula, SIZES
    rng = np.random.default_rng(0)
    values = {name: numbers(rng, parameter, sizes) for name, parameter in formula.parameters.items()}
    by_label = {parameter.label: values[name] for name, parameter in formula.parameters.items()}
    plan = compile_formula(formula)
    (found,), (judged,) = plan.run(Float64(), values).values(), float64_bounds(plan, values).values()
    # 30 digits lose 2^-50 of a rounding of float64: what counts is the last rounding, to float64
    wanted = Naive(by_label, sizes)(formula.result)
    assert_within(found, judged.around(wanted), beside=np.spacing(np.abs(wanted)) / 2)


@pytest.mark.parametrize("law", IDENTITIES, ids=lambda law: law.id)
def test_both_sides_of_every_identity_evaluate_to_the_same(law: Law) -> None:
    rng = np.random.default_rng(1)
    sizes = {dim.name: 2 + position for position, dim in enumerate(law.dims)}
    plan = compile_results({"left": law.left, "right": law.right})
    values = {entry.name: numbers(rng, entry.tensor, sizes) for entry in plan.inputs}
    sides, bounds = plan.run(Float64(), values, sizes), float64_bounds(plan, values, sizes)
    assert sides["left"].shape == tuple(axis.dim.size(sizes) for axis in law.left.axes)
    assert_within(sides["left"], bounds["left"].around(sides["right"]), beside=bounds["right"].error)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.id)
def test_batch_axes_are_a_loop(formula: Formula) -> None:
    rng = np.random.default_rng(2)
    plan = compile_formula(formula)
    shared = {n: p for n, p in formula.parameters.items() if p.role and not p.role.batched}
    many = {
        name: numbers(rng, p, SIZES) if name in shared else np.stack([numbers(rng, p, SIZES) for _ in range(3)])
        for name, p in formula.parameters.items()
    }
    (together,) = plan.run(Float64(), many).values()
    for b in range(3):
        one = {n: v if n in shared else v[b] for n, v in many.items()}
        (alone,), (judged,) = plan.run(Float64(), one).values(), float64_bounds(plan, one).values()
        assert_within(together[b], judged.around(alone), times=2)


def steps(plan: Plan, name: str) -> int:
    return sum(step.name == name for step in plan.steps)


def test_what_is_the_same_is_computed_once() -> None:
    attention = registry.formulas["attention"]
    plan = compile_vjp(attention, ("Q", "K", "V"))
    assert steps(plan, "exp") == 1
    assert steps(plan, "matmul") == 6  # Q Kᵀ, dO Vᵀ, Σ P dP, then one for each gradient
    assert steps(compile_formula(registry.formulas["softmax"]), "exp") == 1


def test_calls_are_computed_by_the_proved_side() -> None:
    for name in ("softmax", "logsumexp"):
        assert steps(compile_formula(registry.formulas[name]), "maximum") == 1
    assert steps(compile_formula(registry.formulas["log_softmax"]), "maximum") == 1
    plain = compile_formula(registry.formulas["softmax"], frozenset("M"))
    (found,) = plain.run(Float64(), {"x": np.array([[1e4, 0]])}).values()
    np.testing.assert_array_equal(found, [[1, 0]])
    assert rewrite_of(vjp_formula(registry.formulas["softmax"], "x")) is not None
    assert rewrite_of(registry.formulas["matmul"]) is None


def test_masks_hide_what_overflows() -> None:
    plan, keep = compile_formula(registry.formulas["softmax"]), np.array([[1.0, 0.0, 1.0]])
    values, clean = ({"x": np.array([[1.0, hidden, 2.0]]), "M": keep} for hidden in (1e4, 0.0))
    (found,), (judged,) = plan.run(Float64(), values).values(), float64_bounds(plan, clean).values()
    wanted = np.array([[1 / (1 + np.e), 0, np.e / (1 + np.e)]])
    # e is rounded (numerator and denominator), and so are the sum and the quotient
    assert_within(found, judged.around(wanted), beside=hard_gamma(4, ORACLE_U) * wanted)


n, m, m1, m2 = dims("n m m1 m2")
i, j, l = index("i", n), index("j", m), index("l", m)
j1, j2 = index("j1", m1), index("j2", m2)


def run(result: Tensor, **values: Any) -> np.ndarray:
    return compile_results({"result": result}).run(Float64(), values)["result"]


def test_permutations_diagonals_and_numbers_gather() -> None:
    A, π = tensor("A", i, j), permutation("π", j)
    a, order = np.arange(6.0).reshape(2, 3), np.array([2, 0, 1])
    np.testing.assert_array_equal(run(define("B", (i, j), A[i, π[j]]), A=a, π=order), a[:, order])
    np.testing.assert_array_equal(run(define("B", (i, j), A[i, π[π[j]]]), A=a, π=order), a[:, order[order]])
    np.testing.assert_array_equal(run(define("b", (j,), A[1, j]), A=a), a[1])
    S, t = tensor("S", j, l), np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(run(define("s", (j,), S[j, j]), S=t), np.diag(t))
    np.testing.assert_array_equal(run(define("T", (j, l), S[l, j]), S=t), t.T)
    np.testing.assert_array_equal(run(define("D", (j, l), sp.KroneckerDelta(π[j], l)), π=order), np.eye(3)[order])


def test_blocks_concatenate_with_batch_axes() -> None:
    jj = split(j, j1, j2)
    X, y = tensor("X", i, j1), tensor("y", j2)
    x = np.arange(12.0).reshape(2, 3, 2)
    whole = concat("W", (i, jj), X[i, j1], y[j2])
    found = run(whole, X=x, y=np.array([7.0, 8.0]))
    np.testing.assert_array_equal(found, np.concatenate([x, np.broadcast_to([7.0, 8.0], (2, 3, 2))], -1))


def test_a_sum_over_an_absent_index_counts_it() -> None:
    X = tensor("X", i)
    jj = split(j, j1, j2)
    plan = compile_results({"result": define("s", (i,), Sum(X[i], j))})
    np.testing.assert_array_equal(plan.run(Float64(), {"X": np.ones(2)}, {"m": 3})["result"], [3, 3])
    plan = compile_results({"result": define("s", (i,), Sum(X[i], jj))})
    np.testing.assert_array_equal(plan.run(Float64(), {"X": np.ones(2)}, {"m1": 2, "m2": 5})["result"], [7, 7])


def test_products_of_many_factors_sum_rightly() -> None:
    A, B, x, y = tensor("A", i, j), tensor("B", j, l), tensor("x", i), tensor("y", l)
    rng = np.random.default_rng(3)
    a, b, u, v = (rng.integers(-9, 10, size).astype(float) for size in ((2, 3), (3, 3), 2, 3))  # every sum is exact
    body = Sum(x[i] * A[i, j] * B[j, l] * y[l] * A[i, j], j, l)
    wanted = np.einsum("i,ij,jl,l,ij->i", u, a, b, v, a)
    np.testing.assert_array_equal(run(define("s", (i,), body), A=a, B=b, x=u, y=v), wanted)
    outer = define("s", (), Sum(x[i] * y[l], i, l))
    np.testing.assert_array_equal(run(outer, x=u, y=v), u.sum() * v.sum())


def test_inputs_that_do_not_fit_are_named() -> None:
    plan = compile_formula(registry.formulas["matmul"])
    with pytest.raises(PlanError, match=r"B: missing; the plan needs A, B"):
        plan.run(Float64(), {"A": np.ones((2, 3))})
    with pytest.raises(PlanError, match=r"B: has shape \(4, 2\), but d is already 3"):
        plan.run(Float64(), {"A": np.ones((2, 3)), "B": np.ones((4, 2))})
    with pytest.raises(PlanError, match=r"A: has shape \(3,\) but needs 2 axes, A\[i, k\]"):
        plan.run(Float64(), {"A": np.ones(3), "B": np.ones((3, 2))})


def law(left: Any, right: Any, evaluate: str, **changes: Any) -> dict[str, Law]:
    options: Any = {"relation": "=", "hypotheses": (), **changes}
    made = Law(
        name="made", topic="test", kind="identity", left=left, right=right, because=None, matrix=None,
        evaluate=evaluate, corollary_of=None, doc="", source="here", **options,
    )  # fmt: skip
    return {"test.made": made}


def test_a_law_marked_evaluate_that_is_no_rewrite_is_refused() -> None:
    softmax, x, y = registry.formulas["softmax"], tensor("x", i, j), tensor("y", i, j)
    call = softmax(x)
    closed = define("P", (i, j), exp(x[i, j]) / Sum(exp(x[i, l]), l))
    with pytest.raises(DeclarationError, match="M is None"):
        rewrites(law(call, closed, "right"))
    with pytest.raises(DeclarationError, match="the other side is no formula's call"):
        rewrites(law(call, closed, "left"))
    matmul = registry.formulas["matmul"]
    A, B = tensor("A", i, j), tensor("B", j, l)
    with pytest.raises(DeclarationError, match="no argument of matmul"):
        rewrites(law(matmul(A, B), define("C", (i, l), Sum(A[i, j] * B[j, l] * y[i, j], j)), "right"))
    with pytest.raises(DeclarationError, match="A is A'"):
        doubled = define("C", (i, l), 2 * Sum(A[i, j] * B[j, l], j))
        rewrites(law(matmul(define("A'", (i, j), 2 * A[i, j]), B), doubled, "right"))
    with pytest.raises(DeclarationError, match="'left' or 'right'"):
        rewrites(law(call, closed, "both"))
    with pytest.raises(DeclarationError, match="an equation without hypotheses"):
        rewrites(law(call, closed, "right", relation="<="))


def test_a_call_whose_value_is_given_is_not_evaluated() -> None:
    x = tensor("x", i, j)
    P = registry.formulas["softmax"](x)
    result = define("r", (i, j), 2 * P[i, j] + x[i, j])
    plan = compile_results({"r": result}, {"P": P, "x": x})
    assert {entry.name for entry in plan.inputs} == {"P", "x"}
    known = Bounded(np.full((2, 3), 7.0), np.full((2, 3), 0.5))
    np.testing.assert_array_equal(plan.run(Float64(), {"P": known, "x": np.ones((2, 3))})["r"], np.full((2, 3), 15.0))
    whole = plan.run(Rounding(FP64, oracle_u=0.0), {"P": known, "x": np.ones((2, 3))})["r"]
    # 2 · 0.5 comes in; a product and a sum round what is at most 2 · 7.5 + 1
    assert (whole.error >= 1).all() and (whole.error <= 1 + hard_gamma(3, ORACLE_U) * 16).all()


def test_two_inputs_of_one_name_are_refused() -> None:
    first, second = tensor("X", i), tensor("X", j)
    with pytest.raises(DeclarationError, match="X: two inputs have this name"):
        compile_results({"r": define("R", (i, j), first[i] * second[j])})


def test_every_input_is_known_by_its_parameter() -> None:
    for formula in FORMULAS:
        assert {entry.name for entry in compile_formula(formula).inputs} <= set(formula.parameters)
        assert all(isinstance(axis, Index) and isinstance(axis.dim, Dim) for axis in formula.axes)
    assert {t.name for t in inputs(registry.formulas["attention"].result)} == {"Q", "K", "V", "M", "scale"}
