"""Is every bound at least the real error? Kernels that follow each contract, on random cases, row by row.

    python -m tests.engine.soundness --cases 320 --write docs/bounds.md

A row is operation × forward or VJP × dtype × contract. fp64 is judged by balls. A violation is a defect of a kernel
here or an error of a derivation: find out which.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lla_spec.formulas  # noqa: F401  (declares the operations)
from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.edges import hazards
from lla_spec.language import Formula, registry
from lla_spec.testing.cases import DTYPES, Case
from lla_spec.testing.covering import features
from lla_spec.testing.inputs import build
from lla_spec.testing.judge import truth_of, worst_entry
from lla_spec.testing.runner import draw
from lla_spec.testing.strategies import cases
from lla_spec.testing.threads import one_blas_thread
from tests.engine import kernels
from tests.targets import right

LONG = {"fp64": 200, "fp32": 4099, "bf16": 4099, "fp16": 700}
MARKS = ("<!-- table -->", "<!-- /table -->")
Kernel = Callable[..., Any]


def _whiteboard(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal=False, scale=None) -> Tensor:
    """As on a whiteboard, every product and the softmax rounded to io."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    visible = right.visible_keys(q, k, mask, is_causal)
    hidden = ~visible.any(-1, keepdim=True)
    scores = ((q @ k.mT) * factor).masked_fill(~visible & ~hidden, -math.inf)
    weights = torch.softmax(scores, -1).masked_fill(hidden, 0)
    return weights @ v


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal=False, scale=None) -> Tensor:
    """torch's scaled_dot_product_attention, with the causal triangle and the empty rows made by hand."""
    visible = right.visible_keys(q, k, mask, is_causal)
    hidden = ~visible.any(-1, keepdim=True)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible | hidden, scale=scale)
    return out.masked_fill(hidden, 0)


def _flash_vjp(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None, block=32) -> tuple[Tensor, ...]:
    """Dao et al. 2022, algorithm 4: weights from a saved log-sum-exp, D from the rounded output, partials in io."""
    io, factor = q.dtype, 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    qf, kf, vf, g = kernels.wide(q, k, v, grad_output)
    s = kernels.scores(qf, kf, mask, scale, is_causal)
    log_sum = torch.logsumexp(s, -1, keepdim=True)
    empty = log_sum == -math.inf
    p = torch.exp(s - log_sum.masked_fill(empty, 0)).masked_fill(empty, 0)
    out = (p.to(io).to(p.dtype) @ vf).to(io)
    g = g.masked_fill(empty, 0)
    d = (g * out.to(g.dtype)).sum(-1, keepdim=True)
    ds = (p * (g @ vf.mT - d)).to(io).to(p.dtype)
    p = p.to(io).to(p.dtype)

    def by_blocks(a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=io)
        for start in range(0, a.shape[-1], block):
            part = slice(start, start + block)
            total = (total.to(a.dtype) + a[..., part] @ b[..., part, :]).to(io)
        return total.to(a.dtype)

    return (factor * by_blocks(ds, kf)).to(io), (factor * by_blocks(ds.mT, qf)).to(io), by_blocks(p.mT, g).to(io)


def _softmax_saved(x: Tensor, *, grad_output: Tensor) -> tuple[Tensor]:
    p, g = kernels.wide(torch.softmax(x.to(kernels.accumulator(x)), -1).to(x.dtype), grad_output)
    return ((p * (g - (p * g).sum(-1, keepdim=True))).to(x.dtype),)


def _log_softmax_saved(x: Tensor, *, grad_output: Tensor) -> tuple[Tensor]:
    y, g = kernels.wide(torch.log_softmax(x.to(kernels.accumulator(x)), -1).to(x.dtype), grad_output)
    return ((g - y.exp() * g.sum(-1, keepdim=True)).to(x.dtype),)


def _logsumexp_saved(x: Tensor, *, grad_output: Tensor) -> tuple[Tensor]:
    wide = x.to(kernels.accumulator(x))
    saved = torch.logsumexp(wide, -1).to(x.dtype).to(wide.dtype)
    return (((wide - saved[..., None]).exp() * grad_output.to(wide.dtype)[..., None]).to(x.dtype),)


STRICT_ATTENTION: Mapping[str, Kernel] = {
    "weights first": kernels.FORWARD["attention"]["weights first"],
    "division last": kernels.FORWARD["attention"]["division last"],
    "online": right.online.attention,
    "float64 inside": right.in_float64.attention,
}
SAVED = {"softmax": _softmax_saved, "log_softmax": _log_softmax_saved, "logsumexp": _logsumexp_saved}


def forward_kernels(operation: str, promise: str) -> dict[str, Kernel]:
    if operation != "attention":
        return dict(kernels.FORWARD[operation])
    if promise == "strict":
        return dict(STRICT_ATTENTION)
    fused = {name: kernels.FORWARD["attention"][name] for name in ("cast weights", "cast, division last")}
    return {**fused, "torch": _fused} if promise == "fused" else {"whiteboard": _whiteboard}


def vjp_kernels(operation: str, promise: str) -> dict[str, Kernel]:
    if promise == "strict":
        found = {name: kernels.autograd(kernel) for name, kernel in forward_kernels(operation, promise).items()}
        return {**found, "saved": SAVED[operation]} if operation in SAVED else found
    if promise == "fused":
        return {"flash": _flash_vjp, "torch": _in_io_autograd(_fused)}
    return {"whiteboard": _in_io_autograd(_whiteboard)}


def _in_io_autograd(kernel: Kernel) -> Kernel:
    """Autograd through a kernel whose steps are all in the io dtype."""

    def backward(*tensors: Tensor, grad_output: Tensor, **options: Any) -> tuple[Tensor, ...]:
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        return torch.autograd.grad(kernel(*leaves, **options), leaves, grad_output)

    return backward


@dataclass
class Row:
    """What one row showed: per case the worst error / bound, and the median bound in units of u·|value|."""

    operation: str
    law: str
    dtype: str
    promise: str
    worst: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    hazards: int = 0

    def line(self) -> str:
        told = (f"{len(self.worst)}", f"{len(self.violations)}", f"{max(self.worst, default=0):.3f}")
        units = statistics.median(self.units) if self.units else float("nan")
        middle = statistics.median(self.worst) if self.worst else float("nan")
        row = (self.operation, self.law, self.dtype, self.promise, *told, f"{middle:.3f}", f"{units:.3g}")
        return f"| {' | '.join(row)} |"


def rows() -> Iterator[tuple[Formula, str, str, str]]:
    for formula in registry.operations():
        for law in ("definition", "vjp"):
            for dtype in DTYPES:
                several = formula.name == "attention" and dtype in ("bf16", "fp16")
                for promise in ("strict", "fused", "whiteboard") if several else ("strict",):
                    yield formula, law, dtype, promise


def random_cases(formula: Formula, law: str, dtype: str, count: int, seed: int) -> Iterator[Case]:
    """Cases of the suite's own strategy; every tenth with one long reduction."""
    summed = features(formula).summed
    for number, case in enumerate(draw(cases(formula, law, dtype), count, seed, f"{formula.name} {law} {dtype}")):
        if number % 10 == 9:
            rest = {name: min(size, 7) for name, size in case.sizes}
            rest[summed[number // 10 % len(summed)]] = LONG[dtype]
            case = replace(case.with_sizes(rest), batch=(2,), mask="none" if case.mask == "one_key" else case.mask)
        yield case


def judged(formula: Formula, law: str, dtype: str, promise: str, count: int, seed: int = 0) -> Row:
    """One row: the kernels of its contract take turns."""
    row, declared = Row(formula.name, law, dtype, promise), contract(promise, dtype)
    found = (vjp_kernels if law == "vjp" else forward_kernels)(formula.name, promise)
    for number, case in enumerate(random_cases(formula, law, dtype, count, seed)):
        name, kernel = list(found.items())[number % len(found)]
        if name in ("online", "sequential") and max(size for _, size in case.sizes) > 600:
            name, kernel = next(iter(found.items()))  # a loop over thousands of entries tells no more
        arguments = build(formula, case).arguments
        truth = truth_of(formula, arguments, declared, vjp=law == "vjp")
        outputs = outputs_of(kernel, arguments, truth)
        worst = worst_entry(outputs, truth, declared)
        if worst is None:
            continue
        row.worst.append(worst.ratio)
        row.hazards += any(bool(hazards(b).any()) for b in truth.values())
        units = np.concatenate([b.in_units_of(declared.io.unit_roundoff).ravel() for b in truth.values()])
        if np.isfinite(units).any():
            row.units.append(float(np.median(units[np.isfinite(units)])))
        if not (worst.ratio <= 1):
            row.violations.append(f"{name}: {case}: {worst}")
    return row


def outputs_of(kernel: Kernel, arguments: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Tensor]:
    floating = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and v.dtype != torch.bool}
    tensors = {k: v for k, v in floating.items() if k != "grad_output"}
    options = {k: v for k, v in arguments.items() if k in ("mask", "scale", "is_causal") and v is not None}
    if "grad_output" in arguments:
        found = kernel(*tensors.values(), grad_output=arguments["grad_output"], **options)
        return {key: value for key, value in zip(tensors, found, strict=True) if key in truth}
    return {"": kernel(*tensors.values(), **options)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.soundness", description=__doc__)
    parser.add_argument("--cases", type=int, default=320, help="cases per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--op", action="append", default=[], help="only this operation")
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines, failed, total = [], [], 0
    with one_blas_thread():
        for formula, law, dtype, promise in rows():
            if options.op and formula.name not in options.op:
                continue
            row = judged(formula, law, dtype, promise, options.cases, options.seed)
            lines.append(row.line())
            failed += row.violations
            total += len(row.worst)
            print(row.line(), flush=True)
    print(f"{total:,} cases, {len(failed)} violations", *failed[:20], sep="\n")
    if options.write:
        head = (
            "| operation | law | dtype | contract | cases | violations | worst | median | bound in u·\\|value\\| |",
            "|---|---|---|---|---:|---:|---:|---:|---:|",
        )
        table = "\n".join([f"{total:,} cases, {len(failed)} violations.", "", *head, *lines])
        before, rest = options.write.read_text(encoding="utf-8").split(MARKS[0])
        options.write.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
