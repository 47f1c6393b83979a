"""What a failure says, for one kernel of each kind: the files in golden/ are read by people and compared to the letter.

Every kernel computes in float64 and rounds once, so that no digit depends on the machine or on the number of threads.
`python -m tests.engine.test_failure_texts --write` writes the files anew; read the difference before committing it.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lla_spec.certified import Certified
from lla_spec.evaluating.contracts import contract
from lla_spec.language import registry
from lla_spec.testing.cases import parse
from lla_spec.testing.causes import knobs
from lla_spec.testing.covering import covering
from lla_spec.testing.diagnose import texts
from lla_spec.testing.failure import LINES, WIDTH, describe
from lla_spec.testing.hints import BY_CAUSE
from lla_spec.testing.inputs import build
from lla_spec.testing.judge import Judgement
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from lla_spec.testing.verdicts import Result, Row
from lla_spec.testing.workers import crashed

GOLDEN = Path(__file__).parent / "golden"
WAY_BACK = "python -m tests.engine.test_failure_texts --write"


def attention(q, k, v, mask=None, *, is_causal=False, scale=None, default=None, corner=0, inverted=False, empty=0.0,
              shifted=True, hidden=-torch.inf, dtype=torch.float64):  # fmt: skip
    """Right, with a knob for each mistake: `corner` moves the causal diagonal by n - m, as top-left alignment does."""
    n, m, d = q.shape[-2], k.shape[-2], q.shape[-1]
    visible = torch.ones(n, m, dtype=torch.bool) if mask is None else mask ^ inverted
    visible = visible & torch.ones(n, m, dtype=torch.bool).tril((m - n) * (1 - corner)) if is_causal else visible
    scores = q.to(dtype) @ k.to(dtype).mT * ((default or d**-0.5) if scale is None else scale)
    scores = scores.masked_fill(~visible, hidden)
    peak = scores.detach().amax(-1, keepdim=True).clamp_min(-1e30) if shifted else 0.0
    weights = (scores - peak).exp()
    total = weights.sum(-1, keepdim=True)
    weights = (weights / total.masked_fill(total == 0, 1)).masked_fill(~visible.any(-1, keepdim=True), empty)
    return (weights.double() @ v.double()).to(q.dtype)


def rounded(function):
    """`function` in float64, its result rounded once."""
    return lambda x, *a, **k: function(x.double(), *(b.double() if torch.is_tensor(b) else b for b in a), **k).to(
        x.dtype
    )


def wrong(**knobs):
    return lambda *a, **k: attention(*a, **k, **knobs)


def vjp(function, change=lambda *gradients: gradients):
    """The gradients of `function` in float64, changed, rounded once."""

    def backward(*given, grad_output, **options):
        leaves = [t.detach().double().requires_grad_() if t is not None and t.is_floating_point() else t for t in given]
        floating = [t for t in leaves if t is not None and t.is_floating_point()]
        found = torch.autograd.grad(function(*leaves, **options), floating, grad_output.double())
        changed = iter(change(*found))
        return tuple(
            None if t is None else next(changed).to(t.dtype) for t in given if t is None or t.is_floating_point()
        )

    return backward


def norm(x, weight=None, bias=None, *, eps=1e-5, variance=lambda x: x.var(-1, unbiased=False, keepdim=True)):
    y = (x - x.mean(-1, keepdim=True)) / (variance(x) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def one_pass(x):
    """E[x²] - E[x]² in float32, term by term."""
    square, mean = (sum(y.float().unbind(-1)) / x.shape[-1] for y in (x.square(), x))
    return (square - mean.square()).double()[..., None]


def writes(x):
    out = torch.softmax(x.double(), -1).to(x.dtype)
    x.data.mul_(2)
    return out


def loops(x):
    while True:
        pass


def in_sixteen_bits(x):
    """log Σ exp with the sum rounded to the dtype of x."""
    peak = x.double().amax(-1, keepdim=True)
    total = (x.double() - peak).exp().sum(-1, keepdim=True).to(x.dtype).double()
    return (x.double() - peak - total.log()).to(x.dtype)


class Kept:
    """Keeps its last answer, by the address of the input (which it holds, so that no other tensor lies there)."""

    x = answer = None

    def __call__(self, x):
        if self.x is None or self.x.data_ptr() != x.data_ptr():
            self.x, self.answer = x, softmax(x)
        return self.answer


class Wavering:
    """Every third answer is wrong."""

    calls = 0

    def __call__(self, x):
        self.calls += 1
        return (torch.softmax(x.double(), -1) * (2 if self.calls == 3 else 1)).to(x.dtype)


def loss(logits, targets, *, ignore_index=-100, reduction="mean"):
    """The loss of word 0 where there is no target."""
    each = -logits.double().log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    total = each.sum() if reduction != "none" else each
    return (total / (targets != ignore_index).sum() if reduction == "mean" else total).to(logits.dtype)


def eigenvalues(w, k):
    """σ² for σ."""
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    return u[..., :k].to(w.dtype), s[..., :k].square().to(w.dtype), vh[..., :k, :].to(w.dtype)


softmax = rounded(lambda x: torch.softmax(x, -1))
ATTENTION = {"attention": attention}
KINDS = {  # name: functions, law, dtype, and the operation where it is not the first function's name
    "wrong_result": ({"softmax": rounded(lambda x: torch.softmax(x, -1) ** 1.01)}, "definition", "fp32"),
    "wrong_gradient": ({"softmax": softmax, "softmax_vjp": vjp(softmax, lambda dx: (dx * 1.5,))}, "vjp", "fp32"),
    "law": ({"softmax": rounded(lambda x: torch.softmax(x, -1) * 1.5)}, "row_sums", "fp32"),
    "scale_missing": ({"attention": wrong(default=1.0)}, "definition", "bf16"),
    "mask_inverted": ({"attention": wrong(inverted=True)}, "definition", "fp32"),
    "finite_score_hides": ({"attention": wrong(hidden=-1e4)}, "definition", "fp32"),
    "causal_top_left": ({"attention": wrong(corner=1)}, "definition", "fp32"),
    "empty_row_is_nan": ({"attention": wrong(empty=torch.nan)}, "definition", "fp32"),
    "no_maximum": ({"attention": wrong(shifted=False, dtype=torch.float32)}, "definition", "fp32"),
    "weight_transposed": ({"linear": rounded(lambda x, w, b=None: _square(x, w, b))}, "definition", "fp32"),
    "sum_in_sixteen_bits": ({"log_softmax": in_sixteen_bits}, "definition", "bf16"),
    "float64_in_float32": ({"softmax": lambda x: softmax(x.float().double()).float().double()}, "definition", "fp64"),
    "variance_in_one_pass": ({"layer_norm": rounded(lambda *a, **k: norm(*a, **k, variance=one_pass))}, "definition",
                             "fp32"),
    "gradient_missing": ({**ATTENTION, "attention_vjp": vjp(attention, lambda q, k, v: (q, 0 * k, v))}, "vjp", "fp32"),
    "gradient_doubled": ({**ATTENTION, "attention_vjp": vjp(attention, lambda q, k, v: (2 * q, k, v))}, "vjp", "fp32"),
    "ignored_label": ({"cross_entropy": loss}, "definition", "fp32", "cross_entropy_none"),
    "singular_values": ({"truncated_svd": eigenvalues}, "definition", "fp32"),
    "kept_answer": ({"softmax": Kept()}, "definition", "fp32"),
    "answers_change": ({"softmax": Wavering()}, "definition", "fp32"),
    "raises": ({"softmax": lambda x, dim: x.softmax(dim)}, "definition", "fp32"),
    "hangs": ({"softmax": loops}, "definition", "fp32"),
    "writes_its_input": ({"softmax": writes}, "definition", "fp32"),
    "shape": ({"softmax": lambda x: softmax(x)[None]}, "definition", "fp32"),
    "dtype": ({"softmax": lambda x: torch.softmax(x.double(), -1)}, "definition", "fp32"),
    "returns_none": ({"softmax": lambda x: None}, "definition", "fp32"),
    "returns_a_tuple": ({"attention": lambda *a, **k: (attention(*a, **k), None)}, "definition", "fp32"),
    "too_few_gradients": ({**ATTENTION, "attention_vjp": lambda *a, **k: vjp(attention)(*a, **k)[:2]}, "vjp", "fp32"),
    "meddles": ({"softmax": lambda x: (torch.set_default_dtype(torch.float64), softmax(x))[1]}, "definition", "fp32"),
}  # fmt: skip


def _square(x, w, b):
    y = x @ (w if w.shape[0] == w.shape[1] else w.mT)
    return y if b is None else y + b


def told(name):
    """The text of one kind, as `lla-spec verify kernels.py` tells it."""
    functions, law, dtype, *operation = KINDS[name]
    operation = operation[0] if operation else next(iter(functions))
    target = load({**functions, "LLA_TARGET": {"name": "my kernels", "version": "1.0", "dtypes": [dtype]}})
    limit = 0.3 if name == "hangs" else 60.0
    session = Session(target, Options((operation,), (law,), (dtype,), ("cpu",), examples=0, limit=limit))
    (row,) = session.rows()
    result = session.run(row)
    assert result.verdict == "fail", (name, result)
    (text,) = texts(session, [result], "kernels.py", seconds=60, looking=60)
    return re.sub(r"(\.py):\d+", r"\1", text)  # a page may grow


@pytest.mark.parametrize("name", KINDS)
def test_a_failure_is_told_as_it_was_agreed(name):
    text = told(name)
    assert text + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8"), f"if it is better now: {WAY_BACK}"
    first, *lines = text.splitlines()
    assert first.startswith(f"{next(iter(KINDS[name][0]))}") and len(lines) < LINES
    (replay,) = [line for line in lines if line.startswith("  replay ")]
    assert all(len(line) <= WIDTH for line in [first, *lines] if line is not replay)
    assert str(parse(replay.split("'")[1])) in replay


def test_no_text_is_longer_than_a_screen_whatever_is_said():
    """The operation with the longest formula and the most tensors, with long words in every place."""
    session = Session(load("impl"), Options(("multi_head_attention",), ("vjp",), ("bf16",), ("cpu",)))
    (row,), words = session.rows(), "much is to be said of it " * 40
    found = session.judging(row, session.contract(row))(parse(
        "multi_head_attention:vjp:bf16:cpu:n=2,k=2,g=1,r=1,a=1,e=1,o=1,family=normal,seed=0"
    ))  # fmt: skip
    found = replace(found, kind="bound", message=words)
    result = Result(row, "fail", kind="bound", cause=words, meets=words)
    formula, original = registry.formulas[row.op], replace(found.case, seed=10**9)
    text = describe(
        session.target, result, formula, session.contract(row), found, original, target_name="impl", also=words
    )
    lines = text.splitlines()
    assert len(lines) == LINES and [line for line in lines if len(line) > WIDTH] == [lines[-2]]
    for label in ("row", "formula", "case", "worst", "shows", "cause", "bound", "meets", "also", "replay", "try"):
        assert any(line.startswith(f"  {label:<10}") for line in lines), label


def told_of(functions, dtypes=("fp32",), laws=("definition", "vjp")):
    """The texts of an operation's definition and gradient."""
    target = load({**functions, "LLA_TARGET": {"dtypes": list(dtypes)}})
    session = Session(target, Options(("softmax",), laws, (), ("cpu",), examples=0))
    return texts(session, [session.run(row) for row in session.rows()], "kernels.py")


def test_the_gradient_that_autograd_makes_of_a_wrong_forward_pass_is_told_with_it():
    def off(x):
        return torch.softmax(x.double(), 0).to(x.dtype)

    (text,) = told_of({"softmax": off})
    assert text.startswith("softmax: the softmax runs over the rows") and "  also      vjp fp32" in text
    assert len(told_of({"softmax": off, "softmax_vjp": vjp(off)})) == 2


@pytest.mark.parametrize("maximum", [True, False])
def test_eager_code_in_16_bits_is_one_text_that_says_so(maximum):
    """Each function of a library rounds its result: of all slips the most frequent. Its laws and gradients follow."""

    def eager(x):
        e = torch.exp(x - x.amax(-1, keepdim=True) if maximum else x.clamp(-50, 50))
        return e / e.sum(-1, keepdim=True)

    (text,) = told_of({"softmax": eager}, ["bf16"], ("definition", "vjp", "softmax_gradient", "row_sums"))
    first, *lines = text.splitlines()
    assert first.startswith("softmax: every step is rounded to bf16 (bf16, cpu)")
    assert "  also      row_sums bf16, softmax_gradient bf16, vjp bf16" in map(sorted_rows, lines)
    assert lines[-1] == "  try       convert the inputs to float32 first, and round the result once"


def sorted_rows(line):
    head, rows = line[:12], line[12:]
    return head + ", ".join(sorted(rows.split(", ")))


def test_a_process_that_ended_is_told_by_the_case_that_it_was_at():
    session = Session(load({"softmax": softmax, "LLA_TARGET": {"name": "my kernels"}}))
    case = parse("softmax:definition:fp32:cpu:m=33,family=normal,seed=1")
    result = crashed(Row("softmax", "definition", "fp32"), case, "the process was ended by SIGSEGV")
    (text,) = texts(session, [result], "kernels.py")
    first, *lines = text.splitlines()
    assert first == "softmax: the process was ended by SIGSEGV (fp32, cpu)"
    assert f"  replay    lla-spec replay '{case}' --target kernels.py" in lines
    assert lines[-1].startswith("  try       run it with --isolate; ")


def knobs_of(operation):
    """What may be said of an operation's failures: the words of every knob, over its input classes."""
    formula = registry.formulas[operation]
    laws = (("definition", "fp32"), ("vjp", "bf16"), ("definition", "fp64"))
    for law, dtype in laws if not isinstance(formula, Certified) else ():
        seen = set()
        for _, case in covering(formula, law, dtype, "cpu"):
            kind = (case.mask, case.causal, case.scale is None, case.index, case.special, case.without, case.each)
            if kind in seen or max(size for _, size in case.sizes) > 40:
                continue
            seen.add(kind)
            arguments = build(formula, case).arguments
            zeros = {name: torch.zeros_like(t) for name, t in arguments.items() if torch.is_tensor(t)}
            found = Judgement(case, outputs=zeros)
            yield from (knob.words for knob in knobs(formula, found, arguments, contract("fused", dtype)))


def test_every_cause_that_can_be_named_has_something_to_try_and_no_hint_is_dead():
    words = {words for formula in registry.operations() for words in knobs_of(formula.name)}
    hinted = {text: [pattern for pattern, _ in BY_CAUSE if re.search(pattern, text)] for text in words}
    assert [text for text, patterns in hinted.items() if not patterns] == []
    assert [pattern for pattern, _ in BY_CAUSE if not any(pattern in patterns for patterns in hinted.values())] == []


def test_no_golden_file_is_left_behind():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(KINDS)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {WAY_BACK}")
    for path in GOLDEN.glob("*.txt"):
        path.unlink()
    for kind in KINDS:
        (GOLDEN / f"{kind}.txt").write_text(told(kind) + "\n", encoding="utf-8")
