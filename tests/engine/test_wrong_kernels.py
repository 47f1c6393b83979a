"""Wrong kernels of every operation, half of them in the backward pass: each is refused, in words that help.

Where `cause` says what a person did, it must be said; where no knob of causes.py does, the text names the worst entry
or the certificate that fails.
"""

import importlib
import re
from dataclasses import replace
from typing import NamedTuple

import pytest

from lla_spec.language import registry
from lla_spec.testing.cases import parse
from lla_spec.testing.diagnose import explain, texts, words_of
from lla_spec.testing.explaining import causes
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from lla_spec.testing.verdicts import Result


class Wrong(NamedTuple):
    """Which row fails; the cause, or where none is known what the worst entry or the certificate shows."""

    operation: str
    law: str
    cause: str = ""
    shows: str = ""
    theorem: str = ""  # a law of the page that names the mistake, and fails too
    dtype: str = "fp32"
    examples: int = 2


TILED = "query head p looks at key-value head p mod g"
M1, M2 = "dx lacks its term m₁ = mean ĝ", "dx lacks its term m₂ = mean ĝ∘x̂"
ALL_TOKENS = "it divides by all tokens, not by those that the mask keeps"
SUMS_IN_IO = "sums are rounded to bf16 on their way"
AVERAGED = "the gradient of {} is averaged over the rows, not summed"

MAPS = {
    "softmax_over_rows": Wrong("softmax", "definition", "the softmax runs over the rows", theorem="row_sums"),
    "softmax_gradient_uncentred": Wrong("softmax", "vjp", "dx is not centred", theorem="gradient_sums_to_zero"),
    "log_of_softmax": Wrong("log_softmax", "definition", shows="computed -inf", examples=20),
    "log_softmax_gradient_own": Wrong(
        "log_softmax", "vjp", "the sum over the row is missing", theorem="log_softmax_gradient"
    ),
    "logsumexp_without_maximum": Wrong("logsumexp", "definition", "the maximum is not subtracted before exp"),
    "logsumexp_gradient_unnormalised": Wrong(
        "logsumexp", "vjp", "exp(x - maximum) is not divided by its sum", theorem="lse_gradient"
    ),
    "matmul_sums_in_bf16": Wrong("matmul", "definition", shows="matmul(n=1, d=1, m=1", theorem="associativity"),
    "matmul_gradient_reshaped": Wrong("matmul", "vjp", "b is transposed", theorem="matmul_gradient_a"),
    "matmul_gradient_last_tile": Wrong("matmul", "vjp", shows="gradient of b [", theorem="matmul_gradient_b"),
    "linear_bias_in_each_block": Wrong("linear", "definition", shows="linear(d=5, e=1", theorem="low_rank_update"),
    "linear_bias_gradient_mean": Wrong("linear", "vjp", AVERAGED.format("bias"), theorem="gradient_bias"),
    "linear_weight_gradient_last": Wrong("linear", "vjp", shows="gradient of weight ["),
    "average_normalised_again": Wrong(
        "weighted_average", "definition", "the weights are normalised again", theorem="average_is_linear"
    ),
    "average_gradient_centred": Wrong("weighted_average", "vjp", "through a softmax that made them"),
}

NORMS = {
    "unbiased_variance": Wrong("layer_norm", "definition", "divided by n - 1, not by n", theorem="unit_variance"),
    "eps_outside_the_root": Wrong("layer_norm", "definition", "eps is added outside the root", theorem="unit_variance"),
    "variance_in_one_pass": Wrong("layer_norm", "definition", shows="subtract the mean before squaring"),
    "sum_for_mean_square": Wrong(
        "rms_norm", "definition", "the squares are summed, not averaged", theorem="unit_mean_square"
    ),
    "stream_alone_normalised": Wrong(
        "residual_layer_norm", "definition", "h alone is normalised", theorem="residual_is_symmetric"
    ),
    "without_m1": Wrong("layer_norm", "vjp", M1, theorem="gradient_is_centred"),
    "without_m2": Wrong("layer_norm", "vjp", M2, theorem="gradient_along_the_row"),
    "weight_gradient_of_raw_rows": Wrong(
        "layer_norm", "vjp", "that of the raw rows", theorem="layer_norm_gradient_weight"
    ),
    "weight_gradient_stagnates": Wrong("layer_norm", "vjp", shows="gradient of weight ["),
    "rms_gradient_of_layer_norm": Wrong(
        "rms_norm", "vjp", "dx has LayerNorm's term m₁", theorem="rms_gradient_along_the_row"
    ),
    "rms_gradient_of_two_casts": Wrong("rms_norm", "vjp", shows="gradient of x [", dtype="bf16"),
    "residual_gradient_to_one_side": Wrong(
        "residual_layer_norm", "vjp", "sublayer gets no gradient", theorem="residual_gradient_splits"
    ),
}

LOOKUPS = {
    "embedding_padding_at_zero": Wrong("embedding", "definition", "row 0 is held at zero", theorem="renamed_words"),
    "embedding_gradient_overwritten": Wrong(
        "embedding", "vjp", "gets the cotangent of one place", theorem="gradient_is_a_scatter_add"
    ),
    "embedding_gradient_stagnates": Wrong("embedding", "vjp", shows="gradient of weight [", dtype="bf16"),
    "pool_over_all": Wrong("mean_pool", "definition", ALL_TOKENS),
    "pool_counts_in_io": Wrong("mean_pool", "definition", SUMS_IN_IO, dtype="bf16"),
    "pool_gradient_over_all": Wrong("mean_pool", "vjp", ALL_TOKENS),
    "pool_gradient_counts_in_io": Wrong("mean_pool", "vjp", SUMS_IN_IO, dtype="bf16"),
    "pool_gradient_of_nothing": Wrong("mean_pool", "vjp", "tokens that the mask hides get a gradient"),
    "pool_gradient_of_hidden": Wrong("mean_pool", "vjp", "tokens that the mask hides get a gradient"),
}

LOSSES = {
    "output_bias_after_softmax": Wrong(
        "output_softmax", "definition", "the bias is added after the softmax", theorem="bias_shift"
    ),
    "mean_over_all": Wrong(
        "cross_entropy", "definition", "the mean is over all positions", theorem="ignored_positions_do_not_count"
    ),
    "log_sum_exp_in_io": Wrong("cross_entropy", "definition", SUMS_IN_IO, dtype="bf16"),
    "sum_without_tail": Wrong("cross_entropy_sum", "definition", shows="batch=3x2", theorem="sum_of_the_losses"),
    "ignored_as_word_zero": Wrong(
        "cross_entropy_none", "definition", "positions without a target get the loss of word 0"
    ),
    "chunks_averaged": Wrong("linear_cross_entropy", "definition", shows="v=2", theorem="loss_of_the_logits"),
    "output_gradient_uncentred": Wrong("output_softmax", "vjp", "dz is not centred", theorem="gradient_bias"),
    "gradient_without_mean": Wrong("cross_entropy", "vjp", "the gradient lacks 1/N", theorem="gradient_of_the_mean"),
    "gradient_without_cotangent": Wrong(
        "cross_entropy_sum", "vjp", "the cotangent is ignored", theorem="gradient_of_the_sum"
    ),
    "class_zero_gets_a_gradient": Wrong("cross_entropy", "vjp", "the given ignore_index is ignored"),
    "ignored_rows_get_p": Wrong("cross_entropy_none", "vjp", "positions without a target get P, not 0"),
    "padding_in_weight_gradient": Wrong("linear_cross_entropy", "vjp", shows="gradient of w_out ["),
    "hidden_gradient_of_one_chunk": Wrong(
        "linear_cross_entropy", "vjp", shows="gradient of h [", theorem="gradient_hidden"
    ),
}

HEADS = {
    "softmax_over_queries": Wrong("attention", "definition", "the softmax runs over the queries", theorem="key_bias"),
    "zero_scale_for_none": Wrong("attention", "definition", "the given scale is ignored"),
    "heads_are_tiled": Wrong("grouped_query_attention", "definition", TILED, theorem="groups_are_repeated_keys"),
    "scale_of_the_model": Wrong("multi_head_attention", "definition", "the scores are scaled by all heads' features"),
    "heads_joined_by_feature": Wrong("multi_head_attention", "definition", shows="e=2, o=1"),
    "heads_split_by_reshape": Wrong("multi_head_attention", "definition", shows="n=2"),
    "gradient_uncentred": Wrong("attention", "vjp", "dS is not centred", theorem="gradient_query"),
    "key_gradient_of_one_head": Wrong("grouped_query_attention", "vjp", "the gradient of k is that of one head"),
    "value_gradient_mean": Wrong("grouped_query_attention", "vjp", "the gradient of v is averaged over the heads"),
    "weights_are_constants": Wrong("multi_head_attention", "vjp", shows="worst     gradient of "),
}

SPECTRA = {
    "v_for_its_transpose": Wrong("truncated_svd", "definition", shows="singular pairs: U, S, Vh are no singular"),
    "eigenvalues_for_values": Wrong("truncated_svd", "definition", shows="S is not the largest singular values"),
    "one_too_few": Wrong("low_rank", "definition", shows="not at the least distance"),
    "shrunk_towards_zero": Wrong("low_rank", "definition", shows="not at the least distance"),
    "not_centred": Wrong("pca", "definition", shows="explained variance is off"),
    "divisor_n": Wrong("pca", "definition", shows="explained variance is off"),
    "scores_not_centred": Wrong("pca_transform", "definition", "the mean is not subtracted"),
    "scores_centred_late": Wrong("pca_transform", "definition", shows="family=offset"),
    "reconstruction_without_mean": Wrong("pca_inverse", "definition", "the mean is not added"),
    "mean_gradient_positive": Wrong("pca_transform", "vjp", "the gradient of mean: its sign is flipped"),
    "mean_gradient_zero": Wrong("pca_transform", "vjp", "mean gets no gradient"),
    "component_gradient_of_raw_data": Wrong("pca_transform", "vjp", "that of the raw data, dZᵀX"),
    "mean_of_the_first": Wrong("pca_transform", "definition", "every matrix is given the mean of the first"),
    "mean_beside_its_rows": Wrong("pca_inverse", "definition", shows="each=1"),
    "component_gradients_add_up": Wrong("pca_transform", "vjp", "is summed over the matrices"),
    "mean_gradients_add_up": Wrong("pca_inverse", "vjp", "the gradient of mean is summed over the matrices"),
    "mean_gradient_is_a_mean": Wrong("pca_inverse", "vjp", AVERAGED.format("mean")),
}

PAGES = {
    "wrong_maps": MAPS,
    "wrong_norms": NORMS,
    "wrong_lookups": LOOKUPS,
    "wrong_losses": LOSSES,
    "wrong_heads": HEADS,
    "wrong_spectra": SPECTRA,
}
ALL = [(page, name) for page, kernels in PAGES.items() for name in kernels]


def target_of(page, name):
    return load(getattr(importlib.import_module(f"tests.targets.{page}"), name))


def row_of(page, name, law, dtype):
    """The session, and one row of the kernel's operation."""
    wrong = PAGES[page][name]
    options = Options(ops=(wrong.operation,), laws=(law,), dtypes=(dtype,), examples=wrong.examples)
    session = Session(target_of(page, name), options)
    (row,) = session.rows()
    return session, row


def result_of(page, name, law, dtype):
    session, row = row_of(page, name, law, dtype)
    return session, session.run(row)


@pytest.mark.parametrize(("page", "name"), ALL)
def test_a_wrong_kernel_is_refused_in_words_that_help(page, name):
    wrong = PAGES[page][name]
    session, result = result_of(page, name, wrong.law, wrong.dtype)
    assert result.verdict == "fail"
    (text,) = texts(session, [result], f"tests/targets/{page}.py:{name}", seconds=0.5)
    first, row, *_ = text.splitlines()
    assert first.startswith(f"{wrong.operation}: ") and wrong.cause in first
    assert f"FAIL {wrong.operation} / {wrong.law} " in row and len(text.splitlines()) <= 24
    assert re.search(rf"cause +[^\n]*{re.escape(wrong.cause)}" if wrong.cause else re.escape(wrong.shows), text), text
    assert bool(wrong.cause) == ("  cause " in text), text
    assert re.search(r"worst .* computed .* exact .* bound" if "worst" in text else r"shows .*, allowed ", text)
    replayed = re.search(r"lla-spec replay '(.*)' --target tests/targets/(\w+)\.py:(\w+)$", text, re.MULTILINE)
    assert replayed is not None and replayed.groups()[1:] == (page, name)
    declared = session.contract(result.row)
    found = session.judging(result.row, declared)(parse(replayed[1]))
    assert found.failed
    if wrong.cause:  # it explains the case that is printed, not only the one that it was found in
        assert any(causes(registry.formulas[wrong.operation], found, declared, only=words_of(result.cause)))


@pytest.mark.parametrize(("page", "name"), ALL)
def test_a_wrong_kernel_is_refused_whatever_numbers_are_drawn(page, name):
    wrong = PAGES[page][name]
    session, row = row_of(page, name, wrong.law, wrong.dtype)
    judging = session.judging(row, session.contract(row))
    assert any(judging(replace(case, seed=case.seed + 1000)).failed for _, case in session.cases(row))


@pytest.mark.parametrize(("page", "name"), [(p, n) for p, n in ALL if PAGES[p][n].theorem])
def test_the_law_that_names_the_mistake_fails_as_well(page, name):
    wrong = PAGES[page][name]
    _, result = result_of(page, name, wrong.theorem, wrong.dtype)
    assert result.verdict == "fail", result.message


@pytest.mark.parametrize(("page", "name"), [(p, n) for p, n in ALL if PAGES[p][n].law == "vjp"])
def test_a_mistake_in_the_backward_pass_leaves_the_forward_one_right(page, name):
    _, result = result_of(page, name, "definition", PAGES[page][name].dtype)
    assert result.verdict == "pass", result.message


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_variance_in_one_pass_is_seen_in_the_rounding_of_sixteen_bits(dtype):
    """Accumulated in float32, which is right wherever the numbers of a row differ by more than their last bits."""
    session, row = row_of("wrong_norms", "variance_in_one_pass", "definition", dtype)
    judging = session.judging(row, session.contract(row))
    for seed in (0, 1000, 2000):
        assert any(judging(replace(case, seed=case.seed + seed)).failed for _, case in session.cases(row))


def first_failure(page, name, law, seed):
    """The session, and the row as if it had failed first in the class, at other numbers, that shows the least."""
    session, row = row_of(page, name, law, PAGES[page][name].dtype)
    judging = session.judging(row, session.contract(row))
    judged = [judging(replace(case, seed=case.seed + seed)) for _, case in session.cases(row)]
    found = min((judgement for judgement in judged if judgement.failed), key=lambda judgement: judgement.ratio)
    return session, Result(row, "fail", kind=found.kind, failing=found)


def test_a_cause_is_looked_for_where_the_mistake_shows_most():
    """Barely above the bound no cause explains other draws as well."""
    session, result = first_failure("wrong_losses", "log_sum_exp_in_io", "definition", 3000)
    assert 1 < result.failing.ratio < 2
    found = explain(session, result)
    assert found.ratio > 2 * result.failing.ratio and SUMS_IN_IO in result.cause


def test_a_changed_formula_that_leaves_a_millionth_of_the_error_explains_it():
    """The gradient through a softmax has roundings that the right one, P Vᵀ, knows nothing of."""
    wrong = PAGES["wrong_maps"]["average_gradient_centred"]
    session, row = row_of("wrong_maps", "average_gradient_centred", "vjp", wrong.dtype)
    declared = session.contract(row)
    case = next(case for name, case in session.cases(row) if name == "distinct sizes")
    found = [session.judging(row, declared)(replace(case, seed=seed)) for seed in range(3000, 3040)]
    formula = registry.formulas["weighted_average"]
    seen = [next(causes(formula, judgement, declared)) for judgement in found]
    assert all(wrong.cause in cause.words for cause in seen)
    assert any(cause.ratio > 1 for cause in seen) and all(judgement.ratio > 1e6 for judgement in found)


def test_every_operation_has_a_wrong_kernel_and_half_of_them_are_in_the_backward_pass():
    kernels = [PAGES[page][name] for page, name in ALL]
    assert {wrong.operation for wrong in kernels} == {formula.name for formula in registry.operations()}
    assert all(bool(wrong.cause) != bool(wrong.shows) for wrong in kernels)
    assert len(kernels) >= 30 and 2 * sum(wrong.law == "vjp" for wrong in kernels) >= len(kernels)
    differentiable = {formula.name for formula in registry.operations() if formula.differentiable}
    assert {wrong.operation for wrong in kernels if wrong.law == "vjp"} == differentiable


def test_no_kernel_of_these_files_is_left_out():
    for page, kernels in PAGES.items():
        module = importlib.import_module(f"tests.targets.{page}")
        assert {name for name, value in vars(module).items() if hasattr(value, "LLA_TARGET")} == set(kernels)
