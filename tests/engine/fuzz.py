"""Random identities, and random near misses, put to the all-dimensions prover and to numbers.

    python -m tests.engine.fuzz --seconds 240 --seed 0

A case is an expression and the same expression rewritten (`rewrites`), in two of five cases with one thing changed. The
prover says proved or refused; an evaluator in balls, which shares no code with it, says true or false at several
sizes. One proved-and-false is a failure. So is a run that put too few questions of either kind: `verdict`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp
from flint import arb, fmpq

from lla_spec.evaluating.balls import DEFAULT_BITS, Balls, precision
from lla_spec.proving.all_dims import prove
from lla_spec.substituting import keep, transform
from lla_spec.symbols import Max, Sum, concat, dims, index, permutation, split, tensor
from lla_spec.tensors import Index, Kept, Label, Maximum, Tensor

n, m, m1, m2 = dims("n m m1 m2")
i, j, h = index("i", n), index("j", m), index("h", n)
j1, j2 = index("j1", m1), index("j2", m2)
jj = split(index("j", m), j1, j2)

x, y, a = tensor("x", i, j), tensor("y", j), tensor("a", i)
s, t = tensor("s", i, positive=True), tensor("t", j, positive=True)
G = tensor("G", i, h)
π = permutation("π", j)
z1, z2, w1, w2 = (
    tensor("z1", j1),
    tensor("z2", j2),
    tensor("w1", i, j1, positive=True),
    tensor("w2", i, j2, positive=True),
)
z, w = concat("z", (jj,), z1[j1], z2[j2]), concat("w", (i, jj), w1[i, j1], w2[i, j2])
SIZES = ({"n": 2, "m": 3, "m1": 2, "m2": 1}, {"n": 3, "m": 2, "m1": 1, "m2": 3}, {"n": 1, "m": 4, "m1": 2, "m2": 2})


class Draw:
    """Random expressions over indices in sight."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pick(self, choices: list[Any]) -> Any:
        return self.random.choice(choices)

    def leaf(self, free: list[Index]) -> sp.Expr:
        rows = [k for k in free if k.dim == n]
        columns = [k for k in free if k.dim == m]
        halves = [k for k in free if k.dim.parts]
        choices: list[Any] = [
            sp.Integer(self.pick([1, 2, 3, -1])),
            self.pick([n, m]),
            sp.Rational(self.pick([1, -3]), 2),
        ]
        if rows:
            choices += [s[self.pick(rows)], a[self.pick(rows)], G[self.pick(rows), self.pick(rows)]] * 2
        if columns:
            column = self.pick(columns)
            choices += [y[column], y[column], t[column], y[π[column]]]
        if rows and columns:
            choices += [x[self.pick(rows), self.pick(columns)]] * 4
        if halves:
            choices += [z[self.pick(halves)]] * 2
        if halves and rows:
            choices += [w[self.pick(rows), self.pick(halves)]] * 3
        return self.pick(choices)

    def positive(self, depth: int, free: list[Index]) -> sp.Expr:
        """An expression that is positive everywhere."""
        kind = self.random.random()
        if depth == 0 or kind < 0.25:
            known = [s[k] for k in free if k.dim == n] + [t[k] for k in free if k.dim == m]
            known += [w[r, k] for k in free if k.dim.parts for r in free if r.dim == n]
            square = sp.expand((self.leaf(free) + self.leaf(free)) ** 2)  # zero by chance only
            return self.pick([*known, n, m, sp.Integer(2), 1 + self.leaf(free) ** 2, square or n])
        if kind < 0.4:
            return self.positive(depth - 1, free) + self.positive(depth - 1, free)
        if kind < 0.55:
            return self.positive(depth - 1, free) * self.positive(depth - 1, free)
        if kind < 0.75:
            bound = self.pick([i, j, jj]).fresh()
            return Sum(self.positive(depth - 1, [*free, bound]), bound)
        if kind < 0.9:
            return sp.exp(self.any(depth - 1, free) / 4)
        return self.positive(depth - 1, free) ** sp.Rational(
            *self.pick([(1, 2), (-1, 1), (-1, 2), (3, 2), (1, 3), (2, 1)])
        )

    def any(self, depth: int, free: list[Index]) -> sp.Expr:
        kind = self.random.random()
        if depth <= 0 or kind < 0.12:
            return self.leaf(free)
        if kind < 0.3:
            return self.any(depth - 1, free) + self.any(depth - 1, free)
        if kind < 0.45:
            return self.any(depth - 1, free) * self.any(depth - 1, free)
        if kind < 0.75:
            bound = self.pick([i, j, j, jj]).fresh()
            return Sum(self.any(depth - 1, [*free, bound]) * self.any(depth - 1, [*free, bound]), bound)
        if kind < 0.83:
            return self.any(depth - 1, free) / self.positive(depth - 1, free)
        if kind < 0.91:
            return sp.log(self.positive(depth - 1, free))
        return self.positive(depth, free)

    # --- rewrites that keep the value -----------------------------------------------------------------------------

    def rewrite(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        """One rewrite somewhere in the expression: at a node below with probability 1/2."""
        below = [k for k, arg in enumerate(expr.args) if isinstance(arg, sp.Expr) and _open(expr)]
        if below and self.random.random() < 0.6:
            position = self.pick(below)
            bound = [limit[0] for limit in expr.limits] if isinstance(expr, sp.Sum) else []
            inner = self.rewrite(expr.args[position], [*free, *bound])
            return expr.func(*[inner if k == position else arg for k, arg in enumerate(expr.args)])
        return self.pick(self.rewrites(expr))(expr, free)

    def rewrites(self, expr: sp.Expr) -> list[Callable[[sp.Expr, list[Index]], sp.Expr]]:
        common = [self.times_one, self.plus_zero, self.expanded, self.factored, self.diagonal, self.softmax_one]
        if isinstance(expr, sp.Sum):
            return [
                self.distribute,
                self.swap,
                self.permuted,
                self.parts,
                self.expanded,
                self.times_one,
                self.pulled_out,
            ]
        if isinstance(expr, sp.exp):
            return [self.shifted, self.shifted_by_maximum, self.through_log, *common]
        if isinstance(expr, sp.log):
            return [self.log_of_quotient, *common]
        if isinstance(expr, sp.Pow):
            return [self.power_apart, *common]
        return common

    def times_one(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        """Multiply by a positive sum, term by term, and divide by it."""
        p, q = self.positive(1, free), self.positive(2, free)
        return expr * p / fresh(p + q) + expr * q / fresh(p + q)

    def softmax_one(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        bound = self.pick([i, j, jj]).fresh()
        weight = sp.exp(self.any(1, [*free, bound]) / 4)
        return Sum(fresh(expr) * weight / fresh(Sum(weight, bound)), bound)

    def plus_zero(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        other = self.any(1, free)
        return expr + sp.expand(other * self.pick([1, n])) - fresh(other) * self.pick([1, 1])  # n·other is a near miss

    def expanded(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        return sp.expand(expr)

    def factored(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        return sp.factor_terms(expr)

    def diagonal(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        """f(k) = Σ_l δ(k, l) f(l)."""
        here = [k for k in free if k in expr.free_symbols]
        if not here:
            return expr
        k = self.pick(here)
        other = k.fresh()
        return Sum(sp.KroneckerDelta(k, other) * fresh(expr.xreplace({k: other})), other)

    def distribute(self, expr: sp.Sum, free: list[Index]) -> sp.Expr:
        terms = sp.Add.make_args(sp.expand_mul(expr.function))
        return sp.Add(*[fresh(sp.Sum(term, *expr.limits)) for term in terms])

    def pulled_out(self, expr: sp.Sum, free: list[Index]) -> sp.Expr:
        return sp.factor_terms(expr)

    def swap(self, expr: sp.Sum, free: list[Index]) -> sp.Expr:
        return fresh(sp.Sum(expr.function, *reversed(expr.limits)))

    def permuted(self, expr: sp.Sum, free: list[Index]) -> sp.Expr:
        """Σ_j f(π[j]) for Σ_j f(j)."""
        for bound, *_ in expr.limits:
            if bound.dim == m:
                return fresh(sp.Sum(_reindexed(expr.function, bound), *expr.limits))
        return fresh(expr)

    def parts(self, expr: sp.Sum, free: list[Index]) -> sp.Expr:
        """Σ over m = m₁ + m₂ as two sums over the blocks."""
        *inner, (bound, _, _) = expr.limits
        if not bound.dim.parts:
            return fresh(expr)
        function = sp.Sum(expr.function, *inner) if inner else expr.function
        halves = []
        for part, blocks in ((j1.fresh(), {z: z1, w: w1}), (j2.fresh(), {z: z2, w: w2})):
            body = _block(function, bound, part, blocks)
            halves.append(sp.Sum(body, part.limits))
        return sp.Add(*halves)

    def shifted(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        other = self.any(1, free) / 4
        return sp.exp(expr.args[0] + other) * sp.exp(-fresh(other))

    def shifted_by_maximum(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        bound = self.pick([i, j, jj]).fresh()
        entry = self.any(1, [*free, bound])
        return sp.exp(expr.args[0] - Max(entry, bound)) * sp.exp(Max(fresh(entry), bound))

    def through_log(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        p = self.positive(1, free)
        return sp.exp(expr.args[0] + sp.log(p)) / fresh(p)

    def log_of_quotient(self, expr: sp.Expr, free: list[Index]) -> sp.Expr:
        p = self.positive(1, free)
        return sp.log(expr.args[0] * p) - sp.log(fresh(p))

    def power_apart(self, expr: sp.Pow, free: list[Index]) -> sp.Expr:
        if expr.base.is_positive is None:
            return expr
        return fresh(expr.base) ** (expr.exp + self.pick([1, sp.S.Half])) * expr / expr.base ** (expr.exp)

    # --- near misses -----------------------------------------------------------------------------------------------

    def changed(self, expr: sp.Expr) -> sp.Expr:
        """One thing changed somewhere: a coefficient, a tensor, an index, an exponent, a term."""
        kind = self.random.random()
        if kind < 0.2:
            return expr + self.pick([sp.Rational(1, 7), s[i] * (n - m), a[i], Sum(y[j], j) - m * 1])
        if kind < 0.3:
            return expr * sp.Rational(3, 2)
        return self._changed_below(expr)

    def _changed_below(self, expr: sp.Expr) -> sp.Expr:
        below = [k for k, arg in enumerate(expr.args) if isinstance(arg, sp.Expr) and _open(expr)]
        if not below or self.random.random() < 0.3:
            return self._other(expr)
        position = self.pick(below)
        inner = self._changed_below(expr.args[position])
        return expr.func(*[inner if k == position else arg for k, arg in enumerate(expr.args)])

    def _other(self, node: sp.Expr) -> sp.Expr:
        if isinstance(node, sp.Indexed):
            swaps = {x.label: x, y.label: t, t.label: y, s.label: a, a.label: s}
            label = node.base.label
            if label == G.label:
                return G[node.indices[1], node.indices[0]]
            if label in swaps and label != x.label:
                return keep(swaps[label], node.indices)
            return node * 2
        if isinstance(node, sp.Sum):
            return self.pick(
                [node * 2, sp.Sum(node.function**2, *node.limits), node**2, sp.Sum(node.function + 1, *node.limits)]
            )
        if isinstance(node, sp.Add):
            return sp.Add(*node.args[1:]) + 2 * node.args[0]
        if isinstance(node, sp.Pow) and node.exp.is_Rational:
            square = sp.factor(node.base) if node.exp.q == 2 else node.base
            if square.is_Pow and square.exp == 2:
                return square.base ** (2 * node.exp)  # √x² = x
            return self.pick([1 / node, 2 * node])
        if node == n:
            return m
        if node == m:
            return n
        return node + 1 if not isinstance(node, sp.exp) else sp.exp(node.args[0] * 2)


def fresh(expr: sp.Expr) -> sp.Expr:
    """The same expression with its bound indices renamed, so that sympy cannot see that it is the same."""
    return transform(expr, keep)


def _open(expr: sp.Basic) -> bool:
    """May a change go below? Not into entries, deltas, maxima."""
    return not isinstance(expr, (sp.Indexed, sp.KroneckerDelta, Maximum, sp.Symbol, sp.Rational))


def _reindexed(expr: sp.Basic, bound: Index) -> sp.Expr:
    """f(π[j]) for f(j)."""
    if isinstance(expr, sp.Indexed):
        return keep(expr.base.label.tensor, tuple(_reindexed(k, bound) for k in expr.indices))
    if expr == bound:
        return π[bound]
    if isinstance(expr, sp.Sum):
        return sp.Sum(_reindexed(expr.function, bound), *expr.limits)
    return expr.func(*[_reindexed(arg, bound) for arg in expr.args]) if expr.args else expr  # pyright: ignore


def _block(expr: sp.Basic, bound: Index, part: Index, blocks: Mapping[Tensor, Tensor]) -> sp.Expr:
    """f at one block: concatenations indexed by `bound` become the block at `part`."""
    if isinstance(expr, sp.Indexed) and bound in expr.indices:
        return keep(blocks[expr.base.label.tensor], tuple(part if k == bound else k for k in expr.indices))
    if isinstance(expr, (sp.KroneckerDelta, Maximum)) and expr.has(bound):
        raise Skip("no block of a delta or a maximum")
    return expr.func(*[_block(arg, bound, part, blocks) for arg in expr.args]) if expr.args else expr  # pyright: ignore


class Skip(Exception):
    """The draw makes no question: a value that is not finite, a rewrite that does not apply."""


# --- numbers ---------------------------------------------------------------------------------------------------------


class Numbers:
    """Values as object arrays of balls, drawn in float64: axis p of an array is the p-th index in scope."""

    balls = Balls()

    def __init__(self, sizes: Mapping[str, int], rng: np.random.Generator) -> None:
        self.sizes, self.rng = sizes, rng
        self.arrays: dict[Label, np.ndarray] = {}

    def array(self, made: Tensor) -> np.ndarray:
        if made.label not in self.arrays:
            shape = [axis.dim.size(self.sizes) for axis in made.axes]
            if made.blocks:
                self.arrays[made.label] = np.concatenate(
                    [self.array(b.base.label.tensor) for b in made.blocks], axis=-1
                )
            elif made.permutation:
                self.arrays[made.label] = self.rng.permutation(shape[0])
            else:
                drawn = np.asarray(self.rng.normal(size=shape))
                self.arrays[made.label] = np.abs(drawn) + 0.3 if made.positive else drawn
        return self.arrays[made.label]

    def value(self, expr: Any, scope: tuple[Index, ...]) -> np.ndarray:
        if isinstance(expr, sp.Rational):
            return np.full((1,) * len(scope), arb(fmpq(expr.p, expr.q)), dtype=object)
        if isinstance(expr, sp.Indexed):
            where = tuple(self.position(k, scope) for k in expr.indices)
            return self.ball(self.array(expr.base.label.tensor)[where])
        if isinstance(expr, sp.KroneckerDelta):
            first, second = (self.position(k, scope) for k in expr.args)
            return self.ball(first == second)
        if isinstance(expr, Label):
            return self.ball(np.full((1,) * len(scope), self.array(expr.tensor)))
        if isinstance(expr, sp.Symbol):
            return self.ball(np.full((1,) * len(scope), expr.size(self.sizes)))  # pyright: ignore
        if isinstance(expr, (sp.Sum, Maximum)):
            *inner, (bound, _, _) = expr.limits
            body = self.value(expr.func(expr.function, *inner) if inner else expr.function, (*scope, bound))
            body = np.broadcast_to(body, (*body.shape[:-1], bound.dim.size(self.sizes)))
            return self.balls.sum(body, 1) if isinstance(expr, sp.Sum) else self.balls.maximum(body, 1)
        if not isinstance(expr, (sp.Add, sp.Mul, sp.Pow, sp.exp, sp.log, sp.Max, Kept)):
            raise Skip(f"no value of {type(expr).__name__}")
        values = [self.value(arg, scope) for arg in expr.args]
        if isinstance(expr, sp.Add):
            return np.broadcast_arrays(sum(values))[0]
        if isinstance(expr, sp.Mul):
            product = values[0]
            for other in values[1:]:
                product = product * other
            return product
        if isinstance(expr, sp.exp):
            return self.balls.exp(values[0], 0)
        if isinstance(expr, sp.log):
            return self.balls.log(values[0])
        if isinstance(expr, sp.Pow):
            if isinstance(expr.exp, sp.Rational):
                return self.balls.power(values[0], Fraction(expr.exp.p, expr.exp.q))
            return values[0] ** values[1]
        if isinstance(expr, sp.Max):
            return self.balls.maximum(np.stack(np.broadcast_arrays(*values), -1), 1)
        return np.where(values[1] != 0, values[0], arb("-inf"))

    @staticmethod
    def ball(exact: np.ndarray) -> np.ndarray:
        """Float64 entries as balls of radius 0."""
        return np.vectorize(lambda entry: arb(float(entry)), otypes=[object])(exact)

    def position(self, where: Any, scope: tuple[Index, ...]) -> np.ndarray:
        if isinstance(where, sp.Indexed):
            return self.array(where.base.label.tensor)[self.position(where.indices[0], scope)]
        axis = scope.index(where)
        shape = [1] * len(scope)
        shape[axis] = where.dim.size(self.sizes)
        return np.arange(shape[axis]).reshape(shape)


def agree(left: sp.Expr, right: sp.Expr, seed: int) -> bool:
    """Are both sides equal in numbers, at every size?

    False is certain: somewhere the balls of both sides do not meet. True: they meet everywhere, and are so narrow that
    what could still lie between the sides is below one rounding of float64 (2^-53) of the largest entry.
    """
    for bits in (DEFAULT_BITS, 4 * DEFAULT_BITS):
        with precision(bits):
            largest, apart = arb(0), []
            for sizes in SIZES:
                numbers = Numbers(sizes, np.random.default_rng(seed))
                sides = np.broadcast_arrays(numbers.value(left, (i,)), numbers.value(right, (i,)))
                apart += (sides[0] - sides[1]).tolist()
                if all(ball.is_finite() for ball in apart) and not all(ball.contains(0) for ball in apart):
                    return False
                largest = max(largest, *(ball.abs_lower() for ball in sides[0].tolist()))
            if all(ball.abs_upper() <= largest * 2.0**-53 for ball in apart):  # not so where a ball is not finite
                return True
    raise Skip("not finite, or nothing but 0")


def one_case(seed: int) -> tuple[str, sp.Expr, sp.Expr]:
    """The verdict on one random question, and the question."""
    draw = Draw(seed)
    left = draw.any(3, [i])
    right = fresh(left)
    for _ in range(draw.pick([1, 2, 2, 3])):
        right = draw.rewrite(right, [i])
    if draw.random.random() < 0.4:
        right = draw.changed(right)
    if sp.count_ops(left) + sp.count_ops(right) > 150 or left.has(sp.zoo, sp.nan) or right.has(sp.zoo, sp.nan):
        raise Skip("too large")
    true = agree(left, right, seed)
    proved = prove(Tensor("left", (i,), left), Tensor("right", (i,), right), fuel=20_000).proved
    return f"{'proved' if proved else 'refused'}-and-{'true' if true else 'false'}", left, right


def run(*, seconds: float, seed: int, enough: Mapping[str, int] | None = None) -> Counter[str]:
    """Counts of verdicts within the time, or until there are `enough` of each kind. Stops at a proved-and-false."""
    counts: Counter[str] = Counter()
    start, case = time.monotonic(), 0
    while time.monotonic() - start < seconds and not (enough and all(counts[k] >= v for k, v in enough.items())):
        case += 1
        try:
            kind, left, right = one_case(seed * 10_000_000 + case)
        except Skip:
            counts["skipped"] += 1
            continue
        counts[kind] += 1
        if kind == "proved-and-false":
            print(f"PROVED AND FALSE (case {seed * 10_000_000 + case}):\n  left  {left}\n  right {right}")
            break
    return counts


def verdict(counts: Mapping[str, int], *, true: int, false: int) -> str:
    """Empty where the run is good evidence; else what is wrong with it."""
    if counts.get("proved-and-false", 0):
        return "a false statement was proved"
    if counts.get("proved-and-true", 0) < true:
        return f"only {counts.get('proved-and-true', 0)} true statements were proved, fewer than {true}"
    if counts.get("refused-and-false", 0) < false:
        return f"only {counts.get('refused-and-false', 0)} false statements were refused, fewer than {false}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the all-dimensions prover against numbers.")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--true", type=int, default=3000, help="fail with fewer proved-and-true")
    parser.add_argument("--false", type=int, default=1000, help="fail with fewer refused-and-false")
    options = parser.parse_args()
    counts = run(seconds=options.seconds, seed=options.seed)
    print(dict(sorted(counts.items())))
    wrong = verdict(counts, true=options.true, false=options.false)
    print(wrong or "ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
