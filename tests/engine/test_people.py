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


def test_where_every_answer_passes_is_said():
    x = torch.tensor([[3e38, -3e38, 1.0], [1.0, 2.0, 3.0]])
    told = str(assert_correct("layer_norm", torch.nn.functional.layer_norm(x, (3,)), x))
    assert "all 6 entries judged" in told and "3 of their bounds are infinite (a step may overflow)" in told
    told = str(assert_correct("layer_norm", torch.zeros(1, 3), x[:1]))
    assert "their bounds are infinite (a step may overflow), where every answer passes" in told


def test_a_formula_that_torch_calls_by_a_keyword_has_its_own_name():
    z, targets = torch.randn(4, 7, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 6, -100, 3])
    for reduction in ("sum", "none"):
        loss = torch.nn.functional.cross_entropy(z, targets, reduction=reduction)
        assert_correct(f"cross_entropy_{reduction}", loss, z, targets)
        assert_correct("cross_entropy", loss, z, targets, reduction=reduction)
        with pytest.raises(AssertionError):
            assert_correct(f"cross_entropy_{reduction}", loss * 1.01, z, targets)


def attention_at(rows):
    made = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, rows, 64, generator=made).bfloat16() for _ in range(3))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v


def test_long_attention_is_judged_on_rows_that_the_report_counts():
    out, q, k, v = attention_at(8192)
    checked = assert_correct("attention", out, q, k, v, is_causal=True)
    assert re.fullmatch(
        r"attention: [\d,]+ of 524,288 entries judged \(6\d of 8,192 on axis -2.*\), worst error / bound 0\.\d+; "
        r"the others were not looked at \(\d+\.\d s\)",
        str(checked),
    )
    assert 0 < checked.ratio <= 1 and checked.seconds < 60
    again = assert_correct("attention", out, q, k, v, is_causal=True)
    assert again.looked == checked.looked  # the same rows in every run
    out[0, 8000:8128] = out[0, 7999:8127].clone()  # a tile of 128 queries, one row off
    told = r"of \d,\d+ judged entries are outside .*worst \[0,8\d\d\d,\d+\].*; judged: 6\d of 8,192 on axis -2"
    with pytest.raises(AssertionError, match=told):
        assert_correct("attention", out, q, k, v, is_causal=True)


def test_a_large_softmax_is_judged_in_seconds_and_what_stands_out_is_found_wherever_it_lies():
    x = torch.randn(8192, 8192, generator=torch.Generator().manual_seed(2), dtype=torch.bfloat16)
    out = torch.softmax(x, -1)
    (looked,) = assert_correct("softmax", out, x).looked
    assert looked.said.endswith("of 8,192 on axis 0") and 0 < looked.judged < looked.entries == 2**26
    for row, planted in ((4321, float("nan")), (5000, 0.0), (1234, 7.0)):
        right = out[row].clone()
        out[row] = planted
        with pytest.raises(AssertionError, match=rf"8192 of [\d,]+ judged entries .*worst \[{row},\d+\]"):
            assert_correct("softmax", out, x)
        out[row] = right


def test_gradients_that_sum_over_rows_are_judged_whole_or_refused_in_one_line():
    made = torch.Generator().manual_seed(3)
    x, g = torch.randn(3000, 1024, generator=made), torch.randn(3000, 1024, generator=made)
    leaves = [x.requires_grad_(), torch.ones(1024, requires_grad=True)]
    dx, dw = torch.autograd.grad(torch.nn.functional.rms_norm(x, (1024,), leaves[1], 1e-6), leaves, g)
    first, second = assert_correct("rms_norm_vjp", (dx, dw), *leaves, grad_output=g).looked
    assert "on axis 0" in first.said and second.said == "" and second.judged == 1024
    with pytest.raises(AssertionError, match="rms_norm_vjp, gradient of weight: 1 of 1024 entries"):
        assert_correct("rms_norm_vjp", (dx, dw + (torch.arange(1024) == 77)), *leaves, grad_output=g)
    logits, targets = torch.zeros(1, 1).expand(4096, 32000), torch.zeros(4096, dtype=torch.long)
    loss = torch.tensor(32000.0).log()
    told = re.escape("the result was not judged: it is too large to be judged whole") + '.*reduction="none"$'
    with pytest.raises(ValueError, match=r"^cross_entropy\(logits \(4096, 32000\), targets \(4096,\)\): " + told):
        assert_correct("cross_entropy", loss, logits, targets)
    assert_correct("cross_entropy", loss.expand(4096), logits, targets, reduction="none")
    with pytest.raises(ValueError, match="too large for the bound of every entry; ask for it at some of the rows"):
        bound("cross_entropy", logits, targets)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: assert_correct("softmax", x[1:], x),
            AssertionError,
            r"shape \(2999, 1024\), it must be \(3000, 1024\)",
        ),
        (
            lambda x: assert_correct("attention", x, x, x, x, torch.ones(30, 3000, dtype=torch.bool)),
            ValueError,
            r"mask has shape \(30, 3000\), which does not broadcast to \(..., 3000, 3000\)",
        ),
        (lambda x: assert_correct("matmul", x, x, x), ValueError, r"b has shape \(3000, 1024\), 3000 on axis -2"),
        (lambda x: assert_correct("softmax", x.long(), x), ValueError, "dtype torch.int64 has no contract"),
        (lambda x: assert_correct("softmax", x, [1.0]), TypeError, r"softmax\(x\): its tensors must be torch.Tensor"),
        (
            lambda x: assert_correct("softmax", x.to("meta"), x),
            AssertionError,
            "the result is a meta tensor, which has no",
        ),
        (
            lambda x: assert_correct("softmax", x.to_sparse(), x),
            AssertionError,
            "a tensor of the layout torch.sparse_coo",
        ),
        (lambda x: assert_correct("softmax", x, x.to("meta")), ValueError, "softmax: an argument is a meta tensor"),
        (lambda x: assert_correct("softmax", x), TypeError, r"softmax\(x\): missing a required argument"),
        (lambda x: assert_correct("softmax", (x, x), x), AssertionError, "2 values, it must be one tensor"),
        (
            lambda x: assert_correct("matmul_vjp", x, x, x.mT, grad_output=x),
            AssertionError,
            r"1 values, it must be 2 gradients \(a, b\)",
        ),
        (
            lambda x: assert_correct("softmax_vjp", x, x, grad_output=x[1:]),
            ValueError,
            r"do not broadcast: x \(3000,\), grad_output \(2999,\)",
        ),
    ],
)
def test_large_tensors_that_do_not_fit_are_named_by_their_own_shapes(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(3000, 1024))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: assert_correct(x, x),
            TypeError,
            "^assert_correct: the operation's name comes first, got Tensor; write",
        ),
        (
            lambda x: assert_correct("attention", x, x, x, x, mask=torch.zeros(4, 4)),
            ValueError,
            r"^attention: mask holds numbers, it must be bool, True where it may be looked at \(of an additive",
        ),
        (lambda x: assert_correct("mean_pool", x[0], x, mask=torch.ones(4).int()), ValueError, "mask holds numbers"),
        (
            lambda x: assert_correct("truncated_svd", torch.linalg.svd(x, full_matrices=False), x, 9),
            ValueError,
            "^truncated_svd: k=9 is not in 1…4, the least dimension of the arguments",
        ),
        (lambda x: assert_correct("pca", (x, x, x), x), TypeError, r"^pca\(x, k\): missing a required argument: 'k'"),
    ],
)
def test_what_is_no_call_of_the_operation_is_said_in_its_words(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.eye(4))


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
