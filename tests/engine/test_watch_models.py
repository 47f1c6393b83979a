"""Whole models under watch: the library's own, with wrong functions planted, and ones that were not looked at."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from impl.nn import swap
from lla_spec.testing.watching import watch
from tests.impl.models_measured import VOCABULARY, both, built, computed, distance, tokens

try:
    import transformers
except ImportError:
    why = "transformers is not installed: no whole model is watched (pip install transformers)"
    pytest.skip(why, allow_module_level=True)

transformers.logging.set_verbosity_error()


def off_by_n_minus_1(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias


def looks_ahead(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal=False, scale=None):
    if is_causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(1)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def unscaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal=False, scale=None):
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=1.0)


def over_all_tokens(logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"):
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum") / targets.numel()


def tiled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal=False, scale=None):
    groups = q.shape[-3] // k.shape[-3]
    k, v = (t.repeat(1, groups, 1, 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale)


PLANTED = [
    ("GPT-2", "layer_norm", off_by_n_minus_1, "transformer.h.0.ln_1", ""),
    ("GPT-2", "attention", looks_ahead, "transformer.h.0.attn", "off by one: one key too many is visible"),
    ("GPT-2", "attention", unscaled, "transformer.h.0.attn", "scale"),
    ("GPT-2", "cross_entropy", over_all_tokens, "GPT2LMHeadModel", ""),
    ("Llama", "grouped_query_attention", tiled, "model.layers.0.self_attn", ""),
]


@pytest.mark.parametrize(
    ("name", "operation", "wrong", "module", "cause"), PLANTED, ids=lambda x: getattr(x, "__name__", None)
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_function_in_a_model_is_named_at_its_call(name, operation, wrong, module, cause, dtype):
    model, (ids, labels) = built(name, dtype), tokens()
    with swap(model, {operation: wrong}), watch(model, functions={operation: wrong}) as seen:
        model(ids, labels=labels).loss.backward()
    first = seen.first
    assert first is not None
    assert (first.operation, first.output, first.site.module) == (operation, "", module)
    assert first.site.function.endswith(wrong.__name__) and cause in first.cause
    assert {f.operation for f in seen.failures} == {operation}, "the other calls are right at the inputs that they got"


def test_grouped_heads_tiled_outside_of_the_watched_call_are_seen_end_to_end_alone():
    """The call gets tiled keys and is right about them. The distance from float64 is what tells."""
    own, _, exact = both("Llama", torch.float32, seed=0)
    model, (ids, labels) = built("Llama", torch.float32), tokens()
    with swap(model, {"grouped_query_attention": tiled}), watch(model) as seen:
        wrong = computed(model, ids, labels)
    seen.assert_correct()
    assert "gradient of k" in seen.table(), "torch's call, which gets the tiled keys, was judged"
    for what in ("logits", "gradients", "step"):
        assert distance(wrong[what], exact[what]) > 100 * distance(own[what], exact[what])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_the_models_of_the_library_are_right_in_float32_and_not_changed_by_a_bit(name, attention):
    for dtype in (torch.float32, torch.bfloat16):
        model, (ids, labels) = built(name, dtype, attn_implementation=attention), tokens()
        assert model.config._attn_implementation == attention
        plain = computed(model, ids, labels)
        state = torch.get_rng_state()
        with watch(model) as seen:
            watched = computed(model, ids, labels)
        assert torch.equal(torch.get_rng_state(), state)
        for what in plain:
            assert all(torch.equal(a, b) for a, b in zip(plain[what], watched[what], strict=True)), what
        assert not seen.not_judged
        if dtype == torch.float32:
            seen.assert_correct()
        else:  # torch's own: dγ, dβ, dx of LayerNorm, and the embedding's gradient
            wrong = {f.operation for f in seen.failures}
            assert wrong == ({"layer_norm", "embedding"} if name == "GPT-2" else {"embedding"})


@pytest.mark.parametrize("name", ["GPTNeoX", "Qwen3"])
def test_a_model_that_was_not_looked_at(name):
    """A third and a fourth architecture, watched and swapped by the same two calls."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 1}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16} if name == "Qwen3" else {}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(torch.bfloat16).eval()
    ids, labels = tokens()
    with watch(model) as seen:
        model(ids, labels=labels).loss.backward()
    assert {f.operation for f in seen.failures} == ({"layer_norm", "embedding"} if name == "GPTNeoX" else {"embedding"})
    with swap(model), watch(model) as seen:
        model(ids, labels=labels).loss.backward()
    seen.assert_correct()
    assert not seen.not_judged and "torch.nn.functional" not in seen.table()
