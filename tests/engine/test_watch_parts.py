"""watch: which part of a tensor is judged and whose gradient it is, and what is not judged and says so."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lla_spec.testing.watching import watch
from tests.engine.watched import leaf, randn

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
