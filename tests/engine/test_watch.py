"""watch: every call of a declared operation in a model, judged at its actual inputs and cotangents."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lla_spec.testing.watching import watch


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def leaf(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return randn(*shape, seed=seed, dtype=dtype).requires_grad_()


class Block(nn.Module):
    """What a decoder calls, in plain torch."""

    def __init__(self, vocabulary: int = 17, width: int = 8) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(vocabulary, width), nn.LayerNorm(width)
        self.project, self.head = nn.Linear(width, 3 * width), nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        q, k, v = self.project(self.norm(h)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        return F.cross_entropy(self.head(h)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def block(dtype: torch.dtype = torch.float32) -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    return Block().to(dtype), (17 * torch.rand(2, 30) ** 3).long()


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


# ---- which part of a tensor, and whose gradient


def test_a_large_output_is_sampled_and_the_place_is_that_of_the_whole():
    x, weight = randn(3, 40, 8), randn(30, 8)

    class Spoiled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return spoiled(x, weight)

    with watch(Spoiled(), functions={"linear": spoiled}, entries=2000) as seen:
        Spoiled()(x)
    (failure,) = seen.failures
    assert failure.judged <= 250 < 3600, "of 3600 entries"
    assert failure.worst.index == (2, 39, 29) and failure.outside == 1
    assert abs(failure.worst.computed - 7) < 1e-6


def spoiled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = F.linear(x, weight, bias)
    out[-1, -1, -1] = 7
    return out


@pytest.mark.parametrize("entries", [300, 1 << 24])
@pytest.mark.parametrize("causal", [False, True])
def test_sampled_or_whole_every_gradient_of_right_calls_is_right(causal, entries):
    """Masks, more keys than queries with torch's top-left triangle, broadcast heads and factors."""
    q, k, v = leaf(2, 3, 5, 4), leaf(2, 1, 7, 4, seed=1), leaf(1, 3, 7, 6, seed=2)
    mask = None if causal else randn(2, 1, 5, 7, seed=3) > -0.5
    if mask is not None:
        mask[..., 0] = True
    a, b, bias = leaf(2, 3, 5, 4, seed=4), leaf(4, 6, seed=5), leaf(6, seed=6)
    with watch(None, entries=entries) as seen:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        out = out + a @ b + torch.addmm(bias, a.flatten(0, -2), b).unflatten(0, (2, 3, 5))
        out = F.rms_norm(F.layer_norm(out, (6,), bias, bias), (6,), bias)
        (
            out.softmax(-1) * torch.logsumexp(out, -1, keepdim=True) + F.log_softmax(out, dim=-1)
        ).square().sum().backward()
    seen.assert_correct()
    if entries > 300:
        assert not seen.not_judged and seen.judged == 23, seen.table()
        assert "gradient of weight+bias" in seen.table()
    else:
        assert all(why.startswith("too large") for _, why in seen.not_judged)


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 1, 7), (1, 4, 5, 7)])
@pytest.mark.parametrize("additive", [False, True])
def test_grouped_queries_with_masks_of_any_shape(shape, additive):
    q, k, v = leaf(2, 4, 5, 4), leaf(2, 2, 7, 4, seed=1), leaf(2, 2, 7, 6, seed=2)
    mask = randn(*shape, seed=3) > -0.5
    mask[..., 0] = True
    given = torch.zeros(shape).masked_fill(~mask, -torch.inf) if additive else mask
    with watch(None) as seen:
        F.scaled_dot_product_attention(q, k, v, given, enable_gqa=True).square().sum().backward()
    seen.assert_correct()
    assert seen.judged == 4 and "grouped_query_attention" in seen.table()


def test_one_tensor_as_several_arguments_has_one_gradient():
    h = leaf(2, 5, 4)
    x = h * 1
    with watch(None) as seen:
        F.scaled_dot_product_attention(x, x, x).square().sum().backward()
    seen.assert_correct()
    assert "gradient of q+k+v" in seen.table()
    with watch(None, functions={"attention": forgets_keys}) as seen:
        x = h * 1
        globals()["forgets_keys"](x, x, x).square().sum().backward()
    assert [f.output for f in seen.failures] == ["q+k+v"]


def forgets_keys(q: Tensor, k: Tensor, v: Tensor, mask=None, *, is_causal=False, scale=None) -> Tensor:
    return F.scaled_dot_product_attention(q, k.detach(), v)


EARLIER: list[Tensor] = []


def with_something_earlier(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias) + (EARLIER[0] - EARLIER[0].detach())


def test_what_was_computed_before_the_call_is_not_the_calls():
    """The function closes over a number that depends on the weight: that share of the gradient is not the call's."""
    x, weight = leaf(3, 4), leaf(5, 4, seed=1)
    EARLIER[:] = [weight.square().sum()]
    with watch(None, functions={"linear": with_something_earlier}) as seen:
        with_something_earlier(x, weight).square().sum().backward()
    seen.assert_correct()
    assert seen.judged == 3


def test_inputs_are_those_of_the_call_whatever_happens_to_them_later():
    x, weight = randn(3, 4), randn(5, 4)
    with watch(None) as seen, torch.no_grad():
        out = F.linear(x, weight)
        x.add_(1)
        weight.zero_()
        out.mul_(3)
    seen.assert_correct()
    assert seen.judged == 1


def test_what_is_written_into_the_output_later_does_not_change_the_calls_gradient():
    x, weight = leaf(3, 4), leaf(5, 4, seed=1)
    with watch(None) as seen:
        out = F.linear(x, weight)
        out *= 2
        (out + F.linear(x, weight)).square().sum().backward()
    seen.assert_correct()
    assert seen.judged == 6


def test_each_backward_pass_is_judged():
    x, weight = leaf(3, 4), leaf(5, 4, seed=1)
    with watch(None) as seen:
        out = F.linear(x, weight)
        out.sum().backward(retain_graph=True)
        torch.autograd.grad(out.square().sum(), weight)
    seen.assert_correct()
    assert seen.judged == 1 + 2 + 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers(reentrant):
    """Recomputed within a backward pass. The reentrant kind first runs without a graph: its gradients are not seen."""
    model, x = nn.Linear(4, 5), leaf(3, 4)
    with watch(model) as seen:
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    seen.assert_correct()
    assert seen.judged == (1 if reentrant else 4)


# ---- what is not judged, and says so

NOT_JUDGED = [
    (lambda x: F.softmax(x, dim=0), "over dim 0, the declaration is over the last"),
    (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), "dropout 0.5"),
    (lambda x: F.scaled_dot_product_attention(x, x, x, 0.1 * x), "an additive mask with other values than 0 and -inf"),
    (lambda x: x[0] @ x, "a vector among the factors"),
    (lambda x: torch.einsum("ij,kj->ik", x, x), "no declaration of a general contraction"),
    (lambda x: torch.addmm(x, x, x, beta=0.5), "beta 0.5, alpha 1"),
    (lambda x: torch.addmm(x, x, x), "what is added has shape (4, 4), no bias of the output features"),
    (lambda x: F.layer_norm(x, (4, 4)), "over 2 axes, the declaration is over the last"),
    (lambda x: F.cross_entropy(x, x.softmax(-1).detach()), "targets that are probabilities"),
    (lambda x: F.cross_entropy(x, torch.arange(4), label_smoothing=0.1), "class weights, label smoothing"),
    (lambda x: F.embedding(torch.arange(4), x, scale_grad_by_freq=True), "scale_grad_by_freq"),
    (lambda x: F.softmax(x, dim=-1, dtype=torch.bfloat16), "dtype=torch.bfloat16 rounds the argument first"),
    (lambda x: torch.vmap(lambda row: F.softmax(row, -1))(x), "inside vmap, grad or another transform of torch.func"),
    (lambda x: F.linear(x.to("meta"), x.to("meta")), "x is a Tensor on meta"),
    (lambda x: nn.MultiheadAttention(4, 2)(x, x, x), "what it calls inside cannot be seen"),
]


def test_of_a_large_vocabulary_the_rows_in_use_are_judged_and_named_by_their_place():
    """2000 times the same id: torch sums the ones in bfloat16, where 256 + 1 is 256."""
    ids, weight = torch.full((2000,), 4321), leaf(5000, 3, dtype=torch.bfloat16)
    with watch(None) as seen:
        F.embedding(ids, weight).sum().backward()
    (failure,) = seen.failures
    assert (failure.output, failure.worst.index[0], failure.judged) == ("weight", 4321, 9), "rows 0, 4321, 4999"
    assert (failure.worst.computed, failure.worst.exact) == (256, 2000)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_each_reduction_is_a_declaration(reduction):
    logits, targets = leaf(6, 5), torch.tensor([0, 4, -100, 2, 2, 1])
    with watch(None) as seen:
        F.cross_entropy(logits, targets, reduction=reduction).square().sum().backward()
        F.cross_entropy(logits.T.reshape(1, 5, 6), targets[None], reduction=reduction).sum().backward()
    seen.assert_correct()
    assert seen.judged == 4 and not seen.not_judged


def test_the_row_of_the_padding_is_not_trained_and_that_is_right():
    weight, ids = leaf(5, 3), torch.tensor([0, 4, 4, 1])
    with watch(None) as seen:
        F.embedding(ids, weight, padding_idx=-1).square().sum().backward()
    seen.assert_correct()
    assert seen.judged == 2 and weight.grad is not None and weight.grad[4].eq(0).all()


@pytest.mark.parametrize(("call", "why"), NOT_JUDGED, ids=[why for _, why in NOT_JUDGED])
def test_a_call_outside_of_the_declarations_is_seen_and_not_judged(call, why):
    with watch(None) as seen:
        call(leaf(4, 4))
    assert any(why in reason for _, reason in seen.not_judged), seen.not_judged
    assert why in seen.table() and seen.first is None


def test_a_row_that_sees_no_key_has_a_result_and_no_judged_gradient():
    q, k, v = leaf(2, 3, 4), leaf(2, 5, 4, seed=1), leaf(2, 5, 4, seed=2)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    with watch(None) as seen:
        F.scaled_dot_product_attention(q, k, v, mask).square().sum().backward()
    assert seen.judged == 1 and sum(seen.not_judged.values()) == 3
    assert {why for _, why in seen.not_judged} == {"a row that sees no key: no policy settles its gradient"}


def test_a_result_that_an_overflow_may_have_decided_is_not_judged():
    """Scores beyond float16, which the whiteboard contract rounds to it."""
    q = torch.full((1, 3, 4), 300.0, dtype=torch.float16)
    for contract, judged in (("whiteboard", 0), ("strict", 1)):
        with watch(None, contract=contract) as seen:
            F.scaled_dot_product_attention(q, q, q)
        assert seen.judged == judged
        assert [why.split(":")[0] for _, why in seen.not_judged] == ["its bound is infinite"] * (1 - judged)


def test_nothing_judged_is_no_pass():
    with watch(nn.ReLU()) as seen:
        pass
    with pytest.raises(AssertionError, match="watch: nothing was judged"):
        seen.assert_correct()


def test_under_autocast_the_rounded_arguments_are_what_the_call_got():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5)), randn(3, 8)
    with watch(model) as seen, torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    assert not [f for f in seen.failures if not f.output], "every result is right"
    assert {f.operation for f in seen.failures} <= {"layer_norm"}
    whys = {why for _, why in seen.not_judged}
    assert whys == {"autocast rounds weight first", "autocast rounds bias first"}


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
