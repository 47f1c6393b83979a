"""Independent kernels of embedding, mean_pool, output_softmax and the cross-entropies, all correct, by name.

Each takes the operation's torch arguments by name, in the io dtype, and returns a tensor of it, or with grad_output a
dict of gradients. They differ in what a contract leaves free: gather, loop or one-hot product; two passes, or one over
blocks of the vocabulary; log_softmax, or logsumexp - z_t; whether logits and their gradients are rounded to io at the
edges of a composite; the order of sums; float64 inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.engine.plain_kernels import LOG2E, accumulator, softmax_in_two_passes, sums_in_blocks

Kernel = Callable[..., Any]
IGNORE = -100
REDUCTIONS = {"cross_entropy": "mean", "cross_entropy_sum": "sum", "cross_entropy_none": "none"}
SLOW = "loop"


def wide(x: Tensor | None, double: bool = False) -> Any:
    return None if x is None else x.to(torch.float64 if double else accumulator(x))


# ---- embedding


def gathered(ids: Tensor, weight: Tensor) -> Tensor:
    return weight[ids]


def by_torch(ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(ids, weight)


def one_hot(ids: Tensor, weight: Tensor) -> Tensor:
    """No product with infinity or NaN: the suite draws those for the gather."""
    if not weight.isfinite().all():
        return weight[ids]
    hot = F.one_hot(ids, weight.shape[0]).to(accumulator(weight))
    return (hot @ wide(weight)).to(weight.dtype)


def rows_in_a_loop(ids: Tensor, weight: Tensor) -> Tensor:
    rows = [weight[int(t)] for t in ids.reshape(-1)]
    return torch.stack(rows).reshape(*ids.shape, -1) if rows else weight.new_empty((*ids.shape, weight.shape[1]))


def index_add(ids: Tensor, weight: Tensor, *, grad_output: Tensor, double: bool = False) -> dict[str, Tensor]:
    g = wide(grad_output, double).reshape(-1, weight.shape[-1])
    total = torch.zeros(weight.shape, dtype=g.dtype).index_add(0, ids.reshape(-1), g)
    return {"weight": total.to(weight.dtype)}


def hot_product(ids: Tensor, weight: Tensor, *, grad_output: Tensor) -> dict[str, Tensor]:
    if not grad_output.isfinite().all():
        return index_add(ids, weight, grad_output=grad_output)
    g = wide(grad_output).reshape(-1, weight.shape[-1])
    return {"weight": (F.one_hot(ids.reshape(-1), weight.shape[0]).to(g.dtype).mT @ g).to(weight.dtype)}


def sorted_loop(ids: Tensor, weight: Tensor, *, grad_output: Tensor) -> dict[str, Tensor]:
    """The positions of each word, summed backwards one by one."""
    g = wide(grad_output).reshape(-1, weight.shape[-1])
    total = torch.zeros(weight.shape, dtype=g.dtype)
    for position in reversed(range(len(g))):
        total[ids.reshape(-1)[position]] += g[position]
    return {"weight": total.to(weight.dtype)}


# ---- mean_pool


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask.expand(x.shape[:-1])


def sum_then_divide(x: Tensor, mask: Tensor | None = None, *, double: bool = False) -> Tensor:
    keep = _kept(x, mask)
    total = wide(x, double).masked_fill(~keep[..., None], 0).sum(-2)
    return (total / keep.sum(-1, keepdim=True).clamp(min=1)).to(x.dtype)


def by_weights(x: Tensor, mask: Tensor | None = None) -> Tensor:
    keep = _kept(x, mask)
    xf = wide(x).masked_fill(~keep[..., None], 0)
    weights = keep.to(xf.dtype) / keep.sum(-1, keepdim=True).clamp(min=1)
    return (weights[..., None, :] @ xf)[..., 0, :].to(x.dtype)


def reciprocal_loop(x: Tensor, mask: Tensor | None = None) -> Tensor:
    keep = _kept(x, mask)
    xf, total = wide(x).masked_fill(~keep[..., None], 0), 0.0
    for row in xf.unbind(-2):
        total = total + row
    return (total * (1 / keep.sum(-1, keepdim=True).clamp(min=1).to(xf.dtype))).to(x.dtype)


def pooled_share(x: Tensor, mask: Tensor | None = None, *, grad_output: Tensor) -> dict[str, Tensor]:
    keep = _kept(x, mask)
    share = wide(grad_output) * (1 / keep.sum(-1, keepdim=True).clamp(min=1).to(accumulator(x)))
    return {"x": share[..., None, :].expand(x.shape).masked_fill(~keep[..., None], 0).to(x.dtype)}


# ---- the loss of logits


def losses_by_log_softmax(z: Tensor, targets: Tensor) -> Tensor:
    return -torch.log_softmax(z, -1).gather(-1, targets[..., None])[..., 0]


def losses_by_logsumexp(z: Tensor, targets: Tensor) -> Tensor:
    """(m + log s) - z_t, two passes."""
    m = z.amax(-1, keepdim=True)
    return (m + (z - m).exp().sum(-1, keepdim=True).log() - z.gather(-1, targets[..., None]))[..., 0]


def losses_by_exp2(z: Tensor, targets: Tensor) -> Tensor:
    m = z.amax(-1, keepdim=True)
    total = torch.exp2((z - m) * LOG2E).sum(-1, keepdim=True)
    return (total.log() + (m - z.gather(-1, targets[..., None])))[..., 0]


def losses_online(z: Tensor, targets: Tensor, block: int = 8) -> Tensor:
    """One pass over blocks of the vocabulary, rescaled where the maximum rises."""
    peak, total = sums_in_blocks(z, block)
    return (peak + total.log() - z.gather(-1, targets[..., None]))[..., 0]


def loss_of(losses: Kernel, reduction: str, *, double: bool = False) -> Kernel:
    """A loss kernel from one of each row's losses; ignored rows are silenced before anything is computed from them."""

    def loss(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE) -> Tensor:
        return reduced(losses, wide(logits, double), targets, ignore_index, reduction).to(logits.dtype)

    return loss


def reduced(losses: Kernel, z: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    keep = targets != ignore_index
    found = losses(z.masked_fill(~keep[..., None], 0), targets.masked_fill(~keep, 0)).masked_fill(~keep, 0)
    if reduction == "none":
        return found
    return found.sum() / keep.sum() if reduction == "mean" else found.sum()


def torch_loss(reduction: str) -> Kernel:
    """torch's own, in the accumulator."""

    def loss(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE) -> Tensor:
        z, t = wide(logits).reshape(-1, logits.shape[-1]), targets.reshape(-1)
        found = F.cross_entropy(z, t, ignore_index=ignore_index, reduction=reduction)
        return found.reshape(targets.shape if reduction == "none" else ()).to(logits.dtype)

    return loss


def numpy_loop(reduction: str) -> Kernel:
    """One row after the other in NumPy, in the accumulator's dtype; the sum runs over the rows in turn."""

    def loss(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE) -> Tensor:
        z = wide(logits).reshape(-1, logits.shape[-1]).numpy()
        found = np.zeros(len(z), z.dtype)
        for row, target in enumerate(targets.reshape(-1).tolist()):
            if target != ignore_index:
                peak = z[row].max()
                found[row] = np.log(np.exp(z[row] - peak).sum(dtype=z.dtype)) - (z[row, target] - peak)
        total = z.dtype.type(0)
        for term in found:
            total = total + term
        kept = z.dtype.type(int((targets != ignore_index).sum()))
        with np.errstate(all="ignore"):
            value = {"none": found.reshape(targets.shape), "sum": total, "mean": total / kept}[reduction]
        return torch.from_numpy(np.asarray(value)).to(logits.dtype)

    return loss


def from_saved(reduction: str, *, normalise_last: bool = False) -> Kernel:
    """dz = G (exp(z - L) - onehot), L saved; 1/N first, or last."""

    def backward(logits: Tensor, targets: Tensor, *, grad_output: Tensor, ignore_index: int = IGNORE) -> Any:
        keep = (targets != ignore_index)[..., None]
        z = wide(logits).masked_fill(~keep, 0)
        p = (z - torch.logsumexp(z, -1, keepdim=True)).exp()
        dz = p - F.one_hot(targets.masked_fill(~keep[..., 0], 0), z.shape[-1])
        g, count = wide(grad_output), keep.sum().clamp(min=1) if reduction == "mean" else 1
        g = g[..., None] if reduction == "none" else g
        dz = dz * g / count if normalise_last else dz * (g / count)
        return {"logits": dz.masked_fill(~keep, 0).to(logits.dtype)}

    return backward


# ---- the output layer


def _logits(h: Tensor, w_out: Tensor, bias: Tensor | None, cast: bool) -> Tensor:
    z = F.linear(wide(h), wide(w_out), wide(bias))
    return rounded_edge(z, h.dtype) if cast else z


class _Edge(torch.autograd.Function):
    """An edge between two operations: rounded to io forward, and the cotangent backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, io: torch.dtype) -> Tensor:
        ctx.io = io
        return x.to(io).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0].to(ctx.io).to(slopes[0].dtype), None


def rounded_edge(x: Tensor, io: torch.dtype) -> Tensor:
    return _Edge.apply(x, io)  # pyright: ignore[reportReturnType]


def probabilities(
    h: Tensor, w_out: Tensor, bias: Tensor | None = None, *, cast: bool = False, by: Any = None
) -> Tensor:
    z = _logits(h, w_out, bias, cast)
    return (torch.softmax(z, -1) if by is None else by(z)).to(h.dtype)


def probabilities_in_double(h: Tensor, w_out: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.softmax(F.linear(h.double(), w_out.double(), wide(bias, True)), -1).to(h.dtype)


def head_loss(losses: Kernel, *, cast: bool = False, block: int = 0) -> Kernel:
    """Mean loss of h W + b; with `block`, the logits exist for so many words at a time only."""

    def loss(
        h: Tensor, w_out: Tensor, targets: Tensor, bias: Tensor | None = None, *, ignore_index: int = IGNORE
    ) -> Tensor:
        if not block:
            return reduced(losses, _logits(h, w_out, bias, cast), targets, ignore_index, "mean").to(h.dtype)
        starts = range(0, len(w_out), block)
        parts = [_logits(h, w_out[s : s + block], None if bias is None else bias[s : s + block], cast) for s in starts]
        lse = torch.stack([torch.logsumexp(part, -1) for part in parts], -1)
        merged = partial(_merged, lse)
        return reduced(merged, torch.cat(parts, -1), targets, ignore_index, "mean").to(h.dtype)

    return loss


def _merged(lse: Tensor, z: Tensor, targets: Tensor) -> Tensor:
    return torch.logsumexp(lse, -1) - z.gather(-1, targets[..., None])[..., 0]


def head_backward(*, cast: bool, unscaled: bool, block: int = 0) -> Kernel:
    """dz by hand, rounded to io or not, scaled by G/N before or after the products; dh in blocks of the vocabulary."""

    def backward(
        h: Tensor,
        w_out: Tensor,
        targets: Tensor,
        bias: Tensor | None = None,
        *,
        grad_output: Tensor,
        ignore_index: int = IGNORE,
    ) -> dict[str, Tensor]:
        keep = (targets != ignore_index)[..., None]
        p = torch.softmax(_logits(h, w_out, bias, cast), -1)
        dz = (p - F.one_hot(targets.masked_fill(~keep[..., 0], 0), len(w_out))).masked_fill(~keep, 0)
        scale = wide(grad_output) / keep.sum().clamp(min=1)
        dz = dz if unscaled else dz * scale
        dz = (dz.to(h.dtype).to(dz.dtype) if cast else dz).reshape(-1, len(w_out))
        after = scale if unscaled else 1
        size = block or len(w_out)
        wf, rows = wide(w_out), wide(h).reshape(-1, h.shape[-1])
        dh = sum((dz[:, s : s + size] @ wf[s : s + size] for s in range(0, len(wf), size)), torch.zeros_like(rows))
        found = {"h": (dh * after).reshape(h.shape), "w_out": dz.mT @ rows * after, "bias": dz.sum(0) * after}
        return {key: value.to(h.dtype) for key, value in found.items() if key != "bias" or bias is not None}

    return backward


# ---- gradients by autograd


def differentiated(kernel: Kernel) -> Kernel:
    """Autograd through a kernel, in the accumulator: its casts to io are the edges alone."""

    def backward(*, grad_output: Tensor, **arguments: Any) -> dict[str, Tensor]:
        leaves = {k: x for k, x in arguments.items() if isinstance(x, Tensor) and x.is_floating_point()}
        given = {k: wide(x.detach().clone()).requires_grad_() for k, x in leaves.items()}
        out = kernel(**{**arguments, **given})
        found = torch.autograd.grad(out, list(given.values()), grad_output.to(out.dtype), allow_unused=True)
        return {
            key: (torch.zeros_like(leaf) if g is None else g).to(leaf.dtype)
            for (key, leaf), g in zip(leaves.items(), found, strict=True)
        }

    return backward


def _losses(reduction: str) -> dict[str, Kernel]:
    return {
        "log_softmax": loss_of(losses_by_log_softmax, reduction),
        "logsumexp": loss_of(losses_by_logsumexp, reduction),
        "exp2": loss_of(losses_by_exp2, reduction),
        "online": loss_of(losses_online, reduction),
        "online by 1, loop": loss_of(partial(losses_online, block=1), reduction),
        "float64": loss_of(losses_by_logsumexp, reduction, double=True),
        "torch": torch_loss(reduction),
        "numpy loop": numpy_loop(reduction),
    }


def _loss_gradients(reduction: str) -> dict[str, Kernel]:
    kernels = {key: kernel for key, kernel in _losses(reduction).items() if "numpy" not in key and "loop" not in key}
    by_hand = {"saved": from_saved(reduction), "saved, 1/N last": from_saved(reduction, normalise_last=True)}
    return {**{key: differentiated(kernel) for key, kernel in kernels.items()}, **by_hand}


FORWARD: Mapping[str, Mapping[str, Kernel]] = {
    "embedding": {"gather": gathered, "torch": by_torch, "one-hot": one_hot, "rows, loop": rows_in_a_loop},
    "mean_pool": {
        "sum": sum_then_divide,
        "float64": partial(sum_then_divide, double=True),
        "weights": by_weights,
        "reciprocal, loop": reciprocal_loop,
    },
    "output_softmax": {
        "plain": probabilities,
        "logits in io": partial(probabilities, cast=True),
        "in blocks": partial(probabilities, by=softmax_in_two_passes),
        "logits in io, in blocks": partial(probabilities, cast=True, by=softmax_in_two_passes),
        "float64": probabilities_in_double,
    },
    **{name: _losses(reduction) for name, reduction in REDUCTIONS.items()},
    "linear_cross_entropy": {
        "plain": head_loss(losses_by_log_softmax),
        "logits in io": head_loss(losses_by_logsumexp, cast=True),
        "online": head_loss(losses_online),
        "chunked": head_loss(losses_by_logsumexp, block=8),
        "chunked, logits in io": head_loss(losses_by_logsumexp, block=5, cast=True),
    },
}

BACKWARD: Mapping[str, Mapping[str, Kernel]] = {
    "embedding": {
        "index_add": index_add,
        "float64": partial(index_add, double=True),
        "one-hot product": hot_product,
        "sorted, loop": sorted_loop,
        "torch": differentiated(by_torch),
    },
    "mean_pool": {
        "share": pooled_share,
        **{k: differentiated(f) for k, f in FORWARD["mean_pool"].items() if k != "float64"},
    },
    "output_softmax": {
        "plain": differentiated(probabilities),
        "in blocks": differentiated(partial(probabilities, by=softmax_in_two_passes)),
        "float64": differentiated(probabilities_in_double),
    },
    **{name: _loss_gradients(reduction) for name, reduction in REDUCTIONS.items()},
    "linear_cross_entropy": {
        **{k: differentiated(f) for k, f in FORWARD["linear_cross_entropy"].items() if "io" not in k},
        "by hand": head_backward(cast=False, unscaled=False),
        "by hand, edges in io": head_backward(cast=True, unscaled=False),
        "unscaled, edges in io": head_backward(cast=True, unscaled=True),
        "by hand, chunked": head_backward(cast=False, unscaled=True, block=7),
    },
}
"""Names with "loop" in them are loops in Python: for some hundreds of rows, no more."""
