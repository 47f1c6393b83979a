"""The one way in which operations meet autograd: keep the arguments, recompute the rest from them."""

from typing import Any

from torch import Tensor
from torch.autograd import Function


class KeepsArguments(Function):
    """A Function whose backward works from its arguments alone.

    Nothing rounded is kept, nor anything of the size of an intermediate. Its backward is differentiable torch, so
    autograd can differentiate it again where a second derivative is asked for; vmap maps both methods.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
        ctx.constants = tuple(None if isinstance(x, Tensor) else x for x in inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  one result
        raise NotImplementedError


def arguments_of(ctx: Any) -> tuple[Any, ...]:
    """What forward was called with, in order."""
    return tuple(
        constant if tensor is None else tensor
        for tensor, constant in zip(ctx.saved_tensors, ctx.constants, strict=True)
    )
