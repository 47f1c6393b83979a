"""Every page has its topic file, and every operation and law of it is collected, with no list to edit."""

from pathlib import Path

import pytest

import lla_spec.formulas
from lla_spec.language import registry

TOPICS = sorted({formula.topic for formula in registry.formulas.values()})


@pytest.mark.parametrize("topic", TOPICS)
def test_every_page_has_its_topic_file(topic):
    assert (Path(__file__).parent / f"test_{topic}.py").is_file()
    assert (Path(lla_spec.formulas.__file__).parent / f"{topic}.py").is_file()


def test_every_operation_and_law_is_collected(request):
    collected = {item.name for item in request.session.items}
    if not any("test_law" in name for name in collected):
        pytest.fail("run the whole of tests/: this file looks at what was collected beside it")
    for operation in registry.operations():
        assert any(name.startswith(f"test_equals_its_formula[{operation.name}-") for name in collected)
        assert any(name.startswith(f"test_gradient_is_the_derived_one[{operation.name}-") for name in collected)
    for law in registry.laws.values():
        assert any(name.startswith(f"test_law[{law.name}-") for name in collected), law.id


@pytest.mark.parametrize("law", registry.laws.values(), ids=lambda law: law.id)
def test_every_law_says_what_it_states(law):
    assert law.doc and law.doc.splitlines()[0].endswith((".", "."))
