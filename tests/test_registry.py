"""Every page has its topic file, and every operation and law of it is collected, with no list to edit."""

from pathlib import Path

import pytest

import lla_spec.formulas
from lla_spec.certified import Certified
from lla_spec.language import registry

TESTS = Path(__file__).parent
TOPICS = sorted({formula.topic for formula in registry.formulas.values()})


@pytest.mark.parametrize("topic", TOPICS)
def test_every_page_has_its_topic_file(topic):
    assert (TESTS / f"test_{topic}.py").is_file()
    assert (Path(lla_spec.formulas.__file__).parent / f"{topic}.py").is_file()


@pytest.mark.parametrize("law", registry.laws.values(), ids=lambda law: law.id)
def test_the_laws_of_an_operation_are_found_without_stating_the_others(law):
    """What a law's function names decides whether it is stated at all, so it must name the law's operation."""
    owners = [formula.name for formula in registry.operations() if law.belongs_to(formula.name)]
    assert owners == [law.operation]


class Collected:
    """What a run of pytest collects."""

    def pytest_collection_finish(self, session):
        self.ids = "\n".join(item.nodeid for item in session.items)


def test_every_operation_and_law_is_collected():
    files, seen = [str(TESTS / f"test_{topic}.py") for topic in TOPICS], Collected()
    run = ["--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(TESTS.parent), *files]
    assert pytest.main(run, plugins=[seen]) == pytest.ExitCode.OK
    collected = seen.ids
    for operation in registry.operations():
        assert f"::test_equals_its_formula[{operation.name}-" in collected
        assert not operation.differentiable or f"::test_gradient_is_the_derived_one[{operation.name}-" in collected
    for law in registry.laws.values():
        if isinstance(registry.formulas[law.operation], Certified):
            continue  # a theorem about witnesses: their test is the operation's certificate
        assert f"test_{law.topic}.py::test_law[{law.name}-" in collected, law.id


@pytest.mark.parametrize("law", registry.laws.values(), ids=lambda law: law.id)
def test_every_law_says_what_it_states(law):
    assert law.doc and law.doc.splitlines()[0].endswith(".")
