"""`swap(model)`: a model of torch or of the transformers library, computing with these operations instead of its own.

    swapped = swap(model)     # parameters, state_dict, hooks, tied weights and devices stay what they are
    loss = model(ids, labels=ids).loss
    print(swapped)            # what was replaced, and what was left alone and why
    swapped.restore()         # or `with swap(model): …`

Replaced are embeddings, linear layers (GPT-2's Conv1D and the output head among them), LayerNorm, whatever computes
RMSNorm, the attention function of a transformers model (full heads and grouped queries), and its causal loss. What
stays the model's: activations, rotary positions, dropout between layers, and attention that a module computes itself.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impl.attention import attention
from impl.cross_entropy import cross_entropy
from impl.embedding import embedding
from impl.linear import linear
from impl.multi_head import grouped_query_attention
from impl.normalization import layer_norm, rms_norm

OPERATIONS: Mapping[str, Callable[..., Tensor]] = {
    "embedding": embedding,
    "linear": linear,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "attention": attention,
    "grouped_query_attention": grouped_query_attention,
    "cross_entropy": cross_entropy,
}


class Swapped:
    """What a `swap` did. `replaced` and `left` map a module's path to the operation, or to why nothing was done."""

    def __init__(self) -> None:
        self.replaced: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self._undo: list[Callable[[], None]] = []

    def restore(self) -> None:
        """Give the model back what it had. A second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Swapped:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __str__(self) -> str:
        done = [f"{path}: {name}" for path, name in self.replaced.items()]
        return "\n".join([*done, *(f"{path}: left, {why}" for path, why in self.left.items())])


def swap(
    model: nn.Module,
    functions: Mapping[str, Callable[..., Tensor]] | None = None,
    *,
    only: Iterable[str] = tuple(OPERATIONS),
) -> Swapped:
    """Let `model` compute with impl's operations, in place; returns what was replaced, with `restore()`.

    functions   other functions for some of the operations, by name and with the operations' signatures: a kernel of
                one's own, dropped into a whole model
    only        the operations to replace, all of them unless given; attention and grouped_query_attention go together
    Raises ValueError for a name that is none of embedding, linear, layer_norm, rms_norm, attention,
    grouped_query_attention, cross_entropy.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> with swap(model) as swapped:
    ...     print(swapped)
    0: embedding
    1: layer_norm
    2: linear
    """
    wanted = set(only)
    for what, names in (("functions", set(functions or {})), ("only", wanted)):
        unknown = sorted(names - set(OPERATIONS))
        if unknown:
            raise ValueError(f"swap: {what} has {', '.join(unknown)}; there are {', '.join(OPERATIONS)}")
    operations = SimpleNamespace(**{**OPERATIONS, **(functions or {})})
    swapped = Swapped()
    for path, module in model.named_modules():
        _swap_module(swapped, operations, wanted, path or type(module).__name__, module)
    if {"attention", "grouped_query_attention"} & wanted:
        _swap_attention(swapped, operations, model)
    if "cross_entropy" in wanted:
        _swap_loss(swapped, operations, model)
    return swapped


# ---- modules


def _swap_module(swapped: Swapped, operations: Any, wanted: set[str], path: str, module: nn.Module) -> None:
    found = _forward_of(operations, module)
    if found is None:
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False)):
            swapped.left[path] = f"{type(module).__name__} computes neither layer_norm nor rms_norm"
        return
    name, forward = found
    if name not in wanted:
        return
    if isinstance(forward, str):
        swapped.left[path] = f"{name} with {forward}"
        return
    module.forward = MethodType(forward, module)  # on the instance: its class and its hooks are not touched
    swapped.replaced[path] = name
    swapped._undo.append(lambda: vars(module).pop("forward"))


def _forward_of(operations: Any, module: nn.Module) -> tuple[str, Callable[..., Tensor] | str] | None:
    """The operation that a module computes, and a forward for it, or what the operation lacks."""
    own = type(module).forward
    if "forward" in vars(module):
        return None
    if own is nn.Linear.forward or _is_conv1d(module):
        stored = (lambda w: w) if own is nn.Linear.forward else (lambda w: w.mT)
        return "linear", lambda self, x: operations.linear(x, stored(self.weight), self.bias)
    if isinstance(module, nn.Embedding) and own is nn.Embedding.forward:
        asked = [key for key in ("max_norm", "scale_grad_by_freq", "sparse") if getattr(module, key)]
        return "embedding", ", ".join(asked) or _embedding_forward(operations, module.padding_idx)
    if isinstance(module, nn.LayerNorm) and own is nn.LayerNorm.forward:
        if len(module.normalized_shape) > 1:
            return "layer_norm", f"{len(module.normalized_shape)} axes"
        return "layer_norm", _layer_norm_forward(operations)
    eps = _rms_norm_eps(module)
    return None if eps is None else ("rms_norm", _rms_norm_forward(operations, eps))


def _layer_norm_forward(operations: Any) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        rows, weight, bias = _promoted(x, self.weight, self.bias)
        return operations.layer_norm(rows, weight, bias, eps=self.eps).to(x.dtype)

    return forward


def _rms_norm_forward(operations: Any, eps: float) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return operations.rms_norm(*_promoted(hidden_states, self.weight), eps=eps)

    return forward


def _promoted(x: Tensor, *parameters: Tensor | None) -> list[Any]:
    """All in the widest of their dtypes: a float32 stream with bfloat16 weights, or the other way round."""
    dtype = x.dtype
    for parameter in parameters:
        dtype = dtype if parameter is None else torch.promote_types(dtype, parameter.dtype)
    return [tensor if tensor is None else tensor.to(dtype) for tensor in (x, *parameters)]


def _embedding_forward(operations: Any, padding: int | None) -> Callable[..., Tensor]:
    def forward(self: Any, ids: Tensor) -> Tensor:
        vectors = operations.embedding(ids, self.weight)
        if padding is None:
            return vectors
        return torch.where((ids == padding)[..., None], vectors.detach(), vectors)  # the padding's row is not trained

    return forward


def _is_conv1d(module: nn.Module) -> bool:
    """The transformers library's linear layer with a weight (in, out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _rms_norm_eps(module: nn.Module) -> float | None:
    """The ε of a module that computes weight · x/√(mean x² + ε), whatever its class is called; None for another one.

    Its own forward is asked: on a row of ordinary size, and on one whose mean square is about ε. A module that
    multiplies by 1 + weight, or has no ε, answers otherwise.
    """
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    if set(parameters) != {"weight"} or weight is None or weight.dim() != 1 or any(module.children()):
        return None
    eps = next((e for e in (getattr(module, n, None) for n in ("variance_epsilon", "eps")) if e is not None), None)
    if eps is None and isinstance(module, nn.RMSNorm):
        eps = torch.finfo(weight.dtype).eps  # as torch has it
    if not isinstance(eps, float) or weight.is_meta:
        return None
    made = torch.Generator().manual_seed(0)
    row = torch.randn(1, weight.shape[0], generator=made, dtype=torch.float64)
    probe = torch.cat([row, row * eps**0.5]).to(weight)
    with torch.no_grad():
        try:
            answer: Any = module.forward(probe)
        except (TypeError, RuntimeError, ValueError):
            return None
        known = rms_norm(probe, weight, eps=eps)
        size = known.double().norm(dim=-1)
        if not isinstance(answer, Tensor) or answer.shape != known.shape or not bool((size > 0).all()):
            return None
        apart = (answer.double() - known.double()).norm(dim=-1)
    return eps if bool((apart <= 4 * torch.finfo(weight.dtype).eps * size).all()) else None  # a few roundings, no more


# ---- attention and loss of the transformers library, where somebody has imported it

_names = itertools.count()


def _swap_attention(swapped: Swapped, operations: Any, model: nn.Module) -> None:
    library = sys.modules.get("transformers.modeling_utils")
    choose = getattr(model, "set_attn_implementation", None)
    if library is None or choose is None:
        return
    before = model.config._attn_implementation  # pyright: ignore[reportAttributeAccessIssue]
    if before not in ("sdpa", "eager"):
        swapped.left["attention"] = f"the implementation is {before}"
        return
    name = f"impl_{next(_names)}"
    masks: Any = sys.modules["transformers.masking_utils"]
    otherwise = library.ALL_ATTENTION_FUNCTIONS["sdpa"] if before == "sdpa" else None
    library.ALL_ATTENTION_FUNCTIONS.register(name, _attention_forward(swapped, operations, otherwise))
    masks.ALL_MASK_ATTENTION_FUNCTIONS.register(name, masks.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])  # bool masks
    swapped._undo.append(lambda: library.ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None))
    swapped._undo.append(lambda: masks.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(name, None))
    swapped._undo.append(lambda: choose(before))
    choose(name)
    if model.config._attn_implementation == name:  # pyright: ignore[reportAttributeAccessIssue]
        swapped.replaced["attention"] = "attention, grouped_query_attention"
    else:
        swapped.left["attention"] = "the model computes it in a module of its own"


def _attention_forward(swapped: Swapped, operations: Any, otherwise: Any) -> Callable[..., tuple[Tensor, Any]]:
    """An attention function as the transformers library calls it. What impl's attention lacks goes to `otherwise`."""

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[Tensor, Any]:
        """query (b, h, n, d), key (b, g, m, d), value (b, g, m, e); returns (b, n, h, e)."""
        lacking = [name for name in ("softcap", "s_aux", "position_bias", "cache") if others.get(name) is not None]
        lacking += ["dropout"] if dropout else []
        if lacking:
            swapped.left["attention"] = f"a call with {', '.join(lacking)}"
            if otherwise is None:
                raise ValueError(f"attention: {', '.join(lacking)} is asked for; swap with only=… without attention")
            given = {**others, "dropout": dropout, "scaling": scaling, "is_causal": is_causal}
            return otherwise(module, query, key, value, attention_mask, **given)
        n, m = query.shape[-2], key.shape[-2]
        asked = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = n > 1 and attention_mask is None and bool(asked)
        mask = None if attention_mask is None else attention_mask[..., :m]
        if causal and n != m:  # the library counts from the first key here, impl from the last
            causal, mask = False, torch.ones(n, m, dtype=torch.bool, device=query.device).tril()
        chosen = operations.attention if query.shape[1] == key.shape[1] else operations.grouped_query_attention
        out = chosen(query, key, value, mask, is_causal=causal, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    return forward


def _swap_loss(swapped: Swapped, operations: Any, model: nn.Module) -> None:
    if "transformers.modeling_utils" not in sys.modules or not hasattr(model, "loss_function"):
        return
    loss = getattr(model.loss_function, "__name__", "")
    if loss != "ForCausalLMLoss":
        swapped.left["loss"] = loss
        return
    kept = vars(model).get("_loss_function")
    setattr(model, "loss_function", _causal_loss(operations))  # noqa: B010  a property, which nn.Module does not tell
    swapped.replaced["loss"] = "cross_entropy"

    def undo() -> None:
        vars(model).pop("_loss_function", None)
        if kept is not None:
            setattr(model, "loss_function", kept)  # noqa: B010  as above

    swapped._undo.append(undo)


def _causal_loss(operations: Any) -> Callable[..., Tensor]:
    """The next token's cross-entropy as the transformers library calls it, in at least float32."""

    def loss(
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).view(-1, vocab_size)
        targets = shift_labels.reshape(-1).to(logits.device)
        if num_items_in_batch is None:
            return operations.cross_entropy(wide, targets, ignore_index=ignore_index)
        total = operations.cross_entropy(wide, targets, ignore_index=ignore_index, reduction="sum")
        return total / num_items_in_batch

    return loss
