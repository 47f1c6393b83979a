"""How arrays are moved: hashable functions of (sizes, arrays) that transpose, insert, flatten, join and gather axes.

Batch axes lead and are never named: every function acts on the last axes and leaves what stands before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lla_spec.tensors import Dim

Sizes = Mapping[str, int]


class Move(Protocol):
    def __call__(self, sizes: Sizes, *arrays: np.ndarray) -> np.ndarray: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Align:
    """Puts the last axes in `order` and inserts axes of length 1 where `present` is False."""

    order: tuple[int, ...]
    present: tuple[bool, ...]

    def __call__(self, sizes: Sizes, *arrays: np.ndarray) -> np.ndarray:
        (array,) = arrays
        lead = array.ndim - len(self.order)
        if self.order != tuple(range(len(self.order))):
            array = array.transpose(*range(lead), *(lead + position for position in self.order))
        if not all(self.present):
            array = array[(..., *(slice(None) if there else None for there in self.present))]
        return array


@dataclass(frozen=True)
class Spread:
    """Broadcasts the last axes to the sizes of `dims`."""

    dims: tuple[Dim, ...]

    def __call__(self, sizes: Sizes, *arrays: np.ndarray) -> np.ndarray:
        (array,) = arrays
        lead = array.shape[: array.ndim - len(self.dims)]
        return np.broadcast_to(array, (*lead, *(dim.size(sizes) for dim in self.dims)))


@dataclass(frozen=True)
class Join:
    """Concatenates arrays of the same `rank` along the axis at `position`, batch axes broadcast."""

    rank: int
    position: int

    def __call__(self, sizes: Sizes, *arrays: np.ndarray) -> np.ndarray:
        lead = np.broadcast_shapes(*(array.shape[: array.ndim - self.rank] for array in arrays))
        full = [np.broadcast_to(array, (*lead, *array.shape[array.ndim - self.rank :])) for array in arrays]
        return np.concatenate(full, axis=len(lead) + self.position)


@dataclass(frozen=True)
class Merge:
    """The last axes in groups, so many in each, every group as one axis, row-major."""

    groups: tuple[int, ...]

    def __call__(self, sizes: Sizes, *arrays: np.ndarray) -> np.ndarray:
        (array,) = arrays
        shape = list(array.shape[array.ndim - sum(self.groups) :])
        merged = [math.prod(shape.pop(0) for _ in range(count)) for count in self.groups]
        return array.reshape(*array.shape[: array.ndim - sum(self.groups)], *merged)


@dataclass(frozen=True)
class Flatten:
    """The last axes as two: the first of `groups` counts the axes of the first, then come the second's."""

    groups: tuple[int, int]

    def __call__(self, sizes: Sizes, *arrays: np.ndarray) -> np.ndarray:
        (array,) = arrays
        first, second = self.groups
        lead, own = array.shape[: array.ndim - first - second], array.shape[array.ndim - first - second :]
        return array.reshape(*lead, math.prod(own[:first]), math.prod(own[first:]))


@dataclass(frozen=True)
class Unflatten:
    """The last two axes as the axes over the dimensions `left`, then those over `right`."""

    left: tuple[Dim, ...]
    right: tuple[Dim, ...]

    def __call__(self, sizes: Sizes, *arrays: np.ndarray) -> np.ndarray:
        (array,) = arrays
        return array.reshape((*array.shape[:-2], *(dim.size(sizes) for dim in (*self.left, *self.right))))


def gather(fixed: tuple[int | None, ...], alignments: tuple[Align, ...]) -> Callable[..., Any]:
    """The step that reads an array at index arrays: one per last axis, or the number that stands in `fixed`.

    Index arrays are plain integers in every domain, so they are aligned here and not by the domain.
    """

    def run(domain: Any, sizes: Sizes, value: Any, *positions: np.ndarray) -> Any:
        given = iter([align(sizes, position) for align, position in zip(alignments, positions, strict=True)])
        where = tuple(next(given) if number is None else number for number in fixed)
        return domain.move(lambda array: array[(..., *where)], value)

    return run
