"""Known failures: pinned cases, what they cover, and when they say fixed, expired, or another failure."""

import datetime
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lla_spec.testing.cases import parse
from lla_spec.testing.known import Known, differs, settle, write
from lla_spec.testing.known_entries import Entry, KnownError, toml
from lla_spec.testing.pytest_laws import RowTests
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load
from lla_spec.testing.workers import crashed

TODAY = datetime.date(2026, 11, 24)
CASE = "softmax:definition:fp32:cpu:m=3,batch=2,family=normal,seed=1"
ENTRY = Entry(
    "softmax", "definition", "fp32", "cpu", "bound", str(parse(CASE)), reason="it is halved", ratio=1e9,
    issue="https://example.org/1", expires=TODAY,
)  # fmt: skip


def right(x):
    return torch.softmax(x.double(), -1).to(x.dtype)


def halved(x):
    return right(x) / 2


def slightly_off(x):
    return right(x) * (1 + 2**-10)


def halved_or_refused(x):
    if x.shape[-1] == 33:
        raise NotImplementedError("33")
    return halved(x)


def session_of(softmax, law="definition"):
    target = {"softmax": softmax, "LLA_TARGET": {"name": "mine", "dtypes": ["fp32"]}}
    return Session(load(target), Options(("softmax",), (law,), ("fp32",), ("cpu",), examples=0))


def file_of(tmp_path, *entries):
    path = tmp_path / "known.toml"
    path.write_text("\n".join(map(toml, entries)), encoding="utf-8")
    return Known.read(path)


def judged(softmax, known, today=TODAY):
    """(the row's verdict, what it says of it, the lines) of a run with a file of known failures."""
    session = session_of(softmax)
    pinned = known.replay(session)
    results = [session.run(row) for row in session.rows()]
    lines = settle(session, results, pinned, today)
    (result,) = results
    return result, lines


def test_a_row_whose_pinned_case_fails_as_recorded_is_known(tmp_path):
    result, lines = judged(halved, file_of(tmp_path, ENTRY))
    assert result.verdict == "known" and result.kind == "bound"
    assert lines == ["known: softmax:definition:fp32:cpu (it is halved; https://example.org/1), until 2026-11-24"]


def test_a_pinned_case_that_passes_is_fixed_and_covers_nothing(tmp_path):
    known = file_of(tmp_path, ENTRY)
    result, (line,) = judged(right, known)
    assert result.verdict == "pass" and line.startswith("fixed: softmax:definition:fp32:cpu (it is halved; ")
    only_there = judged(lambda x: right(x) if x.shape == (2, 3) else halved(x), known)
    assert only_there[0].verdict == "fail" and only_there[1][0].startswith("fixed: ")


def test_an_expired_entry_fails_and_says_so(tmp_path):
    result, (line,) = judged(halved, file_of(tmp_path, ENTRY), TODAY + datetime.timedelta(days=1))
    assert result.verdict == "fail" and line.startswith("expired: ") and "on 2026-11-24; mend it, or say why" in line


@pytest.mark.parametrize(
    ("softmax", "entry", "words"),
    [
        (halved, replace(ENTRY, ratio=1e4), "error / bound is [0-9.e+]+, more than 10000"),
        (halved, replace(ENTRY, kind="raises", ratio=None), "it fails as 'bound', not as 'raises'"),
        (halved, replace(ENTRY, cause="the mask is ignored"), "it is not explained by 'the mask is ignored'"),
        (lambda x: None, ENTRY, "it fails as 'returns', not as 'bound'"),
        (
            lambda x: None,
            replace(ENTRY, kind="returns", ratio=None, message="softmax: returns int"),
            "it says 'softmax: returns None, it must return a torch.Tensor', not 'softmax: returns int'",
        ),
    ],
)
def test_another_failure_of_the_pinned_case_is_not_the_known_one(softmax, entry, words, tmp_path):
    result, (line,) = judged(softmax, file_of(tmp_path, entry))
    assert result.verdict == "fail"
    assert re.match(f"another failure: softmax:definition:fp32:cpu .*: {words}$", line)


def test_a_row_that_fails_elsewhere_in_another_way_is_not_known(tmp_path):
    result, lines = judged(halved_or_refused, file_of(tmp_path, ENTRY))
    assert result.verdict == "fail" and result.kind == "raises" and "m=33" in result.case
    assert lines[0].startswith("known: ") and "fails as 'raises', not as 'bound': softmax:definition" in lines[1]
    both = replace(ENTRY, kind="raises", case=ENTRY.case.replace("m=3,", "m=33,"), ratio=None)
    assert judged(halved_or_refused, file_of(tmp_path, ENTRY, both))[0].verdict == "known"


def test_a_row_whose_own_cases_pass_is_known_by_its_pinned_case_or_fails_by_it(tmp_path):
    def at_one_shape(x):
        return halved(x) if x.shape[-1] == 6 else right(x)

    entry = replace(ENTRY, case=ENTRY.case.replace("m=3,", "m=6,"))
    known = file_of(tmp_path, entry)
    assert judged(at_one_shape, known)[0].verdict == "known"
    result, _ = judged(at_one_shape, known, datetime.date(2027, 1, 1))
    assert result.verdict == "fail" and result.kind == "bound" and "m=6" in result.case


def test_a_kind_that_ends_the_process_is_not_replayed(tmp_path):
    entry = replace(ENTRY, kind="hangs", ratio=None)
    known = file_of(tmp_path, entry)
    assert judged(right, known)[1][0].startswith("fixed: ")
    session = session_of(right)
    (pin,) = known.replay(session)
    (result,) = [session.run(row) for row in session.rows()]
    result.verdict, result.kind, result.failing = "fail", "hangs", None  # as a worker that was ended leaves it
    assert pin.found is None and settle(session, [result], [pin], TODAY)[0].startswith("known: ")
    assert result.verdict == "known"


def test_a_row_that_ends_its_process_is_not_known_by_an_entry_of_another_kind(tmp_path):
    session = session_of(halved)
    (pin,) = file_of(tmp_path, ENTRY).replay(session)
    for case in (None, parse(CASE)):
        result = crashed(ENTRY.row, case, "the process was ended by SIGSEGV")
        lines = settle(session, [result], [pin], TODAY)
        assert result.verdict == "fail" and result.kind == "crashes"
        assert lines[1].startswith("another failure: ") and "it fails as 'crashes', not as 'bound'" in lines[1]


def test_pinned_cases_go_to_a_worker_and_back(tmp_path):
    pinned = file_of(tmp_path, ENTRY).replay(session_of(halved))
    (again,) = pickle.loads(pickle.dumps(pinned))
    assert again.entry == ENTRY and again.found.kind == "bound"


def test_what_is_written_covers_the_run_that_it_was_written_from(tmp_path):
    session = session_of(halved_or_refused)
    results = [session.run(row) for row in session.rows()]
    path = tmp_path / "first.toml"
    assert write(path, session, results, TODAY) == 2
    known = Known.read(path)
    assert [entry.kind for entry in known.entries] == ["bound", "raises"]
    assert all(entry.expires == TODAY + datetime.timedelta(days=30) and not entry.issue for entry in known.entries)
    assert known.entries[1].message == "softmax: raises NotImplementedError: 33"
    assert judged(halved_or_refused, known)[0].verdict == "known"
    assert judged(lambda x: right(x) * 3, known)[0].verdict == "fail"
    with pytest.raises(KnownError, match=r"--write-known .*first.toml: it exists"):
        write(path, session, results, TODAY)


def test_a_cause_is_written_where_it_explains_every_failure(tmp_path):
    target = {"linear": lambda x, weight, bias=None: x @ weight.mT, "LLA_TARGET": {"name": "mine"}}
    session = Session(load(target), Options(("linear",), ("definition",), ("fp64",), ("cpu",), examples=0))
    (result,) = [session.run(row) for row in session.rows()]
    written = []
    for cause in ("the bias is left out", "weight is transposed"):
        result.cause = f"{cause} (so changed, the formula reproduces the output at 0 × its bound)"
        write(tmp_path / f"{cause}.toml", session, [result], TODAY)
        written += Known.read(tmp_path / f"{cause}.toml").entries
    assert [entry.cause for entry in written] == ["the bias is left out", ""]


@pytest.mark.parametrize("reason", ['say "no"', "C:\\temp", "two\nlines", "Ω\x7f\x01", "'''", "known = 1 # [[known]]"])
def test_entries_survive_being_written_and_read(reason, tmp_path):
    entries = (replace(ENTRY, reason=reason), replace(ENTRY, case=ENTRY.case + "0", cause=reason, message=reason))
    assert file_of(tmp_path, *entries).entries == entries


GOOD = toml(ENTRY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[known]\n", "it does not read as TOML: "),
        ("known = 3", r"entries are written \[\[known\]\], with two brackets"),
        ("known = [3]", r"entry 1: it is 3; entries are written \[\[known\]\]"),
        ("[[entries]]\n", r"unknown key 'entries'; entries are written \[\[known\]\]"),
        (GOOD + "why = 1\n", "entry 1: unknown key 'why'; there are op, law, dtype, device, kind, case, reason, "),
        (GOOD.replace("reason =", "cause ="), "entry 1: reason is missing; an entry has op, law, "),
        (GOOD.replace('"it is halved"', '" "'), "entry 1: reason is ' ', it must be a text"),
        (GOOD.replace("https", "ftp"), "issue is 'ftp://example.org/1', it must be a URL"),
        (GOOD.replace("2026-11-24", '"2026-11-24"'), "expires is '2026-11-24', it must be a date without quotes"),
        (GOOD.replace("2026-11-24", "2026-11-24T00:00:00"), "it must be a date without quotes: 2027-01-31"),
        (GOOD.replace("1000000000.0", "true"), "ratio is True, it must be a number above 1"),
        (GOOD.replace("1000000000.0", "nan"), "ratio is nan, it must be a number above 1"),
        (GOOD.replace("m=3", "m=x"), "entry 1: case 'softmax:definition:fp32:cpu:m=x,"),
        (GOOD.replace('op = "softmax"', 'op = "matmul"'), "op is 'matmul', and that of its case is 'softmax'"),
        (GOOD + GOOD, "entry 2: its case is pinned by an earlier entry; keep one"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_says_where(text, message, tmp_path):
    path = tmp_path / "known.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KnownError, match=message) as raised:
        Known.read(path)
    assert str(raised.value).startswith(f"known {path}") and "\n" not in str(raised.value)


def test_the_entry_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "known_failures.md").read_text(encoding="utf-8")
    (tmp_path / "known.toml").write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    (entry,) = Known.read(tmp_path / "known.toml").entries
    session = Session(load("torch_native"), Options(("log_softmax",), ("definition",), ("bf16",), ("cpu",)))
    (pin,) = Known.read(tmp_path / "known.toml").replay(session)
    assert differs(entry, session, pin.found) == ""


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(KnownError, match="nothing.toml"):
        Known.read(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("softmax:", "matmul:", r"target mine has no row matmul:definition:fp32:cpu; remove the entry"),
        ("softmax:", "sofmax:", "sofmax: no operation of that name; there are "),
        (":definition:", ":shifted:", "softmax has no law 'shifted'; `lla-spec show softmax` lists them"),
        (":fp32:", ":bf16:", "target mine has no row softmax:definition:bf16:cpu; remove the entry"),
        (":fp32:", ":fp8:", "dtype is 'fp8'; there are fp64, fp32"),
        ("m=3", "n=3", "its case does not fit softmax / definition: .*; copy it from a replay line"),
    ],
)
def test_an_entry_that_matches_nothing_is_an_error(old, new, message, tmp_path):
    case = parse(ENTRY.case.replace(old, new))
    entry = replace(ENTRY, op=case.op, law=case.law, dtype=case.dtype, device=case.device, case=str(case))
    with pytest.raises(KnownError, match=message):
        file_of(tmp_path, entry).replay(session_of(right))


def test_what_the_options_leave_out_is_not_looked_at_and_an_absent_device_is_told(tmp_path):
    on_gpu = replace(ENTRY, device="cuda", case=ENTRY.case.replace(":cpu:", ":cuda:"))
    known = file_of(tmp_path, ENTRY, on_gpu)
    assert len(known.replay(session_of(right))) == 1
    assert known.replay(session_of(right, law="shift")) == [] and known.absent(session_of(right)) == []
    everywhere = Session(session_of(right).target, Options(("softmax",)))
    told = known.absent(everywhere)
    assert told == ([] if torch.cuda.is_available() else [f"not looked at: {on_gpu}: cuda is not here"])


@pytest.mark.parametrize(("softmax", "verdict"), [(halved, "known"), (right, "pass")])
def test_under_pytest_a_known_row_passes_and_says_so_and_so_does_a_fixed_one(tmp_path, softmax, verdict):
    file_of(tmp_path, replace(ENTRY, expires=datetime.date.max))
    tests = RowTests(session_of(softmax), "dev", "mine.py", str(tmp_path / "known.toml"))
    (row,) = tests.of_page("softmax", "definition")
    row.check(parse(CASE))
    told, complaint = row.finish()
    assert (told["verdict"], complaint) == (verdict, "")
    assert told["notes"][0].startswith({"known": "known: ", "pass": "fixed: "}[verdict])


def test_under_pytest_a_failure_that_is_not_the_known_one_fails(tmp_path):
    file_of(tmp_path, replace(ENTRY, expires=datetime.date.max, ratio=1.5))
    tests = RowTests(session_of(halved), "dev", "mine.py", str(tmp_path / "known.toml"))
    (row,) = tests.of_page("softmax", "definition")
    with pytest.raises(AssertionError, match="softmax: "):
        row.check(parse(CASE))
    assert row.finish()[0]["notes"][0].startswith("another failure: ")
