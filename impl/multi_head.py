# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""Attention with several heads: grouped queries (Ainslie et al. 2023), and the block (Vaswani et al. 2017, §3.2.2).

    grouped query    O_p = Attention(Q_p, K_c, V_c)    c = ⌊p/r⌋, r = h/g: r query heads share a key-value head
    multi head       Y = (O_1 … O_h) W_oᵀ + b_o        Q = X W_qᵀ + b_q and so on, cut into heads

Both reach `impl.attention`, whose rules on masks, empty rows, NaN and paths are theirs. Keys and values are never
repeated in memory: to the clear path a group is a matrix of r·n queries, to the fused one an axis along which keys and
values broadcast with stride 0.
"""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from impl.arguments import (
    check_axes,
    check_count,
    check_divides,
    check_floating,
    check_grad_output,
    check_leading,
    check_mask,
    check_product,
    check_scale,
    check_size,
)
from impl.attention import attention, attention_vjp
from impl.attention_paths import attention_path
from impl.autograd import KeepsArguments, arguments_of
from impl.linear import _grad_bias, _grad_weight, _Linear, linear, linear_vjp
from impl.masks import looks
from impl.precision import product


def grouped_query_attention(
    q: Float[Tensor, "*#batch h n d"],
    k: Float[Tensor, "*#batch g m d"],
    v: Float[Tensor, "*#batch g m e"],
    mask: Bool[Tensor, "*#batch #h #n #m"] | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "*batch h n e"]:
    """attention(q_p, k_c, v_c) for every query head p, with c = p // (h/g): neighbours share a key-value head.

    Axes before the heads broadcast. `mask` has at least two axes and broadcasts to (…, h, n, m). g = h is attention
    head by head, g = 1 is multi-query attention (Shazeer 2019).
    Raises ValueError where h is no multiple of g, shapes, dtypes or devices disagree, or scale is not finite.

    >>> import torch
    >>> q, k = torch.zeros(4, 1, 2), torch.zeros(2, 3, 2)
    >>> v = torch.tensor([0.0, 6.0]).reshape(2, 1, 1).expand(2, 3, 1)
    >>> grouped_query_attention(q, k, v).flatten()
    tensor([0., 0., 6., 6.])
    """
    scale, leading = _check_grouped("grouped_query_attention", q, k, v, mask, scale)
    layout = _Layout(q, k, v, mask, is_causal, scale)
    out = attention(*layout.arguments, is_causal=layout.is_causal, scale=scale)
    return out.reshape(*leading, *q.shape[-3:-1], v.shape[-1])


def grouped_query_attention_vjp(
    q: Float[Tensor, "*#batch h n d"],
    k: Float[Tensor, "*#batch g m d"],
    v: Float[Tensor, "*#batch g m e"],
    mask: Bool[Tensor, "*#batch #h #n #m"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch h n e"],
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*#batch h n d"], Float[Tensor, "*#batch g m d"], Float[Tensor, "*#batch g m e"]]:
    """(dq, dk, dv); dk and dv are sums over the query heads of each group, and over broadcast axes.

    >>> import torch
    >>> q, k, v = torch.zeros(4, 1, 2), torch.zeros(2, 3, 2), torch.zeros(2, 3, 1)
    >>> grouped_query_attention_vjp(q, k, v, grad_output=torch.ones(4, 1, 1))[2].sum((1, 2))
    tensor([2., 2.])
    """
    scale, leading = _check_grouped("grouped_query_attention_vjp", q, k, v, mask, scale)
    shape = (*leading, *q.shape[-3:-1], v.shape[-1])
    check_grad_output("grouped_query_attention_vjp", grad_output, shape, "q", q)
    layout = _Layout(q, k, v, mask, is_causal, scale)
    upstream = layout.of_queries(grad_output)
    grads = attention_vjp(*layout.arguments, grad_output=upstream, is_causal=layout.is_causal, scale=scale)
    dq, dk, dv = (grad.reshape(x.shape) for grad, x in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv


def multi_head_attention(
    x: Float[Tensor, "*batch n d_model"],
    w_q: Float[Tensor, "h*a d_model"],
    w_k: Float[Tensor, "g*a d_model"],
    w_v: Float[Tensor, "g*b d_model"],
    w_o: Float[Tensor, "d_out h*b"],
    b_q: Float[Tensor, " h*a"] | None = None,
    b_k: Float[Tensor, " g*a"] | None = None,
    b_v: Float[Tensor, " g*b"] | None = None,
    b_o: Float[Tensor, " d_out"] | None = None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    mask: Bool[Tensor, "*#batch #n #n"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "*batch n d_out"]:
    """Self-attention of x with h = `num_heads` query heads and g = `num_kv_heads` (h where None) key-value heads.

    Rows p·a … (p+1)·a - 1 of w_q belong to head p, likewise those of w_k and w_v (whose head size b may differ from a)
    and the columns of w_o. Scores are scaled by 1/√a. `mask` has no head axis and broadcasts to (…, n, n).
    In 16 bits q, k, v and the heads' outputs are rounded, each once: they are the edges between named operations. A
    sum is never rounded on its way, the gradient of x over its three projections included.
    Raises ValueError where head counts, shapes, dtypes or devices disagree.

    >>> import torch
    >>> x, eye = torch.tensor([[1.0, 0.0], [1.0, 4.0]]), torch.eye(2)
    >>> multi_head_attention(x, 0 * eye, eye, eye, eye, num_heads=2)
    tensor([[1., 2.],
            [1., 2.]])
    """
    weights, biases = (w_q, w_k, w_v, w_o), (b_q, b_k, b_v, b_o)
    groups = _check_multi_head("multi_head_attention", x, weights, biases, num_heads, num_kv_heads, mask)
    q, k, v = _Projections.apply(x, w_q, w_k, w_v, b_q, b_k, b_v)
    heads = _split(q, num_heads), _split(k, groups), _split(v, groups)
    out = grouped_query_attention(*heads, _of_every_head(mask), is_causal=is_causal)
    return linear(_merged(out), w_o, b_o)


def multi_head_attention_vjp(
    x: Float[Tensor, "*batch n d_model"],
    w_q: Float[Tensor, "h*a d_model"],
    w_k: Float[Tensor, "g*a d_model"],
    w_v: Float[Tensor, "g*b d_model"],
    w_o: Float[Tensor, "d_out h*b"],
    b_q: Float[Tensor, " h*a"] | None = None,
    b_k: Float[Tensor, " g*a"] | None = None,
    b_v: Float[Tensor, " g*b"] | None = None,
    b_o: Float[Tensor, " d_out"] | None = None,
    *,
    grad_output: Float[Tensor, "*batch n d_out"],
    num_heads: int,
    num_kv_heads: int | None = None,
    mask: Bool[Tensor, "*#batch #n #n"] | None = None,
    is_causal: bool = False,
) -> tuple[Tensor | None, ...]:
    """(dx, dw_q, dw_k, dw_v, dw_o, db_q, db_k, db_v, db_o), None where a bias is None.

    >>> import torch
    >>> x, eye = torch.tensor([[1.0, 0.0], [1.0, 4.0]]), torch.eye(2)
    >>> multi_head_attention_vjp(x, 0 * eye, eye, eye, eye, num_heads=2, grad_output=torch.ones(2, 2))[0]
    tensor([[1., 1.],
            [1., 1.]])
    """
    operation, weights, biases = "multi_head_attention_vjp", (w_q, w_k, w_v, w_o), (b_q, b_k, b_v, b_o)
    groups = _check_multi_head(operation, x, weights, biases, num_heads, num_kv_heads, mask)
    check_grad_output(operation, grad_output, (*x.shape[:-1], w_o.shape[0]), "x", x)
    q, k, v = _Projections.apply(x, w_q, w_k, w_v, b_q, b_k, b_v)
    heads = _split(q, num_heads), _split(k, groups), _split(v, groups)
    mask = _of_every_head(mask)
    out = grouped_query_attention(*heads, mask, is_causal=is_causal)
    dout, dw_o, db_o = linear_vjp(_merged(out), w_o, b_o, grad_output=grad_output)
    dheads = grouped_query_attention_vjp(*heads, mask, grad_output=_split(dout, num_heads), is_causal=is_causal)
    dq, dk, dv = (_merged(grad) for grad in dheads)
    dw_q, dw_k, dw_v = (_grad_weight(x, grad) for grad in (dq, dk, dv))
    db_q, db_k, db_v = (
        None if bias is None else _grad_bias(grad) for bias, grad in zip(biases, (dq, dk, dv), strict=False)
    )
    dx = _grad_projected(w_q, w_k, w_v, dq, dk, dv)
    return dx, dw_q, dw_k, dw_v, dw_o, db_q, db_k, db_v, db_o


# --- grouped queries as attention ---


class _Layout:
    """The call of `attention` that a grouped call is: `arguments`, and `is_causal` where no mask holds it yet.

    Clear: q (…, g, r·n, d), k (…, g, m, d). A group's queries are rows of one matrix, so a product with k or v is one
    product with no copy of it, and the gradients of k and v are summed over the group before they are rounded.
    Fused: q (…, g, r, n, d), k (…, g, 1, m, d). The kernel reads k with stride 0 and keeps its own causal masking.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> None:
        self.groups, self.shared = k.shape[-3], q.shape[-3] // k.shape[-3]
        fused = (self._grouped(q), k.unsqueeze(-3), v.unsqueeze(-3), self._grouped_mask(mask))
        self.stacked = attention_path(*fused, is_causal=is_causal, scale=scale) == "clear"
        if self.stacked:
            may_look = self._grouped_mask(looks(q, k, mask, is_causal))
            self.arguments = (self.of_queries(q), k, v, self._stacked_mask(may_look))
        else:
            self.arguments = fused
        self.is_causal = is_causal and not self.stacked

    def of_queries(self, x: Tensor) -> Tensor:
        """(…, h, n, c) as the layout has it."""
        grouped = self._grouped(x)
        return grouped.flatten(-3, -2) if self.stacked else grouped

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unflatten(-3, (self.groups, self.shared))  # head p = c·r + s: r neighbours share a key-value head

    def _grouped_mask(self, mask: Tensor | None) -> Tensor | None:
        """(…, h or 1, n, m) as (…, g, r, n, m) or (…, 1, 1, n, m); (n, m) stays."""
        if mask is None or mask.ndim == 2:
            return mask
        return mask.unsqueeze(-3) if mask.shape[-3] == 1 else self._grouped(mask)

    def _stacked_mask(self, may_look: Tensor | None) -> Tensor | None:
        if may_look is None:
            return None
        *leading, n, m = may_look.shape if may_look.ndim > 2 else (1, *may_look.shape)
        return may_look.expand(*leading[:-1], self.shared, n, m).flatten(-3, -2)


def _check_grouped(
    operation: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[float, tuple[int, ...]]:
    """The scale as a float and the axes before the heads, once every argument has been checked."""
    check_floating(operation, q=q, k=k, v=v)
    check_axes(operation, "q", q, "h, n, d")
    check_axes(operation, "k", k, "g, m, d")
    check_axes(operation, "v", v, "g, m, e")
    check_size(operation, "head_dim", "k", k, -1, "q", q, -1)
    check_size(operation, "length", "v", v, -2, "k", k, -2)
    check_size(operation, "heads", "v", v, -3, "k", k, -3)
    check_divides(operation, "k has", k.shape[-3], "q has heads", q.shape[-3], " (axis -3)")
    leading = check_leading(operation, 3, q=q, k=k, v=v)
    check_mask(operation, mask, (*leading, *q.shape[-3:-1], k.shape[-2]), q)
    return check_scale(operation, scale, q.shape[-1]), leading


# --- the block around it ---


class _Projections(KeepsArguments):
    """(q, k, v) = x W_qᵀ + b_q, x W_kᵀ + b_k, x W_vᵀ + b_v: one node, so that the gradient of x is one sum."""

    @staticmethod
    def forward(
        x: Tensor,
        w_q: Tensor,
        w_k: Tensor,
        w_v: Tensor,
        b_q: Tensor | None,
        b_k: Tensor | None,
        b_v: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _Linear.forward(x, w_q, b_q), _Linear.forward(x, w_k, b_k), _Linear.forward(x, w_v, b_v)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w_q, w_k, w_v, *_ = arguments_of(ctx)
        grads, needs = (dq, dk, dv), ctx.needs_input_grad
        dx = _grad_projected(w_q, w_k, w_v, dq, dk, dv) if needs[0] else None
        dweights = (_grad_weight(x, grad) if need else None for grad, need in zip(grads, needs[1:4], strict=True))
        dbiases = (_grad_bias(grad) if need else None for grad, need in zip(grads, needs[4:], strict=True))
        return (dx, *dweights, *dbiases)


def _grad_projected(w_q: Tensor, w_k: Tensor, w_v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
    total = product(dq, w_q) + product(dk, w_k) + product(dv, w_v)  # linear.gradient_x, three times
    return total.to(dq.dtype)


def _split(x: Tensor, heads: int) -> Tensor:
    """(…, n, heads·a) as (…, heads, n, a)."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(-3, -2)


def _merged(x: Tensor) -> Tensor:
    """(…, heads, n, a) as (…, n, heads·a)."""
    return x.transpose(-3, -2).flatten(-2)


def _of_every_head(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.unsqueeze(-3)


def _check_multi_head(
    operation: str,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    biases: tuple[Tensor | None, ...],
    num_heads: int,
    num_kv_heads: int | None,
    mask: Tensor | None,
) -> int:
    """The number of key-value heads, once every argument has been checked."""
    named_weights = dict(zip(("w_q", "w_k", "w_v", "w_o"), weights, strict=True))
    named_biases = dict(zip(("b_q", "b_k", "b_v", "b_o"), biases, strict=True))
    check_floating(operation, x=x, **named_weights, **named_biases)
    check_axes(operation, "x", x, "n, d_model")
    for (name, weight), (bias_name, bias) in zip(named_weights.items(), named_biases.items(), strict=True):
        check_axes(operation, name, weight, "out, in", exactly=True)
        if name != "w_o":
            check_size(operation, "in_features", name, weight, -1, "x", x, -1)
        if bias is not None:
            check_axes(operation, bias_name, bias, "out", exactly=True)
            check_size(operation, "out_features", bias_name, bias, 0, name, weight, 0)
    groups = num_heads if num_kv_heads is None else num_kv_heads
    check_count(operation, "num_heads", num_heads)
    check_count(operation, "num_kv_heads", groups)
    check_divides(operation, "num_kv_heads is", groups, "num_heads is", num_heads)
    w_q, w_k, w_v, w_o = weights
    check_divides(operation, "num_heads is", num_heads, "w_q has out_features", w_q.shape[0], " (axis 0)")
    check_divides(operation, "num_kv_heads is", groups, "w_v has out_features", w_v.shape[0], " (axis 0)")
    a, b = w_q.shape[0] // num_heads, w_v.shape[0] // groups
    check_product(operation, "out_features", "w_k", w_k, 0, "num_kv_heads", groups, "head_dim", a)
    check_product(operation, "in_features", "w_o", w_o, -1, "num_heads", num_heads, "head_dim of v", b)
    check_mask(operation, mask, (*x.shape[:-1], x.shape[-2]), x, beside="x")
    return groups
