"""Random cases: hypothesis draws the small frozen case, not the numbers (arrays drawn entry by entry have low rank)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from lla_spec.language import Formula, Law
from lla_spec.testing.cases import Case
from lla_spec.testing.features import Features, features, few_heads
from lla_spec.testing.inputs import MASKS
from lla_spec.testing.regimes import LONG, SMALLEST
from lla_spec.testing.support import ANYTHING, Support

SMALL = (1, 2, 3, 5, 7, 11, 15, 16, 17, 23, 31, 32, 33)
MEDIUM = (47, 63, 64, 65, 96, 127)


@lru_cache(maxsize=None, typed=True)
def among(*options: Any) -> st.SearchStrategy[Any]:
    """One of these, each as often as it stands there. Made once: hypothesis examines whatever it has not seen."""
    return st.sampled_from(options)


@lru_cache(maxsize=None, typed=True)
def several(most: int, *options: str) -> st.SearchStrategy[list[str]]:
    """From one to `most` of these."""
    return st.lists(among(*options), min_size=1, max_size=most)


@st.composite
def _size(draw: Callable[..., Any], name: str, f: Features, dtype: str) -> int:
    kind = draw(st.integers(0, 19))
    if kind < 16 or dtype == "fp64":
        return draw(among(*SMALL))
    if kind < 19 or name not in f.summed or name in f.squared:
        return draw(among(*MEDIUM))
    return draw(st.integers(128, LONG[dtype]))


@st.composite
def cases(
    draw: Callable[..., Any],
    formula: Formula,
    law: str = "definition",
    dtype: str = "fp32",
    device: str = "cpu",
    support: Support = ANYTHING,
) -> Case:
    """A random case of `law` ("definition" or "vjp") of an operation, inside what the target supports."""
    f = features(formula)
    sizes: dict[str, int] = {}
    budget = 2**14 if dtype == "fp64" else 2**19
    equal = draw(among(*[None] * 9, *SMALL))  # d = e, n = m: what some kernels take for granted
    for name in f.dims:
        size = draw(_size(name, f, dtype)) if equal is None else equal
        size = few_heads(size) if name in f.heads else size
        sizes[name] = size if size * _product(sizes) <= budget else draw(among(*SMALL[:4]))
    batch = draw(among((), (1,), (2,), (3,), (2, 3), (2, 3, 2), *([(17,), (33,)] if formula.rows is not None else [])))
    few = [f.family] * 4 + ["heavy", "spike", "positive", "offset", "cancel", "ties", "pow2", "ints", "ones"]
    few += ["dominant", "equal_rows"] if f.exponential else []
    family = "+".join(draw(several(f.arguments, *few)))
    exponent = draw(among(*[0] * 6, 1, 2, 3, -1, -3, -8, SMALLEST[dtype] // 2))
    mask, causal = "none", False
    if f.mask:
        mask = draw(among(*["none"] * 3, *MASKS))
        causal = bool(f.causal) and draw(st.booleans())
    scale = draw(among(*[None] * 4, *(x for few in f.scalars.values() for x in few))) if f.scalars else None
    chosen = (
        ["random"] * 4 + ["ends", "same"] + (["ignored"] * 3 + ["ignored_class", "ignored_zero"] if f.ignored else [])
    )
    layouts = ["dense"] * 4 + ["transposed", "strided", "sliced", "offset"]
    case = Case(
        formula.name, law, dtype, device, tuple(sizes.items()), batch, family, exponent,
        layout="+".join(draw(several(f.arguments, *layouts))),
        grad=draw(among(*layouts, "scalar")) if law == "vjp" else "dense",
        mask=mask, index=draw(among(*chosen)) if f.classes else "random", causal=causal, scale=scale,
        without="+".join(name for name in f.optional if draw(st.integers(0, 3)) == 0),
        seed=draw(st.integers(0, 2**32 - 1)), each=len(batch) > 1 and bool(f.each) and draw(st.booleans()),
    )  # fmt: skip
    return case if support.takes(case) else support.nearest(case)


def _product(sizes: Mapping[str, int]) -> int:
    total = 1
    for size in sizes.values():
        total *= size
    return total


@st.composite
def law_cases(
    draw: Callable[..., Any], law: Law, dtype: str = "fp32", device: str = "cpu", support: Support = ANYTHING
) -> Case:
    """A random case of an identity or theorem: small sizes, a dyadic grid of values (so that glue is exact)."""
    sizes = tuple((dim.name, draw(among(1, 2, 3, 4, 5, 7, 9, 16, 17))) for dim in law.dims)
    case = Case(
        law.operation, law.name, dtype, device, sizes, family=draw(among(*["ints"] * 3, "ties", "grid")),
        exponent=draw(among(0, 0, -1, -2, 1)), seed=draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip
    return case if support.takes(case) else support.nearest(case)
