"""Sizes of several tiles together with the options of an operation: every two choices meet in some case.

A kernel takes its paths by what it is given: more than a tile, a mask, no bias, strides. Each choice alone is in
covering.py. A mistake where two of them meet (the mask is dropped if there are more than 64 features) is seen if every
pair is drawn, which takes few cases: a pairwise covering array (Kuhn, Wallace, Gallo, Software fault interactions and
implications for software testing, IEEE TSE 30, 2004: most failures need one or two conditions).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from lla_spec.language import Formula
from lla_spec.testing.cases import Case
from lla_spec.testing.features import SCALARS, Features

SEVERAL_TILES = 131  # more than a tile of 128, and no multiple of one
WHOLE_TILES = 256  # a multiple of the tiles of a matrix
WHOLE_ROW = {"fp64": 256, "fp32": 1024, "bf16": 1024, "fp16": 1024}  # and of those of a row
SEQUENCE = {SEVERAL_TILES: 131, WHOLE_TILES: 128}  # attention's work grows with the product of all sizes
HEAD_DIM = {SEVERAL_TILES: 72, WHOLE_TILES: 64}
PRODUCTS = 2**25  # at most that many in a case: those of two matrices of whole tiles, by two others
BALLS, FEW_BALLS = 2**14, SEVERAL_TILES * 2**6  # and in fp64, whose every step is in balls; on heads

Row = Mapping[str, Hashable]
Pair = tuple[tuple[str, Hashable], tuple[str, Hashable]]
Pairs = dict[Pair, None]


def pairwise(factors: Mapping[str, Sequence[Hashable]]) -> list[dict[str, Hashable]]:
    """Few choices of one value of each factor in which any two values of two factors occur together.

    >>> rows = pairwise({"a": (0, 1), "b": (0, 1), "c": (0, 1)})
    >>> len(rows), {(row["a"], row["c"]) for row in rows} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    (4, True)
    """
    return [dict(row) for row in _array(tuple((name, tuple(values)) for name, values in factors.items()))]


@cache
def _array(given: tuple[tuple[str, tuple[Hashable, ...]], ...]) -> list[Row]:
    factors = dict(given)
    names = list(factors)
    if len(names) == 1:
        return [{names[0]: value} for value in factors[names[0]]]
    missing: Pairs = {
        ((a, x), (b, y)): None for a, b in itertools.combinations(names, 2) for x in factors[a] for y in factors[b]
    }
    rows: list[Row] = []
    while missing:
        row = max((_completed(factors, missing, dict(pair)) for pair in missing), key=lambda r: len(_met(missing, r)))
        for pair in _met(missing, row):
            del missing[pair]
        rows.append({name: row[name] for name in names})
    return rows


def _completed(factors: Mapping[str, Sequence[Hashable]], missing: Pairs, row: dict[str, Hashable]) -> Row:
    """Each factor that is not chosen takes the value that makes the most missing pairs with those that are."""
    for name in (name for name in factors if name not in row):
        row[name] = max(factors[name], key=lambda value: len(_met(missing, {**row, name: value})))
    return row


def _met(missing: Pairs, row: Row) -> list[Pair]:
    return [pair for pair in missing if all(name in row and row[name] == value for name, value in pair)]


def several_tiles(formula: Formula, f: Features, base: Case) -> Iterator[tuple[str, Case]]:
    """(class, case): every axis of several tiles, the options by pairs."""
    seen: Counter[int] = Counter()
    for given in pairwise(_factors(f, base)):
        tiles = given.pop("tiles")
        assert isinstance(tiles, int)
        words = [f"{name}={value}" for name, value in given.items() if value != getattr(base, name)]
        what = "several tiles" if tiles == SEVERAL_TILES else "whole tiles"
        case = replace(_of_tiles(formula, f, base, tiles, seen[tiles]), **given)  # pyright: ignore[reportArgumentType]
        seen[tiles] += 1
        yield ", ".join([what, *words]), case


def _factors(f: Features, base: Case) -> dict[str, Sequence[Hashable]]:
    """The choices of an operation, by the field of a case."""
    found: dict[str, Sequence[Hashable]] = {"tiles": (SEVERAL_TILES, WHOLE_TILES)}
    if f.mask:
        found["mask"] = ("none", "random", "per_batch")
    if f.causal:
        found["causal"] = (False, True)
    if f.scalars:
        (values, *_) = f.scalars.values()
        found["scale"] = (None, -0.25 if values == SCALARS else values[-1])
    if f.optional:
        each = f.optional if len(f.optional) <= 2 else ()  # of more than two each alone is left out in covering.py
        found["without"] = tuple(dict.fromkeys(("", *each, "+".join(f.optional))))
    if f.ignored:
        found["index"] = ("random", "ignored", "ignored_zero")
    if f.each:
        found["each"] = (False, True)
    found["layout"] = ("dense", "sliced")
    if base.law == "vjp":
        found["grad"] = ("dense", "expanded")
    return found


def _of_tiles(formula: Formula, f: Features, base: Case, tiles: int, number: int) -> Case:
    """Every size of several tiles, or as many as the budget allows, others with each `number`."""
    step = 2 if tiles == SEVERAL_TILES else 0
    row = tiles == WHOLE_TILES and len(f.dims) == 1
    rows = 8 if row else tiles if formula.rows is not None else 2
    if f.causal:
        sizes = {name: SEQUENCE[tiles] + step * position for position, name in enumerate(dict.fromkeys(f.causal))}
        sizes |= {name: HEAD_DIM[tiles] + step * position for position, name in enumerate(f.dims) if name not in sizes}
    else:
        size = WHOLE_ROW[base.dtype] if row else tiles
        sizes = {name: size + step * position for position, name in enumerate(f.dims)}
    sizes |= dict.fromkeys(f.heads, 2)
    large = sizes if f.heads else {**sizes, "": rows}
    sizes = _within(_budget(f, base), large, dict.fromkeys(large, 2), number)
    rows = sizes.pop("", rows)
    batch = (1,) if f.heads else (1, rows) if f.causal else (2, rows) if f.each else (rows,)
    return replace(base, sizes=tuple((name, sizes[name]) for name in f.dims), batch=batch)


def _budget(f: Features, base: Case) -> float:
    if base.dtype == "fp64":
        return FEW_BALLS if f.heads else BALLS
    return math.inf if f.causal else PRODUCTS  # its work is no product of all sizes


def _within(budget: float, large: dict[str, int], sizes: dict[str, int], number: int) -> dict[str, int]:
    """`sizes`, and as many of the large ones as a product within the budget allows, from the `number`-th on."""
    order = [name for name in large if large[name] != sizes[name]]
    for name in itertools.islice(itertools.cycle(order), number, number + len(order)):
        if math.prod({**sizes, name: large[name]}.values()) <= budget:
            sizes = {**sizes, name: large[name]}
    return sizes
