"""watch: every call of a declared operation in a model, judged at its actual inputs and cotangents."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lla_spec.testing.watching import watch
from tests.engine.watched import block, leaf, randn

# ---- what is found


def test_a_right_model_is_right_call_by_call():
    model, ids = block()
    with watch(model) as seen:
        model(ids).backward()
    seen.assert_correct()
    assert (seen.calls, seen.judged, seen.not_judged) == (6, 6 + 1 + 3 + 3 + 3 + 3 + 1, {})
    table = seen.table()
    for line in ("linear         gradient of weight", "attention      gradient of q", "6 calls seen"):
        assert line in table
    assert all(line.split()[-3] == "0" for line in table.splitlines() if "torch.nn.functional.linear" in line)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_in_bfloat16_it_finds_what_is_wrong_in_torch(one_thread):
    """Nobody told it where to look: LayerNorm's and the embedding's gradients, and cross-entropy on 16-bit logits.

    On one thread: torch splits its sums among threads, and the cause is that they are rounded one after the other.
    """
    model, ids = block(torch.bfloat16)
    with watch(model) as seen:
        model(ids).backward()
    wrong = {(f.operation, f.output) for f in seen.failures}
    assert wrong >= {("layer_norm", "weight"), ("layer_norm", "bias"), ("embedding", "weight")}
    assert wrong <= {
        ("cross_entropy", ""), ("cross_entropy", "logits"), ("embedding", "weight"),
        ("layer_norm", "x"), ("layer_norm", "weight"), ("layer_norm", "bias"),
    }  # fmt: skip
    causes = {f.output: f.cause for f in seen.failures if f.cause and f.operation == "layer_norm"}
    assert "sums are accumulated in bf16" in causes["bias"]
    with pytest.raises(AssertionError, match=r"^call \d+, .*, torch\.nn\.functional\.\w+: .* entries are outside"):
        seen.assert_correct()


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, 2 * grad.flatten(0, -2).mT @ x.flatten(0, -2)


def doubled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return WrongBackward.apply(x, weight)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return doubled(x, self.weight)


def test_a_wrong_gradient_is_named_with_its_argument_and_cause():
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(Doubled(6, 5)))
    with watch(model, functions={"linear": doubled}) as seen:
        model(randn(2, 3, 4)).square().sum().backward()
    (failure,) = seen.failures
    assert (failure.operation, failure.output, failure.site.module) == ("linear", "weight", "1.0")
    assert "the gradient of weight: it is doubled" in failure.cause
    assert abs(failure.worst.computed / failure.worst.exact - 2) < 1e-4


def cuts_off(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight.detach(), bias)


def gives_none(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return GivesNone.apply(x, weight)


class GivesNone(WrongBackward):
    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, None


def no_graph(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.detach(), weight.detach(), bias)


def flat(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias).flatten(0, -2)


def test_a_gradient_that_is_cut_off_is_a_gradient_of_zeros():
    x, weight = leaf(2, 3, 4), leaf(5, 4, seed=1)
    with watch(None, functions={"linear": cuts_off}) as seen:
        cuts_off(x, weight).square().sum().backward()
    (failure,) = seen.failures
    assert failure.output == "weight" and failure.worst.computed == 0 != failure.worst.exact


@pytest.mark.parametrize(
    ("function", "why"), [(gives_none, "none left the call"), (no_graph, "the result is not differentiable")]
)
def test_a_gradient_that_does_not_come_is_listed(function, why):
    x, weight = leaf(2, 3, 4), leaf(5, 4, seed=1)
    with watch(None, functions={"linear": function}) as seen:
        (globals()[function.__name__](x, weight) + x.sum()).square().sum().backward()
    assert seen.first is None and [reason.startswith(why) for _, reason in seen.not_judged] == [True]


def test_a_function_that_is_called_past_its_names_is_listed():
    held = flat
    with watch(None, functions={"linear": flat}) as seen:
        held(randn(2, 4), randn(5, 4))
    assert list(seen.not_judged) == [(f"{__name__}.flat", "handed, and never called through a name that holds it")]


def test_a_result_of_another_shape_is_wrong():
    x, weight = randn(2, 3, 4), randn(5, 4)
    with watch(None, functions={"linear": flat}) as seen:
        flat(x, weight)
    assert seen.first is not None and "has shape (6, 5), it must be (2, 3, 5)" in seen.first.cause


class Norm(nn.Module):
    """RMSNorm in Python, as models have it."""

    def __init__(self, size: int, wrong: float = 0.0) -> None:
        super().__init__()
        self.weight, self.eps, self.wrong = nn.Parameter(1 + 0.1 * randn(size)), 1e-6, wrong

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.wrong + self.eps))


def rms_arguments(self: Norm, x: Tensor) -> dict:
    return {"x": x, "weight": self.weight, "eps": self.eps}


def test_a_composite_in_python_is_judged_where_it_is_handed_by_name():
    model, x = nn.Sequential(Norm(8), Norm(8, wrong=0.01)), leaf(2, 5, 8)
    y = x + 1  # used outside of the call as well, so that only a part of its gradient is the call's
    with watch(model, functions={"rms_norm": (Norm.forward, rms_arguments)}) as seen:
        (model(y) + y).square().sum().backward()
    assert seen.judged == 6
    assert {(f.site.module, f.output) for f in seen.failures} == {("1", ""), ("1", "x"), ("1", "weight")}
    assert Norm.forward.__name__ == "forward" and not hasattr(Norm.forward, "__wrapped__"), "put back"


def test_a_function_that_cannot_be_intercepted_is_refused():
    def nowhere(x: Tensor) -> Tensor:
        return x

    for name, function, why in (
        ("softmax", nowhere, r"no module, class, object or dict holds the function .*nowhere given for softmax"),
        ("conv", doubled, "conv is no operation; there are softmax"),
    ):
        with pytest.raises(ValueError, match=why), watch(None, functions={name: function}):
            pass


def test_a_function_is_found_where_a_server_froze_its_objects_before_it_forked():
    held = {"soft": lambda x: x.softmax(-1)}
    gc.collect()
    gc.freeze()
    try:
        with watch(None, functions={"softmax": held["soft"]}) as seen:
            held["soft"](randn(2, 3))
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    assert seen.judged == 1


# ---- it leaves no trace


def test_everything_is_put_back_after_an_exception():
    from torch.overrides import _get_current_function_mode_stack

    import impl

    model = nn.Sequential(nn.Linear(4, 4), Doubled(4, 4), nn.ReLU())
    held = impl.linear, doubled, Norm.forward
    functions = {"linear": doubled, "rms_norm": (Norm.forward, rms_arguments)}
    with pytest.raises(RuntimeError, match="mat1 and mat2"), watch(model, functions=functions) as seen:
        assert impl.linear is not held[0] and globals()["doubled"] is not held[1]
        model(randn(2, 4))
        model(randn(2, 3))
    assert (impl.linear, globals()["doubled"], Norm.forward) == held
    assert not _get_current_function_mode_stack()
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert seen.judged == 2, "what was seen until then can be asked for"
    calls = seen.calls
    model(randn(2, 4))
    assert seen.calls == calls


def test_a_graph_that_outlives_the_block_is_as_it_was():
    x, weight = leaf(3, 4), leaf(5, 4, seed=1)
    with watch(None) as seen:
        out = F.linear(x, weight).square().sum()
    out.backward()
    assert seen.judged == 1 and weight.grad is not None


def test_the_same_positions_are_sampled_with_the_same_seed():
    x, weight = randn(50, 16, dtype=torch.bfloat16), randn(40, 16, seed=1, dtype=torch.bfloat16)
    tables = []
    for seed in (0, 0, 1):
        with watch(None, entries=1000, seed=seed) as seen:
            F.linear(x, weight)
        tables.append(seen.table().splitlines()[1])
    assert tables[0] == tables[1] != tables[2]
