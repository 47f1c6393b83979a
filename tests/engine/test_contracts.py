"""Contracts: the formats, the named contracts and their overrides, γ_n, casts, and the lattice of weaker contracts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lla_spec.evaluating.contracts import PRECISIONS, Contract, contract, hard_gamma, lattice

TORCH = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
rng = np.random.default_rng(0)


@pytest.mark.parametrize("name", TORCH)
def test_a_format_is_what_torch_says(name: str) -> None:
    info, p = torch.finfo(TORCH[name]), PRECISIONS[name]
    assert (p.unit_roundoff, p.largest) == (info.eps / 2, info.max)
    assert (p.smallest_normal, p.smallest_subnormal) == (info.smallest_normal, info.smallest_normal * info.eps)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_the_overflow_threshold_is_the_smallest_number_that_rounds_to_infinity(name: str) -> None:
    threshold = PRECISIONS[name].overflow_threshold
    wide = np.float64 if name == "fp32" else np.float32  # torch casts float64 to 16 bits by way of float32
    below = np.nextafter(wide(threshold), wide(0))
    assert torch.tensor(threshold, dtype=torch.float64).to(TORCH[name]).isinf()
    assert torch.tensor(float(below), dtype=torch.float64).to(TORCH[name]).isfinite()


def test_fp64_has_no_number_beyond_its_largest() -> None:
    assert PRECISIONS["fp64"].overflow_threshold == PRECISIONS["fp64"].largest


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_half_spacing_is_the_most_that_rounding_moves_a_normal_number(name: str) -> None:
    p = PRECISIONS[name]
    values = rng.uniform(1, 2, 4000) * 2.0 ** rng.integers(-10, 11, 4000)
    values = values.astype(np.float32).astype(np.float64) if name != "fp32" else values
    moved = np.abs(torch.from_numpy(values).to(TORCH[name]).double().numpy() - values)
    half = p.half_spacing(values)
    assert (moved <= half).all() and (half <= p.unit_roundoff * values).all()
    assert moved.max() > 0 and (moved / half).max() > 0.99
    exact = p.half_spacing(np.array([1.0, 1.5, 2.0, 0.0, np.inf]))
    u = p.unit_roundoff
    np.testing.assert_array_equal(exact, [u, u, 2 * u, 0.0, np.inf])


# ---- names and overrides


def test_strict_accumulates_in_fp32_and_casts_nothing() -> None:
    for io in ("fp32", "bf16", "fp16"):
        c = contract("strict", io)
        assert (c.acc.name, c.score_casts, c.weight_cast, c.grad_partials) == ("fp32", 0, False, "acc")
    assert contract("strict", "fp64").acc.name == "fp64"


def test_fused_is_the_default_and_allows_what_fused_kernels_do() -> None:
    c = contract(None, "bf16")
    assert c == contract("fused", "bf16") and c.weight_cast and c.grad_partials == "io" and c.score_casts == 0


def test_whiteboard_rounds_scores_twice() -> None:
    c = contract("whiteboard", "fp16")
    assert c.score_casts == 2 and c.weight_cast and c.grad_partials == "io"


@pytest.mark.parametrize("io", ["fp64", "fp32"])
def test_the_three_contracts_are_one_where_io_is_the_accumulator(io: str) -> None:
    assert contract("strict", io) == contract("fused", io) == contract("whiteboard", io)


def test_a_mapping_overrides_its_base_and_a_contract_passes_through() -> None:
    c = contract({"base": "strict", "exp_ulp": 4, "blocks": 8, "acc": "bf16"}, "bf16")
    assert (c.exp_ulp, c.blocks, c.acc, c.weight_cast) == (4, 8, PRECISIONS["bf16"], False)
    assert contract({"kappa": 1}, "bf16") == contract("fused", "bf16").override(kappa=1)
    assert contract(c, "fp32") is c
    kept = {"base": "strict"}
    contract(kept, "fp32")
    assert kept == {"base": "strict"}


BAD: list[tuple[Any, str, str]] = [
    ("loose", "bf16", r"contract: 'loose' is not a contract; there are strict, fused, whiteboard"),
    ("strict", "fp8", r"contract: io is 'fp8', expected one of fp64, fp32, tf32, bf16, fp16"),
    ({"exp_ulps": 1}, "bf16", r"contract: unknown key 'exp_ulps'; known are io, acc, rounding"),
    ({"acc": "fp8"}, "bf16", r"contract: acc is 'fp8', expected one of"),
    ({"rounding": "up"}, "bf16", r"contract: rounding is 'up', expected one of nearest, truncate"),
    ({"variance": "one_pass"}, "bf16", r"contract: variance is 'one_pass', expected one of two_pass, welford, naive"),
    ({"grad_partials": "fp32"}, "bf16", r"contract: grad_partials is 'fp32', expected one of acc, io"),
    ({"weight_cast": 1}, "bf16", r"contract: weight_cast is 1, expected one of True, False"),
    ({"tf32": "yes"}, "fp32", r"contract: tf32 is 'yes', expected one of True, False"),
    ({"depth": "tree"}, "bf16", r"contract: depth is 'tree', expected one of pairwise"),
    ({"blocks": 0}, "bf16", r"contract: blocks is 0, expected 'n_k' or an integer >= 1"),
    ({"blocks": True}, "bf16", r"contract: blocks is True, expected 'n_k' or an integer >= 1"),
    ({"score_casts": -1}, "bf16", r"contract: score_casts is -1, expected an integer >= 0"),
    ({"scale_casts": True}, "bf16", r"contract: scale_casts is True, expected an integer >= 0"),
    ({"kappa": math.nan}, "bf16", r"contract: kappa is nan, expected a finite number >= 0"),
    ({"exp_ulp": math.inf}, "bf16", r"contract: exp_ulp is inf, expected a finite number >= 0"),
    ({"statistical": "3"}, "bf16", r"contract: statistical is '3', expected a finite number >= 0"),
]


@pytest.mark.parametrize(("given", "io", "message"), BAD, ids=lambda v: str(v)[:30])
def test_a_bad_contract_is_named(given: Any, io: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contract(given, io)


def test_describe_tells_what_differs_from_strict() -> None:
    told = {
        "io=fp32 acc=fp32": contract("fused", "fp32"),
        "io=bf16 acc=fp32": contract("strict", "bf16"),
        "io=bf16 acc=fp32 score_casts=2 weight_cast grad_partials=io": contract("whiteboard", "bf16"),
        "io=fp32 acc=fp32 depth=pairwise tf32": contract({"depth": "pairwise", "tf32": True}, "fp32"),
        "io=fp16 acc=fp32 flush_to_zero=False exp_ulp=1": contract(
            {"base": "strict", "exp_ulp": 1.0, "flush_to_zero": False}, "fp16"
        ),
        "io=fp32 acc=fp32 statistical=3": contract("strict", "fp32").tight(),
        "io=fp32 acc=fp32 depth=half": contract({"depth": half}, "fp32"),
    }
    for line, declared in told.items():
        assert declared.describe() == line


def half(n: int) -> int:
    return (n + 1) // 2


# ---- roundings


def test_gamma_is_higham_s() -> None:
    u = 2.0**-24
    assert contract("strict", "fp32").gamma(1000) == 1000 * u / (1 - 1000 * u)
    assert contract("strict", "fp32").gamma(0) == 0.0
    assert hard_gamma(2**24, u) == math.inf


def test_truncation_doubles_the_unit_roundoff_of_the_accumulator() -> None:
    truncating = contract({"rounding": "truncate"}, "bf16")
    assert truncating.u_acc == 2 * contract(None, "bf16").u_acc
    assert truncating.u_out == contract(None, "bf16").u_out


def test_a_depth_counts_the_longest_chain_of_roundings() -> None:
    u = 2.0**-24
    assert contract({"depth": "pairwise"}, "fp32").gamma(1024) == hard_gamma(11, u)
    assert contract({"depth": half}, "fp32").gamma(9) == hard_gamma(5, u)
    assert contract({"depth": lambda n: 10 * n}, "fp32").gamma(9) == hard_gamma(9, u)  # never more than any order


def test_tight_grows_with_the_root_and_never_exceeds_hard() -> None:
    hard = contract("strict", "fp32")
    tight = hard.tight()
    for n in (1, 2, 8, 9, 10, 100, 10**4, 10**6):
        assert tight.gamma(n) <= hard.gamma(n)
    assert tight.gamma(10**6) == pytest.approx(3 * 1e3 * 2.0**-24, rel=0.03)
    assert tight.gamma(4) == hard.gamma(4)


def test_a_truncating_accumulator_stays_hard() -> None:
    truncating = contract({"rounding": "truncate"}, "fp32")
    assert truncating.tight() is truncating


def test_eta_is_a_flushed_normal_or_half_a_subnormal() -> None:
    assert contract("strict", "fp32").eta_acc == 2.0**-126
    assert contract({"flush_to_zero": False}, "fp32").eta_acc == 2.0**-150
    assert contract("strict", "fp16").eta_out == 2.0**-25  # fp16 is never flushed
    assert contract("strict", "bf16").eta_out == 2.0**-126
    assert contract({"flush_to_zero": False}, "fp64").eta_acc == 5e-324
    assert contract("strict", "fp64").eta_out == 0.0


@pytest.mark.parametrize("io", ["bf16", "fp16"])
def test_a_cast_covers_the_rounding_of_any_number_within_the_error(io: str) -> None:
    c = contract("strict", io)
    value = (rng.normal(size=4000) * 2.0 ** rng.integers(-30, 10, 4000)).astype(np.float32).astype(np.float64)
    error = np.abs(value) * rng.choice([0.0, 1e-3, 0.3], 4000)
    inside = (value + rng.uniform(-1, 1, 4000) * error * 0.999).astype(np.float32).astype(np.float64)
    rounded = torch.from_numpy(inside).to(TORCH[io]).double().numpy()
    total = c.cast(value, np.maximum(error, np.abs(inside - value)))
    assert (np.abs(rounded - value) <= total).all()


def test_no_cast_where_io_is_the_accumulator() -> None:
    value, error = np.array([1.0, 1e38]), np.array([0.5, 1e30])
    c = contract("strict", "fp32")
    assert c.cast(value, error) is error and c.inner_cast(value, error) is error and c.u_out == 0.0


def test_nothing_is_known_after_an_inner_cast_that_may_overflow() -> None:
    c = contract("strict", "fp16")
    after = c.inner_cast(np.array([65503.0, 65519.0, 65519.0, 1.0]), np.array([0.0, 0.0, 2.0, 65519.0]))
    np.testing.assert_array_equal(np.isinf(after), [False, False, True, True])
    assert np.isfinite(c.cast(np.array([70000.0]), np.zeros(1))).all()


# ---- the lattice


@pytest.mark.parametrize("io", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["strict", "fused", "whiteboard"])
def test_a_weaker_contract_keeps_what_its_base_allows(name: str, io: str) -> None:
    base = contract(name, io)
    found = lattice(base)
    assert found and len({label for label, _ in found}) == len(found)
    for _, weaker in found:
        assert weaker != base
        assert weaker.u_acc >= base.u_acc and weaker.score_casts >= base.score_casts
        assert weaker.weight_cast or not base.weight_cast
        assert weaker.grad_partials == "io" or base.grad_partials == "acc"
        assert weaker.io == base.io


def test_the_closest_contract_comes_first_and_the_accumulator_last() -> None:
    labels = [label for label, _ in lattice(contract("strict", "bf16"))]
    assert labels[0] == "weights rounded to bf16" and labels[-1] == "accumulated in bf16"
    assert labels.index("weights and gradient partials in bf16 (fused)") < labels.index("scores rounded to bf16")
    assert dict(lattice(contract("strict", "bf16")))[labels[2]] == contract("fused", "bf16")
    weaker = [label for label, _ in lattice(contract("fused", "bf16"))]
    assert "weights rounded to bf16" not in weaker and len(weaker) < len(labels)


def test_tf32_is_a_step_of_fp32_alone() -> None:
    assert lattice(contract("strict", "fp32"))[0] == (
        "operands rounded to tf32",
        contract({"base": "strict", "tf32": True}, "fp32"),
    )
    labels = [label for label, _ in lattice(contract("strict", "fp64"))]
    assert labels == ["variance in one pass, E[x²] - μ²", "accumulated in fp32"]


def test_a_contract_is_a_value() -> None:
    assert hash(contract("fused", "bf16")) == hash(contract(None, "bf16"))
    assert isinstance(contract("strict", "bf16").override(blocks=4), Contract)
    with pytest.raises(AttributeError):
        contract("strict", "bf16").kappa = 1  # pyright: ignore[reportAttributeAccessIssue]
