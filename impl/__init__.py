"""Each operation of lla-spec in torch, with its VJP: a reference that can be trusted, and then a fast one.

Sums run in at least float32 and are rounded once; results follow the contract and the policies of `LLA_TARGET`, in
eager mode, under autograd, torch.compile and torch.func. `impl` needs torch alone and knows nothing of lla_spec, so
that agreement between the two means something.

>>> import torch, impl
>>> impl.softmax(torch.tensor([0.0, 0.0]))
tensor([0.5000, 0.5000])
"""

from impl.attention import attention, attention_vjp
from impl.cross_entropy import cross_entropy, cross_entropy_vjp, linear_cross_entropy, linear_cross_entropy_vjp
from impl.embedding import embedding, embedding_vjp, mean_pool, mean_pool_vjp
from impl.linear import linear, linear_vjp, matmul, matmul_vjp, weighted_average, weighted_average_vjp
from impl.low_rank import low_rank, truncated_svd
from impl.multi_head import (
    grouped_query_attention,
    grouped_query_attention_vjp,
    multi_head_attention,
    multi_head_attention_vjp,
)
from impl.normalization import (
    layer_norm,
    layer_norm_vjp,
    residual_layer_norm,
    residual_layer_norm_vjp,
    rms_norm,
    rms_norm_vjp,
)
from impl.output import output_softmax, output_softmax_vjp
from impl.pca import pca, pca_inverse, pca_inverse_vjp, pca_transform, pca_transform_vjp
from impl.softmax import log_softmax, log_softmax_vjp, logsumexp, logsumexp_vjp, softmax, softmax_vjp
from impl.target import LLA_TARGET, __version__

__all__ = [
    "LLA_TARGET",
    "__version__",
    "attention",
    "attention_vjp",
    "cross_entropy",
    "cross_entropy_vjp",
    "embedding",
    "embedding_vjp",
    "grouped_query_attention",
    "grouped_query_attention_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_vjp",
    "linear_vjp",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "low_rank",
    "matmul",
    "matmul_vjp",
    "mean_pool",
    "mean_pool_vjp",
    "multi_head_attention",
    "multi_head_attention_vjp",
    "output_softmax",
    "output_softmax_vjp",
    "pca",
    "pca_inverse",
    "pca_inverse_vjp",
    "pca_transform",
    "pca_transform_vjp",
    "residual_layer_norm",
    "residual_layer_norm_vjp",
    "rms_norm",
    "rms_norm_vjp",
    "softmax",
    "softmax_vjp",
    "truncated_svd",
    "weighted_average",
    "weighted_average_vjp",
]
