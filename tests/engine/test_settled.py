"""Bounds where a cast moves nothing: what the format has is rounded to itself, and a sum of a few units stays exact.

There a bound claims nearly everything, and any kernel that keeps its contract must be right to a few roundings of the
accumulator.
"""

from dataclasses import replace

import numpy as np
import pytest

import impl
from lla_spec.evaluating.contracts import PRECISIONS
from lla_spec.evaluating.exactness import rounded
from lla_spec.language import registry
from lla_spec.testing.cases import Case
from lla_spec.testing.drawing import draw
from lla_spec.testing.features import features
from lla_spec.testing.inputs import arguments_of
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.strategies import cases
from lla_spec.testing.targets import load
from tests.engine import kernels, loss_kernels
from tests.engine.every_kernel import HEADS, NORMS, kernels_of, rows, worst_of
from tests.engine.factors import formulas, noticed

OPERATIONS = tuple(dict.fromkeys((*kernels.FORWARD, *HEADS, *NORMS, *loss_kernels.FORWARD)))
FAMILIES = ("units", "units", "zeros", "pow2", "equal_rows", "ones")
ROWS = [row for row in rows(OPERATIONS) if row[0] in registry.formulas]


def settled(case: Case, number: int) -> Case:
    """Sizes that are powers of two, and of each argument units, zeros, powers of two, or rows of one number."""
    rng, formula = np.random.default_rng(number), registry.formulas[case.op]
    heads = features(formula).heads
    sizes = {name: int(2 ** rng.integers(0, 2 if name in heads else 4)) for name, _ in case.sizes}
    family = "+".join(rng.choice(FAMILIES, len(arguments_of(formula))))
    return replace(case.with_sizes(sizes), batch=(4,), family=family, exponent=0, special="none", causal=False)


@pytest.mark.parametrize(("operation", "law", "dtype", "promise"), ROWS)
def test_the_real_error_stays_within_the_bound_where_casts_move_nothing(operation, law, dtype, promise):
    formula = registry.formulas[operation]
    candidates = list(kernels_of(operation, law, promise).items())
    for number, drawn in enumerate(draw(cases(formula, law, dtype), 12, 5, f"settled {operation} {law} {dtype}")):
        case, (name, kernel) = settled(drawn, number), candidates[number % len(candidates)]
        worst = worst_of(case, promise, kernel)
        assert worst is None or worst.ratio <= 1, f"{name}: {case}: {worst}"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_number_settles_where_every_number_within_its_error_is_rounded_to_it(dtype):
    precision, rng = PRECISIONS[dtype], np.random.default_rng(3)
    values = rounded(rng.normal(size=4000) * 2.0 ** rng.integers(-12, 12, 4000), precision)
    powers = 2.0 ** np.arange(-12, 15)  # below each of them the next number is half as far
    values[: len(powers)] = powers
    half = precision.half_spacing(np.abs(values))
    usual = np.abs(values) > 2 * precision.smallest_normal
    for part in (0.0, 0.25, 0.49):
        inside = precision.settles(values, part * half)
        assert inside[usual].all() and usual.sum() > 3000
        for sign in (-1, 1):
            assert (rounded(values + sign * part * half, precision) == values)[inside].all()
    for off, error in ((0.0, 0.51), (1.0, 0.0), (0.002, 0.1)):
        assert not precision.settles(values + np.copysign(off * half, values), error * half)[usual].any()


@pytest.mark.parametrize("law", ["definition", "vjp"])
@pytest.mark.parametrize("formula", formulas(), ids=lambda formula: formula.name)
def test_a_common_factor_of_four_unit_roundoffs_is_noticed_in_bf16(formula, law):
    """On any whole result or gradient. The block's were within their bounds when they were 3 % too large."""
    found = noticed(formula, law, "bf16", longest=30)
    assert found and all(allowed <= 4 for allowed, _ in found.values()), found


@pytest.mark.parametrize("argument", [0, 1, 2, 3, 4])
def test_a_gradient_of_the_block_that_is_two_hundredths_too_large_as_a_whole_is_refused_in_bf16(argument):
    def multi_head_attention_vjp(*arguments, **options):
        gradients = list(impl.multi_head_attention_vjp(*arguments, **options))
        gradients[argument] = gradients[argument] * 1.02
        return tuple(gradients)

    functions = {
        "multi_head_attention": impl.multi_head_attention,
        "multi_head_attention_vjp": multi_head_attention_vjp,
    }
    session = Session(
        load(functions), Options(ops=("multi_head_attention",), laws=("vjp",), dtypes=("bf16",), examples=0)
    )
    (row,) = session.rows()
    judging = session.judging(row, session.contract(row))
    found = [judging(case) for name, case in session.cases(row) if name.endswith("all weights equal")]
    assert len(found) == 6 and any(judged.failed for judged in found)
