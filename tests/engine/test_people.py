"""assert_correct, bound, verify, parametrize_with_laws: the same checks on people's own tensors and functions."""

import re

import pytest
import torch

from lla_spec.testing import assert_correct, bound, verify
from tests.targets import right, wrong

pytest_plugins = ["pytester"]


def qkv(dtype=torch.bfloat16, n=5, m=7, d=4, e=3):
    made = torch.Generator().manual_seed(0)
    return [torch.randn(2, *shape, generator=made).to(dtype) for shape in ((n, d), (m, d), (m, e))]


def test_a_correct_result_is_accepted_and_a_changed_one_is_not():
    q, k, v = qkv()
    out = right.plain.attention(q, k, v, is_causal=True)
    assert_correct("attention", out, q, k, v, is_causal=True)
    out[1, 2, 0] += 0.25
    with pytest.raises(
        AssertionError, match=r"attention: 1 of 30 entries are outside their bound; worst \[1,2,0\]: computed"
    ):
        assert_correct("attention", out, q, k, v, is_causal=True)


def test_gradients_are_judged_by_the_argument_that_they_belong_to():
    q, k, v = (t.float() for t in qkv())
    g = torch.ones(2, 5, 3)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    grads = torch.autograd.grad(right.plain.attention(*leaves), leaves, g)
    assert_correct("attention_vjp", grads, q, k, v, grad_output=g)
    with pytest.raises(AssertionError, match="attention_vjp, gradient of k: "):
        assert_correct("attention_vjp", (grads[0], 2 * grads[1], grads[2]), q, k, v, grad_output=g)


def test_the_contract_decides_what_is_allowed():
    """Weights rounded to bf16 before the product: allowed by fused, not by strict."""
    q, k, v = qkv(n=20, m=40, d=8, e=8)
    weights = torch.softmax(q.float() @ k.float().mT / 8**0.5, -1).bfloat16().float()
    out = (weights @ v.float()).bfloat16()
    assert_correct("attention", out, q, k, v, contract="fused")
    with pytest.raises(AssertionError, match=r"contract io=bf16 acc=fp32\)"):
        assert_correct("attention", out, q, k, v, contract="strict")


def test_bound_is_a_tensor_of_the_results_shape_and_grows_with_the_unit_roundoff():
    q, k, v = (t.float() for t in qkv())
    coarse, fine = (bound("attention", q, k, v, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    assert coarse.shape == (2, 5, 3) and (coarse > fine).all() and (fine > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda q, k, v: assert_correct("attention", q, q, k, v),
            r"the result has shape \(2, 5, 4\), it must be \(2, 5, 3\)",
        ),
        (
            lambda q, k, v: assert_correct("attention", None, q, k, v),
            "the result is NoneType, it must be a torch.Tensor",
        ),
    ],
)
def test_what_is_no_result_is_said_plainly(call, message):
    with pytest.raises(AssertionError, match=message):
        call(*qkv())


def test_verify_prints_the_table_and_returns_the_rows(capsys):
    results = verify(
        {"softmax": lambda x: torch.softmax(x.float(), -1).to(x.dtype)}, laws=["definition"], dtypes=["bf16"]
    )
    assert [r.verdict for r in results if r.row.op == "softmax"] == ["pass"]
    printed = capsys.readouterr().out
    assert re.search(r"softmax\W+definition\W+0\.\d\d", printed) and "unimplemented" in printed


def test_three_lines_suffice_in_another_repository(pytester):
    pytester.makepyfile(
        """
        import torch
        from lla_spec.testing import parametrize_with_laws

        def softmax(x):
            return torch.softmax(x.float(), -1).to(x.dtype)

        @parametrize_with_laws({"softmax": softmax}, dtypes=["bf16"], laws=["definition", "shift"], examples=3)
        def test_softmax(law_check):
            law_check()

        @parametrize_with_laws({"softmax": lambda x: x * 0}, dtypes=["bf16"], laws=["definition"], examples=3)
        def test_zeros(law_check):
            law_check()
        """
    )
    outcome = pytester.runpytest_inprocess("-q")
    outcome.assert_outcomes(passed=2, failed=1)
    outcome.stdout.fnmatch_lines(["*FAIL softmax / definition*", "*replay*lla-spec replay*"])


def test_wrong_kernels_fail_under_assert_correct_as_well():
    q, k, v = qkv(torch.float32, d=4, e=3)
    with pytest.raises(AssertionError):
        assert_correct("attention", wrong.scale_by_value_dim.attention(q, k, v), q, k, v)
