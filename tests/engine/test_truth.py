"""Values and bounds of several contracts at once are those of each alone, and what is remembered is bounded."""

import numpy as np
import pytest
import torch

from lla_spec.evaluating.contracts import contract
from lla_spec.language import registry
from lla_spec.testing import truth
from lla_spec.testing.covering import covering
from lla_spec.testing.inputs import build
from lla_spec.testing.truth import truth_of, truths_of

SOME = ("all sizes 1", "several tiles", "ints", "a live NaN", "near overflow", "full mask")


@pytest.fixture
def memory(monkeypatch):
    """A memory of its own."""
    made = truth._Memory(1 << 20)
    monkeypatch.setattr(truth, "_memory", made)
    return made


def forget(memory):
    memory.kept.clear()
    memory.bytes = 0


def cases_of(name, law, dtype):
    formula = registry.formulas[name]
    return [build(formula, case).arguments for kind, case in covering(formula, law, dtype) if kind in SOME]


def equal(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(truth._arrays(a), truth._arrays(b), strict=True))


@pytest.mark.parametrize("name", ["softmax", "attention", "layer_norm", "linear", "embedding", "multi_head_attention"])
@pytest.mark.parametrize("law", ["definition", "vjp"])
def test_what_is_computed_for_two_contracts_is_what_is_computed_for_each(name, law, memory):
    formula, declared = registry.formulas[name], contract("fused", "bf16")
    both = (declared, declared.tight())
    for arguments in cases_of(name, law, "bf16"):
        together = truths_of(formula, arguments, both, vjp=law == "vjp")
        forget(memory)
        alone = [truth_of(formula, arguments, each, vjp=law == "vjp") for each in both]
        assert all(map(equal, together, alone))


def test_in_balls_the_values_are_known_well_enough_for_the_smallest_bound(memory):
    formula, declared = registry.formulas["softmax"], contract("fused", "fp64")
    for arguments in cases_of("softmax", "definition", "fp64"):
        wide, narrow = truths_of(formula, arguments, (declared, declared.tight()), vjp=False)
        assert np.array_equal(wide[""].value, narrow[""].value, equal_nan=True)
        forget(memory)
        alone = truth_of(formula, arguments, declared.tight(), vjp=False)[""]
        np.testing.assert_array_equal(narrow[""].value, alone.value)
        np.testing.assert_array_equal(narrow[""].error, alone.error)


def test_the_same_inputs_are_answered_from_memory_and_the_oldest_are_forgotten(memory):
    formula, declared = registry.formulas["softmax"], contract("fused", "fp32")
    drawn = [torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(40)]
    first = truth_of(formula, {"x": drawn[0]}, declared, vjp=False)
    assert truth_of(formula, {"x": drawn[0].clone()}, declared, vjp=False)[""] is first[""]
    with pytest.raises(ValueError, match="read-only"):
        first[""].value[0, 0] = 1.0
    for x in drawn:
        truth_of(formula, {"x": x}, declared, vjp=False)
    assert 0 < memory.bytes <= memory.limit and len(memory.kept) < len(drawn)
    assert memory.bytes == sum(map(truth._size, memory.kept.values()))
    assert truth_of(formula, {"x": drawn[0]}, declared, vjp=False)[""] is not first[""]
