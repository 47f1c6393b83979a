"""Product dimensions, h = g · r: counted row-major by the exact engine, eliminated by the other, never mixed up."""

import numpy as np
import pytest

from lla_spec.evaluating.compiling import compile_results
from lla_spec.evaluating.float64 import Float64
from lla_spec.language import DeclarationError
from lla_spec.proving.all_dims import prove
from lla_spec.proving.listed_shapes import prove as prove_at
from lla_spec.proving.products import Unfactorable, factored
from lla_spec.symbols import Sum, define, dims, index, merge, product, tensor

G, R, D = dims("g r d")
g, r, k = index("g", G), index("r", R), index("k", D)
head, tiled = product(index("h", dims("h")), g, r), product(index("h", dims("h")), r, g)
Q, K = tensor("Q", g, r, k), tensor("K", g, k)
SIZES = {"g": 2, "r": 3, "d": 4}


def test_a_merged_axis_counts_the_last_factor_fastest():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4))
    plan = compile_results({"out": merge("Q'", (head, k), Q[g, r, k])})
    (out,) = plan.run(Float64(), {"Q": x}, SIZES).values()
    assert np.array_equal(out, x.reshape(6, 4))


def test_keys_are_repeated_and_not_tiled():
    y = np.random.default_rng(0).normal(size=(2, 4))
    repeated = compile_results({"out": merge("K'", (head, k), K[g, k])}).run(Float64(), {"K": y}, SIZES)["out"]
    assert np.array_equal(repeated, y.repeat(3, 0)) and not np.array_equal(repeated, np.tile(y, (3, 1)))


def test_a_sum_over_a_product_is_the_sum_over_its_factors():
    flat = merge("Q'", (head, k), Q[g, r, k])
    left, right = define("a", (k,), Sum(flat[head, k], head)), define("b", (k,), Sum(Q[g, r, k], g, r))
    assert prove(left, right).proved and prove_at(left, right, SIZES).proved


def test_tiled_heads_are_refused_by_both_engines():
    """Head p of tiled keys is p mod g, of repeated ones p // r: they are equal where g or r is 1 only."""
    other = merge("K'", (tiled, k), K[g, k])
    left = merge("K''", (head, k), K[g, k])
    right = define("tiled", (head, k), other[head, k])
    assert not prove(left, right).proved and not prove_at(left, right, SIZES).proved
    assert prove_at(left, right, {**SIZES, "g": 1}).proved and prove_at(left, right, {**SIZES, "r": 1}).proved
    with pytest.raises(Unfactorable, match=r"counts \(g, r\), the axis counts \(r, g\)"):
        factored(left, right)


def test_what_is_no_product_is_refused_when_it_is_declared():
    with pytest.raises(DeclarationError, match="merge needs a product axis"):
        merge("K'", (g, k), K[g, k])
    with pytest.raises(DeclarationError, match="needs two factors"):
        product(index("h", dims("h")), g)
    with pytest.raises(DeclarationError, match="ranges over h, but index g ranges over g"):
        merge("Q'", (head, k), Q[g, r, k])[g, k]
