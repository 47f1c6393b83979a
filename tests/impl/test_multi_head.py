"""Grouped queries and multi-head attention are a loop over heads, with the rules of attention in every head."""

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
from tests.impl.cases import assert_formula, normal
from tests.impl.naive import attention as naive_attention
from tests.impl.test_attention_paths import error_bound

# Called with lists of arguments, whose length a type checker cannot know.
grouped_query_attention: Any = multi_head.grouped_query_attention
grouped_query_attention_vjp: Any = multi_head.grouped_query_attention_vjp
multi_head_attention: Any = multi_head.multi_head_attention
multi_head_attention_vjp: Any = multi_head.multi_head_attention_vjp

NAN, INF = math.nan, math.inf
FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16
each_dtype = pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16, torch.float16], ids=str)


def uniform(*shape: int, seed: int, dtype: torch.dtype = FLOAT64) -> Tensor:
    return (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64) - 1).to(dtype)


# --- grouped queries against a loop ---


def mask_of(*shape: int, seed: int = 0) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[..., 0] = True  # key 0 is seen by every row: the naive formula knows no empty ones
    return mask


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


# --- multi-head attention ---

H, G, A, B, D, N, OUT = 4, 2, 4, 3, 6, 5, 3
NAMES = ("x", "w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o")
SHAPES = ((2, N, D), (H * A, D), (G * A, D), (G * B, D), (OUT, H * B), (H * A,), (G * A,), (G * B,), (OUT,))
BLOCKS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "all_biases": ((), {}),
    "no_bias": (("b_q", "b_k", "b_v", "b_o"), {"is_causal": True}),
    "some_biases": (("b_k", "b_o"), {"mask": mask_of(N, N)}),
    "mask_of_batch": (("b_q",), {"mask": mask_of(2, 1, N), "is_causal": True}),
}
each_block = pytest.mark.parametrize("name", BLOCKS)


def block_case(name: str, dtype: torch.dtype = FLOAT64) -> tuple[list[Any], dict[str, Any]]:
    without, options = BLOCKS[name]
    inputs: list[Any] = [
        None if of in without else uniform(*shape, seed=seed, dtype=dtype)
        for seed, (of, shape) in enumerate(zip(NAMES, SHAPES, strict=True))
    ]
    return inputs, {"num_heads": H, "num_kv_heads": G, **options}


def given(inputs: list[Tensor | None]) -> list[Tensor]:
    return [x for x in inputs if x is not None]


def _loop_over_blocks(
    x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, b_q: Any, b_k: Any, b_v: Any, b_o: Any,
    *, num_heads: int, num_kv_heads: int, mask: Tensor | None = None, is_causal: bool = False,
) -> Tensor:  # fmt: skip
    """Head p works with its own rows of every weight, and adds its own columns of w_o."""
    shared, total = num_heads // num_kv_heads, torch.zeros((), dtype=FLOAT64)
    a, b = len(w_q) // num_heads, len(w_v) // num_kv_heads

    def rows(weight: Tensor, bias: Tensor | None, head: int, size: int) -> Tensor:
        part = slice(head * size, (head + 1) * size)
        return torch.einsum("...ni,oi->...no", x, weight[part]) + (0 if bias is None else bias[part])

    for p in range(num_heads):
        c = p // shared
        q, k, v = rows(w_q, b_q, p, a), rows(w_k, b_k, c, a), rows(w_v, b_v, c, b)
        head = naive_attention(q, k, v, mask, is_causal=is_causal)
        total = total + torch.einsum("...nb,ob->...no", head, w_o[:, p * b : (p + 1) * b])
    return total if b_o is None else total + b_o


loop_over_blocks: Any = _loop_over_blocks


@each_block
def test_multi_head_is_a_loop_over_heads(name: str) -> None:
    inputs, options = block_case(name)
    leaves = [x.requires_grad_() for x in given(inputs)]
    got, want = multi_head_attention(*inputs, **options), loop_over_blocks(*inputs, **options)
    assert_formula("multi_head_attention", got, want, *inputs, **options)
    upstream = uniform(*want.shape, seed=20)
    named = multi_head_attention_vjp(*inputs, grad_output=upstream, **options)
    assert [grad is None for grad in named] == [x is None for x in inputs]
    truth = torch.autograd.grad(want, leaves, upstream)
    behind = torch.autograd.grad(got, leaves, upstream)
    assert all(torch.equal(grad, also) for grad, also in zip(given(list(named)), behind, strict=True))
    assert_formula("multi_head_attention_vjp", named, truth, *inputs, grad_output=upstream, **options)


def test_tiled_heads_are_another_block() -> None:
    inputs, options = block_case("all_biases")
    x, w_q, w_k, w_v, *rest = inputs
    assert w_k is not None and w_v is not None
    swapped = [w_k.unflatten(0, (G, A)).flip(0).flatten(0, 1), w_v.unflatten(0, (G, B)).flip(0).flatten(0, 1)]
    got, want = multi_head_attention(x, w_q, *swapped, *rest, **options), loop_over_blocks(*inputs, **options)
    with pytest.raises(AssertionError):
        assert_formula("multi_head_attention", got, want, *inputs, **options)


@pytest.mark.parametrize("masked", [False, True])
def test_torchs_multi_head_attention_agrees(masked: bool) -> None:
    theirs = torch.nn.MultiheadAttention(D, 2, batch_first=True, dtype=FLOAT64)
    with torch.no_grad():
        for seed, parameter in enumerate(theirs.parameters()):
            parameter.copy_(uniform(*parameter.shape, seed=seed))
    x, mask = uniform(2, N, D, seed=30), mask_of(N, N) if masked else None
    want, _ = theirs(x, x, x, need_weights=False, attn_mask=None if mask is None else ~mask)
    biases = theirs.in_proj_bias.chunk(3)
    weights = theirs.in_proj_weight.chunk(3)
    inputs = x, *weights, theirs.out_proj.weight, *biases, theirs.out_proj.bias
    got = multi_head_attention(*inputs, num_heads=2, mask=mask)
    assert_formula("multi_head_attention", got, want, *inputs, num_heads=2, mask=mask)


@pytest.mark.parametrize("dtype", [BFLOAT16, torch.float16], ids=str)
@each_block
def test_sixteen_bits_round_at_the_edges_alone(name: str, dtype: torch.dtype) -> None:
    """The block is linear, attention and linear, each rounded once, and dx is one sum over the three projections."""
    inputs, options = block_case(name, dtype)
    x, w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o = inputs
    assert x is not None and w_q is not None and w_k is not None and w_v is not None and w_o is not None
    mask, is_causal = options.get("mask"), options.get("is_causal", False)
    mask = None if mask is None else mask.unsqueeze(-3)
    q, k, v = (
        impl.linear(x, w, b).unflatten(-1, (heads, -1)).transpose(-3, -2)
        for w, b, heads in ((w_q, b_q, H), (w_k, b_k, G), (w_v, b_v, G))
    )
    out = grouped_query_attention(q, k, v, mask, is_causal=is_causal)
    merged = out.transpose(-3, -2).flatten(-2)
    got = multi_head_attention(*inputs, **options)
    assert torch.equal(got, impl.linear(merged, w_o, b_o))
    upstream = uniform(*got.shape, seed=20, dtype=dtype)
    dmerged, dw_o, db_o = impl.linear_vjp(merged, w_o, b_o, grad_output=upstream)
    dheads = grouped_query_attention_vjp(
        q, k, v, mask, grad_output=dmerged.unflatten(-1, (H, -1)).transpose(-3, -2), is_causal=is_causal
    )
    parts = [grad.transpose(-3, -2).flatten(-2) for grad in dheads]
    dx = sum(part.float() @ w.float() for part, w in zip(parts, (w_q, w_k, w_v), strict=True))
    assert isinstance(dx, Tensor)
    projections = zip((w_q, w_k, w_v), (b_q, b_k, b_v), parts, strict=True)
    own = [impl.linear_vjp(x, w, b, grad_output=g)[1:] for w, b, g in projections]
    want = [dx.to(dtype), *(dw for dw, _ in own), dw_o, *(db for _, db in own), db_o]
    named = multi_head_attention_vjp(*inputs, grad_output=upstream, **options)
    for grad, exact in zip(named, want, strict=True):
        assert grad is exact is None or (grad is not None and exact is not None and torch.equal(grad, exact))


@each_block
def test_multi_head_gradients_equal_finite_differences(name: str) -> None:
    inputs, options = block_case(name)
    small = [None if x is None else x[:1] if i == 0 else x for i, x in enumerate(inputs)]
    leaves = [x.clone().requires_grad_() for x in given(small)]
    if options.get("mask") is not None and options["mask"].ndim == 3:
        options["mask"] = options["mask"][:1]

    def function(*those: Tensor) -> Tensor:
        remaining = iter(those)
        return multi_head_attention(*(None if x is None else next(remaining) for x in small), **options)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


def test_a_position_behind_the_mask_reaches_nobody() -> None:
    """Padding that holds NaN: no other row of the result, and no gradient of x in another row, sees it."""
    inputs, options = block_case("all_biases")
    mask = torch.ones(1, N, dtype=torch.bool)
    mask[0, -1] = False
    x = inputs[0]
    assert x is not None
    clean = multi_head_attention(*inputs, **{**options, "mask": mask})
    x[:, -1] = NAN
    got = multi_head_attention(*inputs, **{**options, "mask": mask})
    assert torch.equal(got[:, :-1], clean[:, :-1]) and got[:, -1].isnan().all()  # its own query is a live NaN
    both = mask & mask.mT.expand(N, N)  # a padded query looks at nothing either
    padded = multi_head_attention(*inputs, **{**options, "mask": both})
    assert torch.equal(padded[:, :-1], clean[:, :-1])
    b_o = inputs[-1]
    assert b_o is not None and torch.equal(padded[:, -1], b_o.expand(2, OUT))  # an empty row is the bias alone
    dx = multi_head_attention_vjp(*inputs, grad_output=torch.ones_like(clean), **{**options, "mask": both})[0]
    assert dx is not None and dx[:, :-1].isfinite().all()


# --- transforms ---


def same_bits(got: Tensor, want: Tensor, leaves: list[Tensor]) -> bool:
    """The results, and their gradients."""
    grads = (torch.autograd.grad(out.sum(), leaves) for out in (got, want))
    return torch.equal(got, want) and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_compiled_is_eager() -> None:
    grouped = torch.compile(grouped_query_attention, backend="aot_eager", fullgraph=True)
    inputs, mask, options = grouped_case("mask_of_all", FLOAT64)
    leaves = [x.requires_grad_() for x in inputs]
    assert same_bits(grouped(*leaves, mask, **options), grouped_query_attention(*leaves, mask, **options), leaves)
    compiled = torch.compile(multi_head_attention, backend="aot_eager", fullgraph=True)
    block, options = block_case("some_biases")
    leaves = [x.requires_grad_() for x in given(block)]
    assert same_bits(compiled(*block, **options), multi_head_attention(*block, **options), leaves)


def test_compiled_once_for_all_shapes() -> None:
    compiled = torch.compile(grouped_query_attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for h, g, n, m, d, e in ((4, 2, 3, 5, 7, 11), (6, 3, 8, 7, 2, 5)):  # pairwise distinct: equal ones share a symbol
        q, k, v = (normal(shape, FLOAT64, n) for shape in ((h, n, d), (g, m, d), (g, m, e)))
        mask = torch.arange(m)[None] > 0
        options: Any = {"is_causal": True, "scale": 0.3}
        assert torch.equal(compiled(q, k, v, mask, **options), grouped_query_attention(q, k, v, mask, **options))


def test_vmap_is_a_loop() -> None:
    inputs, _, _ = grouped_case("mask_of_rows", FLOAT64)
    masks = torch.rand(3, 4, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5  # some rows are empty
    got = torch.func.vmap(grouped_query_attention, in_dims=(None, None, None, 0))(*inputs, masks)
    assert_correct("grouped_query_attention", got, *inputs, masks)
    block, options = block_case("some_biases")
    x, *rest = block
    upstream = uniform(N, OUT, seed=20)

    def loss(example: Tensor, *weights: Tensor) -> Tensor:
        remaining = iter(weights)
        those = (None if of is None else next(remaining) for of in rest)
        return (multi_head_attention(example, *those, **options) * upstream).sum()

    weights = given(rest)
    gradients = torch.func.grad(loss, tuple(range(1 + len(weights))))
    grads = torch.func.vmap(gradients, (0, *(None for _ in weights)))(x, *weights)
    for i, example in enumerate(x):
        of_one = tuple(grad[i] for grad in grads)
        assert_correct("multi_head_attention_vjp", of_one, example, *rest, grad_output=upstream, **options)


def test_only_the_gradients_asked_for_are_given() -> None:
    inputs, options = block_case("all_biases")
    assert inputs[2] is not None
    inputs[2].requires_grad_()
    multi_head_attention(*inputs, **options).sum().backward()
    assert [None if x is None else x.grad is not None for x in inputs] == [i == 2 for i in range(len(inputs))]


# --- refusals ---


def t(*shape: int, dtype: torch.dtype = FLOAT32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def block(*, shapes: dict[str, tuple[int, ...]] | None = None, **options: Any) -> Callable[[], Any]:
    sizes = {**dict(zip(NAMES, SHAPES, strict=True)), **(shapes or {})}
    mapping: dict[str, Any] = {"num_heads": H, "num_kv_heads": G, **options}
    return lambda: multi_head_attention(*(t(*shape) for shape in sizes.values()), **mapping)


GQA, MHA = "grouped_query_attention", "multi_head_attention"
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
    (block(num_heads=0), f"{MHA}: num_heads must be an integer of at least 1, got 0"),
    (block(num_heads=4.0), f"{MHA}: num_heads must be an integer of at least 1, got 4.0"),
    (block(num_kv_heads=True), f"{MHA}: num_kv_heads must be an integer of at least 1, got True"),
    (block(num_kv_heads=3), f"{MHA}: num_heads is 4 but num_kv_heads is 3, which does not divide it"),
    (block(num_heads=6), f"{MHA}: w_q has out_features 16 but num_heads is 6, which does not divide it (axis 0)"),
    (
        block(shapes={"w_v": (7, D), "b_v": (7,)}),
        f"{MHA}: w_v has out_features 7 but num_kv_heads is 2, which does not divide it (axis 0)",
    ),
    (
        block(num_kv_heads=None),
        f"{MHA}: w_v has out_features 6 but num_kv_heads is 4, which does not divide it (axis 0)",
    ),
    (
        block(shapes={"w_k": (16, D), "b_k": (16,)}),
        f"{MHA}: w_k has out_features 16 but num_kv_heads 2 times head_dim 4 is 8 (axis 0)",
    ),
    (
        block(shapes={"w_o": (OUT, 16)}),
        f"{MHA}: w_o has in_features 16 but num_heads 4 times head_dim of v 3 is 12 (axis -1)",
    ),
    (block(shapes={"w_k": (8, 7)}), f"{MHA}: w_k has in_features 7 but x has 6 (axis -1)"),
    (block(shapes={"b_o": (5,)}), f"{MHA}: b_o has out_features 5 but w_o has 3 (axis 0)"),
    (block(shapes={"w_q": (2, 8, 6)}), f"{MHA}: w_q must have exactly 2 axes (out, in), got shape (2, 8, 6)"),
    (block(shapes={"x": (6,)}), f"{MHA}: x must have at least 2 axes (..., n, d_model), got shape (6,)"),
    (
        block(mask=torch.ones(2, H, N, N, dtype=torch.bool)),
        f"{MHA}: mask has shape (2, 4, 5, 5), which does not broadcast to (..., n, m) = (2, 5, 5)",
    ),
    (
        block(mask=torch.ones(N, N, dtype=torch.bool, device="meta")),
        f"{MHA}: mask is on meta but x is on cpu; all arguments share one device",
    ),
    (
        lambda: multi_head_attention_vjp(
            *(t(*shape) for shape in SHAPES), num_heads=H, num_kv_heads=G, grad_output=t(2, N, D)
        ),
        f"{MHA}_vjp: grad_output has shape (2, 5, 6) but the result has (2, 5, 3)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value) == message
