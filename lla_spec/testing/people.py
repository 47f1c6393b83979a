"""For people's own tensors and functions: `assert_correct`, `bound`, `verify`.

assert_correct("attention", out, q, k, v, is_causal=True)      # no atol, no rtol
tolerance = bound("attention", q, k, v, dtype=torch.bfloat16)  # element by element
verify({"attention": my_attention})                            # the table
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lla_spec.certified import Certified
from lla_spec.evaluating.contracts import contract as named_contract
from lla_spec.evaluating.edges import ratios
from lla_spec.interface import signature
from lla_spec.testing.certified import complaint
from lla_spec.testing.inputs import DTYPE_NAMES
from lla_spec.testing.judge import Truth, as_numpy, truth_of
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load, operation_formula
from lla_spec.testing.verdicts import Result


def _truth(operation: str, dtype: torch.dtype | None, contract: Any, args: Any, kwargs: Any) -> tuple[Truth, str]:
    vjp = operation.endswith("_vjp")
    formula = operation_formula(operation.removesuffix("_vjp"))
    try:
        given = signature(formula, vjp=vjp).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{operation}{signature(formula, vjp=vjp)}: {error}") from None
    given.apply_defaults()
    first = next(value for value in given.arguments.values() if isinstance(value, Tensor))
    io = DTYPE_NAMES.get(dtype or first.dtype)
    if io is None:
        raise ValueError(
            f"{operation}: dtype {dtype or first.dtype} has no contract; there are {', '.join(map(str, DTYPE_NAMES))}"
        )
    return truth_of(formula, dict(given.arguments), named_contract(contract, io), vjp=vjp), io


def bound(operation: str, *args: Any, dtype: torch.dtype | None = None, contract: Any = None, **kwargs: Any) -> Any:
    """What rounding may do to each entry of `operation` at these tensors, in `dtype` (the tensors' unless given).

    A float64 tensor of the result's shape; for an operation's `_vjp` a dict of them by argument name.

    >>> float(bound("matmul", torch.ones(1, 4), torch.ones(4, 1), dtype=torch.bfloat16)) < 2**-5
    True
    """
    truth, _ = _truth(operation, dtype, contract, args, kwargs)
    if "" in truth:
        return torch.from_numpy(np.array(truth[""].error))
    return {name: torch.from_numpy(np.array(b.error)) for name, b in truth.items()}


def assert_correct(operation: str, result: Any, *args: Any, contract: Any = None, **kwargs: Any) -> None:
    """Raise AssertionError unless `result` is `operation` at these arguments, within the bound of its dtype.

    For `<operation>_vjp`, `result` is the tuple of gradients. The message names the worst entry.

    >>> a, b = torch.ones(2, 3), torch.ones(3, 2)
    >>> assert_correct("matmul", a @ b, a, b)
    """
    formula = operation_formula(operation.removesuffix("_vjp"))
    results = list(result) if isinstance(result, tuple | list) else [result]
    first = next((r for r in results if isinstance(r, Tensor)), None)
    if first is None:
        raise AssertionError(f"{operation}: the result is {type(result).__name__}, it must be a torch.Tensor")
    if isinstance(formula, Certified):
        given = dict(formula.signature.bind(*args, **kwargs).arguments)
        wrong = complaint(formula, result, given, named_contract(contract, DTYPE_NAMES[first.dtype]))
        if wrong:
            raise AssertionError(wrong)
        return
    truth, io = _truth(operation, first.dtype, contract, args, kwargs)
    keys = list(truth)
    given = results if len(keys) == len(results) else [r for r in results if r is not None]
    declared = named_contract(contract, io)
    for key, value in zip(keys, given, strict=True):
        exact = truth[key]
        if tuple(value.shape) != exact.value.shape:
            raise AssertionError(
                f"{operation}: the result has shape {tuple(value.shape)}, it must be {exact.value.shape}"
            )
        ratio = ratios(as_numpy(value), exact, declared.io)
        if ratio.size and not (ratio <= 1).all():
            raise AssertionError(_message(operation, key, as_numpy(value), exact, ratio, declared.describe()))


def _message(operation: str, key: str, computed: np.ndarray, exact: Any, ratio: np.ndarray, contract: str) -> str:
    where = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    output = f", gradient of {key}" if key else ""
    return (
        f"{operation}{output}: {int((~(ratio <= 1)).sum())} of {ratio.size} entries are outside their bound; worst "
        f"[{','.join(map(str, map(int, where)))}]: computed {computed[where]:.9g}, exact {exact.value[where]:.9g}, "
        f"error {abs(computed[where] - exact.value[where]):.2g} = {ratio[where]:.3g} × bound {exact.error[where]:.2g} "
        f"(contract {contract})"
    )


def verify(
    target: Any,
    *,
    ops: Sequence[str] = (),
    laws: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    devices: Sequence[str] = (),
    contract: str | None = None,
    examples: int = 20,
    seed: int = 0,
    show: bool = True,
) -> list[Result]:
    """Check a target (module, mapping, object, path) against every law, print the table, return the rows."""
    from rich.console import Console

    from lla_spec.testing.diagnose import texts
    from lla_spec.testing.table import accuracy_table, counts

    found = load(target)
    session = Session(found, Options(tuple(ops), tuple(laws), tuple(dtypes), tuple(devices), contract, examples, seed))
    results = [session.run(row) for row in session.rows()]
    if show:
        console = Console()
        console.print(accuracy_table(results, f"{found.name} {found.version}".strip()))
        for text in texts(session, results, found.name):
            console.print(text, markup=False, highlight=False)
        console.print(counts(results))
    return results
