"""Each operation as its formula in float64, one line of plain torch, differentiated by torch's own autograd.

Nothing is shared with impl. `exact` gives (value, gradients) to compare with; NaN and empty rows are not its business.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    n, m, d = q.shape[-2], k.shape[-2], q.shape[-1]
    live = torch.ones(n, m, dtype=torch.bool) if mask is None else mask.expand(*mask.shape[:-2], n, m)
    if is_causal:
        live = live & torch.tensor([[j <= i + m - n for j in range(m)] for i in range(n)]).reshape(n, m)
    weights = torch.exp((d**-0.5 if scale is None else scale) * torch.einsum("...id,...jd->...ij", q, k)) * live
    return torch.einsum("...ij,...je->...ie", weights, v) / weights.sum(-1, keepdim=True)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "matmul": lambda a, b: torch.einsum("...nk,...km->...nm", a, b),
    "weighted_average": lambda weights, v: torch.einsum("...nm,...me->...ne", weights, v),
    "linear": lambda x, weight, bias=None: torch.einsum("...i,oi->...o", x, weight) + (0 if bias is None else bias),
    "softmax": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
    "log_softmax": lambda x: x - x.exp().sum(-1, keepdim=True).log(),
    "logsumexp": lambda x: x.exp().sum(-1).log(),
    "attention": attention,
}


def exact(name: str, *inputs: Tensor | None, grad_output: Tensor | None = None, **options: Any) -> Any:
    """The formula's value in float64 at these inputs, or with `grad_output` the gradients of the floating ones."""
    wide = [x if x is None or x.dtype == torch.bool else x.detach().double().requires_grad_() for x in inputs]
    out = OPERATIONS[name](*wide, **options)
    if grad_output is None:
        return out.detach()
    return torch.autograd.grad(out, [x for x in wide if x is not None and x.requires_grad], grad_output.double())
