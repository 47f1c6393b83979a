"""Torch kernels that follow each contract, for tests of bounds; `kernels_of(operation, law, contract)` lists them.

Each takes torch tensors of the io dtype and keyword options of the operation, and returns results of the io dtype; a
VJP takes `grad_output` and returns a tuple. They differ in the freedoms that a contract gives: order of summation, exp2
for exp, one pass or online, where the scale is multiplied in, what a backward pass saves, which casts it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.attention_kernels import (
    attention,
    attention_backward,
    attention_in_two_passes,
    attention_online,
    casting,
    torch_attention,
    torch_attention_by_steps,
    whiteboard_attention,
)
from tests.engine.plain_kernels import (
    Kernel,
    backwards,
    contiguous,
    in_io,
    in_turn,
    linear_backward,
    linear_by,
    linear_tf32,
    log_softmax_from_saved,
    log_softmax_of,
    log_softmax_shifted,
    logsumexp_by_exp2,
    logsumexp_by_hand,
    logsumexp_from_saved,
    logsumexp_online,
    matmul_backward,
    matmul_tf32,
    pairwise,
    product_by,
    softmax_by_exp2,
    softmax_by_hand,
    softmax_from_saved,
    softmax_in_turn,
    softmax_in_two_passes,
    softmax_online,
    wide,
)

TORCH = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autograd(kernel: Kernel) -> Kernel:
    """The VJP that autograd makes of a kernel in the accumulator's dtype, gradients cast to io."""

    def backward(*tensors: Tensor, grad_output: Tensor, **options: Any) -> tuple[Tensor, ...]:
        leaves = [x.requires_grad_() for x in wide(*(x.detach().clone() for x in tensors))]
        out = kernel(*leaves, **options)
        found = torch.autograd.grad(out, leaves, grad_output.to(out.dtype))
        return tuple(g.to(x.dtype) for g, x in zip(found, tensors, strict=True))

    return backward


def autograd_in_io(kernel: Kernel) -> Kernel:
    """Autograd through a kernel whose steps are all in the io dtype."""

    def backward(*tensors: Tensor, grad_output: Tensor, **options: Any) -> tuple[Tensor, ...]:
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        return torch.autograd.grad(kernel(*leaves, **options), leaves, grad_output)

    return backward


FORWARD: Mapping[str, Mapping[str, Kernel]] = {
    "softmax": {
        "torch": in_io(lambda x: torch.softmax(x, -1)),
        "torch in io": lambda x: torch.softmax(x, -1),
        "by hand": in_io(softmax_by_hand),
        "exp2": in_io(softmax_by_exp2),
        "online": in_io(softmax_online),
        "online by 16": in_io(partial(softmax_online, block=16)),
        "two passes": in_io(softmax_in_two_passes),
        "sum in turn": in_io(softmax_in_turn),
    },
    "logsumexp": {
        "torch": in_io(lambda x: torch.logsumexp(x, -1)),
        "by hand": in_io(logsumexp_by_hand),
        "exp2": in_io(logsumexp_by_exp2),
        "online": in_io(logsumexp_online),
    },
    "log_softmax": {
        "torch": in_io(lambda x: torch.log_softmax(x, -1)),
        "shifted": in_io(log_softmax_shifted),
        "x - logsumexp": in_io(log_softmax_of(logsumexp_by_hand)),
        "x - online logsumexp": in_io(log_softmax_of(logsumexp_online)),
    },
    "matmul": {
        "torch": in_io(torch.matmul),
        "torch in io": contiguous(torch.matmul),
        "in turn": in_io(product_by(in_turn)),
        "backwards": in_io(product_by(backwards)),
        "pairwise": in_io(product_by(pairwise)),
    },
    "linear": {
        "torch": in_io(torch.nn.functional.linear),
        "torch in io": contiguous(torch.nn.functional.linear),
        "bias first": in_io(linear_by(in_turn)),
        "bias last": in_io(linear_by(backwards)),
        "pairwise": in_io(linear_by(pairwise)),
    },
    "weighted_average": {
        "torch": in_io(torch.matmul),
        "torch in io": contiguous(torch.matmul),
        "in turn": in_io(product_by(in_turn)),
        "pairwise": in_io(product_by(pairwise)),
    },
    "attention": {
        "weights first": in_io(attention),
        "division last": in_io(partial(attention, late=True)),
        "scale in q, base 2": in_io(partial(attention, fold="q", base2=True, late=True)),
        "scale in k": in_io(partial(attention, fold="k")),
        "online": in_io(partial(attention_online, block=1)),
        "online by 16": in_io(partial(attention_online, block=16)),
        "two passes": in_io(attention_in_two_passes),
        "cast weights": casting(attention),
        "cast, division last": casting(attention, late=True),
        "cast, online by 4": casting(attention_online, block=4),
        "cast, online by 32": casting(attention_online, block=32),
        "cast by torch": torch_attention,
    },
}
"""Every name with "cast" in it promises `fused`; the others `strict`."""

BACKWARD: Mapping[str, Mapping[str, Kernel]] = {
    "softmax": {"saved": softmax_from_saved},
    "log_softmax": {"saved": log_softmax_from_saved},
    "logsumexp": {"saved": logsumexp_from_saved},
    "matmul": {"in turn": matmul_backward(product_by(in_turn))},
    "weighted_average": {"in turn": matmul_backward(product_by(in_turn))},
    "linear": {"in turn": linear_backward(in_turn), "pairwise": linear_backward(pairwise)},
    "attention": {
        "from log-sum-exp": attention_backward,
        "from log-sum-exp, D of weights": partial(attention_backward, from_output=False),
    },
}

CONTRACTS: Mapping[str, Any] = {
    "strict": "strict",
    "fused": "fused",
    "whiteboard": "whiteboard",
    "scaled q and k": {"base": "whiteboard", "scale_casts": 2},
    "tf32": {"base": "strict", "tf32": True},
}
"""The contracts that are tried, by the name of their row."""

LOOSE: Mapping[str, Mapping[str, Mapping[str, Kernel]]] = {
    "whiteboard": {"attention": {"whiteboard": whiteboard_attention}},
    "scaled q and k": {
        "attention": {
            "scale in q": partial(whiteboard_attention, fold="q"),
            "its root in both": partial(whiteboard_attention, fold="both"),
            "torch by steps": torch_attention_by_steps,
        }
    },
    "tf32": {
        "matmul": {"tf32": matmul_tf32},
        "weighted_average": {"tf32": matmul_tf32},
        "linear": {"tf32": linear_tf32},
        "attention": {"tf32": partial(whiteboard_attention, product=matmul_tf32)},
    },
}
"""Kernels whose every step rounds to io, by contract and operation."""

SLOW = ("online", "in turn", "backwards", "pairwise", "bias first", "bias last", "sum in turn", "x - online logsumexp")
"""Loops over single terms in Python: for reductions of some hundreds, no more."""


def kernels_of(operation: str, law: str, promise: str) -> dict[str, Kernel]:
    """The kernels that promise one of CONTRACTS, by name; `law` is "definition" or "vjp"."""
    if law == "definition":
        return _forward(operation, promise)
    if promise == "fused" and operation != "attention":
        return {}
    if promise == "fused":
        return {
            "flash by 32": partial(attention_backward, casts=True, block=32),
            "flash by 64": partial(attention_backward, casts=True, block=64),
            "casts alone": partial(attention_backward, casts=True, from_output=False),
            "torch": autograd_in_io(torch_attention),
        }
    if promise != "strict":
        return {name: autograd_in_io(kernel) for name, kernel in _forward(operation, promise).items()}
    kept = {name: kernel for name, kernel in _forward(operation, promise).items() if name != "torch in io"}
    return {**{name: autograd(kernel) for name, kernel in kept.items()}, **BACKWARD.get(operation, {})}


def _forward(operation: str, promise: str) -> dict[str, Kernel]:
    if promise in ("strict", "fused"):
        return {name: f for name, f in FORWARD.get(operation, {}).items() if ("cast" in name) == (promise == "fused")}
    return dict(LOOSE[promise].get(operation, {}))


SCALES = (1.0, 1.0, 1e-3, 30.0)
MULTILINEAR = ("matmul", "linear", "weighted_average")


def random_arguments(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Small float64 arguments by torch name: random sizes (primes among them), batch axes, masks and magnitudes."""
    n, m, d, e = (int(rng.choice([1, 2, 3, 5, 8, 13, 31])) for _ in range(4))
    batch = [(), (2,), (2, 3)][rng.integers(3)]
    size = SCALES[rng.integers(len(SCALES))]

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) * size

    if name in ("softmax", "log_softmax", "logsumexp"):
        return {"x": normal(*batch, n, m) + float(rng.choice([0.0, 10.0 * size]))}
    if name == "matmul":
        return {"a": normal(*batch, n, d), "b": normal(*batch, d, m)}
    if name == "weighted_average":
        return {"weights": normal(*batch, n, m), "v": normal(*batch, m, e)}
    if name == "linear":
        return {"x": normal(*batch, n, d), "weight": normal(e, d), "bias": normal(e)}
    mask = rng.random((n, m)) < 0.7
    extra: dict[str, Any] = [{}, {"mask": mask}, {"is_causal": True}, {"scale": -0.3}][rng.integers(4)]
    return {"q": normal(*batch, n, d), "k": normal(*batch, m, d), "v": normal(*batch, m, e), **extra}


def rounded_to(arguments: Mapping[str, Any], dtype: str) -> tuple[dict[str, Any], list[Tensor], dict[str, Any]]:
    """The arguments exactly as a kernel of that dtype sees them: float64 arrays; its tensors; its options."""
    tensors = {
        key: torch.from_numpy(value).to(TORCH[dtype])
        for key, value in arguments.items()
        if isinstance(value, np.ndarray) and value.dtype != bool
    }
    options = {key: value for key, value in arguments.items() if key not in tensors}
    exact = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    given = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    return {**exact, **options}, list(tensors.values()), given
