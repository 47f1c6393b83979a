"""Whole models with impl's operations in them: as exact as the model itself, in the dtypes that people train in."""

import copy
import statistics

import pytest
import torch
from torch import nn

from impl.nn import OPERATIONS, swap
from tests.impl.models_measured import MODELS, both, built, computed, distance, exactly, ratios, tokens

try:
    import transformers
except ImportError:
    pytest.skip(
        "transformers is not installed: no whole model is tested (pip install transformers)", allow_module_level=True
    )

transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("name", MODELS)
def test_in_float64_a_swapped_model_is_the_model(name):
    own, swapped, _ = both(name, torch.float64, seed=0)
    scale = distance(own["logits"], [torch.zeros_like(x) for x in own["logits"]])
    assert distance(own["logits"], swapped["logits"]) <= 1e-10 * scale
    largest = max(float(grad.norm()) for grad in own["gradients"])
    for a, b in zip(own["gradients"], swapped["gradients"], strict=True):
        assert float((a - b).norm()) <= 1e-10 * largest
    for a, b in zip(own["step"], swapped["step"], strict=True):
        assert float((a - b).norm()) <= 1e-10 * max(1.0, float(a.norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_error_is_at_most_the_models_own(name, dtype):
    """5% for the scatter of rounding errors; median of 20 seeds, over all logits, gradients, and stepped parameters."""
    found = [ratios(name, dtype, seed) for seed in range(20)]
    for what in ("logits", "gradients", "step"):
        assert statistics.median(ratio[what] for ratio in found) <= 1.05, what


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_worth_its_name(name):
    """float64 with the model's casts lifted is far from the same model with them: they are in float32."""
    model, (ids, labels) = built(name, torch.float64), tokens()
    lifted = computed(model, ids, labels)["logits"]
    kept = [model(ids, labels=labels).logits.detach()]
    off = distance(kept, lifted) / distance(lifted, [torch.zeros_like(x) for x in lifted])
    assert (off > 1e-9) == (name == "Llama")  # GPT-2 casts its loss alone


@pytest.mark.parametrize("name", MODELS)
def test_a_swap_is_complete_and_comes_undone(name):
    model, (ids, labels) = built(name, torch.bfloat16), tokens()
    before, keys = computed(model, ids, labels), list(model.state_dict())
    swapped = swap(model)
    during = computed(model, ids, labels)
    norm = {"GPT-2": "layer_norm", "Llama": "rms_norm"}[name]
    assert set(swapped.replaced.values()) == {
        "embedding", "linear", norm, "attention, grouped_query_attention", "cross_entropy",
    }  # fmt: skip
    assert not swapped.left and "lm_head: linear" in str(swapped)
    assert list(model.state_dict()) == keys
    assert distance(before["gradients"], during["gradients"]) > 0
    swapped.restore()
    swapped.restore()
    after = computed(model, ids, labels)
    assert all(torch.equal(a, b) for what in before for a, b in zip(before[what], after[what], strict=True))
    assert model.config._attn_implementation == "sdpa"
    assert not [m for m in model.modules() if "forward" in vars(m)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_masked_as_the_model_masks_it(name, side):
    model, (ids, labels) = built(name, torch.float64), tokens()
    mask = torch.ones_like(ids)
    mask[0, slice(0, 9) if side == "left" else slice(-9, None)] = 0
    labels = labels.masked_fill(mask == 0, -100)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with exactly(model), torch.no_grad():
        own = model(ids, attention_mask=mask, position_ids=position, labels=labels)
        with swap(model):
            swapped = model(ids, attention_mask=mask, position_ids=position, labels=labels)
    seen = mask.bool()
    assert float((own.logits - swapped.logits)[seen].norm()) <= 1e-10 * float(own.logits[seen].norm())
    assert abs(float(own.loss - swapped.loss)) <= 1e-10 * float(own.loss)


@pytest.mark.parametrize("name", MODELS)
def test_generation_with_a_cache_gives_the_same_tokens(name):
    model, (ids, _) = built(name, torch.float32), tokens()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    own = model.generate(ids, **options)
    with swap(model):
        assert torch.equal(model.generate(ids, **options), own)


@pytest.mark.parametrize("name", MODELS)
def test_a_swapped_model_can_be_copied(name):
    model, (ids, _) = built(name, torch.float64), tokens()
    with swap(model):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.lm_head.weight.zero_()
            assert twin(ids).logits.eq(0).all()
            assert model(ids).logits.ne(0).any()


def test_dropout_in_attention_is_left_to_the_library_and_said():
    model, (ids, labels) = built("GPT-2", torch.float32, attn_pdrop=0.5), tokens()
    with swap(model.train()) as swapped:
        model(ids, labels=labels).loss.backward()
        assert swapped.left == {"attention": "a call with dropout"}
    eager = MODELS["GPT-2"](attn_pdrop=0.5)
    eager.set_attn_implementation("eager")
    with swap(eager.train()), pytest.raises(ValueError, match="attention: dropout is asked for; swap with only=…"):
        eager(ids)


def test_only_some_operations_and_functions_of_ones_own():
    model, (ids, _) = built("GPT-2", torch.float32), tokens()
    calls = []

    def linear(x, weight, bias=None):
        calls.append(tuple(weight.shape))
        return OPERATIONS["linear"](x, weight, bias)

    with swap(model, {"linear": linear}, only=["linear"]) as swapped:
        model(ids)
    assert set(swapped.replaced.values()) == {"linear"} and len(calls) == len(swapped.replaced) == 9
    assert calls[0] == (144, 48), "GPT-2 stores its weights (in, out); an operation gets (out, in)"
    for bad in ({"functions": {"conv": linear}}, {"only": ["conv"]}):
        with pytest.raises(ValueError, match=r"swap: (functions|only) has conv; there are embedding, linear"):
            swap(model, **bad)


class OnePlus(nn.Module):
    """RMSNorm as Gemma has it."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class NoEps(OnePlus):
    """Says that it has an ε, and uses another one."""

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * self.weight


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("norm", [OnePlus, NoEps])
def test_a_norm_is_known_by_what_it_computes(norm, start):
    """Not by its class's name: neither of these is rms_norm, whatever their weights are."""
    layer = norm(8)
    nn.init.constant_(layer.weight, start)
    assert not swap(nn.Sequential(layer)).replaced


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_a_stream_in_another_dtype_than_the_weights(dtypes):
    """Mamba keeps its residual stream in float32."""
    stream, weights = dtypes
    for layer in (nn.LayerNorm(8), nn.RMSNorm(8)):
        model = nn.Sequential(layer.to(weights))
        x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(stream)
        wide = layer.weight.dtype if isinstance(layer, nn.RMSNorm) else stream
        with swap(model):
            assert model(x).dtype == torch.promote_types(stream, wide)


def test_torchs_own_modules_and_what_embedding_lacks():
    layers = [nn.Embedding(9, 8, padding_idx=2), nn.LayerNorm(8), nn.RMSNorm(8), nn.Linear(8, 3)]
    model = nn.Sequential(*layers, nn.LayerNorm((4, 3)), nn.Sequential(nn.Embedding(4, 2, max_norm=1.0)))
    ids = torch.tensor([[0, 2, 8, 2]])
    with swap(model) as swapped:
        assert swapped.replaced == {"0": "embedding", "1": "layer_norm", "2": "rms_norm", "3": "linear"}
        assert swapped.left == {"4": "layer_norm with 2 axes", "5.0": "embedding with max_norm"}
        model[:4](ids).square().sum().backward()
    grad = model[0].weight.grad
    assert grad[2].eq(0).all() and not grad[8].eq(0).all(), "the padding's row is not trained"
