"""Grouped-query and multi-head attention in the styles of real kernels, by `kernels_of(operation, law, contract)`.

A kernel takes the arguments of the operation by name, tensors of the io dtype, and gives a result in it; a backward
pass takes `grad_output` too and gives the gradients by name. They differ in what a contract leaves open: heads in a
loop, in a batch or as rows of one matrix; projections apart or packed; rounding to io at each edge between operations
and at each accumulation of a cotangent, or nowhere; and what attention itself may do (attention_kernels.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from impl import multi_head
from tests.engine.attention_kernels import (
    attention,
    attention_backward,
    attention_online,
    casting,
    whiteboard_attention,
)
from tests.engine.plain_kernels import Kernel, accumulator, matmul_tf32

# ---- grouped queries


def repeated(attend: Kernel) -> Kernel:
    """Keys and values copied for every query head."""

    def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        shared = q.shape[-3] // k.shape[-3]
        return attend(q, k.repeat_interleave(shared, -3), v.repeat_interleave(shared, -3), mask, **options)

    return grouped


def in_a_loop(attend: Kernel) -> Kernel:
    """One query head after the other."""

    def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        h, shared, heads = q.shape[-3], q.shape[-3] // k.shape[-3], []
        for p in range(h):
            own = mask if mask is None or mask.ndim == 2 else mask[..., p if mask.shape[-3] == h else 0, :, :]
            c = p // shared
            heads.append(attend(q[..., p, :, :], k[..., c, :, :], v[..., c, :, :], own, **options))
        return torch.stack(heads, -3)

    return grouped


def as_rows(attend: Kernel) -> Kernel:
    """The queries of a group as rows of one matrix, so that k and v receive one product over all of them."""

    def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        return attend(_rows(q, k), k, v, None if mask is None else _mask_rows(q, k, mask), **options).reshape(
            *q.shape[:-1], v.shape[-1]
        )

    return grouped


def _rows(x: Tensor, k: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-3], k.shape[-3], -1, x.shape[-1])


def _mask_rows(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return _rows(mask.expand(*q.shape[:-1], k.shape[-2]), k)


def einsum_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """All heads in one einsum, with an axis for the group."""
    groups = k.shape[-3]
    by_group = q.unflatten(-3, (groups, -1))
    s = torch.einsum("...grnd,...gmd->...grnm", by_group, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        keep = mask.expand(*q.shape[:-1], k.shape[-2]).unflatten(-3, (groups, -1))
        s = s.masked_fill(~keep, -torch.inf)
        p = torch.softmax(s.masked_fill(~keep.any(-1, keepdim=True), 0), -1).masked_fill(~keep, 0)
    else:
        p = torch.softmax(s, -1)
    return torch.einsum("...grnm,...gme->...grne", p, v).flatten(-4, -3)


def computed_in(dtype: torch.dtype | None, compute: Kernel) -> Kernel:
    """`compute` in `dtype`, or where None in the accumulator's; one cast at the end."""

    def kernel(**arguments: Any) -> Tensor:
        io = next(iter(arguments.values())).dtype
        return compute(**{name: _widened(x, dtype) for name, x in arguments.items()}).to(io)

    return kernel


def _widened(x: Any, dtype: torch.dtype | None = None) -> Any:
    return x.to(dtype or accumulator(x)) if isinstance(x, Tensor) and x.is_floating_point() else x


in_accumulator, through_float64 = partial(computed_in, None), partial(computed_in, torch.float64)


def torch_grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """torch's kernel with enable_gqa; empty rows are made by hand."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
    empty = ~mask.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | empty, scale=scale, enable_gqa=True)
    return out.masked_fill(empty, 0)


def torch_grouped_by_steps(*tensors: Any, **options: Any) -> Tensor:
    """torch's math backend: the scale's root goes into q and into k."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch_grouped(*tensors, **options)


GROUPED: dict[str, dict[str, Kernel]] = {
    "strict": {
        "loop": in_accumulator(in_a_loop(attention)),
        "einsum": in_accumulator(einsum_attention),
        "rows, online": in_accumulator(as_rows(partial(attention_online, block=1))),
        "rows, online by 16": in_accumulator(as_rows(partial(attention_online, block=16))),
        "repeated, division last, base 2": in_accumulator(repeated(partial(attention, late=True, base2=True))),
        "float64, cast": through_float64(einsum_attention),
        "impl": multi_head.grouped_query_attention,
    },
    "fused": {
        "loop": in_a_loop(casting(attention)),
        "rows, online by 4": as_rows(casting(attention_online, block=4)),
        "repeated, division last": repeated(casting(attention, late=True)),
        "torch": torch_grouped,
    },
    "whiteboard": {
        "repeated": repeated(whiteboard_attention),
        "loop": in_a_loop(whiteboard_attention),
        "rows": as_rows(whiteboard_attention),
    },
    "scaled q and k": {
        "scale in q": repeated(partial(whiteboard_attention, fold="q")),
        "its root in both": repeated(partial(whiteboard_attention, fold="both")),
        "torch by steps": torch_grouped_by_steps,
    },
    "tf32": {"tf32": repeated(partial(whiteboard_attention, product=matmul_tf32))},
}


def heads_backward(**casts: Any) -> Kernel:
    """attention_backward head by head; what heads send to one key is rounded to io and added in io."""

    def backward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, grad_output: Tensor, **options: Any
    ) -> dict[str, Tensor]:
        shared = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(shared, -3), v.repeat_interleave(shared, -3)
        dq, *parts = attention_backward(q, k, v, mask, grad_output=grad_output, **options, **casts)
        totals = []
        for part in parts:
            by_head = part.unflatten(-3, (-1, shared))
            total = by_head[..., 0, :, :]
            for p in range(1, shared):
                total = total + by_head[..., p, :, :]
            totals.append(total)
        return {"q": dq, "k": totals[0], "v": totals[1]}

    return backward


def rows_backward(**casts: Any) -> Kernel:
    """attention_backward once, the queries of a group being rows."""

    def backward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, grad_output: Tensor, **options: Any
    ) -> dict[str, Tensor]:
        rows = None if mask is None else _mask_rows(q, k, mask)
        dq, dk, dv = attention_backward(_rows(q, k), k, v, rows, grad_output=_rows(grad_output, k), **options, **casts)
        return {"q": dq.reshape(q.shape), "k": dk, "v": dv}

    return backward


GROUPED_BACKWARD: dict[str, dict[str, Kernel]] = {
    "strict": {
        "heads": heads_backward(),
        "heads, D of weights": heads_backward(from_output=False),
        "rows": rows_backward(),
        "rows, D of weights": rows_backward(from_output=False),
    },
    "fused": {
        "heads by 32": heads_backward(casts=True, block=32),
        "heads by 64": heads_backward(casts=True, block=64),
        "rows by 32": rows_backward(casts=True, block=32),
        "rows, casts alone": rows_backward(casts=True, from_output=False),
    },
}


# ---- multi-head attention


def block(
    x: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    b_q: Tensor | None = None,
    b_k: Tensor | None = None,
    b_v: Tensor | None = None,
    b_o: Tensor | None = None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    mask: Tensor | None = None,
    attend: Kernel,
    edges: torch.dtype | None = None,
    packed: bool = False,
    linear: Callable[..., Tensor] = F.linear,
) -> Tensor:
    """Multi-head attention in the dtype of its arguments, rounded to `edges` between named operations; under autograd
    so are the cotangents there. `packed`: one product for the three projections."""
    groups = num_heads if num_kv_heads is None else num_kv_heads

    def edge(y: Tensor) -> Tensor:
        return y if edges is None else y.to(edges).to(y.dtype)

    def split(y: Tensor, heads: int) -> Tensor:
        return edge(y).unflatten(-1, (heads, -1)).transpose(-3, -2)

    weights, biases = (w_q, w_k, w_v), (b_q, b_k, b_v)
    if packed:
        bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])
        projected = linear(x, torch.cat(weights), bias).split([len(w) for w in weights], -1)
    else:
        projected = [linear(edge(x), w, b) for w, b in zip(weights, biases, strict=True)]
    q, k, v = (split(y, heads) for y, heads in zip(projected, (num_heads, groups, groups), strict=True))
    out = attend(q, k, v, None if mask is None else mask.unsqueeze(-3))
    return linear(edge(out.transpose(-3, -2).flatten(-2)), w_o, b_o)


def block_in_accumulator(attend: Kernel, *, rounded: bool = False, **fixed: Any) -> Kernel:
    def kernel(*, x: Tensor, **arguments: Any) -> Tensor:
        edges = x.dtype if rounded else None
        return in_accumulator(partial(block, attend=attend, edges=edges, **fixed))(x=x, **arguments)

    return kernel


def cast_to(dtype: torch.dtype, attend: Kernel) -> Kernel:
    """`attend` on tensors of `dtype`, its result widened again."""
    return lambda q, k, v, mask: attend(*(t.to(dtype) for t in (q, k, v)), mask).to(q.dtype)


def block_cast(attend: Kernel) -> Kernel:
    """Projections in the accumulator, rounded at the edges, and a kernel that takes the io dtype in between."""

    def kernel(*, x: Tensor, **arguments: Any) -> Tensor:
        return block_in_accumulator(cast_to(x.dtype, attend), rounded=True)(x=x, **arguments)

    return kernel


def linear_in_io(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As matmul_in_io: rounded to io once, and no row reads another one."""
    y = _widened(x) @ _widened(weight).mT
    return (y if bias is None else y + _widened(bias)).to(x.dtype)


def tf32_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = matmul_tf32(x.reshape(-1, x.shape[-1]), weight.mT).reshape(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


BLOCKS: dict[str, dict[str, Kernel]] = {
    "strict": {
        "loop, rounded at edges": block_in_accumulator(in_a_loop(attention), rounded=True),
        "einsum": block_in_accumulator(einsum_attention),
        "packed, online": block_in_accumulator(as_rows(partial(attention_online, block=16)), packed=True),
        "rows, rounded at edges": block_in_accumulator(as_rows(partial(attention, base2=True)), rounded=True),
        "float64, cast": through_float64(partial(block, attend=einsum_attention)),
        "impl": multi_head.multi_head_attention,
    },
    "fused": {
        "loop": block_cast(in_a_loop(casting(attention))),
        "rows, online by 4": block_cast(as_rows(casting(attention_online, block=4))),
        "torch": block_cast(torch_grouped),
    },
    "whiteboard": {
        "repeated": partial(block, attend=repeated(whiteboard_attention), linear=linear_in_io),
        "packed rows": partial(block, attend=as_rows(whiteboard_attention), packed=True, linear=linear_in_io),
    },
    "scaled q and k": {
        "scale in q": partial(block, attend=repeated(partial(whiteboard_attention, fold="q")), linear=linear_in_io),
        "torch by steps": partial(block, attend=torch_grouped_by_steps, linear=linear_in_io),
    },
    "tf32": {
        "tf32": partial(block, attend=repeated(partial(whiteboard_attention, product=matmul_tf32)), linear=tf32_linear)
    },
}


# ---- both


def differentiated(kernel: Kernel, *, widened: bool = False) -> Kernel:
    """autograd through a kernel, its arguments in io, or `widened` to the accumulator and gradients cast at the end."""

    def backward(*, grad_output: Tensor, **arguments: Any) -> dict[str, Tensor]:
        leaves = {
            name: (_widened(x) if widened else x).detach().clone().requires_grad_()
            for name, x in arguments.items()
            if isinstance(x, Tensor) and x.is_floating_point()
        }
        out = kernel(**{**arguments, **leaves})
        found = torch.autograd.grad(out, list(leaves.values()), grad_output.to(out.dtype))
        return {name: grad.to(grad_output.dtype) for name, grad in zip(leaves, found, strict=True)}

    return backward


def kernels_of(operation: str, law: str, promise: str) -> dict[str, Kernel]:
    """The kernels that promise a contract of tests.engine.kernels.CONTRACTS; `law` is "definition" or "vjp"."""
    forward = (GROUPED if operation == "grouped_query_attention" else BLOCKS)[promise]
    if law == "definition":
        return forward
    found = {name: differentiated(kernel) for name, kernel in forward.items()}
    if promise == "strict":
        found |= {f"{name}, accumulated": differentiated(kernel, widened=True) for name, kernel in forward.items()}
    return found | (GROUPED_BACKWARD.get(promise, {}) if operation == "grouped_query_attention" else {})
