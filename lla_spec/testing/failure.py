"""A failure as text, for somebody who has never seen the suite: formula, case, worst entry, bound, cause, replay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from lla_spec.certified import Certified
from lla_spec.evaluating.contracts import Contract
from lla_spec.language import Formula, Law
from lla_spec.printing import plain
from lla_spec.testing.cases import Case
from lla_spec.testing.judge import Judgement, as_numpy
from lla_spec.testing.targets import Target
from lla_spec.testing.verdicts import Result

SHOWN = 24  # tensors up to this many entries are printed whole


def describe(
    target: Target,
    result: Result,
    statement: Formula | Law,
    contract: Contract,
    found: Judgement,
    original: Case,
    *,
    target_name: str,
) -> str:
    """The whole text of a failing row; `found`: the judgement of the shrunk case, `original`: the case it came from."""
    row = result.row
    head = f"FAIL {row.op} / {row.law}"
    title = f"{target.name} {target.version}".strip()
    lines = [f"{head:<36}  target {title}   {row.device}   {row.dtype}"]
    lines += [_line("formula", f"{_formula_text(statement)}    {statement.source}")]
    lines += [_line("case", found.case.short() + _shrunk(found.case, original))]
    lines += [_line("tensors" if i == 0 else "", text) for i, text in enumerate(_tensors(found))]
    if found.worst is not None and found.kind in ("bound", "law", "tight"):
        lines += [_line("worst", _worst(found))]
        lines += [_line("pattern", text) for text in _pattern(found, contract)]
    if found.message:
        lines += [_line("shows", found.message)]
    lines += [_line("bound", f"contract {contract.describe()}")]
    if found.kind in ("bound", "law", "tight"):
        lines += [
            _line(
                "meets",
                result.meets or "no contract that was tried (score and weight casts, tf32, partials or sums in io)",
            )
        ]
    lines += [_line("cause", result.cause)] if result.cause else []
    lines += [_line("replay", f"lla-spec replay '{found.case}' --target {target_name}")]
    return "\n".join(lines)


def _line(label: str, text: str) -> str:
    first, *rest = text.split("\n")
    return "\n".join([f"  {label:<10}{first}", *(f"{'':12}{line}" for line in rest)])


def _formula_text(statement: Formula | Law) -> str:
    if isinstance(statement, Law):
        return statement.doc.splitlines()[0] if statement.doc else statement.name
    return statement.doc.splitlines()[0] if isinstance(statement, Certified) else plain(statement.result)


def _shrunk(case: Case, original: Case) -> str:
    if case == original:
        return ""
    sizes = ", ".join(f"{name}={size}" for name, size in original.sizes)
    return f"      shrunk from {sizes}"


def _tensors(found: Judgement) -> Iterator[str]:
    """The inputs, and what was computed, while they are small enough to read."""
    sign = "d" if found.case.law == "vjp" else ""
    named = [*found.inputs.items(), *((f"computed {sign}{k}".rstrip(), v) for k, v in found.outputs.items())]
    tensors = [(name, value) for name, value in named if isinstance(value, Tensor)]
    if sum(value.numel() for _, value in tensors) > SHOWN * 2 or any(v.numel() > SHOWN for _, v in tensors):
        return
    for name, value in tensors:
        yield f"{name} = {np.array2string(as_numpy(value), separator=', ', precision=9).replace(chr(10), ' ')}"


def _worst(found: Judgement) -> str:
    worst = found.worst
    assert worst is not None
    where = f"[{','.join(map(str, worst.index))}]" if worst.index else ""
    output = f"gradient of {worst.output} " if worst.output else ""
    error = abs(worst.computed - worst.exact)
    return (
        f"{output}{where}  computed {worst.computed:.9g}   exact {worst.exact:.9g}   "
        f"error {error:.2g} = {worst.ratio:.3g} × bound {worst.bound:.2g}"
    )


def _pattern(found: Judgement, contract: Contract) -> Iterator[str]:
    """Which entries are wrong, where that says something: all of them, the last column, only non-finite ones."""
    worst = found.worst
    if worst is None or worst.output not in found.outputs:
        return
    output = as_numpy(found.outputs[worst.output])
    if output.size > 1 and not np.isfinite(output).all():
        yield f"{np.count_nonzero(~np.isfinite(output))} of {output.size} entries are not finite"
    elif output.size > 1 and (output == output.reshape(-1)[0]).all():
        yield f"all {output.size} entries are {output.reshape(-1)[0]:g}"
