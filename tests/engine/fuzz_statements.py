"""Random expressions over a few tensors, the same expressions rewritten, and near misses."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import sympy as sp

from lla_spec.substituting import keep, transform
from lla_spec.symbols import Max, Sum, concat, dims, index, permutation, split, tensor
from lla_spec.tensors import Index, Maximum, Tensor

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
