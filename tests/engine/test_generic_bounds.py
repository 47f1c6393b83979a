"""The generic rule holds for real kernels, forward and backward, in every dtype; `bound` is the smaller of both."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from lla_spec.evaluating.contracts import Contract, contract, lattice
from lla_spec.evaluating.operations import bound, generic_bound, oracle, sharp_bound
from lla_spec.evaluating.rounding import Approximate, Rounding
from tests.engine.kernels import FORWARD, TORCH, attention, autograd, random_arguments, rounded_to, wide

CASES = 30
# The generic rule contracts the transposed product, and a BLAS kernel may add the same terms in another order there
# (seen on one of two CPUs). Sums of at most 2^10 numbers >= 0 in float64: twice (2^10 + a few) * 2^-53.
BLAS_REORDERS = 2.0**-41
ROWS = [(name, kernel, dtype) for name, kernels in FORWARD.items() for kernel in kernels for dtype in TORCH]


def contract_of(kernel: str, dtype: str) -> Contract:
    return contract("fused" if "cast" in kernel else "strict", dtype)


def exceeded(computed: torch.Tensor, judged: Any) -> str:
    """What is beyond the bound, if anything is; overflow of the io dtype is left to `edges`."""
    found = computed.detach().double().numpy()
    assert found.shape == judged.value.shape
    with np.errstate(all="ignore"):
        bad = ~(np.abs(found - judged.value) <= judged.error) & np.isfinite(found)
    return f"{found[bad][:3]} for {judged.value[bad][:3]} ± {judged.error[bad][:3]}" if bad.any() else ""


@pytest.mark.parametrize(("name", "kernel", "dtype"), ROWS)
def test_the_generic_rule_holds_forward(name: str, kernel: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for case in range(CASES):
        given, tensors, options = rounded_to(random_arguments(name, rng), dtype)
        out = FORWARD[name][kernel](*tensors, **options)
        for rule in (generic_bound, bound):
            judged = rule(name, given, contract_of(kernel, dtype), exact=dtype == "fp64")
            assert not exceeded(out, judged), f"{rule.__name__}, case {case}: {exceeded(out, judged)}"


@pytest.mark.parametrize(("name", "kernel", "dtype"), [row for row in ROWS if "cast" not in row[1]])
def test_the_generic_rule_holds_backward(name: str, kernel: str, dtype: str) -> None:
    rng = np.random.default_rng(2)
    for case in range(CASES):
        given, tensors, options = rounded_to(random_arguments(name, rng), dtype)
        out = FORWARD[name][kernel](*tensors, **options)
        grad_output = torch.from_numpy(np.asarray(rng.normal(size=tuple(out.shape)))).to(TORCH[dtype])
        gradients = autograd(FORWARD[name][kernel])(*tensors, grad_output=grad_output, **options)
        found = dict(zip(given, gradients, strict=False))
        arguments = {**given, "grad_output": grad_output.double().numpy()}
        judged = generic_bound(name, arguments, contract_of(kernel, dtype), vjp=True, exact=dtype == "fp64")
        for key, gradient in judged.items():
            assert not exceeded(found[key], gradient), f"case {case}, d{key}: {exceeded(found[key], gradient)}"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_scores_rounded_to_io_are_covered_by_whiteboard(dtype: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(CASES):
        given, (q, k, v), options = rounded_to(random_arguments("attention", rng), dtype)
        product = (q @ k.transpose(-1, -2)).float()
        scale = options.get("scale") or 1 / math.sqrt(q.shape[-1])
        scores = (product * scale).to(q.dtype).float()
        keep = options.get("mask")
        lower = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
        keep = lower if options.get("is_causal") else keep
        scores = scores if keep is None else scores.masked_fill(~keep, -math.inf)
        weights = torch.softmax(scores, -1).nan_to_num(0).to(q.dtype)
        out = (weights.float() @ v.float()).to(q.dtype)
        judged = generic_bound("attention", given, contract("whiteboard", dtype))
        assert not exceeded(out, judged), exceeded(out, judged)


def test_operands_rounded_to_tf32_are_covered() -> None:
    rng = np.random.default_rng(4)
    promised = contract({"base": "strict", "tf32": True}, "fp32")
    for _ in range(CASES):
        given, (a, b), _options = rounded_to(random_arguments("matmul", rng), "fp32")
        short = [torch.from_numpy(_tf32(x.numpy())) for x in (a, b)]
        assert not exceeded(short[0] @ short[1], generic_bound("matmul", given, promised))


def _tf32(x: np.ndarray) -> np.ndarray:
    """Round to nearest at 11 bits of significand."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent).astype(np.float32)


@pytest.mark.parametrize("io", ["fp64", "fp32", "bf16", "fp16"])
def test_every_contract_bounds_the_exact_result_of_hard_inputs(io: str) -> None:
    """Near over- and underflow, with NaN and infinity: a bound is a number or inf, and the exact result is in it."""
    rng, strict = np.random.default_rng(8), contract("strict", io)
    variants = [strict, strict.tight(), strict.override(depth="pairwise", blocks=4, rounding="truncate")]
    for promised in [*variants, *(weaker for _, weaker in lattice(strict))]:
        for name in FORWARD:
            arguments = random_arguments(name, rng)
            for key, value in arguments.items():
                if isinstance(value, np.ndarray) and value.dtype != bool and rng.random() < 0.5:
                    arguments[key] = value * rng.choice([1e30, 1e-30, 1e150])
                    arguments[key].flat[rng.integers(value.size)] = rng.choice([np.nan, np.inf, -np.inf, 0.0])
            exact, judged = oracle(name, arguments, exact=True), bound(name, arguments, promised)
            with np.errstate(all="ignore"):
                inside = np.abs(exact - judged.value) <= judged.error
            assert (inside | np.isinf(judged.error) | np.isnan(exact)).all()
            assert (np.isnan(exact) == np.isnan(judged.value)).all() or not np.isfinite(judged.error).all()


def test_a_cast_that_no_contract_allows_is_seen() -> None:
    """The bound has an edge: weights cast to bf16 exceed the strict contract in most cases."""
    rng, seen = np.random.default_rng(5), 0
    for _ in range(CASES):
        given, tensors, options = rounded_to(
            {"q": rng.normal(size=(9, 5)), "k": rng.normal(size=(31, 5)), "v": rng.normal(size=(31, 13))}, "fp32"
        )
        out = attention(*wide(*tensors), cast=torch.bfloat16, **options)
        seen += bool(exceeded(out, generic_bound("attention", given, contract("strict", "fp32"))))
    assert seen == CASES


def test_a_weight_recomputed_from_a_saved_log_sum_exp_needs_the_backward_rule() -> None:
    """exp(x - L) is off by u|L|, which exp(x - max) / sum is not: why the rule for gradients is another one."""
    x, promised = np.array([[1e4, 1e4 - 1]]), contract("strict", "fp32")
    t = torch.from_numpy(x).float()
    weights = torch.exp(t - torch.logsumexp(t, -1, keepdim=True)).double().numpy()
    gradient = generic_bound("logsumexp", {"x": x, "grad_output": np.ones(1)}, promised, vjp=True)["x"]
    assert (np.abs(weights - gradient.value) <= gradient.error).all()
    forward = generic_bound("softmax", {"x": x}, promised)
    assert not (np.abs(weights - forward.value) <= forward.error).all()


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_bound_is_the_smaller_of_both_entry_by_entry(name: str, dtype: str) -> None:
    rng, promised = np.random.default_rng(6), contract(None, dtype)
    for _ in range(CASES):
        given, _tensors, _options = rounded_to(random_arguments(name, rng), dtype)
        smaller, generic, sharp = (rule(name, given, promised) for rule in (bound, generic_bound, sharp_bound))
        wanted = generic.error if sharp is None else np.minimum(generic.error, sharp.error)
        empty = generic.error == 0  # a row without keys admits no error, whatever a rule says of it
        np.testing.assert_allclose(smaller.error, np.where(empty, 0.0, wanted), rtol=BLAS_REORDERS)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_every_step_holds_its_operands_anywhere_in_their_interval(dtype: str) -> None:
    """Operands moved inside their error move the result inside its error: the rules of single steps, in float64."""
    rng, domain = np.random.default_rng(7), Rounding(contract("strict", dtype))
    a, b = np.exp(rng.normal(size=500) * 3), rng.normal(size=500) * 3
    for size in (1e-12, 1e-3, 0.3):
        da, db = a * size * rng.random(500), np.abs(b) * size * rng.random(500)
        x, y = Approximate(a, da), Approximate(b, db)
        for sign in (-1, 1):
            a2, b2 = a + sign * 0.99 * da, b - sign * 0.99 * db  # inside even when rounded
            steps = [
                (domain.add(x, y), a2 + b2),
                (domain.multiply(x, y), a2 * b2),
                (domain.exp(y, 0), np.exp(b2)),
                (domain.log(x), np.log(a2)),
                (domain.sum(x, 1), a2.sum()),
                (domain.matmul(_as(x, (1, 500)), _as(y, (500, 1))), (a2 @ b2).reshape(1, 1)),
            ]
            steps += [
                (domain.power(x, p), a2 ** float(p))
                for p in (Fraction(-1), Fraction(2), Fraction(1, 2), Fraction(-1, 2), Fraction(-2), Fraction(3, 2))
            ]
            for step, moved in steps:
                assert (np.abs(moved - step.value) <= step.deviation).all()


def _as(x: Approximate, shape: tuple[int, ...]) -> Approximate:
    return Approximate(x.value.reshape(shape), x.deviation.reshape(shape))


def test_a_sum_may_be_taken_in_any_order() -> None:
    """(a + b) + c is bounded as a + (b + c) would be: a term cancelled early or late makes no difference."""
    domain = Rounding(contract("strict", "fp32"))
    big, small, one = (Approximate(np.array([v])) for v in (1e8, -1e8, 1.0))
    first, second = domain.add(domain.add(big, small), one), domain.add(big, domain.add(small, one))
    np.testing.assert_allclose(first.deviation, second.deviation)
    assert first.deviation[0] > 1.0


@pytest.mark.parametrize("rule", [generic_bound, bound])
def test_a_gradient_that_is_summed_over_a_batch_may_be_one_long_sum(rule: Any) -> None:
    """1 + 2^-25 is 1 in float32: from the first term on, 1,023 are lost one by one, where 32 sums of 32 lose 62."""
    a = np.full((32, 32, 1), 2.0**-25)
    a[0, 0] = 1.0
    total = np.float32(0)
    for term in a.ravel().astype(np.float32):
        total += term
    given = {"a": a, "b": np.ones((1, 1)), "grad_output": np.ones((32, 32, 1))}
    judged = rule("matmul", given, contract("strict", "fp32"), vjp=True)["b"]
    assert 5 * 62 * 2.0**-24 < abs(total - a.sum()) <= judged.error.item()


def test_an_exact_zero_stays_exact() -> None:
    domain = Rounding(contract("strict", "fp32"))
    zero, other = Approximate(np.zeros(2)), Approximate(np.ones(2), np.ones(2))
    assert (domain.multiply(zero, other).deviation == 0).all()
    assert (domain.add(zero, zero).deviation == 0).all()
    assert (domain.exp(Approximate(np.array([-np.inf])), 0).deviation == 0).all()


def test_a_divisor_that_may_be_zero_has_no_bound() -> None:
    domain = Rounding(contract("strict", "fp32"))
    with np.errstate(divide="ignore"):
        assert np.isinf(domain.power(Approximate(np.array([1.0]), np.array([1.0])), Fraction(-1)).deviation).all()
        assert np.isinf(domain.log(Approximate(np.array([1.0]), np.array([2.0]))).deviation).all()
