"""Wrong attentions in one head and in several, each with one mistake that people make.

`lla-spec verify tests/targets/wrong_heads.py:heads_are_tiled`
"""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F


def wide(x: Any) -> Any:
    return x.to(torch.promote_types(x.dtype, torch.float32)) if torch.is_tensor(x) and x.is_floating_point() else x


def _target(name, **functions):
    return SimpleNamespace(LLA_TARGET={"name": name}, **functions)


# ---- the correct ones


def _visible(q, k, mask, is_causal):
    n, m = q.shape[-2], k.shape[-2]
    visible = torch.ones(n, m, dtype=torch.bool) if mask is None else mask
    return visible & torch.ones(n, m, dtype=torch.bool).tril(m - n) if is_causal else visible


def _weights(q, k, mask, is_causal, scale, over=-1):
    visible = _visible(q, k, mask, is_causal)
    scores = wide(q) @ wide(k).mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, over).masked_fill(~visible, 0)


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    return (_weights(q, k, mask, is_causal, scale) @ wide(v)).to(q.dtype)


def _repeated(x, q):
    """Keys or values, once for every head of their group."""
    return x.repeat_interleave(q.shape[-3] // x.shape[-3], -3)


def grouped_query_attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    return attention(q, _repeated(k, q), _repeated(v, q), mask, is_causal=is_causal, scale=scale)


def _split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _joined(x):
    return x.transpose(-3, -2).flatten(-2)


def _block(*, attend=grouped_query_attention, split=_split, join=_joined):
    """Multi-head attention, float32 inside, with knobs for the mistakes."""

    def multi_head_attention(
        x, w_q, w_k, w_v, w_o, b_q=None, b_k=None, b_v=None, b_o=None, *, num_heads, num_kv_heads=None, mask=None,
        is_causal=False,
    ):  # fmt: skip
        groups = num_heads if num_kv_heads is None else num_kv_heads
        q = split(F.linear(wide(x), wide(w_q), wide(b_q)), num_heads)
        k = split(F.linear(wide(x), wide(w_k), wide(b_k)), groups)
        v = split(F.linear(wide(x), wide(w_v), wide(b_v)), groups)
        heads = attend(q, k, v, None if mask is None else mask.unsqueeze(-3), is_causal=is_causal)
        return F.linear(join(heads), wide(w_o), wide(b_o)).to(x.dtype)

    return multi_head_attention


multi_head_attention = _block()


# ---- forward


def _over_queries(q, k, v, mask=None, *, is_causal=False, scale=None):
    """softmax(…, dim=0), written for one head."""
    return (_weights(q, k, mask, is_causal, scale, over=-2) @ wide(v)).to(q.dtype)


def _scale_or_default(q, k, v, mask=None, *, is_causal=False, scale=None):
    """`or`, for which a scale of 0 is none."""
    return attention(q, k, v, mask, is_causal=is_causal, scale=scale or 1 / math.sqrt(q.shape[-1]))


def _tiled(q, k, v, mask=None, *, is_causal=False, scale=None):
    """Query head p reads key-value head p mod g, for p // r."""
    tiles = [1] * (q.dim() - 3) + [q.shape[-3] // k.shape[-3], 1, 1]
    return attention(q, k.repeat(tiles), v.repeat(tiles), mask, is_causal=is_causal, scale=scale)


def _scaled_by_model(q, k, v, mask=None, *, is_causal=False):
    """1/√(h a) for 1/√a."""
    scale = 1 / math.sqrt(q.shape[-3] * q.shape[-1])
    return grouped_query_attention(q, k, v, mask, is_causal=is_causal, scale=scale)


def _joined_by_feature(x):
    """The heads side by side feature by feature, for head by head."""
    return x.movedim(-3, -1).flatten(-2)


def _split_without_transpose(x, heads):
    """(n, h·a) read as (h, n, a)."""
    return x.reshape(*x.shape[:-2], heads, x.shape[-2], -1) if x.numel() else _split(x, heads)


softmax_over_queries = _target("softmax over queries", attention=_over_queries)
zero_scale_for_none = _target("scale or 1/√d", attention=_scale_or_default)
heads_are_tiled = _target("heads tiled", grouped_query_attention=_tiled)
scale_of_the_model = _target("scale 1/√(h a)", multi_head_attention=_block(attend=_scaled_by_model))
heads_joined_by_feature = _target("heads joined by feature", multi_head_attention=_block(join=_joined_by_feature))
heads_split_by_reshape = _target("heads split by reshape", multi_head_attention=_block(split=_split_without_transpose))


# ---- backward


def _attention_vjp(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None, centred=True):
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    p, g = _weights(q, k, mask, is_causal, scale), wide(grad_output)
    dp = g @ wide(v).mT
    ds = p * (dp - ((p * dp).sum(-1, keepdim=True) if centred else 0)) * factor
    return (ds @ wide(k)).to(q.dtype), (ds.mT @ wide(q)).to(k.dtype), (p.mT @ g).to(v.dtype)


def _uncentred(*given, **options):
    """dS = P ∘ dP, D forgotten."""
    return _attention_vjp(*given, **options, centred=False)


def _grouped_vjp(over_group_k, over_group_v):
    """The gradients of the repeated keys and values, brought back to their groups as the knobs say."""

    def vjp(q, k, v, mask=None, *, grad_output, is_causal=False, scale=None):
        each = (_repeated(wide(k), q), _repeated(wide(v), q))
        dq, dk, dv = _attention_vjp(
            wide(q), *each, mask, grad_output=grad_output, is_causal=is_causal, scale=scale
        )  # fmt: skip
        groups = (k.shape[-3], q.shape[-3] // k.shape[-3])
        dk, dv = over_group_k(dk.unflatten(-3, groups)), over_group_v(dv.unflatten(-3, groups))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)

    return vjp


def _sum(x):
    return x.sum(-3)


def _mean(x):
    return x.mean(-3)


def _first(x):
    return x[..., 0, :, :]


FLOATING = ("x", "w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o")


def _block_vjp(block):
    """Autograd through a block, so that what the block detaches gets no gradient."""

    def vjp(*given, grad_output, **options):
        named = {**dict(zip(FLOATING, given, strict=False)), **options}
        present = [name for name in FLOATING if named.get(name) is not None]
        leaves = {name: wide(named[name]).detach().clone().requires_grad_() for name in present}
        out = block(**{**named, **leaves})
        found = torch.autograd.grad(out, list(leaves.values()), wide(grad_output), allow_unused=True)
        by_name = dict(zip(leaves, found, strict=True))
        zero = {name: torch.zeros_like(leaves[name]) if by_name[name] is None else by_name[name] for name in leaves}
        return tuple(zero[name].to(grad_output.dtype) if name in zero else None for name in FLOATING)

    return vjp


def _scores_detached(q, k, v, mask=None, **options):
    """The weights taken for constants: a no_grad around the scores."""
    return grouped_query_attention(q.detach(), k.detach(), v, mask, **options)


gradient_uncentred = _target("dS without D", attention=attention, attention_vjp=_uncentred)
key_gradient_of_one_head = _target(
    "dK of one head", grouped_query_attention=grouped_query_attention,
    grouped_query_attention_vjp=_grouped_vjp(_first, _sum),
)  # fmt: skip
value_gradient_mean = _target(
    "dV is a mean over heads", grouped_query_attention=grouped_query_attention,
    grouped_query_attention_vjp=_grouped_vjp(_sum, _mean),
)  # fmt: skip
weights_are_constants = _target(
    "weights detached", multi_head_attention=multi_head_attention,
    multi_head_attention_vjp=_block_vjp(_block(attend=_scores_detached)),
)  # fmt: skip
