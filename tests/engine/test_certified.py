"""Certified operations: what their declaration says, their oracle, their spectra and their cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lla_spec import certified as certified_module
from lla_spec.certified import certified
from lla_spec.evaluating.spectrum import balls, centred, nearest, norm, spectrum
from lla_spec.language import Eq, Registry
from lla_spec.symbols import Sum, index, tensor
from lla_spec.tensors import DeclarationError
from lla_spec.testing.bits import Bits
from lla_spec.testing.cases import CaseError, parse
from lla_spec.testing.certified_cases import build_certified, certified_cases, certified_covering
from lla_spec.testing.drawing import draw
from lla_spec.testing.inputs import TORCH_DTYPES
from lla_spec.testing.spectra import SPECTRA
from lla_spec.testing.support import Support
from tests.engine.witnesses import DTYPES, OPERATIONS, a_case, each_dtype, each_operation, judged, page

# ---- the declaration


@each_operation
def test_a_certified_operation_says_what_it_is(name):
    made = OPERATIONS[name]
    assert made.operation and not made.differentiable and made.rows is None
    assert str(made.signature) in ("(w, k)", "(x, k)")
    assert all("=" in line or "≤" in line for line in made.text())
    assert made.latex().count(r"\\") >= 3 and "_{variance}" not in made.latex()
    with pytest.raises(DeclarationError, match="a witness, not a formula"):
        made(made.results[0])


def test_text_names_what_any_competitor_is():
    lines = list(page.low_rank.text())
    assert "D[i, j] = W[i, j] - Σ_a X[i, a]·Y[a, j]" in lines
    assert lines[-1] == "Σ_i,j R[i, j]^2 ≤ Σ_i,j D[i, j]^2 for any X[i, a], Y[a, j]"


def test_what_is_no_declaration_is_refused(monkeypatch):
    monkeypatch.setattr(certified_module, "registry", Registry())
    other = index("q", page.dims("q"))
    W = page.W  # noqa: F841  (a local, not a tensor of the page)
    with pytest.raises(DeclarationError, match="no tensor called nothing stands on its page"):
        certified(returns=(page.S,), counts={"k": (page.a,)})(lambda nothing: Eq(0, 0))
    with pytest.raises(DeclarationError, match="must return Eq"):
        certified(returns=(page.S,), counts={"k": (page.a,)})(lambda ENTRY: ENTRY[page.i, page.j])
    with pytest.raises(DeclarationError, match="has the axis q, which no parameter and no count has"):
        certified(returns=(tensor("T", other),), counts={"k": (page.a,)})(
            lambda ENTRY: Eq(Sum(ENTRY[page.i, page.j], page.i, page.j), 0)
        )


ENTRY = page.W  # a tensor of this page


@pytest.mark.parametrize(
    ("sizes", "why"),
    [((3, 5, 4), "k=4 is not in 1…3"), ((3, 5, 0), "k=0 is not in 1…3"), ((1, 5, 1), "n=1 is less than 2")],
)
def test_sizes_without_arguments_are_named_and_never_fail(sizes, why):
    name = "pca" if sizes[0] == 1 else "truncated_svd"
    case = a_case(name, "fp32", *sizes)
    assert why in OPERATIONS[name].impossible(dict(case.sizes))
    assert not judged(name, lambda *_: None, case).failed  # a shrinker passes through such sizes
    with pytest.raises(CaseError, match=why):
        build_certified(OPERATIONS[name], case)


# ---- the oracle


KNOWN = {
    "degenerate": lambda bits, m, n: (SPECTRA["degenerate"](bits, m, n), [2.0] * 3 + [1.0] * 3),
    "diagonal": lambda bits, m, n: (SPECTRA["diagonal"](bits, m, n), [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]),
    "zeros": lambda bits, m, n: (np.zeros((m, n)), [0.0] * 6),
    "ones": lambda bits, m, n: (np.full((m, n), 0.5), [0.5 * np.sqrt(m * n), *[0.0] * 5]),
}


@pytest.mark.parametrize("exponent", [-1000, -40, 0, 40, 900])
@pytest.mark.parametrize("family", KNOWN)
def test_the_oracle_encloses_spectra_that_are_known(family, exponent):
    values, sigma = KNOWN[family](Bits(3, family), 9, 6)
    found = spectrum(balls(np.ldexp(values, exponent)))
    error = np.abs(found.s - np.ldexp(sigma, exponent))
    assert (error <= found.radius * (1 + 2**-40) + 2.0**-1074).all()
    assert (found.radius <= 300 * 2.0**-53 * found.norm).all()  # and says something


def test_a_wrong_factorisation_has_a_wide_radius(monkeypatch):
    """The radius is what the factors show, whatever the library did."""
    honest = np.linalg.svd

    def careless(a, full_matrices=False):
        U, s, Vh = honest(a, full_matrices=False)
        return U, s + 0.01, Vh

    values = Bits(0).normal((6, 4))
    exact = spectrum(balls(values))
    monkeypatch.setattr(np.linalg, "svd", careless)
    found = spectrum(balls(values))
    assert (np.abs(found.s - exact.s) <= found.radius + exact.radius).all() and found.radius.min() > 0.01


def test_the_mean_is_taken_out_exactly():
    x = np.array([[1e16, 1.0], [1e16 + 2, 2.0], [1e16 + 4, 4.5]])
    means, rest = centred(x)
    assert [float(mean.mid()) for mean in means] == [1e16 + 2, 2.5]
    assert nearest(rest)[:, 0].tolist() == [-2.0, 0.0, 2.0]
    assert norm(balls(np.zeros((2, 2)))) == 0.0


# ---- cases


@each_operation
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_random_case_is_possible_and_is_its_text(name, data):
    made, dtype = OPERATIONS[name], data.draw(st.sampled_from(DTYPES))
    case = data.draw(certified_cases(made, dtype))
    assert not made.impossible(dict(case.sizes)) and parse(str(case)) == case
    inputs = build_certified(made, case)
    assert inputs.digest == build_certified(made, parse(str(case))).digest
    assert all(v.isfinite().all() for v in inputs.arguments.values() if isinstance(v, torch.Tensor))


@each_operation
@each_dtype
def test_the_covering_list_names_each_class_once(name, dtype):
    listed = certified_covering(OPERATIONS[name], dtype)
    names = [words for words, _ in listed]
    assert len(set(names)) == len(names) > 50
    assert {"k = 1", "k = rows", "k = columns", "one column", "empty batch", "degenerate", "offset"} <= set(names)
    for _, case in listed:
        build_certified(OPERATIONS[name], case)


def test_a_target_may_take_few_sizes_only():
    support = Support(choices={"m": (4, 8), "n": (4,)}, layouts=("dense",))
    for case in draw(certified_cases(page.truncated_svd, support=support), 30, 0, "few"):
        assert case.size("m") in (4, 8) and case.size("n") == 4 and 1 <= case.size("k") <= 4 and case.layout == "dense"


def test_tensors_are_the_same_on_every_machine():
    """Written once; a change of numpy, torch, BLAS or processor must not move them."""
    found = [build_certified(page.low_rank, a_case("low_rank", "fp64", family=f, seed=5)).digest for f in SPECTRA]
    assert found == DIGESTS


DIGESTS = [  # in the order of SPECTRA
    "a0fd4f33308da93a",
    "d95cf698a8bba157",
    "0e66b1a0823d1aec",
    "ae20c6b3bc0efe8c",
    "4e9834de804ddffb",
    "e8d53b9b635ab671",
    "08515bafdea9a172",
    "1be852399e92fb41",
    "c8b0076e592349e4",
    "0da290796dea4b93",
    "b277d34e4cbbd3b0",
    "503ff9878f8a4b3a",
    "b6c377a88808e201",
    "c9c3a1b7b158c10f",
]


@pytest.mark.parametrize("family", ["ints", "degenerate", "low_rank", "rank_one", "constant", "diagonal", "zeros"])
@each_dtype
def test_no_dtype_rounds_an_exact_spectrum(family, dtype):
    values = torch.from_numpy(SPECTRA[family](Bits(2, family), 33, 17))
    assert torch.equal(values.to(TORCH_DTYPES[dtype]).double(), values)
