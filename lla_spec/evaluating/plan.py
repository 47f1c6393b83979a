"""A plan: what a declaration computes, as a flat list of steps on registers, read by any domain of numbers.

An array carries its batch axes first and then one axis per index; the compiler (`compiling`) has decided, per step,
where every index stands, so a step only moves and combines arrays. Arrays without batch axes (weights) broadcast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from lla_spec.evaluating.bounded import Bounded
from lla_spec.tensors import Dim, Tensor

Move = Callable[..., np.ndarray]


class Domain(Protocol):
    """Numbers of one kind (float64, balls, values with an error bound). `Any` is one array of them, in its own form."""

    def input(self, array: np.ndarray, kind: str) -> Any:
        """An argument of the operation; `kind` as in Role."""
        ...

    def bounded(self, given: Bounded) -> Any:
        """An input that carries an error already, such as what code under test answered."""
        ...

    def number(self, value: Fraction) -> Any: ...

    def move(self, function: Move, *values: Any) -> Any:
        """Apply a function that only moves entries (transpose, index, broadcast, concatenate)."""
        ...

    def add(self, a: Any, b: Any) -> Any: ...

    def negate(self, a: Any) -> Any: ...

    def multiply(self, a: Any, b: Any) -> Any: ...

    def mask(self, a: Any, mask: Any) -> Any:
        """a · mask, and exactly 0 where the mask is 0, whatever stands in a."""
        ...

    def keep(self, a: Any, mask: Any) -> Any:
        """a where the mask is not 0, -∞ where it is."""
        ...

    def power(self, a: Any, exponent: Fraction) -> Any: ...

    def exp(self, a: Any, shifted: int) -> Any:
        """exp; `shifted` > 0: a maximum over that many last axes was subtracted, so an online kernel may rescale."""
        ...

    def log(self, a: Any) -> Any: ...

    def sum(self, a: Any, axes: int) -> Any:
        """The sum over that many last axes."""
        ...

    def maximum(self, a: Any, axes: int) -> Any: ...

    def matmul(self, a: Any, b: Any) -> Any:
        """Matrix products: a (..., l, k) and b (..., k, r) to (..., l, r)."""
        ...

    def edge(self, a: Any, kind: str) -> Any:
        """`a` where it enters ("argument") or leaves ("result") a formula that is called inside another one."""
        ...


@dataclass(frozen=True)
class Step:
    """registers[out] = run(domain, sizes, *registers[inputs])."""

    name: str
    out: int
    inputs: tuple[int, ...]
    run: Callable[..., Any]


@dataclass(frozen=True)
class Input:
    """An input of a plan. `sized`: its shape tells the sizes of its dimensions (a mask may broadcast)."""

    name: str
    register: int
    tensor: Tensor
    kind: str
    sized: bool


class PlanError(ValueError):
    """Inputs that do not fit the plan: the message names the input, its shape and the rule."""


class Plan:
    """The compiled form of one or several results; `run` evaluates it, any number of times, in any domain."""

    def __init__(
        self,
        inputs: Sequence[Input],
        steps: Sequence[Step],
        results: Mapping[str, int],
        registers: int,
        extents: frozenset[tuple[Dim, ...]] = frozenset(),
    ) -> None:
        self.inputs, self.steps, self.results = tuple(inputs), tuple(steps), dict(results)
        self.registers, self.extents = registers, extents

    def largest(self, sizes: Mapping[str, int]) -> int:
        """The entries of the largest array on the way, batch axes apart."""
        return max((math.prod(dim.size(sizes) for dim in dims) for dims in self.extents), default=0)

    @property
    def is_multilinear(self) -> bool:
        """Whether only sums and products are taken: then all kernels differ in nothing but the order of summation."""
        return not any(step.name in ("exp", "log", "power", "maximum") for step in self.steps)

    @functools.cached_property
    def logits(self) -> frozenset[str]:
        """The inputs that go into an exponential or a maximum as they are: where -∞ is a legal value."""
        return frozenset(entry.name for entry in self.inputs if self._is_logit({entry.register}))

    def _is_logit(self, carriers: set[int]) -> bool:
        """Whether the registers that hold an input are only added, compared and exponentiated."""
        used: set[str] = set()
        for step in self.steps:
            if carriers & set(step.inputs):
                if step.name in ("move", "edge", "negate"):
                    carriers.add(step.out)
                else:
                    used.add(step.name)
        return used <= {"add", "keep", "maximum", "exp"} and bool(used - {"add"})

    def run(self, domain: Domain, inputs: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
        """The results by name, each (batch axes, own axes).

        `inputs` by parameter name: float64 arrays, numbers, or Bounded where a value is known within an error.
        `sizes` gives, by name, the dimensions that no input shows. Raises PlanError for a missing input, a rank that
        is too small, or two inputs that disagree about a dimension.
        """
        values: list[Any] = [None] * self.registers
        found: dict[str, int] = dict(sizes or {})
        for entry in self.inputs:
            given = inputs.get(entry.name)
            if given is None:
                raise PlanError(f"{entry.name}: missing; the plan needs {', '.join(i.name for i in self.inputs)}")
            array = given.value if isinstance(given, Bounded) else np.asarray(given)
            self._measure(entry, array, found)
            if entry.kind == "permutation":
                values[entry.register] = array.astype(np.intp)
            elif isinstance(given, Bounded):
                values[entry.register] = domain.bounded(given)
            else:
                values[entry.register] = domain.input(array, entry.kind)
        with np.errstate(all="ignore"):  # what a mask hides may overflow, and a bound may be inf
            for step in self.steps:
                values[step.out] = step.run(domain, found, *[values[i] for i in step.inputs])
        return {name: values[register] for name, register in self.results.items()}

    @staticmethod
    def _measure(entry: Input, array: np.ndarray, found: dict[str, int]) -> None:
        rank = len(entry.tensor.axes)
        if array.ndim < rank:
            raise PlanError(f"{entry.name}: has shape {array.shape} but needs {rank} axes, {entry.tensor!r}")
        if not entry.sized:
            return
        for axis, size in zip(entry.tensor.axes, array.shape[array.ndim - rank :], strict=True):
            dim: Dim = axis.dim
            if not (dim.parts or dim.factors) and found.setdefault(dim.name, size) != size:
                raise PlanError(f"{entry.name}: has shape {array.shape}, but {dim} is already {found[dim.name]}")
