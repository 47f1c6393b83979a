"""A case is one line of text, and its tensors follow from that line alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.internal.cache import LRUCache
from hypothesis.internal.conjecture import providers

import lla_spec.formulas  # noqa: F401
from lla_spec.certified import Certified
from lla_spec.language import registry
from lla_spec.testing import drawing
from lla_spec.testing.cases import Case, CaseError, parse
from lla_spec.testing.covering import covering, law_covering
from lla_spec.testing.inputs import build
from lla_spec.testing.layouts import LAYOUTS
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.strategies import cases, law_cases
from lla_spec.testing.targets import load

OPERATIONS = [f for f in registry.operations() if not isinstance(f, Certified)]


@pytest.mark.parametrize("formula", OPERATIONS, ids=lambda f: f.name)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_text_names_the_case(formula, data):
    law = data.draw(st.sampled_from(["definition", "vjp"]))
    case = data.draw(cases(formula, law, "bf16"))
    assert parse(str(case)) == case
    assert build(formula, case).digest == build(formula, parse(str(case))).digest


@pytest.mark.parametrize("law", registry.laws.values(), ids=lambda law: law.id)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_text_names_the_case_of_a_law(law, data):
    case = data.draw(law_cases(law))
    assert parse(str(case)) == case
    assert set(dict(case.sizes)) == {dim.name for dim in law.dims}


def test_tensors_are_the_same_on_every_machine():
    """The digests below were written once; a change of numpy, torch or processor must not move them."""
    case = Case(
        "attention", "vjp", "bf16", "cpu", (("n", 3), ("d", 2), ("m", 4), ("e", 5)), (2,), "normal+heavy+spike", seed=17
    )
    assert build(registry.formulas["attention"], case).digest == "6778843ffcfb6218"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3), (2, 0, 3), (2, 3, 4)])
def test_layouts_keep_shape_and_dtype(layout, shape):
    values = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape).to(torch.bfloat16)
    placed = LAYOUTS[layout](values)
    assert placed.shape == values.shape and placed.dtype == values.dtype
    if layout not in ("expanded", "scalar"):
        assert torch.equal(placed, values)


@pytest.mark.parametrize("formula", OPERATIONS, ids=lambda f: f.name)
@pytest.mark.parametrize("law", ["definition", "vjp"])
@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
def test_covering_list_can_be_built(formula, law, dtype):
    """Every class of the list has tensors, and no class stands in it twice."""
    listed = covering(formula, law, dtype)
    names = [name for name, _ in listed]
    assert len(set(names)) == len(names)
    for _, case in listed:
        assert build(formula, case).digest == build(formula, case).digest


def test_weights_of_a_model_keep_the_size_of_what_passes_through_them():
    case = Case("linear", "definition", "fp32", sizes=(("d", 400), ("e", 300)), batch=(200,), family="model")
    arguments = build(registry.formulas["linear"], case).arguments
    x, weight, bias = arguments["x"], arguments["weight"], arguments["bias"]
    assert abs(x.std() - 1) < 0.02 and abs(bias.std() - 1) < 0.2
    assert abs((x @ weight.mT).std() - 1) < 0.02


@pytest.mark.parametrize("law", registry.laws.values(), ids=lambda law: law.id)
def test_covering_list_of_a_law_has_its_sizes(law):
    for _, case in law_covering(law, "fp32"):
        assert set(dict(case.sizes)) == {dim.name for dim in law.dims}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attention", "needs op:law:dtype:device:key=value,…; it has 1 of the 5 parts"),
        ("softmax:definition:bf16:cpu:m", "'m' is not key=value"),
        ("softmax:definition:bf16:cpu:m=x", "m=x does not read as int"),
    ],
)
def test_what_is_no_case_is_said_in_one_line(text, message):
    with pytest.raises(CaseError, match=message):
        parse(text)


def test_a_device_may_have_a_number():
    case = Case("softmax", "definition", "bf16", "cuda:1", (("m", 3),), (2,))
    assert parse(str(case)) == case


def test_what_is_drawn_depends_on_the_seed_alone_and_not_on_the_constants_of_a_target(tmp_path, monkeypatch):
    """hypothesis draws constants from local modules' source; a case must not change with what else is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    session = Session(load("impl"), Options(ops=("linear",), dtypes=("bf16",), examples=50))

    def drawn() -> list[Case]:
        monkeypatch.setattr(providers, "CONSTANTS_CACHE", LRUCache(1024))  # what it has chosen from so far
        return [case for row in session.rows() for name, case in session.cases(row) if name == "random"]

    before, seeds = drawn(), range(10**5, 10**5 + 400)
    (tmp_path / "a_target.py").write_text(f"SEEDS = {list(seeds)}\n")
    __import__("a_target")
    assert drawn() == before and not any(case.seed in seeds for case in before)
    monkeypatch.setattr(drawing, "BACKEND", "hypothesis")  # whose own provider draws them
    assert any(case.seed in seeds for case in drawn())
