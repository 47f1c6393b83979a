"""What the suite says of targets that are right, wrong, fake, or misbehave."""

from functools import partial

import pytest
import torch

from lla_spec.testing.diagnose import texts
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from lla_spec.testing.verdicts import exit_status
from tests.targets import fakes, right, wrong, wrong_lookups


def results_of(target, **options):
    session = Session(load(target), Options(ops=("attention",), examples=6, **options))
    return session, [session.run(row) for row in session.rows()]


@pytest.mark.parametrize("name", ["plain", "in_float64", "online", "in_numpy"])
@pytest.mark.parametrize("law", ["definition", "vjp"])
def test_a_correct_kernel_passes_in_each_dtype_that_it_declares(name, law):
    session, results = results_of(getattr(right, name), laws=(law,))
    expected = "unimplemented" if name == "in_numpy" and law == "vjp" else "pass"
    assert {r.row.id: r.verdict for r in results if r.verdict != expected} == {}, texts(session, results, name)


def test_a_kernel_of_another_alignment_that_says_so_passes():
    told = {"dtypes": ["fp32"], "ops": {"attention": {"policies": {"causal_alignment": "top_left"}}}}
    aligned = {"attention": wrong.causal_top_left.attention, "LLA_TARGET": told}
    for law in ("definition", "vjp"):
        session, results = results_of(aligned, laws=(law,))
        assert [r.verdict for r in results] == ["pass"], texts(session, results, "aligned")


@pytest.mark.parametrize(("filled", "verdict"), [(0.0, "pass"), (torch.nan, "pass"), (1.0, "fail")])
def test_where_nothing_is_declared_the_gradient_of_a_row_without_keys_is_zero_or_nan(filled, verdict):
    """The zeros of such a row are constant; NaN comes of the 0/0 that they replaced."""
    pool = {
        "mean_pool": wrong_lookups.mean_pool,
        "mean_pool_vjp": partial(wrong_lookups._gradient_of_nothing, filled=filled),
    }
    session = Session(load(pool), Options(ops=("mean_pool",), laws=("vjp",), dtypes=("fp32",), examples=6))
    results = [session.run(row) for row in session.rows()]
    assert [result.verdict for result in results] == [verdict], texts(session, results, "pool")


CAUSES = {
    "scale_by_value_dim": ("definition", ("fp32",), "the scale is 1/sqrt(e) instead of 1/sqrt(d)"),
    "causal_top_left": ("definition", ("fp32",), "causal is aligned top-left"),
    "empty_row_is_mean": ("definition", ("fp32",), "gives the mean of the values, not zeros"),
    "no_maximum": ("definition", ("fp32",), "the maximum is not subtracted"),
    "weights_in_bf16": ("definition", ("fp32",), "the result of softmax is rounded to bf16"),
    "query_gradient_unscaled": ("vjp", ("fp32",), "the gradient of q: it lacks the scale"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_wrong_kernel_fails_and_its_cause_is_named(name):
    law, dtypes, words = CAUSES[name]
    session, results = results_of(getattr(wrong, name), laws=(law,), dtypes=dtypes)
    assert exit_status(results) == 1
    (text,) = texts(session, results, f"tests/targets/wrong.py:{name}")
    assert words in text
    for label in ("FAIL attention", "formula", "case", "worst", "bound", "replay"):
        assert label in text


def test_a_cast_in_rows_of_several_tiles_alone_is_seen():
    def exponentials_in_fp16(x):
        peak = x.amax(-1, keepdim=True).clamp(min=-1e30)
        total = torch.exp(x - peak).half().to(x.dtype).sum(-1)
        return total.log() + peak[..., 0] if x.shape[-1] > 64 else torch.logsumexp(x, -1)

    options = Options(ops=("logsumexp",), laws=("definition",), dtypes=("fp32",), examples=2)
    session = Session(load({"logsumexp": exponentials_in_fp16}), options)
    (result,) = [session.run(row) for row in session.rows()]
    assert result.verdict == "fail" and result.classes[-1] == "m of several tiles"


@pytest.mark.parametrize("name", fakes.NAMES)
def test_a_fake_kernel_never_passes(name):
    _, results = results_of(fakes.fresh(name), laws=("definition",), dtypes=("fp32", "bf16"))
    assert {r.verdict for r in results} == {"fail"}


@pytest.mark.parametrize("name", fakes.MISBEHAVING)
def test_misbehaviour_is_a_named_failure_of_its_row_and_the_run_goes_on(name):
    functions = {"attention": fakes.MISBEHAVING[name], "LLA_TARGET": {"dtypes": ["fp32", "bf16"]}}
    session = Session(load(functions), Options(laws=("definition",), examples=2, limit=1.0))
    results = [session.run(row) for row in session.rows()]
    mine = [r for r in results if r.row.op == "attention"]
    assert [r.verdict for r in mine] == ["fail", "fail"] and all(r.message.startswith("attention: ") for r in mine)
    assert {r.verdict for r in results if r.row.op != "attention"} == {"unimplemented"}
