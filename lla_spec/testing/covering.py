"""The covering list: every input class that applies to an operation, once. Each row begins with it.

A class is here because some wrong kernel is right everywhere else: square shapes hide a swapped axis, N(0, 1) hides a
missing maximum, dense inputs hide a wrong stride. Random cases (strategies.py) follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from lla_spec.language import Formula, Law
from lla_spec.testing.cases import Case, sizes_of
from lla_spec.testing.features import POSITIVE_SCALARS, SCALARS, Features, features, few_heads
from lla_spec.testing.inputs import MASKS
from lla_spec.testing.pairs import FEW_BALLS, SEVERAL_TILES, several_tiles
from lla_spec.testing.regimes import (
    LONG,
    LONG_SQUARED,
    STAGNATION,
    beyond_fp16,
    equal_weights,
    far_below_zero,
    few_of_each,
    largest_last,
    nearly_constant,
    ranges,
)

LAST = {"fp64": 7, "fp32": 4, "bf16": 4, "fp16": 4}  # 7·2^LAST: beyond what exp gives in the accumulator
BEYOND_16_BITS = 2**16 + 3  # classes: an id in 16 bits, with or without a sign, is another one


def covering(formula: Formula, law: str, dtype: str, device: str = "cpu") -> list[tuple[str, Case]]:
    """(class, case) for every input class that applies to `law` ("definition" or "vjp") of `formula`, each once."""
    f = features(formula)
    base = Case(formula.name, law, dtype, device, sizes_of(f.dims, 3, 5, 7, 2), batch=(2,), family=f.family, seed=1)
    classes = [
        *_shapes(formula, f, base),
        *ranges(f, base),
        *_layouts(formula, f, base),
        *(_masks(f, base) if f.mask else ()),
        *(_indices(f, base) if f.classes else ()),
        *_arguments(f, base),
        *(_matrices(f, base) if f.each else ()),
        *_specials(formula, f, base),
        *_long_masks(f, base),
        *several_tiles(formula, f, base),
        *(_causal_tiles(f, base) if f.causal else ()),
        *(() if formula.rows is not None else _many_matrices(f, base)),
        *beyond_fp16(f, base),
        *(far_below_zero(f, base) if f.exponential and not f.mask else ()),
        *(nearly_constant(f, base) if POSITIVE_SCALARS in f.scalars.values() else ()),
        *(equal_weights(formula, f, base) if f.exponential else ()),
        *(largest_last(formula, f, base) if f.exponential else ()),
    ]
    return [(name, replace(_bounded(f, case), seed=number + 1)) for number, (name, case) in enumerate(classes)]


def _bounded(f: Features, case: Case) -> Case:
    """Few heads, since everything grows with them."""
    case = case.with_sizes({name: few_heads(case.size(name)) for name in f.heads})
    while f.heads and case.dtype == "fp64" and math.prod(size for _, size in case.sizes) > FEW_BALLS:
        name, size = max(case.sizes, key=lambda item: item[1])
        case = case.with_sizes({name: size // 2 + 1})
    return case


def _shapes(formula: Formula, f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    yield "distinct sizes", base
    yield "no batch axis", replace(base, batch=())
    yield "two batch axes", replace(base, batch=(3, 2))
    yield "empty batch", replace(base, batch=(0,))
    yield "all sizes 1", replace(base, sizes=tuple((name, 1) for name in f.dims), batch=(1,))
    yield "below the tile", replace(base, sizes=sizes_of(f.dims, 31, 15, 7, 63))
    yield "a tile", replace(base, sizes=sizes_of(f.dims, 32, 64, 16, 8))
    yield "above the tile", replace(base, sizes=sizes_of(f.dims, 33, 17, 65, 9))
    yield "multiples of 8", replace(base, sizes=sizes_of(f.dims, 16, 8, 24, 32))
    yield "equal sizes", replace(base, sizes=tuple((name, 6) for name in f.dims))
    yield "three batch axes", replace(base, batch=(2, 3, 2))
    yield "primes", replace(base, sizes=sizes_of(f.dims, 13, 37, 19, 23))
    for name in f.dims:
        yield f"{name} = 1", base.with_sizes({name: 1})
        if (name in f.summed or len(f.dims) == 1) and name not in (*f.squared, *f.heads):
            yield f"{name} of several tiles", few_of_each(f, base).with_sizes({name: SEVERAL_TILES})
        if name not in f.summed or len(f.dims) == 1:
            continue
        longest = LONG[base.dtype] if name not in f.squared else LONG_SQUARED
        yield f"long {name}", replace(base.with_sizes({name: longest + 3}), batch=(1,))
        if f.exponential and f.arguments > 1:  # what γ of a long sum would hide: a lost tail
            batch = (1,) if name in f.squared else (3,)
            late = replace(base.with_sizes({name: longest + 3}), batch=batch, family="ones+last+normal", exponent=1)
            yield f"long {name}, the weight in its last row", late
    if len(f.dims) == 1:
        long = replace(base, sizes=sizes_of(f.dims, LONG[base.dtype] + 3), batch=(3,))
        yield "vocabulary", long
        if f.exponential:  # exp of it overflows unless the last block's maximum is taken as well
            yield "vocabulary, the largest last", replace(long, family="confident", exponent=LAST[base.dtype])
    if formula.rows is not None:
        yield "many rows", replace(base, batch=(LONG[base.dtype] // 4 + 1,), sizes=sizes_of(f.dims, 3, 2))
    if f.causal:
        query, key = f.causal
        yield "fewer queries than keys", base.with_sizes({query: 3, key: 11})
        yield "more queries than keys", base.with_sizes({query: 11, key: 3})


def _ragged(formula: Formula, f: Features, base: Case) -> Case:
    """More than a tile along every axis, and no multiple of one: a kernel pads each, or reads beyond its end."""
    return replace(base, sizes=sizes_of(f.dims, 33, 23, 37, 25), batch=(23,) if formula.rows is not None else ())


def _layouts(formula: Formula, f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    wide = replace(base, sizes=sizes_of(f.dims, 6, 10, 14, 9), batch=(3,))
    for layout in ("transposed", "strided", "sliced", "offset", "expanded"):
        yield f"{layout} inputs", replace(wide, layout=layout)
    yield "sliced inputs, ragged tiles", replace(_ragged(formula, f, base), layout="sliced")
    if f.arguments > 1:
        same = replace(base, sizes=tuple((name, 6) for name in f.dims), batch=(2, 3))
        yield "a layout for each argument", replace(same, layout="dense+transposed+sliced")
        yield "another layout for each", replace(same, layout="strided+dense+sliced")
    if base.law == "vjp":
        for layout in ("transposed", "sliced", "expanded", "scalar"):
            yield f"{layout} cotangent", replace(wide, grad=layout)


def _masks(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    wide = replace(base, sizes=sizes_of(f.dims, 6, 10, 14, 9))
    for mask in MASKS:
        yield f"{mask} mask", replace(wide, mask=mask)
    yield "holes in a tile", replace(base, sizes=sizes_of(f.dims, 19, 5, 21, 3), mask="holes")
    yield "one key, multiples of 8", replace(base, sizes=sizes_of(f.dims, 16, 8, 24, 32), mask="one_key")
    yield "one mask for some batch axes", replace(wide, mask="partly_batched", batch=(2, 3, 2))
    yield "a mask for each of three batch axes", replace(wide, mask="per_batch", batch=(2, 3, 2))
    if f.causal:
        query, key = f.causal
        square = replace(wide, causal=True)
        yield "causal, square", square.with_sizes({query: 9, key: 9})
        yield "causal, n < m", square.with_sizes({query: 5, key: 12})
        yield "causal, n > m (empty rows)", square.with_sizes({query: 12, key: 5})
        yield "causal, one query", square.with_sizes({query: 1, key: 7})
        yield "causal, several tiles, n > m", replace(square.with_sizes({query: 150, key: 70}), batch=(1,))
        yield "causal and padding", replace(square.with_sizes({query: 7, key: 11}), mask="padding")
        yield "causal and empty rows", replace(square.with_sizes({query: 7, key: 9}), mask="empty_rows")


def _causal_tiles(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """Three choices at once, no mask among them: a fused kernel's own path, which pairs would meet beside a mask."""
    assert f.causal is not None
    query, key = f.causal
    wide = replace(base, sizes=sizes_of(f.dims, 6, 10, 14, 9), causal=True)
    yield "causal, several tiles", replace(wide.with_sizes({query: 70, key: SEVERAL_TILES}), batch=(1,))
    if f.scalars:
        even = dict.fromkeys(f.dims, 16) | {query: 150, key: 150}  # d = e and four axes: what fused kernels ask for
        skewed = replace(wide.with_sizes(even), batch=(1,) if f.heads else (1, 2), scale=-0.25)
        yield "causal, a negative scale, several tiles", skewed


def _many_matrices(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """More batches than a kernel takes at once, where they are no rows ("many rows" has those)."""
    small = replace(base, sizes=tuple((name, 2) for name in f.dims))
    yield "many matrices", replace(small, batch=(SEVERAL_TILES,))


def _long_masks(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """More kept of a long axis than 16 bits count to, other numbers in each matrix: a count in the io dtype is seen."""
    long = STAGNATION if base.dtype != "fp16" else 8 * STAGNATION  # fp16 counts to 2^11, bf16 to 2^8
    for name in f.masked:
        if name in f.summed and name not in f.squared:
            counts = (3,) if f.causal else (9,)  # a mask of queries and keys counts in each of three rows
            wide = replace(base, sizes=sizes_of(f.dims, 3, 21, 5, 7), batch=counts, mask="per_batch", family="positive")
            yield f"a mask over a long {name}", wide.with_sizes({name: long})


def _matrices(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """Where all rows share one, a kernel that takes another matrix's is right."""
    what, wide = " and ".join(f.each), replace(base, sizes=sizes_of(f.dims, 6, 10, 14, 9), each=True)
    yield f"{what} for each matrix", replace(wide, batch=(3, 5))
    yield f"{what} for each matrix, as many as rows", replace(wide, batch=(4, 4))
    yield f"{what} for each matrix, two batch axes", replace(wide, batch=(2, 3, 5), family="offset")
    yield f"{what} for each matrix, sliced", replace(wide, batch=(5, 7), layout="sliced")
    yield f"{what} for each matrix, one row each", replace(wide, batch=(3, 1))
    yield f"{what} for each matrix, one matrix", replace(wide, batch=(1, 6))
    yield f"{what} for each matrix, no rows", replace(wide, batch=(2, 0))
    yield f"{what} for each matrix, no matrix", replace(wide, batch=(0, 3))


def _indices(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    wide = replace(base, sizes=sizes_of(f.dims, 6, 10, 14, 9), batch=(9,))
    yield "the first and the last class", replace(wide, index="ends")
    yield "one class for all", replace(wide, index="same")
    yield "one class a thousand times", replace(wide, index="same", family="ones", batch=(LONG[base.dtype] // 4 + 1,))
    if base.dtype != "fp64":  # its balls would take a second
        many = base.with_sizes({f.classes: BEYOND_16_BITS})
        yield "more classes than 16 bits count", replace(many, index="same")
    if f.exponential:  # of a loss near 0 there is little left if a sum near 1 was rounded
        likely = "confident" if f.arguments == 1 else "ones+last+zeros"
        yield "the class that all but the whole weight is on", replace(wide, index="same", family=likely)
    if f.ignored:
        yield "ignored classes", replace(wide, index="ignored", batch=(3, 7))
        yield "a class of its own ignored", replace(wide, index="ignored_class", batch=(17,))
        yield "class 0 ignored", replace(wide, index="ignored_zero", batch=(17,))
        yield "all classes ignored", replace(wide, index="all_ignored")


def _arguments(f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    for name, values in f.scalars.items():
        for value in values:
            yield f"{name} = {value}", replace(base, scale=value)
    if f.exponential and SCALARS in f.scalars.values():
        wide = replace(base, sizes=sizes_of(f.dims, 9, 21, 17, 11))
        yield "a negative scale, large scores", replace(wide, scale=-2.0, exponent=3 if base.dtype != "fp16" else 1)
    for name in f.optional:
        yield f"without {name}", replace(base, without=name)


def _specials(formula: Formula, f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    wide = replace(base, sizes=sizes_of(f.dims, 4, 6, 5, 3))
    yield "storage written again", replace(wide, special="reuse")
    yield "a live NaN", replace(wide, special="live_nan")
    yield "a NaN in the first entry", replace(wide, special="first_nan")
    yield "a live NaN, ragged tiles", replace(_ragged(formula, f, base), special="live_nan")
    if base.law == "definition":
        yield "a live infinity", replace(wide, special="live_inf")
    if f.exponential and f.arguments == 1:
        yield "minus infinity", replace(wide, special="minus_inf")
    if f.hides:
        yield "NaN behind the mask", replace(wide, special="masked_nan", mask="padding")
        yield "infinity behind the mask", replace(wide, special="masked_inf", mask="padding")


def law_covering(law: Law, dtype: str, device: str = "cpu") -> list[tuple[str, Case]]:
    """The covering list of an identity or theorem: its sizes distinct, 1, and around a tile."""
    names = tuple(dim.name for dim in law.dims)
    base = Case(law.operation, law.name, dtype, device, sizes_of(names, 3, 5, 2, 7), family="ints", seed=1)
    shapes = {
        "distinct sizes": base,
        "all sizes 1": replace(base, sizes=tuple((name, 1) for name in names)),
        "above the tile": replace(base, sizes=sizes_of(names, 17, 9, 5, 3)),
        "small grid": replace(base, sizes=sizes_of(names, 4, 6, 8, 2), exponent=-2),
    }
    return [(name, replace(case, seed=number + 1)) for number, (name, case) in enumerate(shapes.items())]
