"""The JSON report and its Markdown: as its schema and docs/report.md say, the same bytes twice, names without power."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch

from lla_spec.testing import report
from lla_spec.testing.heat import SIDE, heat_of
from lla_spec.testing.report.document import SCHEMA
from lla_spec.testing.verdicts import merged, result_of
from tests.engine import reported

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_is_what_the_schema_says():
    report.validate(reported.run())


def test_every_field_of_the_schema_is_needed_and_none_is_unknown():
    for spoil, place in [
        (lambda d: d["results"][0].pop("ratios"), r"report\['results'\]\[0\]: 'ratios' is a required property"),
        (lambda d: d["results"][1].update(speed=1), r"report\['results'\]\[1\]: Additional properties"),
        (
            lambda d: d["results"][0].update(verdict="fine"),
            r"report\['results'\]\[0\]\['verdict'\]: 'fine' is not one of",
        ),
        (lambda d: d["results"][0]["ratios"].append(-1.0), r"\['ratios'\]\[\d+\]"),
        (lambda d: d["environment"].pop("torch"), "'torch' is a required property"),
    ]:
        spoilt = copy.deepcopy(reported.run())
        spoil(spoilt)
        with pytest.raises(report.ReportError, match=place):
            report.validate(spoilt)


def test_the_document_of_the_format_names_every_field():
    told = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    parts = [schema, *(part for part in schema["$defs"].values() if "properties" in part)]
    missing = {key for part in parts for key in part["properties"] if f"`{key}`" not in told}
    assert not missing


def test_the_same_run_gives_the_same_bytes_whatever_order_its_rows_came_in():
    kernels = {"softmax": reported.softmax, "log_softmax": reported.log_softmax}
    first, second = (reported.results_of(kernels)[1] for _ in range(2))
    assert report.text_of(reported.document(first)) == report.text_of(reported.document(second[::-1]))
    assert [r["op"] for r in reported.document(second[::-1])["results"]][0] == "softmax"  # in the order of the pages


def test_a_written_report_is_read_as_it_was_made(tmp_path):
    report.write(tmp_path / "run.json", reported.run())
    assert report.read(tmp_path / "run.json") == reported.run()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    for row in reported.run()["results"]:
        assert result_of(row).as_json() == row


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", r"run\.json: not a report, it is no JSON"),
        ('{"laws": []}', r"run\.json: not a report; `lla-spec verify --json \S+run\.json` writes one"),
        ("[]", r"run\.json: not a report; "),
        ('{"schema": 7, "results": []}', r"a report of schema 7; this lla-spec reads schema 1"),
        ('{"schema": 1, "results": []}', r"another version of lla-spec, which lacks 'environment'; run it again"),
        (
            '{"schema": 1, "target": "", "run": {}, "environment": {}, "results": [{"op": "softmax"}]}',
            r"another version of lla-spec, which lacks 'case'; run it again",
        ),
    ],
)
def test_what_is_no_report_is_named_with_the_way_out(tmp_path, text, line):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(report.ReportError, match=line):
        report.read(tmp_path / "run.json")


def test_every_judged_case_has_its_ratio_and_the_worst_of_them_is_the_rows():
    for row in reported.run()["results"]:
        ratios = [float(ratio) for ratio in row["ratios"]]
        assert ratios and len(row["cases"]) == 16
        if row["verdict"] == "pass":
            assert max(ratios) == pytest.approx(float(row["worst_ratio"]), rel=5e-3)  # three digits


def test_a_failure_carries_its_text_and_a_picture_that_holds_its_worst_entry():
    failed = [row for row in reported.run()["results"] if row["verdict"] == "fail"]
    assert failed and any(row["text"] for row in failed)
    sizes = []
    for row in failed:
        values = row["worst"]["heat"]["values"]
        sizes.append(len(values) * len(values[0]))
        assert max(float(v) for line in values for v in line) == pytest.approx(float(row["worst"]["ratio"]), rel=5e-3)
    assert min(sizes) >= 2 and max(sizes) > 64  # something to look at, not the first small case


def test_a_picture_keeps_the_worst_entry_of_each_block():
    ratio = torch.rand(3, 200, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).numpy()
    ratio[1, 123, 45] = math.inf
    heat = heat_of(ratio, (1, 123, 45))
    assert heat.at == (1,) and heat.shape == (200, 70) and (len(heat.values), len(heat.values[0])) == (SIDE, SIDE)
    assert sum(math.isinf(value) for line in heat.values for value in line) == 1
    assert min(min(line) for line in heat.values) >= ratio[1].min()
    assert heat_of(ratio[1, 2], (45,)).shape == (1, 70) and heat_of(ratio[1, 2, 3], ()) is None


def test_two_parts_of_a_row_keep_the_cases_of_both():
    row = result_of(reported.run()["results"][0])
    both = merged(row, row)
    assert both.ratios == row.ratios * 2 and both.cases not in ("", row.cases)


def test_markdown_says_how_many_rows_fail_and_tells_each_failure():
    found = report.markdown(reported.run())
    bad = sum(row["verdict"] == "fail" for row in reported.run()["results"])
    assert f"❌ {bad} of {len(reported.run()['results'])} rows fail" in found
    assert "| operation | fp32 | bf16 |" in found and "| operation | law | fp32 | bf16 |" in found
    assert found.count("```text") == sum(bool(row["text"]) for row in reported.run()["results"])
    assert re.search(r"\| softmax \| 0\.\d\d \| 0\.\d\d \|", found)


def test_markdown_gives_a_hostile_name_no_power():
    spoilt = copy.deepcopy(reported.run())
    spoilt["results"][0].update(text="```\n<details>\n````", verdict="fail", kind="raises")
    found = report.markdown(spoilt)
    assert "<script>" not in found and r"\*\*x\*\*" in found and r"\`rm\`" in found
    assert "`````text\n```\n<details>\n````\n`````" in found  # a fence longer than any inside


def test_a_run_without_a_failure_says_so(tmp_path):
    _, results = reported.results_of(
        {"softmax": reported.softmax}, reported.Options(ops=("softmax",), dtypes=("fp32",), examples=1)
    )
    for _ in range(2):
        report.append_markdown(tmp_path / "summary.md", reported.document(results, "mine"))
    assert (tmp_path / "summary.md").read_text().count(f"✅ none of {len(results)} rows fails") == 2
