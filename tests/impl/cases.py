"""A few small inputs per operation, drawn from a seed: enough to reach every argument, alignment and broadcast."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call: the floating shapes, then the mask, then the options."""

    operation: str
    shapes: tuple[tuple[int, ...] | None, ...]
    mask: tuple[tuple[bool, ...], ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = ",".join("-" if shape is None else "x".join(map(str, shape)) for shape in self.shapes)
        return "-".join([self.operation, shapes, *(["mask"] if self.mask else []), *map(str, self.options)])

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor | None]:
        floating = [None if shape is None else normal(shape, dtype, seed + i) for i, shape in enumerate(self.shapes)]
        return floating if self.mask is None else [*floating, torch.tensor(self.mask)]


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


_MASK = ((True, False, True, True), (False, True, False, False), (True, True, True, True))

CASES = [
    Case("matmul", ((2, 3), (3, 4))),
    Case("matmul", ((5, 1, 2, 3), (2, 3, 4))),  # leading axes broadcast
    Case("weighted_average", ((2, 2, 3), (2, 3, 4))),
    Case("weighted_average", ((2, 3), (5, 3, 1))),
    Case("linear", ((2, 3, 4), (5, 4), (5,))),
    Case("linear", ((4,), (5, 4), None)),
    Case("softmax", ((2, 3, 5),)),
    Case("softmax", ((1,),)),
    Case("log_softmax", ((2, 3, 5),)),
    Case("logsumexp", ((2, 3, 5),)),
    Case("attention", ((2, 3, 2), (2, 4, 2), (2, 4, 5))),
    Case("attention", ((3, 2), (4, 2), (4, 5)), mask=_MASK),
    Case("attention", ((2, 1, 3, 2), (3, 4, 2), (4, 5)), mask=_MASK[2:], options={"scale": -0.7}),
    Case("attention", ((2, 3, 2), (2, 5, 2), (2, 5, 2)), options={"is_causal": True}),
    Case("attention", ((3, 2), (4, 2), (4, 5)), mask=_MASK, options={"is_causal": True, "scale": 2.0}),
]
