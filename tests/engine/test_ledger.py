"""The ledger says in four words what is known of a law; a false one is refuted by its smallest counterexample."""

import json
from dataclasses import replace

import pytest
from sympy import Rational

import lla_spec.formulas  # noqa: F401  (declares the laws)
from lla_spec.formulas.attention import K, M, Q, V, attention, d, i, j, k, scale
from lla_spec.formulas.softmax import logsumexp, softmax, x
from lla_spec.language import Eq, Le, assume, identity, registry, theorem
from lla_spec.proving import ledger as ledgers
from lla_spec.proving.ledger import Ledger, LedgerEntry, compare, prove_law
from lla_spec.symbols import Max, Sum, define, exp, tensor
from lla_spec.tensors import DeclarationError
from tests.engine.declaring import undeclared_afterwards


@pytest.fixture
def page():
    with undeclared_afterwards():
        yield


def orthogonal(sign: int):
    """Adding to every query a vector orthogonal to every key: K = K0 |u|² - (K0 u) uᵀ makes it so."""
    u, K0 = tensor("u", k), tensor("K0", j, k)
    free_of_u = K0[j, k] * Sum(u[k] ** 2, k) - sign * u[k] * Sum(K0[j, k] * u[k], k)
    assume(Eq(Sum(K[j, k] * u[k], k), 0), by={K: free_of_u})
    return Eq(attention(define("Q+u", (i, k), Q[i, k] + u[k]), K, V, M, scale), attention(Q, K, V, M, scale))


# The whole specification


@pytest.mark.parametrize("law", registry.laws.values(), ids=lambda law: law.id)
def test_every_law_is_proved_and_bites(law):
    """By both engines, with teeth, and no weaker than the committed ledger says."""
    entry = prove_law(law)
    assert entry.status in ledgers.STATUSES[:2], str(entry)
    assert entry.teeth["killed"] > 0 and entry.teeth["survived"] == 0, str(entry)
    assert not entry.all_dims or len(entry.listed_shapes) >= 2
    comparison = compare(Ledger([entry]), {law.id: ledgers.read()[law.id]})
    assert not comparison.fallen, comparison.fallen


def test_enough_is_proved_for_all_dimensions():
    recorded = {name: status for name, status in ledgers.read().items() if registry.laws[name].corollary_of is None}
    assert len(recorded) >= 80
    assert sum(status == ledgers.ALL_DIMENSIONS for status in recorded.values()) >= 60


def test_an_instance_of_another_law_is_not_counted():
    chosen = [registry.laws[name] for name in ("softmax.shift", "attention.no_influence_of_the_future")]
    ledger = ledgers.prove_all(chosen, jobs=1)
    assert sum(ledger.counts().values()) == 1 and len(ledger.entries) == 2
    content = json.loads(json.dumps(ledger.as_json()))
    assert content["schema"] == 1
    keys = {"id", "status", "all_dims", "listed_shapes", "teeth", "conditions", "seconds"}
    assert keys <= set(content["laws"][0])


# One law


def test_a_newcomers_law_with_a_hypothesis(page):
    @identity
    def orthogonal_queries():
        return orthogonal(1)

    entry = prove_law(orthogonal_queries)
    assert entry.status == "proved (all dimensions)", str(entry)
    assert entry.teeth["survived"] == 0


def test_a_construction_that_breaks_its_hypothesis_is_refuted(page):
    @identity
    def orthogonal_queries():
        return orthogonal(-1)

    entry = prove_law(orthogonal_queries)
    assert entry.status == "refuted"
    assert entry.message.startswith(
        "hypothesis 1: the construction of K satisfies Σ_k(K[j, k]*u[k]) = 0: it does not, left[0] = "
    )


def test_a_construction_of_another_shape_is_refused_by_name(page):
    @identity
    def misshapen():
        s, t = tensor("s", i), tensor("t", j)
        assume(Eq(s[i], 0), by={s: define("t'", (j,), t[j])})
        return Eq(logsumexp(define("x'", (i, j), x[i, j] + s[i])), logsumexp(x))

    with pytest.raises(DeclarationError, match=r"s over \(n,\) cannot be replaced by t'\[j\] over \(m,\)"):
        prove_law(misshapen)


def test_a_false_law_fails_with_the_smallest_counterexample(page):
    @identity
    def scale_by_the_dimension():
        return Eq(attention(Q, K, V, M, 1 / d), attention(Q, K, V, M))

    entry = prove_law(scale_by_the_dimension)
    assert entry.failed and entry.status == "refuted"
    assert entry.message == (
        "false at d = 2, e = 1, m = 2, n = 1; V = [[1], [0]], M = [[1, 1]], Q = [[0, 1]], K = [[0, 1], [0, 0]]: "
        "left[0, 0] = 0.6224593312, right[0, 0] = 0.6697615493"
    )


def test_a_true_law_beyond_the_engines_is_tested_with_its_residual(page):
    @identity
    def largest_weight():
        peak = define("peak", (i,), exp(Max(x[i, j], j)) / Sum(exp(x[i, j]), j))
        return Eq(define("top", (i,), Max(softmax(x)[i, j], j)), peak)

    entry = prove_law(largest_weight)
    assert entry.status == "tested" and not entry.failed
    assert "all dimensions: " in entry.residual and "left - right comes down to" in entry.residual
    assert str(entry).startswith("test_ledger.largest_weight: tested\n    left over: ")


def test_an_inequality_without_a_manifest_certificate_is_certified_by_balls(page):
    @theorem
    def squares_sum_to_less_than_two():
        squares = Sum(softmax(x)[i, j] ** 2, j)
        return Le(squares, 2, because=2 - squares)

    entry = prove_law(squares_sum_to_less_than_two)
    assert entry.status == "certified (balls, listed points)", str(entry)
    assert "-1 is negative" in entry.residual


def test_a_false_inequality_is_refuted(page):
    @theorem
    def squares_sum_to_less_than_a_half():
        squares, half = Sum(softmax(x)[i, j] ** 2, j), Rational(1, 2)
        return Le(squares, half, because=half - squares)

    assert prove_law(squares_sum_to_less_than_a_half).status == "refuted"


def test_a_decimal_is_refused_with_the_way_out(page):
    @identity
    def half():
        return Eq(define("half", (i, j), 0.5 * softmax(x)[i, j]), define("P/2", (i, j), softmax(x)[i, j] / 2))

    entry = prove_law(half)
    assert entry.status == "tested"
    assert "0.5 is a decimal: write it as a Rational" in entry.residual


def test_a_law_whose_conditions_never_hold_is_not_proved(page):
    @identity
    def of_nothing():
        never = define("never", (i, j), (-1 - x[i, j] ** 2) ** 2 - (1 + x[i, j] ** 2) ** 2)
        hidden = define("hidden", (i, j), Max(never[i, j], j))
        side = define("side", (i, j), softmax(x)[i, j] / hidden[i, j])
        return Eq(side, side)

    entry = prove_law(of_nothing)
    assert entry.status == "tested"
    assert "balls confirm the conditions at no point" in entry.residual


# Records


def entry(law: str, status: str) -> LedgerEntry:
    return LedgerEntry(law, status)


def test_a_status_that_drops_is_told_and_a_new_law_is_not_a_failure():
    before = {"a": "proved (all dimensions)", "b": "tested", "gone": "tested", "c": "proved (listed shapes)"}
    now = Ledger([
        entry("a", "proved (listed shapes)"), entry("b", "proved (listed shapes)"),
        entry("c", "refuted"), entry("d", "tested"),
    ])  # fmt: skip
    comparison = compare(now, before)
    assert comparison.fallen == (
        "a: proved (all dimensions) → proved (listed shapes)", "c: proved (listed shapes) → refuted",
    )  # fmt: skip
    assert comparison.risen == ("b: tested → proved (listed shapes)",)
    assert comparison.missing == ("gone",) and comparison.new == ("d",)


def test_what_fell_and_what_is_refuted_is_told_a_line_each():
    now = [entry("a", "tested"), replace(entry("b", "refuted"), message="false at n = 1"), entry("new", "tested")]
    assert ledgers.fallen(now, {"a": "proved (listed shapes)", "elsewhere": "tested"}) == [
        "a: proved (listed shapes) → tested (its status fell)",
        "b: false at n = 1",
    ]


def test_a_ledger_reads_one_law_a_line_and_ends_in_counts():
    proved = LedgerEntry(
        "a", "proved (listed shapes)", False, [{"n": 1}], {"killed": 3, "set_aside": 0, "survived": 0}, ["x[i] > 0"],
        residual="all dimensions: y",
    )  # fmt: skip
    instance = replace(entry("b", "tested"), corollary_of="a")
    lines, content = ledgers.render([proved, instance], detailed=True)
    assert lines == [
        "a: proved (listed shapes)",
        "    left over: all dimensions: y",
        "    shapes: n = 1",
        "    mutants: 3 killed, 0 set aside, 0 survived",
        "    where x[i] > 0",
        "b: tested (an instance of a)",
        "    shapes: none",
        "    mutants: not asked",
        "1 proved (listed shapes)",
    ]
    assert [law["id"] for law in content["laws"]] == ["a", "b"]


def test_the_record_is_the_same_whatever_the_order_and_the_time(tmp_path):
    entries = [entry("b", "tested"), entry("a", "proved (listed shapes)")]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    ledgers.write(Ledger(entries), one)
    ledgers.write(Ledger([replace(e, seconds=7.0) for e in reversed(entries)]), two)
    assert one.read_text() == two.read_text()
    assert ledgers.read(one) == {"a": "proved (listed shapes)", "b": "tested"}


def test_nothing_is_recorded_where_there_is_no_file(tmp_path):
    assert ledgers.read(tmp_path / "none.json") == {}


def test_every_law_is_recorded():
    assert set(ledgers.read()) == set(registry.laws)
