"""What to try after a failure: one sentence that can be acted on, by the cause where it is known, else by what is seen.

`hint` says nothing where nothing in particular can be said.
"""

from __future__ import annotations

import re

from lla_spec.calls import Formula
from lla_spec.interface import signature
from lla_spec.testing.judge import Judgement
from lla_spec.testing.layouts import BESIDE_NAN
from lla_spec.testing.verdicts import Result

BY_CAUSE = (
    (r"^the scale 1|^the scale is", "scale the scores by 1/√d, d the width of q and k, unless `scale` is given"),
    (r"scaled by all heads' features", "the width of one head counts: scale by 1/√(d_model / num_heads)"),
    (r"^the given scale", "multiply by `scale` where it is given, 0 as well: 1/√d is for None"),
    (r"^the given ignore_index", "leave out what equals ignore_index, 0 as well: -100 is where none is given"),
    (r"^the given eps", "use the eps that is given: 1e-5 and 1e-6 are defaults"),
    (r"^eps is", "add eps to the mean of the squares, under the root: rsqrt(variance + eps)"),
    (r"mask is ignored", "hide before the softmax: scores.masked_fill(~mask, -inf)"),
    (
        r"gets a finite score",
        "hide by -inf: scores.masked_fill(~mask, -inf); scores of -10⁴ and less are met, in 16 bits too",
    ),
    (r"mask is inverted", "True may be looked at: scores.masked_fill(~mask, -inf), or invert the mask in an adapter"),
    (r"is_causal is ignored", "with is_causal, query i sees key j where j ≤ i + m - n: mask & ones(n, m).tril(m - n)"),
    (
        r"aligned top-left",
        "ones(n, m).tril(m - n); or say policies={'causal_alignment': 'top_left'} in LLA_TARGET if it is meant",
    ),
    (r"diagonal is off by one", "query i sees key j where j ≤ i + m - n: ones(n, m).tril(m - n)"),
    (
        r"^a row without keys|^a mask that keeps nothing",
        "where the mask leaves nothing, put zeros in place of 0/0; or say what it gives in LLA_TARGET: "
        "policies={'fully_masked_row': …}",
    ),
    (
        r"^every matrix is given the",
        "leading axes go along: mean (…, d) and components (…, k, d) belong to x (…, n, d)",
    ),
    (
        r"summed over the matrices",
        "each matrix has its own: sum over its rows alone, dC = dZᵀ (X - μ) by batched matmul",
    ),
    (r"is transposed", "look at the axes in the signature: square cases hide a missing .mT, and others raise"),
    (r"the bias is left out", "add the bias before anything else sees the product"),
    (r"bias is added after", "add the bias to the logits, before the softmax"),
    (r"runs over the", "normalise over the last axis: softmax(scores, dim=-1)"),
    (r"^sums are", "keep the sum in float32 (or the accumulator's dtype) and round once, at the end"),
    (
        r"^float64 is computed",
        "compute in x.dtype where it is wider than float32; or say 'dtypes': ['fp32', 'bf16', 'fp16'] in LLA_TARGET",
    ),
    (r"^every step is rounded", "convert the inputs to float32 first, and round the result once"),
    (r"^the (result|argument) of \w+ is rounded", "keep it in the accumulator's dtype; allow_tf32 and autocast round"),
    (
        r"maximum is not subtracted",
        "subtract the row's maximum before exp: exp(s - s.amax(-1, keepdim=True)); a running one begins at -inf",
    ),
    (r"divided by n - 1", "var(-1, unbiased=False): the biased variance"),
    (r"squares are summed", "x.pow(2).mean(-1), not .sum(-1)"),
    (r"lacks the scale", "what multiplies forward multiplies backward: dQ = scale · dS K, dK = scale · dSᵀ Q"),
    (r"scale is applied twice", "apply the scale in dS or in dQ and dK, not in both"),
    (r"sign is flipped", "look for a minus: the derivative of x - μ by μ is -1"),
    (r"it is (doubled|halved)", "look for a factor of 2: a term that is counted twice, or once of two times"),
    (r"has LayerNorm's term", "RMSNorm subtracts no mean: dx = (ĝ - x̂ · mean(ĝ∘x̂)) / √(r + ε)"),
    (r"sum over the row is missing", "dx = dy - P · Σ dy: every logit takes part in the normaliser"),
    (r"not divided by its sum", "the gradient is softmax(x) · dy: divide exp(x - max) by its sum"),
    (r"h alone is normalised", "add first: LayerNorm(h + sublayer)"),
    (r"row 0 is held at zero", "row 0 is a word like the others: no padding_idx"),
    (r"that of the raw data", "dC = dZᵀ (X - μ): subtract the mean as the forward pass does"),
    (r"weights are normalised again", "the weights are given as they are: multiply, and divide by nothing"),
    (r"that of the raw rows", "dγ = Σ grad_output ∘ x̂: keep the normalised rows, or make them again"),
    (r"through a softmax that made them", "the weights are the argument: their softmax has its own backward"),
    (r"not centred", "subtract the row's sum of P∘dP: dS = P∘(dP - Σ P∘dP)"),
    (r"cotangent is ignored", "multiply by grad_output: it is 1 only under .sum().backward()"),
    (r"get no gradient|gets no gradient", "look for .detach(), .data or no_grad() on the way, or a None in backward()"),
    (r"averaged over the", "sum over the rows: each of them used it"),
    (r"lacks its term", "dx = (ĝ - mean ĝ - x̂ · mean(ĝ∘x̂)) / √(v + ε)"),
    (r"query head p looks", "k.repeat_interleave(h // g, dim=-3), not k.repeat"),
    (r"that of one head", "sum the gradient over the query heads that share the key-value head"),
    (r"positions without a target", "positions where targets == ignore_index give loss 0 and gradient 0"),
    (r"mean is over all positions|by all positions|lacks 1/N", "divide by (targets != ignore_index).sum()"),
    (r"same storage", "an address is no key for a cache: the same storage holds other values later"),
    (r"occurs twice", "add, do not assign: index_add_ or scatter_add_"),
    (r"tokens that the mask hides", "multiply by the mask, and divide by mask.sum(-1)"),
    (r"all tokens, not by those", "divide by mask.sum(-1), not by the length"),
    (r"mean is not", "pca_transform subtracts the mean before the product, pca_inverse adds it after"),
)

BY_KIND = {
    "hangs": "look for a loop that waits or grows; --limit SECONDS gives one call more time",
    "crashes": "run it with --isolate; look for an access outside of a tensor in sizes that no block divides",
    "writes": "compute out of place: no x.add_(…), no out=x; clone what is scratch",
    "device": "allocate beside the input: torch.empty_like(x), or device=x.device",
    "dtype": "end with .to(x.dtype); parameters created inside take x.dtype as well",
    "meddles": "give the setting to the call itself, or set it back in a `finally`",
    "tight": "errors all go one way: look for truncation where it should round, or one long sum in sequence",
    "changes": "look for memory that is read before it is written, a race, or an answer kept from another call",
    "law": "the calls take different paths (sizes, layout, mask): compare what each does at the tensors above",
}

BY_MEETS = (
    ("variance in one pass", "subtract the mean before squaring: (x - x.mean(-1, keepdim=True)).pow(2).mean(-1)"),
    ("operands rounded to tf32", "torch.backends.cuda.matmul.allow_tf32 = False"),
    ("accumulated in", "accumulate in a wider dtype: x.float() first, .to(x.dtype) last"),
    ("gradient partials", "sum the gradient's blocks in float32 and round once"),
    ("scores", "keep the scores in float32 until after the softmax"),
    ("weights", "keep the weights in float32 until the product with v is done"),
    ("q and k", "multiply the scores by the scale, not q and k"),
)

RETURNS = (
    (
        r"returns None\b|returns NoneType",
        "return the result; if it fills a buffer: def f(…): kernel(…, out); return out",
    ),
    (r"returns a gradient of", "return None for an argument that was None"),
    (r"it must return a tuple", "return them in this order, None where the argument was None"),
    (r"returns (tuple|list)\b", "pick it in an adapter: {name} = lambda *a, **k: kernel(*a, **k)[0]"),
)


SMALL, TILE = 9, 64  # sizes: of a case that was shrunk, and of what a kernel takes at once


def hint(formula: Formula, result: Result, found: Judgement) -> str:
    """A sentence for this failure; "" where nothing in particular can be said."""
    if result.cause:
        for pattern, words in BY_CAUSE:
            if re.search(pattern, result.cause):
                return words
    if found.kind in ("returns", "shape", "raises"):
        return _about_the_call(formula, found)
    if found.kind in BY_KIND:
        return BY_KIND[found.kind]
    beyond = _sizes_above(TILE, found)
    for label, words in BY_MEETS:
        if f"({label}" in result.meets:
            if beyond:  # a rounding is seen in small cases as well
                return f"smaller sizes pass: look at the last block or the loop over {beyond}; if it is none, {words}"
            return f"{words}; or declare it if it is meant: LLA_TARGET['ops']['{result.row.op}']['contract']"
    return _about_the_case(found)


def _sizes_above(limit: int, found: Judgement) -> str:
    return ", ".join(f"{name} = {size}" for name, size in found.case.sizes if size > limit)


def _about_the_call(formula: Formula, found: Judgement) -> str:
    vjp = found.message.startswith(f"{formula.name}_vjp")
    name, given = formula.name + "_vjp" * vjp, signature(formula, vjp=vjp)
    if found.kind == "returns":
        return next((words.format(name=name) for p, words in RETURNS if re.search(p, found.message)), "")
    if found.kind == "shape":
        return f"{name}{given} keeps the leading axes; an adapter moves axes: kernel(x.transpose(1, 2)).transpose(1, 2)"
    if "raises TypeError" in found.message and "argument" in found.message:
        first = next(iter(given.parameters))
        return f"it is called as {name}{given}; an adapter renames: {name} = lambda {first}, …: kernel(…)"
    if found.case.each:
        return "mean (…, d) and components (…, k, d) may have leading axes; if not: 'supports': {'mean': 'shared'}"
    return "what it does not take, it may say in LLA_TARGET ('supports', 'dtypes'): then it is not asked for it"


def _about_the_case(found: Judgement) -> str:
    """What is left in the smallest failing case is what it takes to fail."""
    case, worst = found.case, found.worst
    if worst is not None and worst.computed != worst.computed:
        if set(case.layout.split("+")) & set(BESIDE_NAN):
            return "NaN lies beside these inputs in memory: look for a read beyond a row's end, where 0 is no padding"
        if case.special in ("live_nan", "first_nan"):
            return "one entry is NaN, and other rows get it: look for a read beyond a row's end, where 0 is no padding"
        return "NaN is made by 0/0, inf - inf or 0·inf: look for an exp that overflows and a sum that is 0"
    if worst is not None and worst.computed - worst.computed != 0:
        return "look for an exp that overflows, a log of what underflowed to 0, or a product in 16 bits"
    if case.special == "reuse":
        return "the same storage was used with other values before: look for an answer or a constant that is kept"
    if case.each:
        return "where all rows share one it passes: look at which matrix's mean and components a row is given"
    if case.layout != "dense":
        return f"it takes the layout {case.layout}: use the strides, or call .contiguous() first"
    if case.grad != "dense" and case.law == "vjp":
        return f"it takes a cotangent that is {case.grad}: use its strides, or call .contiguous() first"
    if large := _sizes_above(SMALL, found):
        return f"smaller sizes pass: look at the last block or the loop over {large}"
    if {"offset", "far"} & set(case.family.split("+")):
        return "what is common to a row cancels: subtract it before squares or sums are taken, not after"
    if case.mask != "none" or case.causal:
        return "without the mask it passes: look at what is hidden, and at rows that see little"
    if found.kind == "certificate":
        return "compare with torch.linalg.svd(w, full_matrices=False) at the matrix above"
    return "follow the numbers above by hand: this is the smallest case that was found"
