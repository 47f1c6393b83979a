"""Whole models with impl's operations in them, against the same model in float64.

python -m tests.impl.models_measured [--seeds N]    the table of docs/watch.md

Models of the transformers library are built from their configs with random weights; nothing is downloaded. The
reference is the model itself in float64, with its own casts to float32 lifted: the library computes RMSNorm, the rotary
angles and the loss in float32 even in a float64 model.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from impl.nn import swap

VOCABULARY, TOKENS = 211, 40
RATE = 0.5  # of the SGD step


def gpt2(**options: Any) -> Any:
    """LayerNorm, full heads, learnt positions, Conv1D, a head tied to the embedding."""
    import transformers

    sizes = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **options)
    return transformers.GPT2LMHeadModel(config)


def llama(**options: Any) -> Any:
    """RMSNorm, rotary positions, grouped queries (4 heads share 2 key-value heads), no biases."""
    import transformers

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **options))


MODELS: dict[str, Callable[..., Any]] = {"GPT-2": gpt2, "Llama": llama}


def built(name: str, dtype: torch.dtype, seed: int = 0, **options: Any) -> Any:
    """A model of random weights, without dropout. Norms get weights and biases of their own, not ones and zeros."""
    torch.manual_seed(seed)
    model = MODELS[name](**options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tokens(seed: int = 0) -> tuple[Tensor, Tensor]:
    """ids (2, TOKENS), a few of them frequent as words are, and labels, of which some are ignored."""
    made = torch.Generator().manual_seed(seed)
    ids = (VOCABULARY * torch.rand(2, TOKENS, generator=made) ** 3).long()
    ignored = torch.rand(ids.shape, generator=made) < 0.25
    return ids, ids.masked_fill(ignored, -100)


class LiftedCasts(TorchFunctionMode):
    """Whatever a model casts to float32 is cast to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def lifted(x: Any) -> Any:
            return torch.float64 if x is torch.float32 else x

        func = Tensor.double if func is Tensor.float else func
        return func(*map(lifted, args), **{key: lifted(value) for key, value in (kwargs or {}).items()})


@contextmanager
def exactly(model: Any) -> Iterator[None]:
    """The model's own casts are lifted where it is in float64."""
    if next(model.parameters()).dtype != torch.float64:
        yield
        return
    with LiftedCasts():
        yield


def computed(model: Any, ids: Tensor, labels: Tensor) -> dict[str, list[Tensor]]:
    """logits, the gradients, and the parameters after one step of SGD, all in float64."""
    model.zero_grad()
    with exactly(model):
        answer = model(ids, labels=labels)
        answer.loss.backward()
    grads = [p.grad.detach().clone() for p in model.parameters()]
    stepped = [(p.detach() - RATE * grad).double() for p, grad in zip(model.parameters(), grads, strict=True)]
    return {"logits": [answer.logits.detach().double()], "gradients": [g.double() for g in grads], "step": stepped}


def both(name: str, dtype: torch.dtype, seed: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the model computes, what it computes with impl's operations, and the float64 reference."""
    model, (ids, labels) = built(name, dtype, seed), tokens(seed)
    exact = computed(copy.deepcopy(model).double(), ids, labels)
    own = computed(model, ids, labels)
    with swap(model):
        swapped = computed(model, ids, labels)
    return own, swapped, exact


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """The 2-norm over all entries."""
    return sum(float((a - b).norm() ** 2) for a, b in zip(found, exact, strict=True)) ** 0.5


def ratios(name: str, dtype: torch.dtype, seed: int) -> dict[str, float]:
    """The error with impl's operations as a share of the model's own, by what is compared."""
    own, swapped, exact = both(name, dtype, seed)
    return {what: distance(swapped[what], exact[what]) / distance(own[what], exact[what]) for what in exact}


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description="error with impl's operations / the model's own error")
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    transformers.logging.set_verbosity_error()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, {len(seeds)} seeds: median (least … most)")
    print("| model | dtype | logits | gradients | parameters after a step | seconds |\n|---|---|---|---|---|---|")
    for name in MODELS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            began = time.perf_counter()
            found = [ratios(name, dtype, seed) for seed in seeds]
            cells = []
            for what in found[0]:
                each = [ratio[what] for ratio in found]
                cells.append(f"{statistics.median(each):.3f} ({min(each):.3f} … {max(each):.3f})")
            shown = str(dtype).removeprefix("torch.")
            print(f"| {name} | {shown} | {' | '.join(cells)} | {time.perf_counter() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
