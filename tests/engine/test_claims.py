"""What a target says of itself in LLA_TARGET: refused in one line where it means nothing, kept to where it does."""

from pathlib import Path

import pytest
import torch

import impl
from lla_spec.testing.cases import DTYPES
from lla_spec.testing.claims import OPERATION_KEYS, POLICIES, TOP_KEYS
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.table import limits
from lla_spec.testing.targets import TargetError, load

SOFTMAX = "LLA_TARGET['ops']['softmax']"
MEANINGLESS = [
    ([], "LLA_TARGET is list, it must be a mapping"),
    ({"dtype": ["fp32"]}, "LLA_TARGET has the unknown key 'dtype'; known are name, version"),
    ({"dtypes": "fp32"}, r"LLA_TARGET has dtypes='fp32'; write a list, \['fp32'\]"),
    ({"dtypes": 5}, "LLA_TARGET has dtypes=5; write a list"),
    ({"dtypes": ["fp8"]}, "LLA_TARGET has the dtype 'fp8'; there are fp64, fp32, bf16, fp16"),
    ({"devices": [0]}, "LLA_TARGET has the device 0"),
    ({"differentiable": "no"}, "LLA_TARGET has differentiable='no'; write True or False"),
    ({"ops": ["softmax"]}, r"LLA_TARGET\['ops'\] is list, it must be a mapping"),
    ({"ops": {"softmx": {}}}, r"\['softmx'\] is no operation; there are softmax, "),
    ({"ops": {"softmax": 3}}, r"\['softmax'\] is int, it must be a mapping"),
    ({"ops": {"softmax": {"policies": "nan"}}}, r"\['policies'\] is str, it must be a mapping"),
    ({"ops": {"attention": {"policies": {"overflow": "big"}}}}, "has the policy overflow='big'; there are inf"),
    ({"ops": {"softmax": {"contract": 7}}}, "contract: 7 is not a contract; there are strict, fused, whiteboard"),
    ({"ops": {"softmax": {"contract": {"acc": 1}}}}, "contract: acc is 1"),
    ({"supports": lambda **sizes: True}, r"LLA_TARGET\['supports'\] is function, it must be a mapping"),
    ({"supports": {"dims": 3}}, r"\['dims'\] is int, it must be a mapping"),
    ({"supports": {"layouts": True}}, "has layouts=True; write 'contiguous' or some of dense, "),
    ({"ops": {"softmax": {"supports": {"n": [8]}}}}, "has 'n'; there are dimensions m; arguments x; layouts"),
    ({"ops": {"softmax": {"supports": {"m": 64}}}}, "has m=64; write a list of sizes, 'multiple of N', 'at most N'"),
    ({"ops": {"softmax": {"supports": {"m": []}}}}, r"has m=\[\]; write a list of sizes"),
    ({"ops": {"softmax": {"supports": {"m": "multiple of 0"}}}}, "has m='multiple of 0'; write a list of sizes"),
    ({"ops": {"softmax": {"supports": {"m": "at most ten"}}}}, "has m='at most ten'; write a list of sizes"),
    ({"ops": {"softmax": {"supports": {"m": "d"}}}}, "has m='d'; write a list of sizes"),
    ({"ops": {"pca_inverse": {"supports": {"z": "shared"}}}}, "has z='shared'; mean and components may be given for"),
    ({"ops": {"softmax": {"supports": {"x": "shared"}}}}, "has x='shared'; no argument may be given for each matrix"),
    ({"ops": {"softmax": {"supports": {"x": False}}}}, "x=False, but softmax is never called without x"),
    ({"ops": {"attention": {"supports": {"mask": "no"}}}}, "has mask='no'; write False for an argument that is not"),
]


@pytest.mark.parametrize(("claims", "words"), MEANINGLESS, ids=[str(n) for n in range(len(MEANINGLESS))])
def test_a_claim_that_means_nothing_is_refused_in_one_line(claims, words):
    with pytest.raises(TargetError, match=words) as refused:
        load({"softmax": torch.softmax, "attention": impl.attention, "LLA_TARGET": claims or [1]})
    assert "\n" not in str(refused.value)


def attention_of_flash(q, k, v, *, is_causal=False):
    """No mask, no scale, heads as wide as the values and of two widths."""
    assert q.shape[-1] == v.shape[-1] and q.shape[-1] in (4, 8), "called outside of what it takes"
    return impl.attention(q, k, v, is_causal=is_causal)


FLASH = {"attention": {"supports": {"d": [4, 8], "e": "d", "mask": False, "scale": False}}}


@pytest.fixture(scope="module")
def of_flash():
    target = load({"attention": attention_of_flash, "LLA_TARGET": {"ops": FLASH}})
    session = Session(target, Options(ops=("attention",), dtypes=("fp64", "bf16"), examples=10))
    return [session.run(row) for row in session.rows()]


def test_a_kernel_is_called_inside_of_what_it_says_that_it_takes(of_flash):
    """In its definition and gradient, and in every call of every law."""
    assert {r.row.law: r.message for r in of_flash if r.verdict not in ("pass", "unimplemented")} == {}


def test_laws_hold_where_an_argument_that_is_not_taken_has_its_default(of_flash):
    checked = {result.row.law for result in of_flash if result.verdict == "pass"}
    assert {"key_bias", "constant_values", "hull", "masked_is_deleted", "gradient_key", "scaled_queries"} <= checked
    assert "log_mask" not in checked  # its mask is made: there is no call without one


def test_what_the_cases_are_limited_to_is_said(of_flash):
    assert limits(of_flash) == [
        "attention: checked where the target takes it: d in 4, 8; e = d; no mask; no scale",
    ]  # fmt: skip


def test_a_mistake_inside_of_what_is_taken_is_found_all_the_same():
    wrong = {"attention": lambda q, k, v, **o: attention_of_flash(q, 1.01 * k, v, **o), "LLA_TARGET": {"ops": FLASH}}
    session = Session(load(wrong), Options(dtypes=("fp32",), examples=0))
    found = {r.row.law: r.verdict for r in map(session.run, session.rows()) if r.row.op == "attention"}
    assert {found[law] for law in ("definition", "vjp", "matrix_form", "hull", "gradient_query")} <= {"fail"}


@pytest.mark.parametrize(
    ("operation", "kernel", "without"),
    [
        ("linear", lambda x, weight: impl.linear(x, weight), "bias"),
        ("layer_norm", lambda x, weight=None, *, eps=1e-5: impl.layer_norm(x, weight, eps=eps), "bias"),
        ("rms_norm", lambda x, *, eps=1e-6: impl.rms_norm(x, eps=eps), "weight"),
    ],
)
def test_a_kernel_without_an_optional_argument_is_checked_without_it(operation, kernel, without):
    claims = {"ops": {operation: {"supports": {without: False}}}}
    session = Session(load({operation: kernel, "LLA_TARGET": claims}), Options(ops=(operation,), examples=0))
    results = [session.run(row) for row in session.rows()]
    assert {r.row.dtype for r in results} == set(DTYPES)
    own = [result for result in results if result.row.law in ("definition", "vjp")]
    assert [r.verdict for r in own] == ["pass"] * 8, [r.message for r in own]
    assert {r.verdict for r in results} <= {"pass", "unimplemented"}, [r.message for r in results]


def test_a_kernel_with_one_mean_for_all_rows_is_asked_for_no_other():
    """As most people write it: where each matrix of a batch has its own mean, this raises."""

    def transform(x, mean, components):
        return impl.pca_transform(x, mean.reshape(x.shape[-1]), components)

    def verdicts(claims):
        target = load({"pca_transform": transform, "LLA_TARGET": {"ops": {"pca_transform": claims}}})
        session = Session(target, Options(ops=("pca_transform",), laws=("definition",), examples=0))
        results = [session.run(row) for row in session.rows()]
        return {result.verdict for result in results}, limits(results)

    assert verdicts({})[0] == {"fail"}
    said = ["pca_transform: checked where the target takes it: one mean for all rows"]
    assert verdicts({"supports": {"mean": "shared"}}) == ({"pass"}, said)


def test_every_claim_stands_in_the_page_about_targets():
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    page = page[page.index("## Adding a target") :]
    values = {value for policy in POLICIES.values() for value in policy}
    missing = {word for word in {*TOP_KEYS, *OPERATION_KEYS, *POLICIES, *values} if f"`{word}`" not in page}
    assert not missing


def test_a_function_that_raises_whatever_it_is_given_is_no_skipped_row():
    """One dtype that raises is not supported; all of them are a function that does not work."""
    session = Session(load({"linear": lambda x, weight: impl.linear(x, weight)}), Options(("linear",), ("definition",)))
    results = [session.run(row) for row in session.rows()]
    assert [(result.verdict, result.kind) for result in results] == [("fail", "raises")] * 4
    assert "takes 2 positional arguments but 3 were given" in results[0].message


def test_a_backward_pass_that_raises_whatever_it_is_given_is_no_missing_gradient():
    def softmax_vjp(x, *, grad_output):
        raise RuntimeError("no backward pass")

    target = load({"softmax": impl.softmax, "softmax_vjp": softmax_vjp})
    session = Session(target, Options(("softmax",), ("vjp",), ("fp32",)))
    (result,) = [session.run(row) for row in session.rows()]
    assert (result.verdict, result.kind) == ("fail", "raises") and "no backward pass" in result.message


def test_a_dtype_that_raises_is_not_supported():
    def softmax(x):
        if x.dtype == torch.float64:
            raise TypeError("no float64")
        return impl.softmax(x)

    session = Session(load({"softmax": softmax}), Options(("softmax",), ("definition",)))
    assert [row.dtype for row in session.rows()] == ["fp32", "bf16", "fp16"]


def failing(target, **options):
    session = Session(load(target), Options(examples=0, **options))
    results = [session.run(row) for row in session.rows() if session.target.implements(row.op)]
    assert any(result.verdict == "pass" for result in results)
    return {(r.row.op, r.row.law, r.row.dtype): r.message for r in results if r.verdict == "fail"}


def test_a_kernel_without_a_backward_pass_is_asked_for_no_gradient_by_any_law():
    """One that autograd cannot see through: numpy, an inference kernel, a detached result."""

    def softmax(x):
        return impl.softmax(x.detach())

    assert failing({"softmax": softmax}, dtypes=("fp32",)) == {}
    session = Session(load({"softmax": softmax}), Options(("softmax",), ("vjp",), ("fp32",)))
    (result,) = map(session.run, session.rows())
    assert (result.verdict, result.message) == (
        "unimplemented", "softmax offers no gradient (autograd finds no way back from its result)",
    )  # fmt: skip


def test_no_law_calls_an_operation_or_a_gradient_in_a_dtype_that_it_does_not_take():
    """log_softmax = log ∘ softmax in float64, where softmax takes 16 bits alone, and its gradient bfloat16 alone."""

    def softmax(x):
        assert x.dtype in (torch.bfloat16, torch.float16)
        return impl.softmax(x)

    def softmax_vjp(x, *, grad_output):
        assert x.dtype == torch.bfloat16
        return impl.softmax_vjp(x, grad_output=grad_output)

    assert failing({"softmax": softmax, "softmax_vjp": softmax_vjp, "log_softmax": impl.log_softmax}) == {}
