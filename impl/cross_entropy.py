# ruff: noqa: F722  (jaxtyping's axis names are not forward references)
"""Cross-entropy of logits, and of the output layer without its logits, each with its VJP.

    ℓ_i = logsumexp(z_i) - z_it      dz_i = (P_i - onehot(t))·g_i      Z = H W_outᵀ + b in the linear one

Both work with the peak m = max_j z_j = z_a of each row and the rest r = Σ_{j≠a} exp(z_j - m):

    ℓ = (m - z_t) + log1p(r)         P_j = exp(z_j - m) / (1 + r)      P_t - 1 = expm1(-ℓ)

No step cancels, so losses and gradients keep their relative precision where a model is sure: the loss of [20, 0] is
2.1e-9, which logsumexp(z) - z_t in float32 makes 0.

Ignored rows: a target equal to `ignore_index` (which may be a class) takes its row out. Its loss is 0, its gradients
are 0 and it does not count in the mean, whatever its logits or its h hold, NaN included; torch agrees on the loss, and
lets a NaN into its gradient. With nothing kept the sum is 0, the mean 0/0 = NaN, and both send zeros backward.

A logit of -inf is a probability of exactly 0: as the target it makes the loss inf. A row of nothing else is NaN, and
so is the gradient of a row that holds +inf or NaN.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from impl.arguments import (
    check_axes,
    check_choice,
    check_floating,
    check_grad_output,
    check_ids,
    check_integer,
    check_range,
)
from impl.autograd import KeepsArguments, arguments_of
from impl.linear import _grad_bias, _grad_weight
from impl.output import check_output_layer, logits_of
from impl.precision import product, widened

# Logits of this many words are held at a time by linear_cross_entropy: N × 4096 numbers instead of N × V.
VOCABULARY_CHUNK = 4096


def cross_entropy(
    logits: Float[Tensor, "*batch V"],
    targets: Int64[Tensor, "*batch"],
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """-log softmax(logits)_t per row: their mean over the kept rows, their "sum", or each of them for "none".

    Rows are summed before the one rounding to the dtype of the logits. Raises ValueError where shapes or devices
    disagree, targets are not int64, and in eager mode on a CPU where a target is neither a class nor `ignore_index`.

    >>> cross_entropy(torch.tensor([[0.0, 0.0], [20.0, 0.0]]), torch.tensor([1, 0]), reduction="none")
    tensor([6.9315e-01, 2.0612e-09])
    """
    _check_cross_entropy("cross_entropy", logits, targets, ignore_index, reduction)
    return _CrossEntropy.apply(logits, targets, ignore_index, reduction)


def cross_entropy_vjp(
    logits: Float[Tensor, "*batch V"],
    targets: Int64[Tensor, "*batch"],
    *,
    grad_output: Float[Tensor, "..."],
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[Float[Tensor, "*batch V"]]:
    """(dz,) with dz_i = (P_i - onehot(t_i))·g_i, divided by the number of kept rows for "mean"; 0 on ignored rows.

    >>> cross_entropy_vjp(torch.zeros(1, 2), torch.tensor([1]), grad_output=torch.tensor(1.0))
    (tensor([[ 0.5000, -0.5000]]),)
    """
    _check_cross_entropy("cross_entropy_vjp", logits, targets, ignore_index, reduction)
    _check_upstream("cross_entropy_vjp", grad_output, targets, reduction, "logits", logits)
    return (_cross_entropy_backward(logits, targets, ignore_index, reduction, grad_output),)


def linear_cross_entropy(
    h: Float[Tensor, "*batch d"],
    w_out: Float[Tensor, "V d"],
    targets: Int64[Tensor, "*batch"],
    bias: Float[Tensor, " V"] | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """cross_entropy(h w_outᵀ + bias, targets), with no logit rounded and never more than some of them in memory.

    The vocabulary is gone through in chunks of VOCABULARY_CHUNK words, whose log-sum-exps are merged as they come
    (softmax.lse_merge); backward, each chunk's logits are computed again (as Wijmans et al. 2024 do, without their
    filtering of small gradients). A second derivative, though, keeps every chunk. Raises ValueError as cross_entropy
    and output_softmax do.

    >>> linear_cross_entropy(torch.ones(2, 1), torch.zeros(4, 1), torch.tensor([3, -100])).exp()
    tensor(4.)
    """
    _check_linear_cross_entropy("linear_cross_entropy", h, w_out, targets, bias, ignore_index, reduction)
    return _LinearCrossEntropy.apply(h, w_out, targets, bias, ignore_index, reduction)


def linear_cross_entropy_vjp(
    h: Float[Tensor, "*batch d"],
    w_out: Float[Tensor, "V d"],
    targets: Int64[Tensor, "*batch"],
    bias: Float[Tensor, " V"] | None = None,
    *,
    grad_output: Float[Tensor, "..."],
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "V d"], Float[Tensor, " V"] | None]:
    """(dh, dW, db) = (dz W, dzᵀ h, Σ_i dz_i) with the dz of cross_entropy; db None where bias is None.

    >>> linear_cross_entropy_vjp(torch.ones(1), torch.zeros(2, 1), torch.tensor(1), grad_output=torch.tensor(1.0))
    (tensor([0.]), tensor([[ 0.5000],
            [-0.5000]]), None)
    """
    _check_linear_cross_entropy("linear_cross_entropy_vjp", h, w_out, targets, bias, ignore_index, reduction)
    _check_upstream("linear_cross_entropy_vjp", grad_output, targets, reduction, "h", h)
    needs = (True, True, bias is not None)
    return _linear_cross_entropy_backward(h, w_out, targets, bias, ignore_index, reduction, grad_output, needs)


# --- arguments ---


def _check_targets(operation: str, targets: Tensor, name: str, x: Tensor, ignore_index: int, reduction: str) -> None:
    check_ids(operation, "targets", targets, name, x)
    if targets.shape != x.shape[:-1]:
        raise ValueError(
            f"{operation}: targets has shape {tuple(targets.shape)} but {name} has rows {tuple(x.shape[:-1])}"
        )
    check_integer(operation, "ignore_index", ignore_index)
    check_choice(operation, "reduction", reduction, ("mean", "sum", "none"))


def _check_cross_entropy(operation: str, logits: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> None:
    check_floating(operation, logits=logits)
    check_axes(operation, "logits", logits, "V")
    _check_targets(operation, targets, "logits", logits, ignore_index, reduction)
    check_range(operation, "targets", targets, "classes", "logits", logits, -1, ignored=ignore_index)


def _check_linear_cross_entropy(
    operation: str, h: Tensor, w_out: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, reduction: str
) -> None:
    check_output_layer(operation, h, w_out, bias)
    _check_targets(operation, targets, "h", h, ignore_index, reduction)
    check_range(operation, "targets", targets, "classes", "w_out", w_out, 0, ignored=ignore_index)


def _check_upstream(
    operation: str, grad_output: Tensor, targets: Tensor, reduction: str, name: str, like: Tensor
) -> None:
    check_grad_output(operation, grad_output, targets.shape if reduction == "none" else (), name, like)


# --- what both share: a number per row is a column (…, 1) ---


def _kept_rows(x: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """x in the accumulator's dtype with ignored rows zeroed, targets with ignored ones 0, and which rows are kept.

    Rows are silenced before anything is computed from them, so that derivatives of any order are finite there.
    """
    keep = (targets != ignore_index).unsqueeze(-1)
    return widened(x).masked_fill(~keep, 0.0), targets.unsqueeze(-1).masked_fill(~keep, 0), keep


def _peak_and_rest(z: Tensor) -> tuple[Tensor, Tensor]:
    """m = z_a = max_j z_j and r = Σ_{j≠a} exp(z_j - m) over the last axis: logsumexp(z) = m + log1p(r).

    m is gathered, no `amax`: it is the entry z_a, and must differentiate as that one entry where several tie.
    """
    a = z.argmax(-1, keepdim=True)
    m = z.gather(-1, a)
    # Where every entry is -inf, so is m: r is a sum of no terms then, and -inf - -inf would make it NaN.
    others = (z - m.masked_fill(m == -torch.inf, 0.0)).scatter(-1, a, -torch.inf)
    return m, others.exp().sum(-1, keepdim=True)


def _merged(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Peak and rest of two blocks together (softmax.lse_merge): the lower peak becomes a term of the rest."""
    (m_1, r_1), (m_2, r_2) = one, two
    first = m_1 >= m_2
    high, low = torch.where(first, m_1, m_2), torch.where(first, m_2, m_1)
    r_high, r_low = torch.where(first, r_1, r_2), torch.where(first, r_2, r_1)
    gap = low - high.masked_fill(low == -torch.inf, 0.0)  # a block of no terms adds none, even to another such block
    return high, r_high + (1 + r_low) * gap.exp()


def _loss(m: Tensor, r: Tensor, z_t: Tensor) -> Tensor:
    return (m - z_t) + torch.log1p(r)


def _reduced(losses: Tensor, keep: Tensor, reduction: str) -> Tensor:
    losses = losses.masked_fill(~keep, 0.0).squeeze(-1)
    if reduction == "none":
        return losses
    return losses.sum() / keep.sum() if reduction == "mean" else losses.sum()


def _row_weights(grad_output: Tensor, keep: Tensor, reduction: str) -> Tensor:
    """What a unit of each row's loss is worth to grad_output: 0 for ignored rows."""
    g = widened(grad_output)
    if reduction == "mean":
        g = g / keep.sum().clamp(min=1)  # with nothing kept, nothing is left to divide
    return (g.unsqueeze(-1) if reduction == "none" else g.expand(keep.shape)).masked_fill(~keep, 0.0)


# --- cross_entropy ---


class _CrossEntropy(KeepsArguments):
    @staticmethod
    def forward(logits: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
        z, t, keep = _kept_rows(logits, targets, ignore_index)
        return _reduced(_losses(z, t), keep, reduction).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, ignore_index, reduction = arguments_of(ctx)
        return _cross_entropy_backward(logits, targets, ignore_index, reduction, grad_output), None, None, None


def _cross_entropy_backward(
    logits: Tensor, targets: Tensor, ignore_index: int, reduction: str, grad_output: Tensor
) -> Tensor:
    if logits.shape[-1] == 0:
        return torch.zeros_like(logits)
    z, t, keep = _kept_rows(logits, targets, ignore_index)
    p_minus_1 = torch.expm1(-_losses(z, t))  # at the target: softmax.lse_gradient less the 1 of z_t
    p_minus_onehot = torch.softmax(z, -1).scatter(-1, t, p_minus_1)
    return (p_minus_onehot * _row_weights(grad_output, keep, reduction)).to(logits.dtype)


def _losses(z: Tensor, t: Tensor) -> Tensor:
    if z.shape[-1] == 0:
        return z.sum(-1, keepdim=True)  # without classes every row is an ignored one
    return _loss(*_peak_and_rest(z), z.gather(-1, t))


# --- linear_cross_entropy ---


class _LinearCrossEntropy(KeepsArguments):
    @staticmethod
    def forward(
        h: Tensor, w_out: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, reduction: str
    ) -> Tensor:
        rows, t, keep = _kept_rows(h, targets, ignore_index)
        losses = _loss(*_peak_rest_and_target(rows, w_out, t, bias))
        return _reduced(losses, keep, reduction).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        h, w_out, targets, bias, ignore_index, reduction = arguments_of(ctx)
        needs = tuple(ctx.needs_input_grad[i] for i in (0, 1, 3))
        dh, dw_out, dbias = _linear_cross_entropy_backward(
            h, w_out, targets, bias, ignore_index, reduction, grad_output, needs
        )
        return dh, dw_out, None, dbias, None, None


def _linear_cross_entropy_backward(
    h: Tensor,
    w_out: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    grad_output: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Any, Any, Any]:
    """(dh, dw_out, dbias), None for what is not needed; the sums over rows and over words are each rounded once."""
    needs_h, needs_w_out, needs_bias = needs
    rows, t, keep = _kept_rows(h, targets, ignore_index)
    m, r, z_t = _peak_rest_and_target(rows, w_out, t, bias)
    p_minus_1 = torch.expm1(-_loss(m, r, z_t))
    row_weights = _row_weights(grad_output, keep, reduction)
    dh, dw_out, dbias = torch.zeros_like(rows), [w_out[:0]], [w_out.new_empty(0)]
    for words in _chunks(w_out):
        z = _logits(rows, w_out, bias, words)
        inside, place = _place(t, words)
        p = (z - m).exp() / (1 + r)
        p_minus_onehot = p.scatter(-1, place, torch.where(inside, p_minus_1, p.gather(-1, place)))
        dz = (p_minus_onehot * row_weights).masked_fill(~keep, 0.0)  # 0 already, unless a weight or a bias is NaN
        if needs_h:
            dh = dh + product(dz, w_out[words])  # linear.gradient_x, word block by word block (linear.block_product)
        if needs_w_out:
            dw_out.append(_grad_weight(rows, dz).to(h.dtype))
        if needs_bias:
            dbias.append(_grad_bias(dz).to(h.dtype))
    return (
        dh.masked_fill(~keep, 0.0).to(h.dtype) if needs_h else None,
        torch.cat(dw_out) if needs_w_out else None,
        torch.cat(dbias) if needs_bias else None,
    )


def _peak_rest_and_target(rows: Tensor, w_out: Tensor, t: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """m and r of every row's logits, and the logit of its target, out of one pass over the vocabulary."""
    nothing = rows.new_zeros(t.shape)
    peak_and_rest, z_t = (torch.full_like(nothing, -torch.inf), nothing), nothing
    for words in _chunks(w_out):
        z = _logits(rows, w_out, bias, words)
        inside, place = _place(t, words)
        peak_and_rest = _merged(peak_and_rest, _peak_and_rest(z))
        z_t = torch.where(inside, z.gather(-1, place), z_t)
    return *peak_and_rest, z_t


def _chunks(w_out: Tensor) -> list[slice]:
    """The vocabulary, cut."""
    size = w_out.shape[0]
    return [slice(start, min(start + VOCABULARY_CHUNK, size)) for start in range(0, size, VOCABULARY_CHUNK)]


def _logits(rows: Tensor, w_out: Tensor, bias: Tensor | None, words: slice) -> Tensor:
    return logits_of(rows, w_out[words], None if bias is None else bias[words])


def _place(t: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Whether each target is one of `words`, and its place among them, 0 where it is none."""
    inside = (t >= words.start) & (t < words.stop)
    return inside, (t - words.start).masked_fill(~inside, 0)
