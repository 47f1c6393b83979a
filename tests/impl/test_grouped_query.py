"""Grouped-query attention is a loop over heads, with the rules of attention in every head."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import impl
from impl import multi_head
from lla_spec.testing import assert_correct
from tests.impl.cases import assert_formula, mask_of, normal, same_bits
from tests.impl.naive import attention as naive_attention
from tests.impl.test_attention_paths import error_bound

# Called with lists of arguments, whose length a type checker cannot know.
grouped_query_attention: Any = multi_head.grouped_query_attention
grouped_query_attention_vjp: Any = multi_head.grouped_query_attention_vjp

NAN, INF = math.nan, math.inf
FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16
each_dtype = pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16, torch.float16], ids=str)

GROUPED: dict[str, tuple[tuple[tuple[int, ...], ...], Tensor | None, dict[str, Any]]] = {
    "repeated": (((6, 3, 2), (2, 4, 2), (2, 4, 5)), None, {}),
    "one_kv_head": (((2, 4, 3, 2), (2, 1, 5, 2), (2, 1, 5, 3)), None, {"scale": -0.7}),
    "as_many_heads": (((3, 3, 2), (3, 4, 2), (3, 4, 5)), None, {"scale": 2.0}),
    "causal": (((2, 6, 3, 2), (2, 3, 5, 2), (2, 3, 5, 2)), None, {"is_causal": True}),
    "mask_of_rows": (((4, 3, 2), (2, 4, 2), (2, 4, 5)), mask_of(3, 4), {}),
    "mask_of_keys": (((2, 4, 3, 2), (2, 2, 4, 2), (2, 2, 4, 5)), mask_of(2, 1, 1, 4), {}),
    "mask_of_heads": (((2, 4, 3, 2), (2, 2, 4, 2), (2, 2, 4, 5)), mask_of(4, 1, 4), {}),
    "mask_of_all": (((2, 4, 3, 2), (2, 2, 4, 2), (2, 2, 4, 5)), mask_of(2, 4, 3, 4), {"is_causal": True}),
    "leading_axes_broadcast": (((2, 1, 4, 3, 2), (3, 2, 4, 2), (2, 4, 5)), mask_of(3, 1, 3, 4), {}),
}
each_grouped = pytest.mark.parametrize("name", GROUPED)


def grouped_case(name: str, dtype: torch.dtype) -> tuple[list[Tensor], Tensor | None, dict[str, Any]]:
    shapes, mask, options = GROUPED[name]
    return [normal(shape, dtype, seed) for seed, shape in enumerate(shapes)], mask, options


def _loop_over_heads(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_head: Callable[[int, int], int], **options: Any
) -> Tensor:
    """`kv_head(p, r)`: the key-value head of query head p, r of which share one."""
    h, shared, heads = q.shape[-3], q.shape[-3] // k.shape[-3], []
    for p in range(h):
        c = kv_head(p, shared)
        own = None if mask is None else mask if mask.ndim == 2 else mask[..., p if mask.shape[-3] == h else 0, :, :]
        heads.append(naive_attention(q[..., p, :, :], k[..., c, :, :], v[..., c, :, :], own, **options))
    return torch.stack(heads, -3)


loop_over_heads: Any = _loop_over_heads


def repeated(p: int, shared: int) -> int:
    return p // shared


@each_dtype
@each_grouped
def test_grouped_is_a_loop_over_heads(name: str, dtype: torch.dtype) -> None:
    inputs, mask, options = grouped_case(name, dtype)
    wide = [x.double().requires_grad_() for x in inputs]
    want = loop_over_heads(*wide, mask, repeated, **options)
    leaves = [x.clone().requires_grad_() for x in inputs]
    got = grouped_query_attention(*leaves, mask, **options)
    assert got.dtype == dtype
    assert_formula("grouped_query_attention", got, want, *inputs, mask, **options)
    upstream = normal(tuple(want.shape), dtype, seed=9)
    named = grouped_query_attention_vjp(*inputs, mask, grad_output=upstream, **options)
    behind = torch.autograd.grad(got, leaves, upstream)
    truth = torch.autograd.grad(want, wide, upstream.double())
    assert all(grad.dtype == dtype and torch.equal(grad, also) for grad, also in zip(named, behind, strict=True))
    assert_formula("grouped_query_attention_vjp", named, truth, *inputs, mask, grad_output=upstream, **options)


def test_tiled_heads_are_another_function() -> None:
    (q, k, v), mask, options = grouped_case("repeated", FLOAT64)
    tiled = loop_over_heads(q, k, v, mask, lambda p, shared: p % k.shape[-3], **options)
    got = grouped_query_attention(q, k, v, mask, **options)
    with pytest.raises(AssertionError):
        assert_formula("grouped_query_attention", got, tiled, q, k, v, mask, **options)
    assert_correct("attention", got[0], q[0], k[0], v[0])
    with pytest.raises(AssertionError):
        assert_correct("attention", tiled[1], q[1], k[0], v[0])


@pytest.mark.parametrize("name", ["repeated", "one_kv_head", "mask_of_rows", "mask_of_heads"])
def test_torchs_grouped_attention_agrees(name: str) -> None:
    """torch's math backend takes every shape; it repeats key-value heads as grouped-query checkpoints expect."""
    inputs, mask, options = grouped_case(name, FLOAT64)
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in inputs)
    with sdpa_kernel(SDPBackend.MATH):
        want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True, **options)
    got = grouped_query_attention(q, k, v, mask, **options)
    assert_formula("grouped_query_attention", got, want, q, k, v, mask, **options)


def test_one_head_per_group_is_attention() -> None:
    (q, k, v), _, options = grouped_case("as_many_heads", FLOAT32)
    assert torch.equal(grouped_query_attention(q, k, v, **options), impl.attention(q, k, v, **options))


def test_gradients_of_shared_heads_are_summed_before_they_are_rounded() -> None:
    # 4096 query heads send 1 each to the only value: bfloat16 stalls at 256 when it adds ones.
    q, k, v = torch.ones(4096, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1)
    upstream = torch.ones(4096, 1, 1, dtype=BFLOAT16)
    dv = grouped_query_attention_vjp(q.bfloat16(), k.bfloat16(), v.bfloat16(), grad_output=upstream)[2]
    assert dv.item() == 4096


@pytest.mark.parametrize("name", ["causal", "mask_of_all", "leading_axes_broadcast"])
def test_grouped_gradients_equal_finite_differences(name: str) -> None:
    inputs, mask, options = grouped_case(name, FLOAT64)
    leaves = [x.requires_grad_() for x in inputs]
    assert gradcheck(lambda q, k, v: grouped_query_attention(q, k, v, mask, **options), leaves)
    assert gradgradcheck(lambda q, k, v: grouped_query_attention(q, k, v, mask, **options), leaves)


# --- the fused path and memory ---


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "mask", [None, torch.arange(256)[None] % 3 < 2, mask_of(4, 1, 256)], ids=["none", "keys", "heads"]
)
def test_fused_equals_the_formula(mask: Tensor | None, is_causal: bool, dtype: torch.dtype) -> None:
    q, k, v = (normal((2, heads, 256, 8), dtype, seed).clamp(-4, 4) for seed, heads in enumerate((4, 2, 2)))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        got = grouped_query_attention(q, k, v, mask, is_causal=is_causal, scale=0.3)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in {event.name for event in profiled.events() or ()}
    want = loop_over_heads(q.double(), k.double(), v.double(), mask, repeated, is_causal=is_causal, scale=0.3)
    assert (got.double() - want).abs().max() <= error_bound(dtype, v.abs().max().item())


def test_fused_gradients_are_those_of_repeated_heads() -> None:
    q, k, v = (normal((2, heads, 256, 8), FLOAT32, seed) for seed, heads in enumerate((6, 2, 2)))
    upstream = normal((2, 6, 256, 8), FLOAT32, 9)
    dq, dk, dv = grouped_query_attention_vjp(q, k, v, grad_output=upstream, is_causal=True)
    copies = (x.repeat_interleave(3, -3) for x in (k, v))
    each = impl.attention_vjp(q, *copies, grad_output=upstream, is_causal=True)
    assert torch.equal(dq, each[0])  # the same kernel, which reads keys and values with stride 0
    for got, of_heads in ((dk, each[1]), (dv, each[2])):
        parts = of_heads.unflatten(-3, (2, 3)).double()
        bound = 3 * 2.0**-24 * parts.abs().sum(-3)  # two additions in float32
        assert bool(((got.double() - parts.sum(-3)).abs() <= bound).all())


class LargestResult(TorchDispatchMode):
    """The most entries in memory of their own that any step makes."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.entries = max(self.entries, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("n", [1, 32])
def test_keys_and_values_are_never_repeated(n: int, dtype: torch.dtype) -> None:
    """One step of decoding on the clear path, and a few more queries on the fused one in float32."""
    h, g, m, d = 64, 2, 1024, 256
    q, k, v = (normal((heads, rows, d), dtype, 0) for heads, rows in ((h, n), (g, m), (g, m)))
    with LargestResult() as largest:
        grouped_query_attention(q, k, v, is_causal=True)
    assert largest.entries <= max(g * m * d, h * n * m) < h * m * d
    if n == 1:
        with LargestResult() as largest:
            grouped_query_attention_vjp(q, k, v, grad_output=q)
        assert largest.entries <= max(g * m * d, h * n * m)


# --- empty rows, masked slots ---


def test_grouped_causal_with_more_queries_than_keys_begins_with_empty_rows() -> None:
    q, k, v = (normal(shape, FLOAT32, seed) for seed, shape in enumerate([(4, 5, 2), (2, 2, 2), (2, 2, 3)]))
    out = grouped_query_attention(q, k, v, is_causal=True)
    grads = grouped_query_attention_vjp(q, k, v, grad_output=torch.ones_like(out), is_causal=True)
    assert torch.equal(out[:, :3], torch.zeros(4, 3, 3)) and torch.equal(grads[0][:, :3], torch.zeros(4, 3, 2))
    assert torch.equal(out[:, 3], v[:, 0].repeat_interleave(2, 0))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("n", [3, 256])  # 256 rows would be fused, were it not for the bad entries
def test_what_a_masked_slot_holds_reaches_no_head(n: int, bad: float) -> None:
    q, k, v = (normal((heads, n, 8), FLOAT32, seed) for seed, heads in enumerate((4, 2, 2)))
    mask = torch.ones(4, n, n, dtype=torch.bool)
    mask[:2, :, 1] = False  # the two heads of group 0 do not see key 1
    mask[:, 0] = False  # and the first query sees nothing
    upstream = normal((4, n, 8), FLOAT32, 3)

    def results() -> tuple[Tensor, ...]:
        grads = grouped_query_attention_vjp(q, k, v, mask, grad_output=upstream)
        return grouped_query_attention(q, k, v, mask), *grads

    clean = results()
    k[0, 1], v[0, 1] = bad, bad
    for got, want in zip(results(), clean, strict=True):
        assert got.isfinite().all() and torch.equal(got, want)
    v[1, 2, 0] = bad  # seen by heads 2 and 3
    out = grouped_query_attention(q, k, v, mask)
    assert out[:2].isfinite().all() and not out[2:, 1:, 0].isfinite().any() and out[2:, :, 1:].isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [
        ((0, 3, 4), (2, 5, 4), (2, 5, 6)),
        ((4, 0, 4), (2, 5, 4), (2, 5, 6)),
        ((4, 3, 4), (2, 0, 4), (2, 0, 6)),
        ((4, 3, 0), (2, 5, 0), (2, 5, 6)),
        ((4, 3, 4), (2, 5, 4), (2, 5, 0)),
        ((0, 4, 3, 4), (0, 2, 5, 4), (0, 2, 5, 6)),
    ],
    ids=["h", "n", "m", "d", "e", "batch"],
)
def test_grouped_over_an_axis_of_size_0(shapes: tuple[tuple[int, ...], ...], causal: bool) -> None:
    q, k, v = (torch.ones(shape) for shape in shapes)
    out = grouped_query_attention(q, k, v, is_causal=causal)
    assert out.shape == (*q.shape[:-1], v.shape[-1]) and out.isfinite().all()
    grads = grouped_query_attention_vjp(q, k, v, grad_output=out, is_causal=causal)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]


# --- transforms ---


def test_grouped_compiled_is_eager() -> None:
    grouped = torch.compile(grouped_query_attention, backend="aot_eager", fullgraph=True)
    inputs, mask, options = grouped_case("mask_of_all", FLOAT64)
    leaves = [x.requires_grad_() for x in inputs]
    assert same_bits(grouped(*leaves, mask, **options), grouped_query_attention(*leaves, mask, **options), leaves)


def test_compiled_once_for_all_shapes() -> None:
    compiled = torch.compile(grouped_query_attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for h, g, n, m, d, e in ((4, 2, 3, 5, 7, 11), (6, 3, 8, 7, 2, 5)):  # pairwise distinct: equal ones share a symbol
        q, k, v = (normal(shape, FLOAT64, n) for shape in ((h, n, d), (g, m, d), (g, m, e)))
        mask = torch.arange(m)[None] > 0
        options: Any = {"is_causal": True, "scale": 0.3}
        assert torch.equal(compiled(q, k, v, mask, **options), grouped_query_attention(q, k, v, mask, **options))


def test_grouped_vmap_is_a_loop() -> None:
    inputs, _, _ = grouped_case("mask_of_rows", FLOAT64)
    masks = torch.rand(3, 4, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5  # some rows are empty
    got = torch.func.vmap(grouped_query_attention, in_dims=(None, None, None, 0))(*inputs, masks)
    assert_correct("grouped_query_attention", got, *inputs, masks)


# --- refusals ---


def t(*shape: int, dtype: torch.dtype = FLOAT32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


GQA = "grouped_query_attention"
REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: grouped_query_attention(t(5, 3, 4), t(2, 6, 4), t(2, 6, 4)),
        f"{GQA}: q has heads 5 but k has 2, which does not divide it (axis -3)",
    ),
    (
        lambda: grouped_query_attention(t(4, 3, 4), t(0, 6, 4), t(0, 6, 4)),
        f"{GQA}: q has heads 4 but k has 0, which does not divide it (axis -3)",
    ),
    (
        lambda: grouped_query_attention(t(4, 3, 4), t(2, 6, 4), t(4, 6, 4)),
        f"{GQA}: v has heads 4 but k has 2 (axis -3)",
    ),
    (
        lambda: grouped_query_attention(t(3, 4), t(2, 6, 4), t(2, 6, 4)),
        f"{GQA}: q must have at least 3 axes (..., h, n, d), got shape (3, 4)",
    ),
    (
        lambda: grouped_query_attention(t(4, 3, 8), t(2, 6, 4), t(2, 6, 4)),
        f"{GQA}: k has head_dim 4 but q has 8 (axis -1)",
    ),
    (
        lambda: grouped_query_attention(t(2, 4, 3, 4), t(3, 2, 6, 4), t(2, 6, 4)),
        f"{GQA}: leading axes do not broadcast: q (2,), k (3,), v ()",
    ),
    (
        lambda: grouped_query_attention(t(4, 3, 4), t(2, 6, 4), t(2, 6, 4), torch.ones(2, 3, 6, dtype=torch.bool)),
        f"{GQA}: mask has shape (2, 3, 6), which does not broadcast to (..., n, m) = (4, 3, 6)",
    ),
    (
        lambda: grouped_query_attention(t(4, 3, 4), t(2, 6, 4), t(2, 6, 4), scale=NAN),
        f"{GQA}: scale must be a finite float or None (1/sqrt(head_dim)), got nan",
    ),
    (
        lambda: grouped_query_attention_vjp(t(4, 3, 4), t(2, 6, 4), t(2, 6, 5), grad_output=t(4, 3, 4)),
        f"{GQA}_vjp: grad_output has shape (4, 3, 4) but the result has (4, 3, 5)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value) == message
