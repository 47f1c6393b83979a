"""The bounds of grouped-query and multi-head attention are at least the real error of every kernel, and say no.

    python -m tests.engine.test_multi_head_bounds --cases 300

The reference is a loop over heads in torch's float64 and its autograd, whose own error the bounds include; fp64 itself
is judged by balls.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lla_spec.evaluating.bounded import Bounded
from lla_spec.evaluating.contracts import Contract, contract
from lla_spec.evaluating.sharp import rule_for
from lla_spec.testing.judge import worst_entry
from lla_spec.testing.truth import as_numpy
from tests.engine import multi_head_kernels
from tests.engine.attention_kernels import attention
from tests.engine.campaign import RowName, Topic, judged, main, on_one_thread, outputs_of, suite_truth
from tests.engine.kernels import CONTRACTS, TORCH
from tests.engine.multi_head_kernels import differentiated, in_a_loop, kernels_of

CASES, SHORT = 40, 16
OPERATIONS = ("grouped_query_attention", "multi_head_attention")
SIZES = (1, 2, 3, 5, 8, 13, 31)
SCALES = (1.0, 1.0, 1e-3, 8.0)
LARGEST = {"fp64": 2.0**510, "fp32": 2.0**62, "bf16": 2.0**62, "fp16": 2.0**7}
SMALLEST = {"fp64": 2.0**-520, "fp32": 2.0**-70, "bf16": 2.0**-70, "fp16": 2.0**-14}
ROWS = [
    (operation, law, dtype, promise)
    for operation in OPERATIONS
    for law in ("definition", "vjp")
    for dtype in TORCH
    for promise in CONTRACTS
    if promise == "strict" or (dtype != "fp64" and (promise == "tf32") == (dtype == "fp32"))
]
REFERENCE = {
    "grouped_query_attention": in_a_loop(attention),
    "multi_head_attention": partial(multi_head_kernels.block, attend=in_a_loop(attention)),
}
Arguments = dict[str, Any]


@pytest.fixture(autouse=True)
def one_thread():
    with on_one_thread():
        yield


def random_arguments(operation: str, law: str, dtype: str, number: int, seed: int) -> Arguments:
    """Tensors by name: sizes, magnitudes and masks, empty rows among them, are drawn. Of every ten one has a long
    reduction, one scores or products near overflow, one entries that underflow on the way."""
    rng = np.random.default_rng([seed, number, OPERATIONS.index(operation), len(law)])
    n, m, d, e = (int(rng.choice(SIZES[:-2] if dtype == "fp64" else SIZES)) for _ in range(4))  # balls are slow
    g, r = int(rng.choice([1, 2, 3])), int(rng.choice([1, 2, 3, 4]))
    batch = [(), (2,), (2, 2)][rng.integers(3)]
    if number % 10 == 9:
        long = 100 if dtype == "fp64" else 300
        n, m, d, e, batch = (*np.roll([7, long, 7, 5], number // 10).tolist(), (2,))

    def normal(*shape: int, size: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape) * size).to(TORCH[dtype])

    size = {3: SMALLEST[dtype], 6: LARGEST[dtype]}.get(number % 10, SCALES[rng.integers(len(SCALES))])
    if operation == "grouped_query_attention":
        tensors: Arguments = {
            "q": normal(*batch, g * r, n, d, size=size),
            "k": normal(*batch, g, m, d, size=size),
            "v": normal(*batch, g, m, e, size=SCALES[rng.integers(len(SCALES))]),
        }
        extra = [{}, {"scale": -0.3}][rng.integers(2)]
        mask_shapes = [(n, m), (1, n, m), (g * r, 1, m), (*batch, g * r, n, m)]
        result = (*batch, g * r, n, e)
    else:
        model = int(rng.choice(SIZES))
        names = ("w_q", "w_k", "w_v", "w_o")
        shapes = ((g * r * d, model), (g * d, model), (g * e, model), (m, g * r * e))
        tensors = {"x": normal(*batch, n, model, size=size)}
        tensors |= {name: normal(*shape, size=shape[1] ** -0.5) for name, shape in zip(names, shapes, strict=True)}
        tensors |= {
            f"b{name[1:]}": normal(shape[0]) for name, shape in zip(names, shapes, strict=True) if rng.random() < 0.6
        }
        extra = {"num_heads": g * r, "num_kv_heads": None if r == 1 else g}
        mask_shapes = [(n, n), (1, n), (*batch, n, n)]
        result = (*batch, n, m)
    if rng.random() < 0.5:
        extra["mask"] = torch.from_numpy(rng.random(mask_shapes[rng.integers(len(mask_shapes))]) < 0.7)
    if law == "vjp":
        extra["grad_output"] = normal(*result, size=SCALES[rng.integers(len(SCALES))])
    return {**tensors, **extra}


def drawn(operation: str, law: str, dtype: str, count: int, seed: int) -> Iterator[tuple[str, Arguments]]:
    for number in range(count):
        yield f"case {number} of seed {seed}", random_arguments(operation, law, dtype, number, seed)


def truth_of(operation: str, arguments: Arguments, promise: Contract) -> dict[str, Bounded]:
    """The bounds that the suite judges by, around the reference's values; fp64: around those of balls."""
    truth = suite_truth(operation, arguments, promise)
    if promise.io.name == "fp64":
        return truth
    doubled = {
        k: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for k, x in arguments.items()
    }
    reference, vjp = REFERENCE[operation], "grad_output" in arguments
    values = outputs_of(differentiated(reference) if vjp else reference, doubled)
    assert set(truth) == set(values)
    return {name: bound.around(as_numpy(values[name])) for name, bound in truth.items()}


TOPIC = Topic(ROWS, kernels_of, drawn, period=10, truth=truth_of)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_the_real_error_stays_within_the_bound(row: RowName) -> None:
    found = judged(TOPIC, row, SHORT, seed=1)
    assert found.violations == []
    assert len(found.worst) == SHORT and statistics.median(found.worst) > 0


def tiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any = None, **options: Any) -> torch.Tensor:
    """Query head p reads key-value head p mod g."""
    g, r = k.shape[-3], q.shape[-3] // k.shape[-3]
    assert g * r == q.shape[-3]
    return attention(q, torch.cat([k] * r, -3), torch.cat([v] * r, -3), mask, **options)


def scaled_by_all_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any = None) -> torch.Tensor:
    """1/√(h·a) for 1/√a."""
    return in_a_loop(attention)(q, k, v, mask, scale=(q.shape[-3] * q.shape[-1]) ** -0.5)


def first_head_alone(**arguments: Any) -> dict[str, torch.Tensor]:
    """What the first query head of a group sends to its keys, for the sum over the group."""
    q, k, v, g = (arguments[name] for name in ("q", "k", "v", "grad_output"))
    r = q.shape[-3] // k.shape[-3]
    copies = {"k": k.repeat_interleave(r, -3), "v": v.repeat_interleave(r, -3)}
    found = kernels_of("grouped_query_attention", "vjp", "strict")["heads"](**{**arguments, **copies})
    return {"q": found["q"], "k": found["k"][..., ::r, :, :], "v": found["v"][..., ::r, :, :]}


def without_the_value_path(**arguments: Any) -> dict[str, torch.Tensor]:
    """dx = dQ W_q + dK W_k, the third term forgotten."""
    found = kernels_of("multi_head_attention", "vjp", "strict")["impl"](**arguments)
    x = arguments["x"].double().requires_grad_()
    wide = {k: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for k, t in arguments.items()}
    upstream = wide.pop("grad_output")

    def constant_values(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
        return in_a_loop(attention)(q, k, v.detach(), mask)

    out = multi_head_kernels.block(**{**wide, "x": x}, attend=constant_values)
    (dx,) = torch.autograd.grad(out, x, upstream)
    return {**found, "x": dx.to(arguments["x"].dtype)}


def whole(attend: Any, law: str = "definition") -> Any:
    kernel = multi_head_kernels.block_in_accumulator(attend)
    return kernel if law == "definition" else differentiated(kernel)


WRONG = {
    "tiled heads": ("grouped_query_attention", "definition", multi_head_kernels.in_accumulator(tiled)),
    "tiled heads backward": (
        "grouped_query_attention",
        "vjp",
        differentiated(multi_head_kernels.in_accumulator(tiled)),
    ),
    "one head of the group": ("grouped_query_attention", "vjp", first_head_alone),
    "tiled heads in the block": ("multi_head_attention", "definition", whole(tiled)),
    "tiled heads in the block, backward": ("multi_head_attention", "vjp", whole(tiled, "vjp")),
    "scale of all heads": ("multi_head_attention", "definition", whole(scaled_by_all_heads)),
    "no value path": ("multi_head_attention", "vjp", without_the_value_path),
}


def ratios_where_it_matters(operation: str, law: str, dtype: str, promise: str, kernel: Any, count: int) -> list[float]:
    """The worst ratios of cases with several groups, several heads in each, and entries of ordinary size."""
    found = []
    for number in range(400):
        arguments = random_arguments(operation, law, dtype, number, seed=2)
        first = next(iter(arguments.values()))
        rows, columns = (arguments.get(name, first).shape[-2] for name in ("q", "k"))
        if operation == "grouped_query_attention":
            h, g = arguments["q"].shape[-3], arguments["k"].shape[-3]
        else:
            h, g = arguments["num_heads"], arguments["num_kv_heads"] or arguments["num_heads"]
        size = first.abs().max()
        if not (h > g > 1 and min(rows, columns) > 1 and 1 < size < 6):
            continue
        declared = contract(CONTRACTS[promise], dtype)
        worst = worst_entry(outputs_of(kernel, arguments), truth_of(operation, arguments, declared), declared)
        assert worst is not None
        found.append(worst.ratio)
        if len(found) == count:
            return found
    raise AssertionError("too few cases")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_refused(name, dtype):
    """In most cases: where one key has nearly all weight, what the others are does not matter. In bf16 q and k may be
    rounded on the way to the scores, and what that may do to dx is often as large as one of its three terms."""
    operation, law, kernel = WRONG[name]
    promise = "strict" if dtype == "fp32" else "fused"
    found = ratios_where_it_matters(operation, law, dtype, promise, kernel, 12)
    assert sum(not ratio <= 1 for ratio in found) >= (3 if (name, dtype) == ("no value path", "bf16") else 7), found


@pytest.mark.parametrize("law", ["definition", "vjp"])
def test_scores_rounded_under_a_strict_contract_are_seen(law):
    operation = "grouped_query_attention"
    kernel = kernels_of(operation, law, "whiteboard")["repeated"]
    found = ratios_where_it_matters(operation, law, "bf16", "strict", kernel, 12)
    assert sum(not ratio <= 1 for ratio in found) >= 7, found


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("promise", ["strict", "fused", "whiteboard"])
def test_one_head_per_group_has_the_bound_of_attention(dtype, promise):
    declared, found = contract(CONTRACTS[promise], dtype), 0
    for number in range(40):
        arguments = random_arguments("grouped_query_attention", "vjp", dtype, number, seed=4)
        if arguments["q"].shape[-3] != arguments["k"].shape[-3]:
            continue
        found += 1
        given = {name: as_numpy(x) for name, x in arguments.items()}
        grouped, single = (rule_for(f"{kind}_vjp") for kind in ("grouped_query_attention", "attention"))
        assert grouped is not None and single is not None
        one, other = grouped(given, declared), single(given, declared)
        for name in ("q", "k", "v"):
            assert np.array_equal(one[name].error, other[name].error)
    assert found >= 5


@pytest.mark.parametrize(("operation", "edge"), [("grouped_query_attention", 0.3), ("multi_head_attention", 0.05)])
def test_the_bound_has_an_edge(operation, edge):
    """A bound that nothing comes near would refuse nothing. The block's is a worst case over four casts in a row."""
    found = judged(TOPIC, (operation, "definition", "bf16", "strict"), CASES, seed=3)
    assert statistics.median(found.worst) >= edge and found.violations == []


def test_the_accumulation_of_grouped_heads_is_in_the_bound():
    """Without it a kernel that adds heads in io, as the contract allows, would be called wrong."""
    rng = np.random.default_rng(0)
    arguments: Arguments = {
        "q": torch.from_numpy(rng.normal(size=(64, 1, 2))).bfloat16(),
        "k": torch.from_numpy(rng.normal(size=(1, 1, 2))).bfloat16(),
        "v": torch.from_numpy(rng.normal(size=(1, 1, 2))).bfloat16(),
        "grad_output": torch.from_numpy(1 + rng.random((64, 1, 2))).bfloat16(),
    }
    declared = contract("strict", "bf16")
    truth = truth_of("grouped_query_attention", arguments, declared)
    in_io = kernels_of("grouped_query_attention", "vjp", "strict")["heads"](**arguments)
    at_once = np.abs(as_numpy(in_io["v"]) - truth["v"].value) / (2.0**-8 * np.abs(truth["v"].value))
    worst = worst_entry(in_io, truth, declared)
    assert at_once.max() > 1.01 and worst is not None and worst.ratio <= 1


if __name__ == "__main__":
    raise SystemExit(main([TOPIC]))
