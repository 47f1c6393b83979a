"""The cases of a certified operation, and their tensors.

A case holds every dimension and the count k among its sizes, and the family of the spectrum (spectra.py) as its family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from lla_spec.certified import Certified
from lla_spec.testing.bits import Bits
from lla_spec.testing.cases import Case, CaseError
from lla_spec.testing.inputs import TORCH_DTYPES, Arguments, Inputs
from lla_spec.testing.layouts import LAYOUTS
from lla_spec.testing.spectra import SPECTRA
from lla_spec.testing.strategies import SMALL, among
from lla_spec.testing.support import ANYTHING, Support

# Powers of two by which a case may be scaled so that squares of its entries, and sums of them, stay normal numbers.
SCALES = {"fp64": 400, "fp32": 50, "bf16": 50, "fp16": 5}


def certified_covering(formula: Certified, dtype: str, device: str = "cpu") -> list[tuple[str, Case]]:
    """(class, case) for every input class, each once; it begins as covering() does for a formula."""
    base = Case(formula.name, "definition", dtype, device, _sizes(formula, 7, 5, 2), batch=(2,), seed=1)
    classes = [*_shapes(formula, base), *_spectra(formula, base), *_scales(formula, base), *_layouts(formula, base)]
    classes.append(("k of several tiles", replace(base, sizes=_sizes(formula, 90, 80, 70), batch=(1,))))
    possible = [(name, case) for name, case in classes if not formula.impossible(dict(case.sizes))]
    return [(name, replace(case, seed=number + 1)) for number, (name, case) in enumerate(possible)]


def _sizes(formula: Certified, rows: int, columns: int, k: int) -> tuple[tuple[str, int], ...]:
    given = dict(zip((dim.name for dim in formula.given_dims), (rows, columns), strict=True))
    return tuple({**given, **{dim.name: k for dim in formula.counted.values()}}.items())


def _shapes(formula: Certified, base: Case) -> Iterator[tuple[str, Case]]:
    def sized(*values: int, **changes: Any) -> Case:
        return replace(base, sizes=_sizes(formula, *values), **changes)

    yield "distinct sizes", base
    yield "more columns than rows", sized(5, 8, 3)
    yield "square", sized(6, 6, 2)
    yield "no batch axis", replace(base, batch=())
    yield "two batch axes", replace(base, batch=(3, 2))
    yield "three batch axes", replace(base, batch=(2, 3, 2))
    yield "empty batch", replace(base, batch=(0,))
    yield "k = 1", sized(7, 5, 1)
    yield "k = rows", sized(5, 8, 5)
    yield "k = columns", sized(8, 5, 5)
    yield "k one less than it may be", sized(6, 9, 5)
    yield "one row", sized(1, 6, 1)
    yield "two rows", sized(2, 6, 1)
    yield "one column", sized(6, 1, 1)
    yield "one entry", sized(1, 1, 1)
    yield "around the tile", sized(33, 17, 9, batch=(1,))
    yield "several tiles", sized(65, 48, 16, batch=(1,))
    yield "many rows", sized(300, 6, 2, batch=(1,))
    yield "many columns", sized(6, 300, 2, batch=(1,))
    yield "primes", sized(13, 37, 5)


def _spectra(formula: Certified, base: Case) -> Iterator[tuple[str, Case]]:
    for family in SPECTRA:
        yield family, replace(base, sizes=_sizes(formula, 11, 9, 3), family=family)
        yield f"{family}, wide", replace(base, sizes=_sizes(formula, 10, 24, 4), family=family)
    yield "slow decay, several tiles", replace(base, sizes=_sizes(formula, 48, 40, 4), batch=(1,), family="slow_decay")
    yield "degenerate, k inside a cluster", replace(base, sizes=_sizes(formula, 12, 8, 2), family="degenerate")


def _scales(formula: Certified, base: Case) -> Iterator[tuple[str, Case]]:
    wide, most = replace(base, sizes=_sizes(formula, 9, 7, 3)), SCALES[base.dtype]
    for words, exponent in (("large values", most), ("small values", -most), ("moderate scale", most // 4)):
        for family in ("normal", "log_spaced"):
            yield f"{words}, {family}", replace(wide, exponent=exponent, family=family)


def _layouts(formula: Certified, base: Case) -> Iterator[tuple[str, Case]]:
    wide = replace(base, sizes=_sizes(formula, 10, 6, 3), batch=(3,))
    for layout in ("transposed", "strided", "sliced", "offset", "expanded"):
        yield f"{layout} inputs", replace(wide, layout=layout)
    yield "transposed, no batch axis", replace(wide, layout="transposed", batch=())
    yield "storage written again", replace(wide, special="reuse")


@st.composite
def certified_cases(
    draw: Callable[..., Any],
    formula: Certified,
    dtype: str = "fp32",
    device: str = "cpu",
    support: Support = ANYTHING,
) -> Case:
    """A random case, inside what the target supports; k lies in 1 … min(m, n), and is all of it one time in eight."""
    rows, columns = (draw(among(*SMALL[2:] * 3, 47, 64, 2, 2, 1, 1)) for _ in range(2))
    rows, columns = (max(rows, 2), columns) if formula.least else (rows, columns)
    most = min(rows, columns)
    k = draw(among(*[max(1, (3 * most) // 4)] * 7, most))
    k = k if k == most else draw(st.integers(1, k))
    batches = [(), (), (1,), (2,), (3,), (2, 3)] if rows * columns <= 2**10 else [(), (1,), (2,)]
    families = ["normal"] * 4 + [name for name in SPECTRA if name not in ("zeros", "constant", "normal")]
    exponents = [0] * 6 + [1, 3, -1, -3, SCALES[dtype] // 4, -SCALES[dtype] // 4]
    case = Case(
        formula.name, "definition", dtype, device, _sizes(formula, rows, columns, k), draw(among(*batches)),
        draw(among(*families)), draw(among(*exponents)),
        layout=draw(among(*["dense"] * 4, "transposed", "strided", "sliced", "offset")),
        seed=draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip
    return case if support.takes(case) else _possible(formula, support.nearest(case))


def _possible(formula: Certified, case: Case) -> Case:
    """A case whose sizes were moved, with k brought back into its range."""
    most = min(case.size(dim.name) for dim in formula.given_dims)
    return case.with_sizes({dim.name: min(case.size(dim.name), most) for dim in formula.counted.values()})


# ---- inputs


def build_certified(formula: Certified, case: Case) -> Inputs:
    """The tensors of a case and its counts, by torch name, in the order of the signature."""
    why = formula.impossible(dict(case.sizes))
    if why:
        raise CaseError(f"case {case}: {why}")
    arguments: Arguments = {}
    for parameter in formula.parameters.values():
        assert parameter.role is not None
        name = parameter.role.argument
        shape = [axis.dim.size(dict(case.sizes)) for axis in parameter.axes]
        values = np.empty((*case.batch, *shape))
        for where in np.ndindex(*case.batch):
            fill = SPECTRA[case.family]
            values[where] = np.ldexp(fill(Bits(case.seed, name, *where), *shape), case.exponent)
        tensor = _in_range(torch.from_numpy(values), TORCH_DTYPES[case.dtype]).to(case.device)
        arguments[name] = LAYOUTS[case.layout](tensor)
    arguments.update({name: case.size(dim.name) for name, dim in formula.counted.items()})
    return Inputs(arguments)


def _in_range(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to the dtype, a matrix at a time made smaller by a power of two where its norm might overflow there."""
    if not values.numel():
        return values.to(dtype)
    _, exponent = torch.frexp(values.abs().amax((-2, -1)) * math.sqrt(math.prod(values.shape[-2:])))
    over = (exponent - math.frexp(torch.finfo(dtype).max)[1] + 1).clamp_min(0)
    return torch.ldexp(values, -over[..., None, None]).to(dtype)
