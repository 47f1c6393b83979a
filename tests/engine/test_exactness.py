"""On integers whose sums fit the accumulator a linear operation is known to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import impl
from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.exactness import rounded
from lla_spec.evaluating.operations import bound
from lla_spec.testing.inputs import TORCH_DTYPES
from lla_spec.testing.truth import as_numpy


def integers(dtype, *shape, seed, high=9):
    return torch.randint(-high, high + 1, shape, generator=torch.Generator().manual_seed(seed)).to(TORCH_DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), k=st.integers(1, 300))
@settings(max_examples=70, deadline=None)
def test_the_result_is_the_exact_one_rounded_once(dtype, seed, n, k):
    a, b = integers(dtype, n, k, seed=seed), integers(dtype, k, 3, seed=seed + 1)
    found = bound("matmul", {"a": as_numpy(a), "b": as_numpy(b)}, contract("strict", dtype))
    assert (found.error == 0).all()
    assert (as_numpy(impl.matmul(a, b)) == found.value).all()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounding_agrees_with_torch(dtype):
    values = np.ldexp(np.random.default_rng(0).normal(size=20_000), np.random.default_rng(1).integers(-30, 18, 20_000))
    values = values.astype(np.float32).astype(np.float64)  # torch casts float64 by way of float32, which rounds twice
    expected = torch.from_numpy(values).to(TORCH_DTYPES[dtype]).double().numpy()
    assert np.array_equal(rounded(values, contract("strict", dtype).io), expected)


def test_truncating_the_last_cast_is_seen():
    """R = 257 rounds to 256 in bf16 and 259 to 260: a kernel that truncates gives 258."""
    a, b = torch.tensor([[1.0, 3.0]]).bfloat16(), torch.tensor([[256.0], [1.0]]).bfloat16()
    found = bound("matmul", {"a": as_numpy(a), "b": as_numpy(b)}, contract("strict", "bf16"))
    assert found.value.item() == 260.0 and found.error.item() == 0.0


def test_sums_beyond_the_accumulator_are_not_claimed_to_be_exact():
    a = np.full((1, 300), 256.0)
    assert bound("matmul", {"a": a, "b": a.T}, contract({"base": "strict", "acc": "bf16"}, "bf16")).error.item() > 0
