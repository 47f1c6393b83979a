"""The inputs of a law: small numbers on a dyadic grid, so that what is computed between the calls is exact."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lla_spec.language import Law
from lla_spec.tensors import Tensor
from lla_spec.testing.bits import Bits
from lla_spec.testing.cases import Case


def _orthonormal(bits: Bits, shape: tuple[int, ...], along: int) -> np.ndarray:
    """Signed unit vectors along one axis, all different; turned by a Hadamard matrix / 2 where fours of rows fit."""
    length, count = shape[along], shape[1 - along]
    columns = np.eye(length)[:, bits.permutation(length)[:count]] * bits.signs((count,))
    if length % 4 == 0:
        hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
        columns = np.einsum("ab,nbk->nak", hadamard, columns.reshape(-1, 4, count)).reshape(length, count)
    return columns if along == 0 else columns.T


def feasible(law: Law, case: Case) -> Case:
    """The case with orthonormal vectors at least as long as there are of them."""
    sizes = dict(case.sizes)
    for made in (tensor for hypothesis in law.hypotheses for tensor in hypothesis.by.values()):
        if made.orthonormal is not None:
            (other,) = (axis for axis in made.axes if axis != made.orthonormal)
            along = made.orthonormal.dim.name
            if along in sizes:
                sizes[along] = max(sizes[along], other.dim.size(sizes))
    return case.with_sizes(sizes)


def draw(tensor: Tensor, case: Case, sizes: Mapping[str, int]) -> np.ndarray:
    """An input of a law on the dyadic grid: small integers times a power of two, 0/1 masks, true permutations."""
    shape = tuple(axis.dim.size(sizes) for axis in tensor.axes)
    bits = Bits(case.seed, tensor.name, tensor.axes)
    kind = tensor.role.kind if tensor.role else "real"
    if tensor.permutation:
        return bits.permutation(shape[0])
    if tensor.orthonormal is not None:
        return _orthonormal(bits, shape, tensor.axes.index(tensor.orthonormal))
    if tensor.role is not None and not tensor.role.argument and tensor.role.default is not None:
        return np.full(shape, float(tensor.role.default))
    if kind == "index":
        return (bits.integers(0, shape[-1], shape[:-1])[..., None] == np.arange(shape[-1])).astype(np.float64)
    if kind == "mask":
        keep = bits.integers(0, 3, shape) > 0
        np.put_along_axis(keep, bits.integers(0, shape[-1], (*shape[:-1], 1)), True, -1)
        return keep.astype(np.float64)
    if tensor.positive:
        return 2.0 ** bits.integers(-2, 3, shape)
    if kind == "scalar":
        return np.asarray(bits.signs(shape) * 2.0 ** bits.integers(-2, 2, shape))
    low, high, unit = {"ties": (-1, 2, 1.0), "grid": (-8, 9, 0.25)}.get(case.family, (-4, 5, 1.0))
    values = bits.integers(low, high, shape) * unit * 2.0**case.exponent
    return np.abs(values) if tensor.nonnegative else values
