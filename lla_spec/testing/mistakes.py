"""Mistakes that belong to one operation, in float64: FORWARD and BACKWARD, by operation and by words for a person.

Each takes the arguments by their torch names, and the right outputs, and gives the outputs that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lla_spec.testing.truth import Truth

Array = np.ndarray
Outputs = dict[str, Array]  # by output: "" for a forward result, else the argument whose gradient it is
Change = Callable[[dict[str, Any], Truth], Outputs]


# ---- softmax, and what is made of it


def _softmax(x: Array, over: int = -1) -> Array:
    shifted = np.exp(x - x.max(over, keepdims=True))
    return shifted / shifted.sum(over, keepdims=True)


def _softmax_over_rows(a: dict[str, Any], right: Truth) -> Outputs:
    return {"": _softmax(a["x"], -2 if a["x"].ndim > 1 else -1)}


def _logits(a: dict[str, Any], bias: bool = True) -> Array:
    z = a["h"] @ a["w_out"].T
    return z if a.get("bias") is None or not bias else z + a["bias"]


def _bias_after_softmax(a: dict[str, Any], right: Truth) -> Outputs:
    if a["bias"] is None:
        raise ValueError("there is no bias")
    return {"": _softmax(_logits(a, bias=False)) + a["bias"]}


def _through_logits(a: dict[str, Any], dz: Array) -> Outputs:
    rows = dz.reshape(-1, dz.shape[-1])
    hidden = a["h"].reshape(-1, a["h"].shape[-1])
    found = {"h": dz @ a["w_out"], "w_out": rows.T @ hidden}
    return found if a.get("bias") is None else {**found, "bias": rows.sum(0)}


def _uncentred_logits(a: dict[str, Any], right: Truth) -> Outputs:
    return _through_logits(a, _softmax(_logits(a)) * a["grad_output"])


def _scores(a: dict[str, Any]) -> tuple[Array, Array, float]:
    """Attention's scores, which of them are visible, and the scale."""
    q, k = a["q"], a["k"]
    n, m, scale = q.shape[-2], k.shape[-2], q.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
    visible = np.ones((n, m), bool) if a["mask"] is None else a["mask"]
    visible = visible & np.tri(n, m, m - n, dtype=bool) if a["is_causal"] else visible
    return np.where(visible, q @ np.swapaxes(k, -1, -2) * scale, -np.finfo(np.float64).max), visible, scale


def _over_queries(a: dict[str, Any], right: Truth) -> Outputs:
    s, visible, _ = _scores(a)
    return {"": np.where(visible, _softmax(s, -2), 0) @ a["v"]}


def _scores_uncentred(a: dict[str, Any], right: Truth) -> Outputs:
    s, visible, scale = _scores(a)
    ds = np.where(visible, _softmax(s), 0) * (a["grad_output"] @ np.swapaxes(a["v"], -1, -2)) * scale
    return {"q": ds @ a["k"], "k": np.swapaxes(ds, -1, -2) @ a["q"]}


def _centred_weights(a: dict[str, Any], right: Truth) -> Outputs:
    w, dw = a["weights"], right["weights"].value
    return {"weights": w * (dw - (w * dw).sum(-1, keepdims=True))}


# ---- normalisation


def _rows_of(a: dict[str, Any]) -> Array:
    return a["x"] if "x" in a else a["h"] + a["sublayer"]


def _eps(a: dict[str, Any], default: float) -> float:
    return default if a.get("eps") is None else a["eps"]


def _affine(a: dict[str, Any], y: Array) -> Array:
    y = y if a.get("weight") is None else y * a["weight"]
    return y if a.get("bias") is None else y + a["bias"]


def _layer_norm_by(root: Callable[[Array, float, int], Array]) -> Change:
    """`root(v, ε, n)` for √(v + ε)."""

    def change(a: dict[str, Any], right: Truth) -> Outputs:
        x = _rows_of(a)
        c = x - x.mean(-1, keepdims=True)
        return {"": _affine(a, c / root((c * c).mean(-1, keepdims=True), _eps(a, 1e-5), x.shape[-1]))}

    return change


def _rms_by(root: Callable[[Array, float, int], Array]) -> Change:
    def change(a: dict[str, Any], right: Truth) -> Outputs:
        x = a["x"]
        return {"": _affine(a, x / root((x * x).mean(-1, keepdims=True), _eps(a, 1e-6), x.shape[-1]))}

    return change


def _stream_alone(a: dict[str, Any], right: Truth) -> Outputs:
    c = a["h"] - a["h"].mean(-1, keepdims=True)
    y = c / np.sqrt((c * c).mean(-1, keepdims=True) + _eps(a, 1e-5))
    return {"": _affine(a, y) + a["sublayer"]}


def _norm_gradient(*, centred: bool = True, m1: bool = True, m2: bool = True) -> Change:
    """dx = (ĝ - m₁ - x̂ m₂) / √(v + ε) with a term left out or added."""

    def change(a: dict[str, Any], right: Truth) -> Outputs:
        x, g = _rows_of(a), a["grad_output"]
        c = x - x.mean(-1, keepdims=True) if centred else x
        root = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + _eps(a, 1e-5 if centred else 1e-6))
        slope = g if a.get("weight") is None else g * a["weight"]
        dx = slope - (slope.mean(-1, keepdims=True) if m1 else 0)
        dx = root * (dx - (c * root * (slope * c * root).mean(-1, keepdims=True) if m2 else 0))
        return {key: dx for key in ("x", "h", "sublayer") if key in a}

    return change


def _raw_rows(a: dict[str, Any], right: Truth) -> Outputs:
    terms = a["grad_output"] * _rows_of(a)
    return {"weight": terms.reshape(-1, terms.shape[-1]).sum(0)}


def _nothing_for(key: str) -> Change:
    return lambda a, right: {key: np.zeros_like(right[key].value)}


# ---- rows that count


def _share_kept(a: dict[str, Any]) -> Array:
    """By sentence: how many tokens are kept, over all of them; (..., 1)."""
    shape = a["x"].shape[:-1]
    return np.broadcast_to(True if a["mask"] is None else a["mask"], shape).mean(-1, keepdims=True)


def _targets_kept(a: dict[str, Any]) -> Array:
    return a["targets"] != a["ignore_index"]


def _hidden_tokens(a: dict[str, Any], right: Truth) -> Outputs:
    kept = np.maximum(_share_kept(a) * a["x"].shape[-2], 1)
    return {"x": np.broadcast_to((a["grad_output"] / kept)[..., None, :], a["x"].shape) + 0.0}


def _last_occurrence(a: dict[str, Any], right: Truth) -> Outputs:
    found = np.zeros_like(right["weight"].value)
    found[a["ids"].reshape(-1).astype(int)] = a["grad_output"].reshape(-1, found.shape[-1])
    return {"weight": found}


def times(factor: Callable[[dict[str, Any]], Any], *keys: str) -> Change:
    """The right outputs times a factor."""
    return lambda a, right: {key: right[key].value * factor(a) for key in keys or right}


# ---- the tables


def _heads_in_a_group(a: dict[str, Any]) -> int:
    return a["q"].shape[-3] // a["k"].shape[-3]


def _raw_data(a: dict[str, Any], right: Truth) -> Outputs:
    g, x = (np.atleast_2d(a[name]) for name in ("grad_output", "x"))
    each = np.swapaxes(g, -1, -2) @ x
    lead = each.ndim - a["components"].ndim
    return {"components": each.sum(tuple(range(lead)))}


FORWARD: Mapping[str, Mapping[str, Change]] = {
    "attention": {"the softmax runs over the queries, not over the keys": _over_queries},
    "embedding": {
        "row 0 is held at zero, as a padding row": lambda a, right: {
            "": np.where((a["ids"] == 0)[..., None], 0.0, right[""].value)
        }
    },
    "softmax": {"the softmax runs over the rows, not over the last axis": _softmax_over_rows},
    "output_softmax": {"the bias is added after the softmax": _bias_after_softmax},
    "weighted_average": {
        "the weights are normalised again": lambda a, right: {"": right[""].value / a["weights"].sum(-1, keepdims=True)}
    },
    **{
        operation: {
            "the variance is divided by n - 1, not by n": _layer_norm_by(
                lambda v, eps, n: np.sqrt(v * n / max(n - 1, 1) + eps)
            ),
            "eps is added outside the root": _layer_norm_by(lambda v, eps, n: np.sqrt(v) + eps),
            **more,
        }
        for operation, more in {
            "layer_norm": {},
            "residual_layer_norm": {"h alone is normalised, and sublayer is added afterwards": _stream_alone},
        }.items()
    },
    "rms_norm": {
        "the squares are summed, not averaged": _rms_by(lambda r, eps, n: np.sqrt(r * n + eps)),
        "eps is added outside the root": _rms_by(lambda r, eps, n: np.sqrt(r) + eps),
    },
    "mean_pool": {"it divides by all tokens, not by those that the mask keeps": times(_share_kept)},
    "cross_entropy": {
        "the mean is over all positions, not over those with a target": times(lambda a: _targets_kept(a).mean())
    },
    "linear_cross_entropy": {
        "the mean is over all positions, not over those with a target": times(lambda a: _targets_kept(a).mean())
    },
}

_WITHOUT_MEANS: Mapping[str, Change] = {
    "dx lacks its term m₁ = mean ĝ": _norm_gradient(m1=False),
    "dx lacks its term m₂ = mean ĝ∘x̂": _norm_gradient(m2=False),
    "the gradient of weight is that of the raw rows, g∘x for g∘x̂": _raw_rows,
}
_OF_A_LOSS: Mapping[str, Change] = {
    "the gradient lacks 1/N, N the positions with a target": times(lambda a: max(_targets_kept(a).sum(), 1)),
    "the gradient is divided by all positions, not by those with a target": times(lambda a: _targets_kept(a).mean()),
}
BACKWARD: Mapping[str, Mapping[str, Change]] = {
    "softmax": {"dx is not centred: P∘dP": lambda a, right: {"x": _softmax(a["x"]) * a["grad_output"]}},
    "log_softmax": {
        "dx is dy - P∘dy: the sum over the row is missing": lambda a, right: {
            "x": a["grad_output"] * (1 - _softmax(a["x"]))
        }
    },
    "logsumexp": {
        "exp(x - maximum) is not divided by its sum": lambda a, right: {
            "x": np.exp(a["x"] - a["x"].max(-1, keepdims=True)) * a["grad_output"][..., None]
        }
    },
    "output_softmax": {"dz is not centred: P∘dP": _uncentred_logits},
    "attention": {"dS is not centred: P∘dP, without D": _scores_uncentred},
    "weighted_average": {"the gradient of weights is taken through a softmax that made them": _centred_weights},
    "pca_transform": {"the gradient of components is that of the raw data, dZᵀX": _raw_data},
    "grouped_query_attention": {
        "the gradient of k is averaged over the heads of a group": times(lambda a: 1 / _heads_in_a_group(a), "k"),
        "the gradient of v is averaged over the heads of a group": times(lambda a: 1 / _heads_in_a_group(a), "v"),
    },
    "layer_norm": _WITHOUT_MEANS,
    "residual_layer_norm": {**_WITHOUT_MEANS, "sublayer gets no gradient": _nothing_for("sublayer")},
    "rms_norm": {
        "dx has LayerNorm's term m₁ = mean ĝ": _norm_gradient(centred=False),
        "dx lacks its term m₂ = mean ĝ∘x̂": _norm_gradient(centred=False, m1=False, m2=False),
        "the gradient of weight is that of the raw rows, g∘x for g∘x̂": _raw_rows,
    },
    "embedding": {"a word that occurs twice gets the cotangent of one place": _last_occurrence},
    "mean_pool": {
        "it divides by all tokens, not by those that the mask keeps": times(lambda a: _share_kept(a)[..., None]),
        "tokens that the mask hides get a gradient": _hidden_tokens,
    },
    "cross_entropy": _OF_A_LOSS,
    "linear_cross_entropy": _OF_A_LOSS,
}
