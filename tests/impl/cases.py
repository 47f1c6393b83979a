"""A few small inputs per operation, drawn from a seed: enough to reach every argument, alignment and broadcast."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lla_spec.testing import bound


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


def mask_of(*shape: int, seed: int = 0) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[..., 0] = True  # key 0 is seen by every row: the naive formula knows no empty ones
    return mask


def same_bits(got: Tensor, want: Tensor, leaves: list[Tensor]) -> bool:
    """The results, and their gradients."""
    grads = (torch.autograd.grad(out.sum(), leaves) for out in (got, want))
    return torch.equal(got, want) and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def doubled(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def assert_formula(operation: str, got: Any, want: Any, *inputs: Any, **options: Any) -> None:
    """`got` of impl and `want` of a formula in float64 are no further apart than the bounds of both together.

    The contract is the strict one: one rounding to the dtype, at the end. For `<operation>_vjp` both are the gradients.
    """
    own = bound(operation, *inputs, contract="strict", **options)
    wide = {name: doubled(value) for name, value in options.items()}
    formulas = bound(operation, *map(doubled, inputs), contract="strict", **wide)
    if isinstance(own, dict):
        got, own, formulas = [x for x in got if x is not None], own.values(), formulas.values()
    else:
        got, want, own, formulas = [got], [want], [own], [formulas]
    for one, other, error, more in zip(got, want, own, formulas, strict=True):
        assert one.shape == other.shape and bool((error + more).isfinite().all())  # an infinite bound judges nothing
        assert bool(((one.detach().double() - other.detach()).abs() <= error + more).all()), (one, other)


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
