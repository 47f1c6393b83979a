"""Ten mistakes, written by somebody who had not seen the suite; six of them passed at first.

Each asked for an input class (covering.py), never for a case of its own. The pass that is right must pass.
"""

import importlib

import pytest

from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from lla_spec.testing.verdicts import exit_status

WRONG = {
    "maximum_before_negative_scale": ("definition", "fp32"),
    "truncated_log2e": ("definition", "fp32"),
    "split_product_without_low_bits": ("definition", "fp32"),
    "tile_taken_as_full": ("definition", "fp32"),
    "mask_batch_index_wraps": ("definition", "fp32"),
    "values_with_keys_strides": ("definition", "fp32"),
    "key_gradient_loop_starts_late": ("vjp", "fp32"),
    "delta_in_io_dtype": ("vjp", "bf16"),
    "lazy_rescaling_too_late": ("definition", "fp32"),
    "negligible_tiles_skipped": ("vjp", "fp32"),
}


def results_of(name, law, dtype):
    target = load(importlib.import_module(f"tests.targets.adversarial.{name}"))
    session = Session(target, Options(ops=("attention",), laws=(law,), dtypes=(dtype,), examples=0))
    return [session.run(row) for row in session.rows()]


@pytest.mark.parametrize("name", WRONG)
def test_the_mistake_is_found(name):
    assert exit_status(results_of(name, *WRONG[name])) == 1


@pytest.mark.parametrize("name", WRONG)
def test_what_is_right_in_it_passes(name):
    """A forward mistake leaves the gradient right, and conversely (but where autograd differentiates the forward)."""
    law, dtype = WRONG[name]
    (result,) = results_of(name, "definition" if law == "vjp" else "vjp", dtype)
    assert result.verdict == "pass", result.message
