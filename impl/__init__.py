"""Each operation of lla-spec in torch, with its VJP: a reference that can be trusted, and then a fast one.

Sums run in at least float32 and are rounded once; results follow the contract and the policies of `LLA_TARGET`, in
eager mode, under autograd, torch.compile and torch.func. `impl` needs torch alone and knows nothing of lla_spec, so
that agreement between the two means something.

>>> import torch, impl
>>> impl.softmax(torch.tensor([0.0, 0.0]))
tensor([0.5000, 0.5000])
"""

from impl.attention import attention, attention_vjp
from impl.linear import linear, linear_vjp, matmul, matmul_vjp, weighted_average, weighted_average_vjp
from impl.softmax import log_softmax, log_softmax_vjp, logsumexp, logsumexp_vjp, softmax, softmax_vjp
from impl.target import LLA_TARGET, __version__

__all__ = [
    "LLA_TARGET",
    "__version__",
    "attention",
    "attention_vjp",
    "linear",
    "linear_vjp",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "matmul",
    "matmul_vjp",
    "softmax",
    "softmax_vjp",
    "weighted_average",
    "weighted_average_vjp",
]
