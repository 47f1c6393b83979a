"""Bounds where logits lie far apart and casts move them by as much: a weight of e^-250 may come out as a half.

There every simplification of a bound that is right for small errors shows; so it does where an edge overflows in fp16.
"""

from dataclasses import replace

import numpy as np
import pytest

from lla_spec.language import registry
from lla_spec.testing.cases import Case, parse
from lla_spec.testing.drawing import draw
from lla_spec.testing.strategies import cases
from tests.engine.every_kernel import HEADS, LOGITS, kernels_of, rows, worst_of

FAMILIES = ("normal", "pow2", "below+normal+normal", "ones+below+normal", "offset", "equal_rows", "nearly")


ROWS = rows(("attention", *HEADS, *LOGITS))


def far(case: Case, number: int) -> Case:
    """Few sizes, no special entries, and values so large that logits lie hundreds or thousands apart."""
    rng = np.random.default_rng(number)
    exponent = int(rng.integers(2, 5 if case.dtype == "fp16" else 9))
    small = case.with_sizes({name: min(size, 6) for name, size in case.sizes})
    family = FAMILIES[rng.integers(len(FAMILIES))]
    return replace(small, batch=(2,), family=family, exponent=exponent, special="none", causal=False)


@pytest.mark.parametrize(("operation", "law", "dtype", "promise"), ROWS)
def test_the_real_error_stays_within_the_bound_where_scores_are_far_apart(operation, law, dtype, promise):
    formula = registry.formulas[operation]
    candidates = list(kernels_of(operation, law, promise).items())
    judged = 0
    for number, drawn in enumerate(draw(cases(formula, law, dtype), 12, 5, f"far {operation} {law} {dtype}")):
        case, (name, kernel) = far(drawn, number), candidates[number % len(candidates)]
        worst = worst_of(case, promise, kernel)
        assert worst is None or worst.ratio <= 1, f"{name}: {case}: {worst}"
        judged += worst is not None
    assert judged >= 8


OVERFLOWS = {
    "a value of a key that is not seen": ("fused", "torch", parse(
        "multi_head_attention:definition:fp16:cpu:n=6,k=6,g=3,r=3,a=6,e=6,o=2,batch=2,family=pow2,exponent=4,"
        "layout=dense,grad=dense,mask=per_batch,index=random,causal=0,scale=default,special=none,without=b_q+b_o,"
        "seed=396257"
    )),
    "keys of a row that sees none": ("strict", "loop, rounded at edges", parse(
        "multi_head_attention:definition:fp16:cpu:n=2,k=2,g=2,r=2,a=2,e=2,o=2,batch=2,family=below+normal+normal,"
        "exponent=3,layout=dense,grad=dense,mask=empty_rows,index=random,causal=0,scale=default,special=none,"
        "without=b_q+b_v+b_o,seed=106140780"
    )),
    "a partial gradient before a scale of 0": ("fused", "rows by 32", parse(
        "grouped_query_attention:vjp:fp16:cpu:g=2,r=2,n=6,d=6,m=6,e=6,batch=2,family=below+normal+normal,exponent=3,"
        "layout=dense,grad=dense,mask=per_batch,index=random,causal=0,scale=0.0,special=none,without=,seed=814"
    )),
}  # fmt: skip


@pytest.mark.parametrize("what", OVERFLOWS)
def test_what_overflows_on_an_edge_in_fp16_is_not_judged(what):
    """Inf times 0 is NaN in a kernel that is right: of what it reaches nothing is known."""
    promise, name, case = OVERFLOWS[what]
    worst = worst_of(case, promise, kernels_of(case.op, case.law, promise)[name])
    assert worst is None or worst.ratio <= 1, worst
