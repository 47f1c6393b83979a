"""Random statements against numbers: what the prover proves is true. The long run is `python -m tests.engine.fuzz`."""

import random

import pytest

from tests.engine.fuzz import run, verdict

ENOUGH = {"proved-and-true": 300, "refused-and-false": 100}  # a tenth of the long run


def test_nothing_false_is_proved_and_what_is_asked_is_not_idle():
    counts = run(seconds=180, seed=random.Random(20240607).randrange(10**6), enough=ENOUGH)
    assert not verdict(counts, true=ENOUGH["proved-and-true"], false=ENOUGH["refused-and-false"]), dict(counts)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"proved-and-true": 9, "refused-and-false": 9, "proved-and-false": 1}, "a false statement was proved"),
        ({"proved-and-true": 4, "refused-and-false": 9}, "only 4 true statements were proved, fewer than 5"),
        ({"proved-and-true": 9, "refused-and-false": 4}, "only 4 false statements were refused, fewer than 5"),
        ({"proved-and-true": 5, "refused-and-false": 5, "refused-and-true": 99}, ""),
    ],
)
def test_the_verdict_on_a_run(counts, says):
    assert verdict(counts, true=5, false=5) == says


def test_a_prover_that_proves_everything_is_found_out(monkeypatch):
    from lla_spec.proving.outcome import Outcome

    monkeypatch.setattr("tests.engine.fuzz.prove", lambda *sides, **options: Outcome(True))
    assert run(seconds=30, seed=1)["proved-and-false"] == 1
