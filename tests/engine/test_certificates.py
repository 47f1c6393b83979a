"""Certificates: right kernels of every route meet them, wrong ones are killed by the one that names what is wrong."""

import numpy as np
import pytest
import torch

from lla_spec.evaluating.contracts import contract
from lla_spec.evaluating.witnesses import CERTIFICATES, TruncatedSvd
from lla_spec.testing.bits import Bits
from lla_spec.testing.certified import certificates, complaint, oracles
from lla_spec.testing.certified_cases import build_certified, certified_cases
from lla_spec.testing.drawing import draw
from lla_spec.testing.support import Support
from tests.engine import witness_kernels as kernels
from tests.engine.witnesses import OPERATIONS, a_case, each_dtype, each_operation, judged, judged_list, page

# ---- right kernels


@each_operation
@each_dtype
def test_the_covering_list_is_met_and_most_of_it_is_evidence(name, dtype):
    found = list(judged_list(name, kernels.RIGHT["numpy_svd"][name], dtype))
    assert [(j.case, j.message) for j in found if j.failed] == []
    assert 2 * sum(j.evidence for j in found) > len(found)


@each_operation
@each_dtype
@pytest.mark.parametrize(("route", "step", "largest"), [("full_svd", 3, 4000), ("jacobi_svd", 4, 100)])
def test_kernels_of_other_routes_meet_it_as_well(name, dtype, route, step, largest):
    function = kernels.RIGHT[route][name]
    for found in judged_list(name, function, dtype, step, largest):
        assert not found.failed, (found.case, found.message)


@each_operation
@each_dtype
@pytest.mark.parametrize("route", kernels.RIGHT)
def test_random_cases_are_met(name, dtype, route):
    """A short run of it; 320 cases a row were run once on each route."""
    support = Support(dims={dim.name: lambda size: size <= 12 for dim in OPERATIONS[name].dims})
    for case in draw(certified_cases(OPERATIONS[name], dtype, support=support), 8, 0, f"{name}{dtype}"):
        found = judged(name, kernels.RIGHT[route][name], case)
        assert not found.failed, (case, found.message)


@each_dtype
def test_the_gram_matrix_will_do_only_where_singular_values_are_not_small(dtype):
    """eigh of AᵀA squares the condition: relative to σ₁ it knows nothing below √u. Honest, and refused there."""
    gram = kernels.operations(kernels.gram_svd)
    well = [a_case("truncated_svd", dtype, 20, 6, 3, seed=seed) for seed in range(5)]
    assert not any(judged("truncated_svd", gram["truncated_svd"], case).failed for case in well)
    assert not any(judged("pca", gram["pca"], a_case("pca", dtype, 20, 6, 3, seed=seed)).failed for seed in range(5))
    ill = a_case("pca", dtype, 9, 7, 7, family="low_rank")
    refused = judged("pca", gram["pca"], ill)
    assert refused.failed and refused.message.startswith("explained variance"), refused.message
    assert judged(
        "truncated_svd", gram["truncated_svd"], a_case("truncated_svd", dtype, 9, 7, 7, family="low_rank")
    ).failed


# ---- wrong kernels


@pytest.mark.parametrize("kernel", kernels.WRONG)
@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_wrong_kernels_are_killed_by_the_certificate_that_names_them(kernel, dtype):
    name, function, named = kernels.WRONG[kernel]
    if kernel == "slightly_turned" and dtype == "bf16":  # by less than a rounding of bf16
        return
    told = set()
    for found in judged_list(name, function, dtype, largest=1000):
        if found.failed:
            assert found.kind != "certificate" or not (found.ratio <= 1)
            told.add(found.message.split(":")[0] if found.kind == "certificate" else found.kind)
        if named in told:
            return
    raise AssertionError(f"{named} is not among {told}")


def test_a_failure_says_which_certificate_and_by_how_much():
    _, function, _ = kernels.WRONG["columns_laid_out_as_rows"]
    found = judged("pca", function, a_case("pca", "fp32", batch=(2,)))
    assert found.message.startswith("orthonormal: components are not orthonormal: |V Vᵀ - I| = ")
    assert ", allowed " in found.message and "of the batch)" in found.message
    assert "so do not hold: principal directions" in found.message
    assert found.worst is not None and len(found.worst.index) == 1 + 2


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        (lambda w, k: w, "returns", "truncated_svd: returns Tensor, it must return a tuple of 3 (U, S, Vh)"),
        (lambda w, k: (w, w), "returns", "truncated_svd: returns tuple of 2, it must return a tuple of 3 (U, S, Vh)"),
        (lambda w, k: torch.linalg.svd(w), "shape", "truncated_svd, U: returns shape (9, 9), it must be (9, 3)"),
        (lambda w, k: 1 / 0, "raises", "truncated_svd: raises ZeroDivisionError: division by zero"),
        (lambda w, k: w.zero_(), "writes", "truncated_svd: changes its input w in place"),
    ],
)
def test_what_is_no_answer_is_said(function, kind, words):
    found = judged("truncated_svd", function, a_case("truncated_svd", "fp32"))
    assert (found.kind, found.message) == (kind, words)


def test_a_kernel_that_remembers_its_storage_is_caught():
    known = {}

    def remembering(w, k):
        return known.setdefault(w.data_ptr(), kernels.RIGHT["numpy_svd"]["low_rank"](w, k))

    assert judged("low_rank", remembering, a_case("low_rank", "fp32", special="reuse")).failed


# ---- the certificates themselves


def ratios_of(name, dtype, arguments, k, outputs):
    worst = {}
    for found in CERTIFICATES[name](arguments, k, contract("strict", dtype)).certificates(outputs):
        worst[found.name] = max(worst.get(found.name, 0.0), found.ratio)
    return worst


def svd_of(w, k):
    U, S, Vh = np.linalg.svd(w, full_matrices=False)
    return {"U": U[:, :k], "S": S[:k].copy(), "Vh": Vh[:k]}


@pytest.mark.parametrize("share", [0.3, 3.0])
def test_an_allowance_is_neither_wider_nor_narrower_than_it_says(share):
    w = Bits(1).normal((8, 6)).astype(np.float32).astype(np.float64)
    allowed = TruncatedSvd({"w": w}, 2, contract("strict", "fp32")).values.error
    outputs = svd_of(w, 2)
    outputs["S"] += share * allowed
    found = ratios_of("truncated_svd", "fp32", {"w": w}, 2, outputs)
    assert found["singular values"] == pytest.approx(share, rel=1e-3)
    assert found["orthonormal"] < 1e-6


def test_signs_and_the_bases_of_equal_singular_values_are_free():
    w = np.diag([3.0, 3.0, 3.0, 1.0])[:, :4]
    turn, _ = np.linalg.qr(Bits(0).normal((3, 3)))
    outputs = {"U": np.eye(4)[:, :3] @ turn, "S": np.full(3, 3.0), "Vh": turn.T @ np.eye(4)[:3]}
    assert max(ratios_of("truncated_svd", "fp64", {"w": w}, 3, outputs).values()) <= 1
    flipped = {**outputs, "U": -outputs["U"], "Vh": -outputs["Vh"]}
    assert max(ratios_of("truncated_svd", "fp64", {"w": w}, 3, flipped).values()) <= 1
    # k inside the cluster: there is no gap, so no subspace is compared
    assert "subspace" not in ratios_of("truncated_svd", "fp64", {"w": w}, 2, svd_of(w, 2))


def test_the_distance_alone_is_blind_to_a_small_turn():
    """Why the residual must be orthogonal to the result: at a minimum the first order vanishes."""
    w = Bits(4).normal((12, 8))
    U, S, Vh = np.linalg.svd(w, full_matrices=False)
    v = Vh[:3].copy()
    v[2] = np.cos(1e-3) * Vh[2] + np.sin(1e-3) * Vh[3]
    found = ratios_of("low_rank", "fp32", {"w": w}, 3, {"W_k": w @ v.T @ v})
    assert found["distance"] < 1 and found["rank"] < 1 and found["orthogonal residual"] > 1


def test_the_same_turn_among_principal_directions_is_seen():
    x = Bits(4).normal((12, 8))
    U, S, Vh = np.linalg.svd(x - x.mean(0), full_matrices=False)
    v = Vh[:3].copy()
    v[2] = np.cos(1e-3) * Vh[2] + np.sin(1e-3) * Vh[3]
    outputs = {"mean": x.mean(0), "components": v, "explained_variance": S[:3] ** 2 / 11}
    found = ratios_of("pca", "fp32", {"x": x}, 3, outputs)
    assert found["principal directions"] > 1 and found["orthonormal"] < 1 and found["explained variance"] < 1


def test_an_infinite_singular_value_is_right_only_where_it_may_overflow():
    w = np.full((4, 4), 30000.0)  # σ₁ = 120000, beyond 65504
    U, S, Vh = np.linalg.svd(w)
    outputs = {"U": U[:, :1], "S": np.array([np.inf]), "Vh": Vh[:1]}
    rounded = {name: value.astype(np.float16).astype(np.float64) for name, value in outputs.items()}
    assert max(ratios_of("truncated_svd", "fp16", {"w": w}, 1, rounded).values()) <= 1
    assert max(ratios_of("truncated_svd", "fp16", {"w": w / 4}, 1, rounded).values()) == np.inf


def test_zeros_copies_and_constants_are_what_evidence_is_against():
    right = kernels.RIGHT["numpy_svd"]
    assert judged("low_rank", right["low_rank"], a_case("low_rank", "fp32")).evidence
    assert not judged("low_rank", right["low_rank"], a_case("low_rank", "fp32", k=7)).evidence  # W_k is W there
    assert not judged("low_rank", right["low_rank"], a_case("low_rank", "fp32", family="rank_one")).evidence
    assert judged("truncated_svd", right["truncated_svd"], a_case("truncated_svd", "bf16", k=7)).evidence
    empty = judged("pca", right["pca"], a_case("pca", "fp32", batch=(0,)))
    assert not empty.failed and not empty.evidence and empty.worst is None


# ---- a randomised method's contract


def loosened(dtype, excess):
    """The strict contract with svd_excess."""
    return contract("strict", dtype).override(svd_excess=excess)


@pytest.mark.parametrize("name", ["truncated_svd", "low_rank"])
@each_dtype
def test_a_randomised_method_meets_what_it_may_lose(name, dtype):
    def randomised(power, k=4):
        return kernels.operations(lambda a: kernels.randomised_svd(a, k, power))[name]

    case = a_case(name, dtype, 48, 40, 4, family="slow_decay")
    assert judged(name, randomised(0), case).failed
    refused = judged(name, randomised(0), case, loosened(dtype, 0.05))
    assert refused.message.startswith("distance: farther than (1 + 0.05) × optimum"), refused.message
    assert not judged(name, randomised(0), case, loosened(dtype, 0.5)).failed
    assert not judged(name, randomised(6), case, loosened(dtype, 0.05)).failed
    assert judged(name, kernels.WRONG["one_too_few"][1], case, loosened(dtype, 0.05)).failed or name != "low_rank"


def test_what_a_randomised_pca_may_lose():
    pca = kernels.operations(lambda a: kernels.randomised_svd(a, 4, 6))["pca"]
    case = a_case("pca", "fp32", 48, 40, 4, family="slow_decay")
    assert judged("pca", pca, case).failed
    assert not judged("pca", pca, case, loosened("fp32", 0.05)).failed
    for kernel in ("not_centred", "components_times_deviation", "mean_over_the_wrong_axis"):
        assert judged("pca", kernels.WRONG[kernel][1], a_case("pca", "fp32", 20, 20, 4, family="offset"),
                      loosened("fp32", 0.05)).failed, kernel  # fmt: skip


def test_every_certificate_is_met_matrix_by_matrix():
    """One wrong matrix among six right ones is found, and named."""

    def sixth_is_wrong(w, k):
        result = kernels.RIGHT["numpy_svd"]["low_rank"](w, k)
        result[1, 2] = 0
        return result

    case = a_case("low_rank", "bf16", batch=(2, 3))
    assert "(matrix 1, 2 of the batch)" in judged("low_rank", sixth_is_wrong, case).message
    inputs = build_certified(page.low_rank, case).arguments
    made = oracles(page.low_rank, inputs, contract("strict", "bf16"))
    seen = {where for where, _ in certificates(made, {"W_k": sixth_is_wrong(inputs["w"], inputs["k"])})}
    assert seen == {(i, j) for i in range(2) for j in range(3)}


def test_somebodys_own_result_is_judged_where_it_stands():
    w, promised = torch.from_numpy(Bits(0).normal((2, 7, 5))), contract("strict", "fp64")
    U, S, Vh = torch.linalg.svd(w, full_matrices=False)
    right = U[..., :2], S[..., :2], Vh[..., :2, :]
    assert complaint(page.truncated_svd, right, {"w": w, "k": 2}, promised) == ""
    wrong = complaint(page.truncated_svd, (-right[0], *right[1:]), {"w": w, "k": 2}, promised)
    assert wrong.startswith("truncated_svd: singular pairs: U, S, Vh are no singular triplets: ")
    assert wrong.endswith("(contract io=fp64 acc=fp64)")
    assert "it must return a torch.Tensor" in complaint(page.low_rank, right, {"w": w, "k": 2}, promised)
