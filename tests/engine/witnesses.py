"""The certified operations, cases of them, and a function judged on these: shared by the tests of certificates."""

from types import MappingProxyType

import numpy as np
import pytest

from lla_spec.evaluating.contracts import contract
from lla_spec.testing.cases import Case
from lla_spec.testing.certified import judge_certified
from lla_spec.testing.certified_cases import certified_covering
from lla_spec.testing.inputs import TORCH_DTYPES
from lla_spec.testing.targets import Target
from tests.engine import certified_page as page

OPERATIONS = MappingProxyType({name: getattr(page, name) for name in ("truncated_svd", "low_rank", "pca")})
DTYPES = tuple(TORCH_DTYPES)
each_operation = pytest.mark.parametrize("name", OPERATIONS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def judged(name, function, case, promised=None):
    """A function as the target's `name` on one case; `promised`: its contract, strict unless given."""
    promised = promised or contract("strict", case.dtype)
    return judge_certified(Target("kernel", {name: function}), OPERATIONS[name], case, promised)


def judged_list(name, function, dtype, step=1, largest=10**9):
    """The judgements of each `step`-th case of the covering list with up to `largest` entries a matrix."""
    for _, case in certified_covering(OPERATIONS[name], dtype)[::step]:
        if np.prod([size for _, size in case.sizes[:2]]) <= largest:
            yield judged(name, function, case)


def a_case(name, dtype, m=9, n=7, k=3, **changes):
    names = [dim.name for dim in OPERATIONS[name].dims]
    return Case(name, "definition", dtype, "cpu", tuple(zip(names, (m, n, k), strict=True)), **changes)
