"""Wrong output layers and losses, each with one mistake that people make.

`lla-spec verify tests/targets/wrong_losses.py:mean_over_all`
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F


def wide(x: Any) -> Any:
    return None if x is None else x.to(torch.promote_types(x.dtype, torch.float32))


def _target(name, **functions):
    return SimpleNamespace(LLA_TARGET={"name": name}, **functions)


# ---- the correct ones


def _logits(h, w_out, bias):
    return F.linear(wide(h), wide(w_out), wide(bias))


def _through(dz, h, w_out, bias):
    """dz carried through z = h Wᵀ + b."""
    rows, z = wide(h).reshape(-1, h.shape[-1]), dz.reshape(-1, dz.shape[-1])
    db = None if bias is None else z.sum(0).to(h.dtype)
    return (dz @ wide(w_out)).to(h.dtype), (z.mT @ rows).to(h.dtype), db


def output_softmax(h, w_out, bias=None):
    return torch.softmax(_logits(h, w_out, bias), -1).to(h.dtype)


def _reduced(losses, keep, reduction):
    if reduction == "none":
        return losses
    return losses.sum() / keep.sum() if reduction == "mean" else losses.sum()


def _losses(z, targets, keep):
    own = z.masked_fill(~keep[..., None], 0)
    found = -torch.log_softmax(own, -1).gather(-1, targets.masked_fill(~keep, 0)[..., None])[..., 0]
    return found.masked_fill(~keep, 0)


def cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean"):
    keep = targets != ignore_index
    return _reduced(_losses(wide(logits), targets, keep), keep, reduction).to(logits.dtype)


def _share(grad_output, keep, reduction):
    """What each position gets of the cotangent."""
    g = wide(grad_output)
    if reduction == "none":
        return g[..., None]
    return g / keep.sum().clamp(min=1) if reduction == "mean" else g


def _dz(z, targets, keep, share):
    hot = F.one_hot(targets.masked_fill(~keep, 0), z.shape[-1])
    return ((torch.softmax(z, -1) - hot) * share).masked_fill(~keep[..., None], 0)


def linear_cross_entropy(h, w_out, targets, bias=None, *, ignore_index=-100, reduction="mean"):
    keep = targets != ignore_index
    return _reduced(_losses(_logits(h, w_out, bias), targets, keep), keep, reduction).to(h.dtype)


# ---- forward


def _bias_after_softmax(h, w_out, bias=None):
    p = torch.softmax(_logits(h, w_out, None), -1)
    return (p if bias is None else p + wide(bias)).to(h.dtype)


def _mean_over_all(logits, targets, *, ignore_index=-100, reduction="mean"):
    keep = targets != ignore_index
    losses = _losses(wide(logits), targets, keep)
    return (losses.sum() / targets.numel() if reduction == "mean" else _reduced(losses, keep, reduction)).to(
        logits.dtype
    )


def _log_sum_exp_in_io(logits, targets, *, ignore_index=-100, reduction="mean"):
    """Σ exp is rounded to the io dtype before its logarithm: torch's own CPU kernels in 16 bits."""
    z, keep = wide(logits), targets != ignore_index
    z = z.masked_fill(~keep[..., None], 0)
    peak = z.amax(-1, keepdim=True)
    total = (z - peak).exp().sum(-1, keepdim=True).to(logits.dtype).to(z.dtype)
    losses = (peak + total.log() - z.gather(-1, targets.masked_fill(~keep, 0)[..., None]))[..., 0]
    return _reduced(losses.masked_fill(~keep, 0), keep, reduction).to(logits.dtype)


def _tail_left_out(logits, targets, *, ignore_index=-100, reduction="mean", block=4):
    """The sum over whole blocks of positions."""
    keep = targets != ignore_index
    losses = _losses(wide(logits), targets, keep)
    if reduction == "sum" and losses.numel() > block:
        losses = losses.reshape(-1)[: losses.numel() // block * block]
    return _reduced(losses, keep, reduction).to(logits.dtype)


def _ignored_as_word_zero(logits, targets, *, ignore_index=-100, reduction="mean"):
    """Targets clamped into the vocabulary, and nothing set to 0 afterwards."""
    keep = targets != ignore_index
    everywhere = torch.ones_like(keep)
    losses = _losses(wide(logits), targets.masked_fill(~keep, 0), everywhere if reduction == "none" else keep)
    return _reduced(losses, keep, reduction).to(logits.dtype)


def _chunks_averaged(h, w_out, targets, bias=None, *, ignore_index=-100, reduction="mean"):
    """The log-sum-exps of two halves of the vocabulary averaged, not merged."""
    z, keep = _logits(h, w_out, bias), targets != ignore_index
    halves = z.split(max((z.shape[-1] + 1) // 2, 1), -1)
    lse = torch.stack([half.logsumexp(-1) for half in halves]).mean(0)
    losses = lse - z.gather(-1, targets.masked_fill(~keep, 0)[..., None])[..., 0]
    return _reduced(losses.masked_fill(~keep, 0), keep, reduction).to(h.dtype)


output_bias_after_softmax = _target("bias after softmax", output_softmax=_bias_after_softmax)
mean_over_all = _target("mean over all rows", cross_entropy=_mean_over_all)
log_sum_exp_in_io = _target("Σ exp in io", cross_entropy=_log_sum_exp_in_io)
sum_without_tail = _target("sum without its tail", cross_entropy=_tail_left_out)
ignored_as_word_zero = _target("ignored is word 0", cross_entropy=_ignored_as_word_zero)
chunks_averaged = _target("chunks averaged", linear_cross_entropy=_chunks_averaged)


# ---- backward


def _uncentred(h, w_out, bias=None, *, grad_output):
    """dz = P ∘ dP."""
    return _through(torch.softmax(_logits(h, w_out, bias), -1) * wide(grad_output), h, w_out, bias)


def _without_mean(logits, targets, *, grad_output, ignore_index=-100, reduction="mean"):
    keep = targets != ignore_index
    share = _share(grad_output, keep, "sum" if reduction == "mean" else reduction)
    return (_dz(wide(logits), targets, keep, share).to(logits.dtype),)


def _without_cotangent(logits, targets, *, grad_output, ignore_index=-100, reduction="mean"):
    """Nobody multiplies a loss, until somebody does."""
    keep = targets != ignore_index
    share = _share(torch.ones_like(grad_output), keep, reduction)
    return (_dz(wide(logits), targets, keep, share).to(logits.dtype),)


def _ignored_rows_get_p(logits, targets, *, grad_output, ignore_index=-100, reduction="mean"):
    """P - onehot everywhere, with nothing at ignore_index to subtract."""
    keep = targets != ignore_index
    hot = F.one_hot(targets.masked_fill(~keep, 0), logits.shape[-1]) * keep[..., None]
    dz = (torch.softmax(wide(logits), -1) - hot) * _share(grad_output, keep, reduction)
    return (dz.to(logits.dtype),)


def _index_or_default(logits, targets, *, grad_output, ignore_index=-100, reduction="mean"):
    """`or`, for which class 0 is no class: what most tokenizers pad with."""
    keep = targets != (ignore_index or -100)
    return (_dz(wide(logits), targets, keep, _share(grad_output, keep, reduction)).to(logits.dtype),)


def _padding_in_weight(h, w_out, targets, bias=None, *, grad_output, ignore_index=-100, reduction="mean"):
    """dW sums over the padding as well, as if its target were word 0."""
    z, keep = _logits(h, w_out, bias), targets != ignore_index
    share = _share(grad_output, keep, reduction)
    dh, _, db = _through(_dz(z, targets, keep, share), h, w_out, bias)
    everywhere = _dz(z, targets.masked_fill(~keep, 0), torch.ones_like(keep), share)
    return dh, _through(everywhere, h, w_out, bias)[1], db


def _hidden_of_one_chunk(h, w_out, targets, bias=None, *, grad_output, ignore_index=-100, reduction="mean"):
    """dh of the first half of the vocabulary."""
    z, keep = _logits(h, w_out, bias), targets != ignore_index
    dz = _dz(z, targets, keep, _share(grad_output, keep, reduction))
    half = (len(w_out) + 1) // 2
    _, dw, db = _through(dz, h, w_out, bias)
    return (dz[..., :half] @ wide(w_out)[:half]).to(h.dtype), dw, db


output_gradient_uncentred = _target("dz = P dP", output_softmax=output_softmax, output_softmax_vjp=_uncentred)
gradient_without_mean = _target("dz without 1/N", cross_entropy=cross_entropy, cross_entropy_vjp=_without_mean)
gradient_without_cotangent = _target("dz without dL", cross_entropy=cross_entropy, cross_entropy_vjp=_without_cotangent)
class_zero_gets_a_gradient = _target(
    "ignore_index or -100", cross_entropy=cross_entropy, cross_entropy_vjp=_index_or_default
)
ignored_rows_get_p = _target("dz = P on padding", cross_entropy=cross_entropy, cross_entropy_vjp=_ignored_rows_get_p)
padding_in_weight_gradient = _target(
    "padding in dW", linear_cross_entropy=linear_cross_entropy, linear_cross_entropy_vjp=_padding_in_weight
)
hidden_gradient_of_one_chunk = _target(
    "dh of one chunk", linear_cross_entropy=linear_cross_entropy, linear_cross_entropy_vjp=_hidden_of_one_chunk
)
