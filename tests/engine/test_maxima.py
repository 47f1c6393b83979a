"""Autograd through every running maximum of one pass over blocks: what each gets is rounding, and is covered."""

from functools import partial

import numpy as np
import pytest
import torch

from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.operations import bound
from lla_spec.evaluating.sharp.maxima import through_maxima
from lla_spec.evaluating.sharp.roundings import Roundings
from lla_spec.evaluating.sharp.weights import weights
from tests.engine.kernels import attention_online, autograd, logsumexp_online, softmax_online

ROWS = {
    "rising": lambda rng, n: np.sort(rng.normal(size=(4, n)) * 8, -1),
    "falling": lambda rng, n: -np.sort(rng.normal(size=(4, n)) * 8, -1),
    "random": lambda rng, n: rng.normal(size=(4, n)) * 8,
    "the largest last": lambda rng, n: np.concatenate([rng.normal(size=(4, n - 1)) / 4 - 40, np.zeros((4, 1))], -1),
    "stairs of ties": lambda rng, n: np.broadcast_to(np.arange(n) // 16 * 3.0, (4, n)) - 3.0 * n / 16,
}


def given(rows, seed):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(np.ascontiguousarray(ROWS[rows](rng, int(rng.integers(20, 200))))).float()
    return rng, x


def worst(function, arguments, operation):
    """The largest error of the gradients that autograd makes, in terms of the strict bound of float32."""
    names, tensors = zip(*arguments.items(), strict=True)
    gradients = dict(zip(names, autograd(function)(*tensors[:-1], grad_output=tensors[-1]), strict=False))
    exact = {name: tensor.double().numpy() for name, tensor in arguments.items()}
    judged = bound(operation, exact, contract("strict", "fp32"), vjp=True)
    with np.errstate(all="ignore"):
        ratios = {k: np.abs(g.double().numpy() - judged[k].value) / judged[k].error for k, g in gradients.items()}
    return max(float(np.nan_to_num(ratio).max()) for ratio in ratios.values())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("function", [softmax_online, logsumexp_online])
def test_a_pass_over_blocks_differentiated_by_autograd_is_within_its_bound(function, block, rows):
    kernel = partial(function, block=block)
    for seed in range(12):
        rng, x = given(rows, seed)
        shape = x.shape if function is softmax_online else x.shape[:-1]
        g = torch.from_numpy(rng.normal(size=shape)).float()
        name = "softmax" if function is softmax_online else "logsumexp"
        assert worst(kernel, {"x": x, "grad_output": g}, name) <= 1


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("block", [1, 16])
def test_so_is_attention_whose_scores_are_such_rows(block, rows):
    """One query of ones, keys of one feature: the scores are the rows, and each gradient of a key is one of them."""
    for seed in range(12):
        rng, x = given(rows, seed)
        q, k, v = (
            torch.ones(4, 1, 1),
            x[..., None].contiguous(),
            torch.from_numpy(rng.normal(size=(*x.shape, 3))).float(),
        )
        g = torch.from_numpy(rng.normal(size=(4, 1, 3))).float()
        kernel = partial(attention_online, block=block)
        assert worst(kernel, {"q": q, "k": k, "v": v, "grad_output": g}, "attention") <= 1


def test_only_an_entry_that_no_earlier_one_exceeds_receives_what_was_summed_before_a_larger_one():
    model = Roundings(contract("strict", "fp32"), 0.0)
    error, flow = np.full((1, 5), 2.0**-24), np.zeros((1, 5))
    got = through_maxima(error, flow, weights(np.array([[1.0, 0.0, 3.0, 2.0, 3.0]]), model), model)
    received = np.round((got - error)[0] / 2.0**-24, 3)
    np.testing.assert_array_equal(received, [2, 0, 5, 0, 5])  # the first up to the third entry, ties as much as any


def test_where_logits_are_uncertain_each_that_may_be_a_maximum_receives_as_much():
    model = Roundings(contract("strict", "fp32"), 0.0)
    error, flow = np.full((1, 3), 2.0**-24), np.zeros((1, 3))
    w = weights(np.array([[1.0, 0.9, 2.0]]), model)
    for off, expected in ((0.0, [2, 0, 3]), (0.1, [2, 2, 3]), (0.6, [3, 3, 3])):
        received = np.round((through_maxima(error, flow, w, model, logit_error=off) - error)[0] / 2.0**-24, 3)
        np.testing.assert_array_equal(received, expected)
