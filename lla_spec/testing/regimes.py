"""Input classes of values: where sums, exponentials and variances lose what they should keep.

Each is here because some wrong kernel is right on N(0, 1). covering.py lists them beside shapes, layouts and masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lla_spec.language import Formula
from lla_spec.tensors import Tensor
from lla_spec.testing.cases import Case, sizes_of
from lla_spec.testing.features import SCALARS, Features
from lla_spec.testing.inputs import arguments_of

LARGEST = {"fp64": 10, "fp32": 120, "bf16": 7, "fp16": 7}  # exponents of 2 that keep a product of two finite
SMALLEST = {"fp64": -1020, "fp32": -124, "bf16": -124, "fp16": -13}
LONG = {"fp64": 384, "fp32": 4096, "bf16": 4096, "fp16": 1024}  # balls judge fp64; torch's CPU fp16 products are slow
LONG_SQUARED = 256
SEVERAL_EVEN = 128  # a power of two
STAGNATION = 2**9 + 8  # a bf16 accumulator stops at 256 = 2^8 when ones are added


def few_of_each(f: Features, base: Case) -> Case:
    """On heads two of everything, so that one size may be large within FEW_BALLS; else as it is."""
    return replace(base, sizes=tuple((name, 2) for name in f.dims)) if f.heads else base


def ranges(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """Families that cancel, repeat, stagnate or saturate, and the ends of the dtype's range."""
    wide = replace(base, sizes=sizes_of(f.dims, 9, 21, 17, 11))
    for family in ("heavy", "spike", "positive", "offset", "cancel", "ties", "pow2", "ints", "zeros", "equal_rows"):
        yield family, replace(wide, family=family)
    yield "far from zero", replace(wide, family="far")
    if f.arguments > 1:
        yield "constant against normal", replace(wide, family="ones+normal+offset")
        yield "normal against constant", replace(wide, family="normal+normal+ones")
    for name in (name for name in f.summed if name not in f.squared):
        yield f"ones along {name}", replace(base.with_sizes({name: STAGNATION}), family="ones")
    yield "large values", replace(wide, exponent=3)
    yield "small values", replace(wide, exponent=-6)
    yield "near underflow", replace(wide, family="tiny", exponent=SMALLEST[base.dtype] // 2)
    yield "near the smallest", replace(wide, family="tiny", exponent=SMALLEST[base.dtype])
    yield "near overflow", replace(wide, exponent=LARGEST[base.dtype] // 2)
    if f.exponential:
        for family in ("dominant", "below", "above"):
            yield family, replace(wide, family=family if f.arguments == 1 else f"{family}+normal+normal")
        if f.arguments == 1:  # logits 200 apart, where log(softmax) is -inf
            yield "saturated", replace(wide, exponent=7 if base.dtype != "fp16" else 5, family="normal")
        else:
            yield "saturated", replace(wide, exponent=3, family="normal")
            if SCALARS in f.scalars.values():  # exp is finite at that jump, the sum is not
                late = replace(base.with_sizes(dict.fromkeys(f.causal or (), 70)), family="ones+step+normal")
                yield "scores that jump by 87", replace(late, scale=87.0 / _summed_first(f, base))
            yield "large scores", replace(wide, exponent=5 if base.dtype != "fp16" else 3, family="pow2+pow2+normal")


def _summed_first(f: Features, base: Case) -> int:
    """The length of the products that make the scores: the first summed dimension that is no key's."""
    return next(base.size(name) for name in f.summed if name not in (f.causal or ()))


def beyond_fp16(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """What a kernel of a wider dtype shows that converts to fp16 inside; and a mask that hides by adding -10⁴ or -10⁹:
    the score of the one kept key is far below that, and its weight is 1 all the same."""
    wide, forward = replace(base, sizes=sizes_of(f.dims, 6, 10, 14, 9)), base.law == "definition"
    if base.dtype != "fp16" and (forward or not f.exponential):  # the gradient of what is saturated is 0
        if f.arguments == 1 or not f.exponential:
            yield "values beyond fp16", replace(wide, exponent=17)
        elif f.arguments == 3:
            yield "scores beyond fp16", replace(wide, exponent=9)
    if f.mask and SCALARS in f.scalars.values():
        far = 17 if forward and base.dtype != "fp16" else 7  # a gradient knows no score of 2³⁴ to an absolute 1
        one = replace(wide, family="ones+ones+normal", exponent=far, scale=-0.25, mask="one_key")
        yield "one key, scores far below zero", one
    elif f.mask and f.exponential:  # no scale to turn the sign: among many rows some score is below zero
        far = 9 if forward and base.dtype != "fp16" else 4
        yield "one key, scores far from zero", replace(wide, exponent=far, mask="one_key")


def far_below_zero(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """Whole rows below -10⁴, and -10⁹ where logits are given: a running maximum that begins there is never replaced."""
    wide = replace(base, sizes=sizes_of(f.dims, 6, 10, 14, 9))
    if f.arguments == 1:
        yield "all far below zero", replace(wide, family="below", exponent=25 if base.dtype != "fp16" else 6)
    else:  # logits are products, and known to their last digits alone
        far = replace(wide, family="ones+below+normal", exponent=3 if base.dtype != "fp16" else 2)
        yield "logits far below zero", far


def nearly_constant(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """A variance of a millionth of the squares, in 16 bits too: of E[x²] - μ² in float32 hardly a digit is left."""
    rest = ("zeros", "normal", "normal") if f.arguments > 3 else ("normal", "normal")  # one that is added stays away
    several = replace(base.with_sizes({f.dims[0]: 37}), batch=(23,))  # each row around its own number
    yield "rows nearly constant", replace(several, family="+".join(("nearly", *rest, "normal")))


def equal_weights(formula: Formula, f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """Equal scores of four: all weights are 1/4, and from units the rest comes without a rounding, in 16 bits too. A
    factor of 1.01 has nothing to hide in. So it is under a causal mask, with two, and where keys fill two tiles."""
    four = replace(base, sizes=tuple((name, 1 if name in f.heads else 4) for name in f.dims), batch=(4,))
    if f.arguments == 1:
        yield "four equal logits", replace(four, family="equal_rows")
        return
    parameters = arguments_of(formula)
    for name in f.scored:
        families = {p: "zeros" if p in f.shifts or p == name else "units" for p in parameters}
        equal = replace(four, family="+".join(families.values()))
        yield f"{name} = 0, all weights equal", equal
        if f.causal is None:
            continue
        query, key = f.causal
        yield f"{name} = 0, causal, all weights equal", replace(equal.with_sizes({query: 2, key: 2}), causal=True)
        if query != key:  # with keys and values of 0 and 1 no block's part takes another's back
            halves = {p: "step" if _runs_over(key, parameters[p]) else families[p] for p in parameters if p != name}
            family = "+".join({**families, **halves}.values())
            yield f"{name} = 0, many equal weights", replace(equal.with_sizes({key: SEVERAL_EVEN}), family=family)


def largest_last(formula: Formula, f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """After many tiles one score far above all others: what was summed before has to fade by the whole difference. A
    rescaling that is limited, or left out where it seems large, keeps a share of each, and many shares are seen."""
    longest = (LONG_SQUARED if f.squared else LONG[base.dtype]) + 3
    if f.arguments == 1:
        case = replace(base.with_sizes({f.dims[0]: longest}), family="late")
    elif SCALARS in f.scalars.values() and f.causal:
        case = few_of_each(f, base).with_sizes({f.causal[1]: longest})
        case = replace(case, family="ones+last+normal", scale=40.0 / _summed_first(f, case))
    elif f.squared:  # no scale to set: the scores of the last position against b_q, above all others in some head
        families = ("last", *["normal"] * (len(arguments_of(formula)) - 1))
        case = replace(few_of_each(f, base).with_sizes({f.squared[0]: longest}), family="+".join(families), exponent=2)
    else:
        case = replace(base.with_sizes({f.summed[-1]: longest}), family="ones+last+zeros", exponent=2)
    index = "same" if f.classes else base.index
    yield "the largest score last, far above", replace(case, batch=(3,) if not f.squared else (1,), index=index)


def _runs_over(dim: str, parameter: Tensor) -> bool:
    return any(axis.dim.name == dim for axis in parameter.axes)
