"""A second opinion: the operations and their gradients in rigorous balls, written out by hand.

It shares nothing with lla_spec but the formulas of the books: plain loops over rows and columns, in Arb (python-flint).
It judges fp64 kernels, `oracle(…, exact=True)` and the float64 oracle. Gradients are the closed forms of the
literature, where lla_spec derives its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flint
import numpy as np
from flint import arb, arb_mat

Array = np.ndarray
Truth = dict[str, tuple[Array, Array]]
"""By output ("" for the result, else the argument): the nearest float64, and how far off it the exact number may be."""

BITS = (192, 768, 3072)
"""Tried in turn until every ball rounds to one float64."""


def truth(operation: str, arguments: Mapping[str, Any], *, vjp: bool = False) -> Truth:
    """Arguments: float64 arrays (mask: bool) by torch name, with grad_output where `vjp`; results in torch's shapes."""
    compute = (GRADIENTS if vjp else FORWARD)[operation]
    before, found = flint.ctx.prec, {}
    try:
        for bits in BITS:
            flint.ctx.prec = bits
            results = compute(**{name: value for name, value in arguments.items() if value is not None})
            found = {name: _rounded(value) for name, value in results.items()}
            if all(sure.all() for _, _, sure in found.values()):
                break
    finally:
        flint.ctx.prec = before
    return {name: (value, radius) for name, (value, radius, _) in found.items()}


def _rounded(balls: Array) -> tuple[Array, Array, Array]:
    value, radius, sure = (np.empty(balls.shape, kind) for kind in (float, float, bool))
    for where in np.ndindex(balls.shape):
        ball = balls[where]
        value[where] = float(ball.mid())
        exact = not ball.is_finite() or not np.isfinite(value[where])  # -inf, or beyond float64
        radius[where] = 0.0 if exact else float((ball - arb(float(value[where]))).abs_upper()) * (1 + 2.0**-50)
        sure[where] = exact or float(ball.lower()) == float(ball.upper())
    return value, radius, sure


# ---- rows of balls


def _exp(x: float | arb, shift: float | arb) -> arb:
    return arb(0) if isinstance(x, float) and x == -np.inf else (arb(x) - arb(shift)).exp()


def _weights(row: list[Any]) -> tuple[list[arb], arb]:
    """(softmax, log-sum-exp) of logits that are floats, balls, or None where nobody looks."""
    seen = [x for x in row if x is not None]
    peak = max((x.mid() if isinstance(x, arb) else arb(x) for x in seen), default=arb(0), key=float)
    w = [arb(0) if x is None else _exp(x, peak) for x in row]
    total = sum(w, arb(0))
    if not seen:
        return w, arb("-inf")
    return [x / total for x in w], peak + total.log()


def _dot(a: Any, b: Any) -> arb:
    return sum((x * y for x, y in zip(a, b, strict=True)), arb(0))


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _boxed(rows: list[Any], shape: tuple[int, ...]) -> Array:
    """A list of balls, or of lists of balls, as an object array."""
    flat = [ball for row in rows for ball in (row if isinstance(row, list) else [row])]
    box = np.empty(len(flat), dtype=object)
    box[:] = flat
    return box.reshape(shape)


def _over_rows(
    x: Array, of_row: Callable[..., list[Any] | arb], *more: Array, shape: tuple[int, ...]
) -> dict[str, Array]:
    rows = [of_row(row.tolist(), *(m[i].tolist() for m in more)) for i, row in enumerate(_rows(x))]
    return {"": _boxed(rows, shape)}


def softmax(x: Array) -> dict[str, Array]:
    return _over_rows(x, lambda row: _weights(row)[0], shape=x.shape)


def logsumexp(x: Array) -> dict[str, Array]:
    return _over_rows(x, lambda row: _weights(row)[1], shape=x.shape[:-1])


def log_softmax(x: Array) -> dict[str, Array]:
    def of_row(row: list[float]) -> list[arb]:
        log_sum = _weights(row)[1]
        return [arb("-inf") if v == -np.inf else v - log_sum for v in row]

    return _over_rows(x, of_row, shape=x.shape)


def softmax_vjp(x: Array, grad_output: Array) -> dict[str, Array]:
    def of_row(row: list[float], g: list[float]) -> list[arb]:
        p, _ = _weights(row)
        mean = _dot(p, g)
        return [w * (slope - mean) for w, slope in zip(p, g, strict=True)]

    return {"x": _over_rows(x, of_row, _rows(grad_output), shape=x.shape)[""]}


def log_softmax_vjp(x: Array, grad_output: Array) -> dict[str, Array]:
    def of_row(row: list[float], g: list[float]) -> list[arb]:
        total = sum(map(arb, g), arb(0))
        return [slope - w * total for w, slope in zip(_weights(row)[0], g, strict=True)]

    return {"x": _over_rows(x, of_row, _rows(grad_output), shape=x.shape)[""]}


def logsumexp_vjp(x: Array, grad_output: Array) -> dict[str, Array]:
    def of_row(row: list[float], g: float) -> list[arb]:
        return [w * g for w in _weights(row)[0]]

    return {"x": _over_rows(x, of_row, grad_output.reshape(-1), shape=x.shape)[""]}


# ---- matrices of balls


def _matrix(values: Array) -> arb_mat:
    return arb_mat(*values.shape, [arb(v) for v in values.ravel().tolist()])


def _entries(m: arb_mat) -> Array:
    return _boxed(m.entries(), (m.nrows(), m.ncols()))


def _stack(matrices: list[arb_mat], lead: tuple[int, ...], shape: tuple[int, int]) -> Array:
    out = np.empty((len(matrices), *shape), dtype=object)
    for i, m in enumerate(matrices):
        out[i] = _entries(m)
    return out.reshape(*lead, *shape)


def matmul(a: Array, b: Array) -> dict[str, Array]:
    lead, left, right = _batches(a, b)
    products = [_matrix(x) * _matrix(y) for x, y in zip(left, right, strict=True)]
    return {"": _stack(products, lead, (a.shape[-2], b.shape[-1]))}


def _batches(*arrays: Array) -> tuple[tuple[int, ...], *tuple[Array, ...]]:
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    flat = (np.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in arrays)
    return (lead, *flat)


def matmul_vjp(a: Array, b: Array, grad_output: Array) -> dict[str, Array]:
    """Batch axes are equal, as a target meets them."""
    return {"a": matmul(grad_output, b.swapaxes(-1, -2))[""], "b": matmul(a.swapaxes(-1, -2), grad_output)[""]}


def weighted_average(weights: Array, v: Array) -> dict[str, Array]:
    return matmul(weights, v)


def weighted_average_vjp(weights: Array, v: Array, grad_output: Array) -> dict[str, Array]:
    found = matmul_vjp(weights, v, grad_output)
    return {"weights": found["a"], "v": found["b"]}


def linear(x: Array, weight: Array, bias: Array | None = None) -> dict[str, Array]:
    out = matmul(_rows(x), weight.T)[""].reshape(*x.shape[:-1], weight.shape[0])
    return {"": out if bias is None else out + bias}


def linear_vjp(x: Array, weight: Array, grad_output: Array, bias: Array | None = None) -> dict[str, Array]:
    rows = _rows(grad_output)
    found = {"x": matmul(rows, weight)[""].reshape(x.shape), "weight": matmul(rows.T, _rows(x))[""]}
    if bias is not None:
        found["bias"] = _boxed([sum(map(arb, column.tolist()), arb(0)) for column in rows.T], bias.shape)
    return found


# ---- attention, matrix by matrix


def attention(q: Array, k: Array, v: Array, **options: Any) -> dict[str, Array]:
    lead, *batches = _batches(q, k, v)
    keep = _keep(q, k, **options)
    outputs = [
        _attend(*(m.tolist() for m in one), seen, options.get("scale"))[1]
        for one, seen in zip(zip(*batches, strict=True), keep, strict=True)
    ]
    shape = (*lead, q.shape[-2], v.shape[-1])
    return {"": _boxed([row for out in outputs for row in out], shape)}


def _keep(q: Array, k: Array, mask: Array | None = None, is_causal: bool = False, scale: float | None = None) -> Array:
    """Who may look at whom, one matrix for each of the batch; causal is aligned at the bottom right."""
    n, m = q.shape[-2], k.shape[-2]
    seen = np.array([[not is_causal or j - i <= m - n for j in range(m)] for i in range(n)]).reshape(n, m)
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    return np.broadcast_to(seen if mask is None else seen & mask, (*lead, n, m)).reshape(-1, n, m)


def _attend(q: list[Any], k: list[Any], v: list[Any], seen: Array, scale: float | None) -> tuple[list[Any], list[Any]]:
    """(weights, outputs) of one matrix, as lists of rows."""
    factor = 1 / arb(len(q[0])).sqrt() if scale is None else arb(float(scale))
    weights, outputs = [], []
    for i, query in enumerate(q):
        row = [factor * _dot(map(arb, query), key) if seen[i, j] else None for j, key in enumerate(k)]
        p, _ = _weights(row)
        weights.append(p)
        outputs.append([_dot(p, column) for column in zip(*v, strict=True)])
    return weights, outputs


def attention_vjp(q: Array, k: Array, v: Array, grad_output: Array, **options: Any) -> dict[str, Array]:
    """dV = Pᵀ dO, dS = P ∘ (dO Vᵀ - rowsum(dO ∘ O)), dQ = scale · dS K, dK = scale · dSᵀ Q."""
    lead, *batches = _batches(q, k, v, grad_output)
    found: dict[str, list[Any]] = {"q": [], "k": [], "v": []}
    factor = 1 / arb(q.shape[-1]).sqrt() if options.get("scale") is None else arb(float(options["scale"]))
    for (qs, ks, vs, gs), seen in zip(zip(*batches, strict=True), _keep(q, k, **options), strict=True):
        queries, keys, values, slopes = qs.tolist(), ks.tolist(), vs.tolist(), gs.tolist()
        p, out = _attend(queries, keys, values, seen, options.get("scale"))
        ds = []
        for i, g in enumerate(slopes):
            mean = _dot(map(arb, g), out[i])
            ds.append([p[i][j] * (_dot(map(arb, g), value) - mean) for j, value in enumerate(values)])
        columns = list(zip(*keys, strict=True))
        found["q"] += [[factor * _dot(row, column) for column in columns] for row in ds]
        for of, rows, other in (("k", ds, queries), ("v", p, slopes)):
            by = factor if of == "k" else arb(1)
            for column in zip(*rows, strict=True):
                found[of].append([by * _dot(column, entry) for entry in zip(*other, strict=True)])
    return {
        name: _boxed(rows, (*lead, *of.shape[-2:])) for (name, rows), of in zip(found.items(), (q, k, v), strict=True)
    }


FORWARD: Mapping[str, Callable[..., dict[str, Array]]] = {
    "softmax": softmax,
    "logsumexp": logsumexp,
    "log_softmax": log_softmax,
    "matmul": matmul,
    "weighted_average": weighted_average,
    "linear": linear,
    "attention": attention,
}
GRADIENTS: Mapping[str, Callable[..., dict[str, Array]]] = {
    "softmax": softmax_vjp,
    "logsumexp": logsumexp_vjp,
    "log_softmax": log_softmax_vjp,
    "matmul": matmul_vjp,
    "weighted_average": weighted_average_vjp,
    "linear": linear_vjp,
    "attention": attention_vjp,
}
