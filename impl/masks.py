"""Who may look at whom, in one bool tensor."""

import torch
from torch import Tensor


def looks(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """May query i look at key j: bool (..., n, m) with the leading axes of the mask; None where everybody may.

    Causal is bottom-right: the n queries are the last n of m positions, as in decoding with a cache, so query i sees
    keys 0 ... i + m - n. With n > m the first n - m queries see nothing.

    >>> looks(torch.zeros(2, 1), torch.zeros(3, 1), None, is_causal=True)
    tensor([[ True,  True, False],
            [ True,  True,  True]])
    """
    n, m = q.shape[-2], k.shape[-2]
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], n, m)
    if not is_causal:
        return mask
    past = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    return past if mask is None else past & mask
