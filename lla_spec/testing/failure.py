"""A failure as text, for somebody who has never seen the suite. The first line says what is wrong, in words.

Then the row, the formula, the shrunk case, its tensors, the worst entry, the cause, the contract, the line that replays
it, and what to try: at most LINES lines, of at most WIDTH columns but for the replay line, which is copied whole.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from lla_spec.certified import Certified
from lla_spec.evaluating.contracts import Contract
from lla_spec.language import Formula, Law
from lla_spec.printing import plain
from lla_spec.testing.cases import Case
from lla_spec.testing.hints import hint
from lla_spec.testing.judge import Judgement
from lla_spec.testing.targets import Target, operation_formula
from lla_spec.testing.truth import as_numpy
from lla_spec.testing.verdicts import Result

WIDTH = 120
LINES = 24  # `replay` adds one: the digest of the inputs
LABEL = 10
SHOWN = 24  # tensors up to this many entries are printed whole
RATIO_KINDS = ("bound", "law", "tight")


def describe(
    target: Target,
    result: Result,
    statement: Formula | Law,
    contract: Contract,
    found: Judgement,
    original: Case,
    *,
    target_name: str,
    also: str = "",
) -> str:
    """The whole text of a failing row; `found`: the judgement of the shrunk case, `original`: the case it came from.

    `also` names other rows that fail for the same cause.
    """
    row, first = result.row, headline(result, found)
    head = f"FAIL {row.op} / {row.law}"
    title = f"{target.name} {target.version}".strip()
    before = [
        first,
        *_block("row", f"{head:<36}  target {title}   {row.device}   {row.dtype}", 1),
        *_formula(statement),
        *_block("case", found.case.short() + _shrunk(found.case, original), 2),
    ]
    after = [*_numbers(found), *_verdict(result, found, contract, first)]
    after += _block("also", also, 2)
    after += [f"  {'replay':<{LABEL}}lla-spec replay '{found.case}' --target {target_name}"]
    after += _block("try", hint(operation_formula(row.op), result, found), 2)
    room = LINES - len(before) - len(after)
    return "\n".join([*before, *_fitting(_tensors(found), room), *after])


# ---- the first line


def headline(result: Result, found: Judgement) -> str:
    """What is wrong, where, and by how much, in one line.

    >>> from lla_spec.testing.verdicts import Row
    >>> row = Row("softmax", "definition", "bf16")
    >>> headline(Result(row, "fail"), Judgement(Case("softmax", "definition", "bf16"), "shape", "softmax: returns …"))
    'softmax: returns … (bf16, cpu)'
    """
    row, words = result.row, _what(result, found)
    where, figures = f" ({row.dtype}, {row.device})", _by_how_much(found)
    whole = words + where + (f": {figures}" if figures else "")
    return whole if len(whole) <= WIDTH else _cut(words, WIDTH - len(where)) + where


def _what(result: Result, found: Judgement) -> str:
    row = result.row
    if found.kind == "certificate":
        return f"{row.op}: {found.message.partition(': ')[2].partition(' = ')[0]}"
    if found.kind not in RATIO_KINDS:
        return found.message
    if result.cause:
        return f"{row.op}: {result.cause.split(' (so')[0]}"
    if found.kind == "law":
        return f"{row.op}: the law {row.law} does not hold"
    if found.kind == "tight":
        return f"{row.op}: the errors are larger than independent roundings add up to"
    if found.called:
        return f"{row.op}: the law {row.law} fails {found.message}"
    return f"{row.op}: {_difference(found)}"


def _difference(found: Judgement) -> str:
    worst = found.worst
    assert worst is not None
    what = f"the gradient of {worst.output}" if worst.output else "the result"
    if math.isnan(worst.exact):
        return f"{what} is a number where the formula gives NaN"
    if not math.isfinite(worst.computed) and math.isfinite(worst.exact):
        return f"{what} is {worst.computed} where the formula gives a number"
    return f"{what} is not that of its formula"


def _by_how_much(found: Judgement) -> str:
    """ "error 37 × the bound", where there is a figure."""
    if found.worst is None or not math.isfinite(found.worst.ratio):
        return ""
    if found.kind == "certificate":
        return f"{found.worst.ratio:.3g} × what is allowed"
    return f"error {found.worst.ratio:.3g} × the bound" if found.kind in RATIO_KINDS and found.ratio > 1 else ""


# ---- the blocks


def _block(label: str, text: str, most: int) -> list[str]:
    """`text` under a label, in at most `most` lines; no line where there is no text."""
    wrapped = textwrap.wrap(
        text, WIDTH - 2 - LABEL, max_lines=most, placeholder=" …", break_long_words=True, break_on_hyphens=False
    )
    return [f"  {label if i == 0 else '':<{LABEL}}{line}" for i, line in enumerate(wrapped)]


def _cut(line: str, width: int = WIDTH) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _formula(statement: Formula | Law) -> list[str]:
    """The formula, or what the law says, and where it is declared; the end of a long formula is left out."""
    told = isinstance(statement, Law | Certified)
    text = (statement.doc.splitlines() or [statement.name])[0] if told else plain(statement.result)
    *lines, last = _block("formula", text, 3)
    if len(last) + 4 + len(statement.source) <= WIDTH:
        return [*lines, f"{last}    {statement.source}"]
    return [*lines, last, f"{'':<{2 + LABEL}}{statement.source}"]


def _shrunk(case: Case, original: Case) -> str:
    if case == original:
        return ""
    sizes = ", ".join(f"{name}={size}" for name, size in original.sizes)
    return f"      shrunk from {sizes}"


def _fitting(blocks: Iterable[list[str]], room: int) -> list[str]:
    """As many whole blocks as there is room for; the rest are counted."""
    blocks = list(blocks)
    shown: list[str] = []
    for place, block in enumerate(blocks):
        last = place == len(blocks) - 1
        if len(shown) + len(block) + (not last) > room:
            left = len(blocks) - place
            return [*shown, f"  {'':<{LABEL}}… {left} more, by `lla-spec replay`"] if room > len(shown) else shown
        shown += block
    return shown


def _tensors(found: Judgement) -> Iterator[list[str]]:
    """The inputs, and what was computed, while they are small enough to read."""
    if found.kind == "writes":
        return  # they are what it wrote
    sign = "d" if found.case.law == "vjp" else ""
    named = [*found.inputs.items(), *((f"computed {sign}{k}".rstrip(), v) for k, v in found.outputs.items())]
    tensors = [(name, value) for name, value in named if isinstance(value, Tensor)]
    if sum(value.numel() for _, value in tensors) > SHOWN * 2 or any(v.numel() > SHOWN for _, v in tensors):
        return
    for place, (name, value) in enumerate(tensors):
        text = " ".join(np.array2string(as_numpy(value), separator=", ", precision=9).split())
        yield _block("" if place else "tensors", f"{name} = {text}", 3)


def _numbers(found: Judgement) -> list[str]:
    worst = found.worst
    if worst is None or found.kind not in (*RATIO_KINDS, "changes"):
        return []
    where = f"[{','.join(map(str, worst.index))}]  " if worst.index else ""
    output = f"gradient of {worst.output} " if worst.output else ""
    error = abs(worst.computed - worst.exact)
    times = f"= {worst.ratio:.3g} × bound" if worst.bound else "where the bound is"
    text = (
        f"{output}{where}computed {worst.computed:.9g}   exact {worst.exact:.9g}   "
        f"error {error:.2g} {times} {worst.bound:.2g}"
    )
    return [f"  {'worst':<{LABEL}}{text}", *_block("pattern", _pattern(found), 1)]


def _pattern(found: Judgement) -> str:
    """Which entries are wrong, where that says something: the non-finite ones, or all the same."""
    worst = found.worst
    if worst is None or worst.output not in found.outputs:
        return ""
    output = as_numpy(found.outputs[worst.output])
    if output.size > 1 and not np.isfinite(output).all():
        return f"{np.count_nonzero(~np.isfinite(output))} of {output.size} entries are not finite"
    if output.size > 1 and (output == output.reshape(-1)[0]).all():
        return f"all {output.size} entries are {output.reshape(-1)[0]:g}"
    return ""


def _verdict(result: Result, found: Judgement, contract: Contract, first: str) -> Iterator[str]:
    """What it shows, its cause, what the contract allows, and which contract would allow it."""
    if found.message and found.message not in first:
        yield from _block("shows", found.message, 3)
    yield from _block("cause", result.cause, 2)
    yield from _block("bound", f"contract {contract.describe()}", 2)
    if found.kind in RATIO_KINDS:
        none = "no contract that was tried (one-pass variance, score and weight casts, tf32, partials or sums in io)"
        yield from _block("meets", result.meets or none, 2)
