"""Multi-head attention is a loop over heads between two linear maps, with the rules of attention in every head."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import impl
from impl import multi_head
from lla_spec.testing import assert_correct
from tests.impl.cases import assert_formula, mask_of, same_bits
from tests.impl.naive import attention as naive_attention

# Called with lists of arguments, whose length a type checker cannot know.
grouped_query_attention: Any = multi_head.grouped_query_attention
grouped_query_attention_vjp: Any = multi_head.grouped_query_attention_vjp
multi_head_attention: Any = multi_head.multi_head_attention
multi_head_attention_vjp: Any = multi_head.multi_head_attention_vjp

NAN = math.nan
FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16


def uniform(*shape: int, seed: int, dtype: torch.dtype = FLOAT64) -> Tensor:
    return (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64) - 1).to(dtype)


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


def test_multi_head_compiled_is_eager() -> None:
    compiled = torch.compile(multi_head_attention, backend="aot_eager", fullgraph=True)
    block, options = block_case("some_biases")
    leaves = [x.requires_grad_() for x in given(block)]
    assert same_bits(compiled(*block, **options), multi_head_attention(*block, **options), leaves)


def test_multi_head_vmap_is_a_loop() -> None:
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


MHA = "multi_head_attention"
REFUSALS: list[tuple[Callable[[], Any], str]] = [
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
