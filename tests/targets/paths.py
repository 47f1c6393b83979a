"""Kernels that are right but for one of their paths: beyond a tile, at a multiple of one, where two options meet."""

import torch
from torch.nn import functional as F


def _open(c):
    return torch.ones(c["n"], c["m"], dtype=torch.bool)


def attention_by(quirk):
    """The correct attention, spoiled by `quirk`: what it gives of keep, causal, scale and hidden replaces what there
    was."""

    def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
        (n, d), m = q.shape[-2:], k.shape[-2]
        call = {"n": n, "m": m, "d": d, "is_causal": is_causal, "given": scale}
        call["scale"] = d**-0.5 if scale is None else scale
        call["keep"] = _open(call) if mask is None else mask
        call["causal"] = _open(call).tril(m - n) if is_causal else _open(call)
        call["hidden"], call["softmax"] = -torch.inf, torch.softmax
        call |= quirk(call)
        keep = call["keep"] & call["causal"]
        empty = ~keep.any(-1, keepdim=True)
        scores = ((q @ k.mT) * call["scale"]).masked_fill(~(keep | empty), call["hidden"])
        return call["softmax"](scores, -1).masked_fill(empty, 0) @ v

    return attention


def softmax_in_blocks(scores, dim=-1, *, size=64, least=-8.0):
    """One pass over blocks of the last axis; where the maximum rises, what came before fades by exp(least) at most."""
    peak, found = scores[..., :1].clamp(min=-1e30), []
    for block in scores.split(size, dim):
        higher = torch.maximum(peak, block.amax(dim, keepdim=True))
        found = [*(old * (peak - higher).clamp(min=least).exp() for old in found), (block - higher).exp()]
        peak = higher
    weights = torch.cat(found, dim)
    return weights / weights.sum(dim, keepdim=True)


def _grouped(attention):
    """As many heads of keys and values as of queries."""

    def grouped(q, k, v, mask=None, **options):
        repeats = q.shape[-3] // k.shape[-3]
        return attention(q, k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3), mask, **options)

    return grouped


ATTENTION = {
    "mask dropped where causal has more than a tile": lambda c: (
        {"keep": _open(c)} if c["is_causal"] and c["n"] > 64 else {}
    ),
    "mask of the first queries alone": lambda c: {"keep": c["keep"] | (torch.arange(c["n"])[:, None] >= 64)},
    "mask of the first keys alone": lambda c: {"keep": c["keep"] | ((torch.arange(c["m"]) >= 64) & (c["n"] > 16))},
    "mask dropped for wide heads": lambda c: {"keep": _open(c)} if c["d"] > 64 else {},
    "causal dropped for wide heads": lambda c: {"causal": _open(c)} if c["d"] > 64 else {},
    "causal shifted where the keys fill their tiles": lambda c: (
        {"causal": _open(c).tril(1)} if c["is_causal"] and c["n"] == c["m"] and c["n"] % 128 == 0 else {}
    ),
    "last key lost where the keys fill their tiles": lambda c: (
        {"keep": c["keep"] & (torch.arange(c["m"]) < c["m"] - 1)} if c["m"] % 128 == 0 else {}
    ),
    "sign of the scale lost where causal alone hides": lambda c: (
        {"scale": abs(c["scale"])} if c["is_causal"] and c["n"] > 64 and bool(c["keep"].all()) else {}
    ),
    "hidden by a score of -10000": lambda c: {"hidden": -1e4},
    "hidden by a score of -1e9": lambda c: {"hidden": -1e9},
    "scale of the padded head": lambda c: (
        {"scale": (-(-c["d"] // 16) * 16) ** -0.5} if c["given"] is None and c["d"] > 64 else {}
    ),
}


_FADING = attention_by(lambda c: {"softmax": softmax_in_blocks})


def _softmax_without_the_last_maximum(x):
    """Blocks of 1024; the last one, which is not full, has no say in the maximum."""
    whole = x.shape[-1] // 1024 * 1024 or x.shape[-1]
    peak = x[..., :whole].amax(-1, keepdim=True)
    found = torch.exp(x - torch.where(peak.isfinite(), peak, 0.0))
    return torch.where(x.isnan().any(-1, keepdim=True), torch.nan, found / found.sum(-1, keepdim=True))


def _exponentials(logits, start):
    """exp(logits - maximum) and the maximum, a running one that begins at `start`: -inf is where it should."""
    peak = logits.amax(-1, keepdim=True).clamp(min=start)
    return torch.exp(logits - peak), peak[..., 0]


def _output_softmax_from_10000(h, w_out, bias=None):
    found, _ = _exponentials(F.linear(h, w_out, bias), -1e4)
    return found / found.sum(-1, keepdim=True)


def _logsumexp_from_a_billion(x):
    found, peak = _exponentials(x, -1e9)
    return found.sum(-1).log() + peak


def _layer_norm_of_whole_blocks(x, weight=None, bias=None, *, eps=1e-5):
    found = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return torch.zeros_like(found) if x.shape[-1] % 256 == 0 else found


def _layer_norm_with_its_own_eps(x, weight=None, bias=None, *, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5 if weight is None and bias is None else eps)


def _first(found, count):
    """The first columns; zeros beyond them."""
    return torch.where(torch.arange(found.shape[-1]) < count, found, 0.0)


def _first_batches(a, b):
    found = a @ b
    return found if found.shape[:-2].numel() <= 12 else found[:1].expand_as(found).clone()


def _low_rank_of_one_tile(w, k):
    U, S, Vh = torch.linalg.svd(w, full_matrices=False)
    k = min(k, 32)
    return (U[..., :k] * S[..., None, :k]) @ Vh[..., :k, :]


def _linear_of_whole_blocks(x, weight, bias=None):
    found = F.linear(x, weight, bias)
    return _first(found, found.shape[-1] - (found.shape[-1] % 256 == 0))


def _cross_entropy_of_short_ids(logits, targets, *, ignore_index=-100, reduction="mean"):
    if not (targets != ignore_index).any():
        return logits.new_zeros(())
    ids = targets.to(torch.int16).long().reshape(-1)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids, ignore_index=ignore_index, reduction=reduction)


PATHS = {
    **{words: {"attention": attention_by(quirk)} for words, quirk in ATTENTION.items()},
    "blocks of keys that fade by exp(-8) at most": {"attention": _FADING},
    "blocks of a group's keys that do": {"grouped_query_attention": _grouped(_FADING)},
    "blocks of classes that do": {
        "output_softmax": lambda h, w_out, bias=None: softmax_in_blocks(F.linear(h, w_out, bias), size=1024)
    },
    "maximum of whole blocks": {"softmax": _softmax_without_the_last_maximum},
    "running maximum from -10000": {"output_softmax": _output_softmax_from_10000},
    "running maximum from -1e9": {"logsumexp": _logsumexp_from_a_billion},
    "rows that fill their blocks": {"layer_norm": _layer_norm_of_whole_blocks},
    "eps of rows without weight and bias": {"layer_norm": _layer_norm_with_its_own_eps},
    "columns that fill their blocks": {"linear": _linear_of_whole_blocks},
    "columns beyond a block": {"linear": lambda x, weight, bias=None: _first(F.linear(x, weight, bias), 128)},
    "columns of a product beyond a block": {"matmul": lambda a, b: _first(a @ b, 128)},
    "batches beyond the twelfth": {"matmul": _first_batches},
    "features beyond a block": {"embedding": lambda ids, weight: _first(weight[ids], 64)},
    "ranks beyond a tile": {"low_rank": _low_rank_of_one_tile},
    "ids in 16 bits": {"embedding": lambda ids, weight: weight[ids.to(torch.int16).long()]},
    "targets in 16 bits": {"cross_entropy": _cross_entropy_of_short_ids},
}
