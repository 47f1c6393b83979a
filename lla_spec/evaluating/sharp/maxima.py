"""What autograd sends to the maxima of a softmax: nothing, but for rounding.

The maximum m that is subtracted before exp is a gauge (softmax.safe), ∂out/∂m = 0. Autograd through x - m does not know
that. It adds up -Σ dx̂_k, and gives it to the entry that m came from: what is off with each dx̂_k, and with their sum,

    T_j = Σ_{k < end(j)} ((1 + γ_n) e_k + γ_n f_k),

where f_k is what flows to x_k: |dx_k|, or the magnitudes of its parts where a kernel adds these up apart.

One pass over blocks has a maximum for each block, and autograd sends the same to each. An entry that is as large as all
before it, in the order of the axis, was the running maximum once, until a larger one came at end(j): by then the terms
before end(j) had been summed, and no others. The last maximum gets them all.
"""

from __future__ import annotations

import numpy as np

from lla_spec.evaluating.sharp.roundings import Array, Roundings
from lla_spec.evaluating.sharp.weights import Weights


def through_maxima(
    error: Array, flow: Array, w: Weights, model: Roundings, *, logit_error: Array | float = 0.0
) -> Array:
    """The error (..., n) of a gradient of logits, with what autograd gives to every maximum of one pass or two.

    `flow`: f, not negative. `logit_error`: how far a kernel's logits may be from those of `w`; it decides which of them
    may be a maximum.
    """
    gamma = model.gamma(flow.shape[-1])
    through, ends = np.zeros(error.shape), _ends(w, logit_error)
    upto = np.cumsum((1 + gamma) * error + gamma * flow, axis=-1)
    at = np.nonzero(ends)
    through[at] = upto[(*at[:-1], ends[at] - 1)] * (1 + model.few(2))
    return error + model.few(1) * (flow + error) + through


def _ends(w: Weights, logit_error: Array | float) -> Array:
    """For each entry that may be a running maximum, the first place where a larger one has surely come; else 0."""
    off = np.broadcast_to(logit_error, w.d.shape)
    low, high = (np.where(w.live, w.d + side, -np.inf) for side in (-off, off))
    surely = np.maximum.accumulate(low, axis=-1)  # the maximum after each entry, at least
    before = np.concatenate([np.full_like(surely[..., :1], -np.inf), surely[..., :-1]], axis=-1)
    ends = np.zeros(w.d.shape, dtype=np.int64)
    at = np.nonzero(w.live & (high >= before))
    ends[at] = _bisected(surely, at, high[at])
    return ends


def _bisected(rising: Array, at: tuple[Array, ...], values: Array) -> Array:
    """The first place beyond `at` where the rising row is above the value; the row's length where it never is."""
    length = rising.shape[-1]
    first, last = at[-1] + 1, np.full(values.shape, length)
    while (first < last).any():
        middle = (first + last) // 2
        above = rising[(*at[:-1], np.minimum(middle, length - 1))] > values
        open_ = first < last
        last = np.where(open_ & above, middle, last)
        first = np.where(open_ & ~above, middle + 1, first)
    return first
