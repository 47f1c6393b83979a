"""The page: what a target says has no power, nothing is fetched, every formula is MathML, and Chromium shows it all."""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

import lla_spec.formulas  # noqa: F401  (declares the laws)
from lla_spec.language import registry
from lla_spec.testing import report
from lla_spec.testing.report.mathml import mathml
from lla_spec.testing.report.page import fields_of
from lla_spec.testing.report.pictures import BINS, distribution, heat_map
from lla_spec.testing.report.statements import formula_latex, law_latex
from tests.engine import reported

CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
VOID = {"meta", "input"}
FETCHES = {"src", "srcset", "href", "action", "data", "poster", "formaction", "xlink:href", "background"}
BROWSER = next(filter(None, map(shutil.which, ["chromium-headless-shell", "chromium", "google-chrome"])), None)


@pytest.fixture(scope="module")
def page():
    return report.html(reported.run(), "2026-01-01")


class Elements(HTMLParser):
    """The elements of a page with their attributes; raises where one is not closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


def test_what_a_target_is_called_has_no_power(page):
    elements = Elements(page)
    assert len(elements.of("script")) == 1 and "alert" not in page.partition("<script>")[2].partition("</script>")[0]
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3  # title, heading, command


def test_nothing_is_fetched_and_the_page_itself_forbids_it(page):
    elements = Elements(page)
    fetched = [value for _, attributes in elements.found for name, value in attributes.items() if name in FETCHES]
    assert all(value.startswith("#") for value in fetched)
    assert not elements.of("link") and not elements.of("img") and "url(" not in page and "@import" not in page
    policy = next(a["content"] for a in elements.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


def test_every_row_is_on_the_page_without_a_script(page):
    elements = Elements(page)
    rows = reported.run()["results"]
    cells = [a for a in elements.of("span") if "data-verdict" in a]
    assert sorted(a["data-verdict"] for a in cells) == sorted(row["verdict"] for row in rows)
    told = {re.sub(r"\s+", " ", row["text"].splitlines()[0]) for row in rows if row["text"]}
    assert told and len(elements.of("article")) == sum(bool(row["text"]) for row in rows)
    for row in rows:
        assert f"lla-spec replay &#39;{row['case']}&#39; --target my.py" in page
    hidden = [a.get("class") for tag, a in elements.found if "hidden" in a]
    assert hidden == ["filters"]  # a form that only the script can serve


def test_every_formula_and_law_is_mathml_with_the_children_that_it_needs():
    statements = [formula_latex(formula) for formula in registry.operations()]
    statements += [law_latex(law) for law in registry.laws.values()]
    assert len(statements) > 150
    for latex in statements:
        root = ElementTree.fromstring(mathml(latex))
        assert len(root) and "\\" not in "".join(root.itertext()), latex
        for element in root.iter():
            assert len(element) == CHILDREN.get(element.tag, len(element)), latex
            assert element.tag not in ("mi", "mn", "mo") or element.text, latex


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"K'_{j k} := K_{j k} + b_{k}", "Kjk′≔Kjk+bk"),
        (r"\sum_{i',t} X̂_{i t}^{2} \le \delta_{a b}", "∑i′,tX̂it2≤δab"),
        (r"W_{q}_{a k}", "Wq,ak"),
        (r"\operatorname{log_softmax}\left(x\right)", "log_softmax(x)"),
        (r"\unheardof{<b>}", "unheardof<b>"),
    ],
)
def test_mathml_says_what_the_latex_says(latex, text):
    assert "".join(ElementTree.fromstring(mathml(latex)).itertext()) == text


def test_a_law_is_shown_as_it_is_written_and_two_of_one_name_are_told_apart():
    assert law_latex(registry.laws["attention.key_bias"]).splitlines() == [
        r"\operatorname{attention}\left(Q, K', V, M\right) = \operatorname{attention}\left(Q, K, V, M\right) \\",
        r"K'_{j k} := K_{j k} + b_{k}",
    ]
    merge = law_latex(registry.laws["softmax.lse_merge"])
    assert "L := " in merge and "L' := " in merge and r"\left[" in merge


def test_the_lines_of_a_failure_become_fields_and_other_text_stays_text():
    assert fields_of(["  bound     strict", "  cause     a sum", "            in bf16"]) == [
        ("bound", "strict"), ("cause", "a sum\nin bf16"),
    ]  # fmt: skip
    assert fields_of(["Traceback:", "  bound     strict"]) == [] == fields_of(["            alone"])


def test_a_distribution_puts_the_bound_itself_within_the_bound():
    values = {"fp32": [0.0, 1.0], "bf16": [1.0000001, float("inf")]}
    within, over = (re.findall(rf'class="{side}" d="([^"]*)"', distribution(values)) for side in ("in", "over"))
    assert [path.count("M") for path in (*within, *over)] == [2, 2]
    places = {int(x) for path in (*within, *over) for x in re.findall(r"M(\d+) ", path)}
    assert len(places) == 4 and BINS > 20


def test_a_heat_map_draws_each_cell_once():
    heat = {"at": [], "shape": [2, 4], "values": [[0.1, 0.1, 3.0, "inf"], [0.9, 3.0, 3.0, 3.0]]}
    drawn = heat_map(heat)
    assert sum(map(int, re.findall(r"h(\d+)v1", drawn))) == 8 and "over the bound in 5 cells" in drawn


def test_a_failure_that_nobody_told_and_an_unknown_operation_are_shown_all_the_same():
    row = {**reported.run()["results"][0], "op": "my_own", "law": "mine", "verdict": "no_evidence", "text": ""}
    page = report.html({**reported.run(), "results": [row]}, "")
    assert "cases are evidence, fewer than half" in page and "1 of 1 rows fail" in page
    assert "None of 0 rows fails" in report.html({**reported.run(), "results": []}, "")


def test_what_a_target_takes_of_an_operation_is_said_below_its_formula():
    row = {**reported.run()["results"][0], "within": "d in <64>, 128; no mask"}
    page = report.html({**reported.run(), "results": [row]}, "")
    assert "Checked where the target takes it: d in &lt;64&gt;, 128; no mask." in page
    assert "Checked where" not in report.html(reported.run(), "")


def test_without_jinja2_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for ask in (report.need_jinja2, lambda: report.html(reported.run())):
        with pytest.raises(report.ReportError, match=r'needs jinja2: pip install "lla-spec\[report\]"'):
            ask()


PROBE = """{
const form = document.querySelector("form");
const shown = () => [...document.querySelectorAll("summary [data-verdict]")].filter((c) => c.checkVisibility()).length;
const counts = [shown()];
for (const filter of ["verdict=fail", "dtype=bf16", "verdict=", "dtype=", "op=softmax", "text=no such words"]) {
  const [name, value] = filter.split("=");
  form.elements[name].value = value;
  form.dispatchEvent(new Event("input"));
  counts.push(shown());
}
top.document.title = JSON.stringify({
  counts, width: document.documentElement.scrollWidth, formula: document.querySelector(".card math").clientHeight,
  paper: getComputedStyle(document.body).backgroundColor,
});
}"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page was not rendered")
@pytest.mark.parametrize(("width", "scheme", "paper"), [(1280, 1, "rgb(247, 247, 245)"), (400, 0, "rgb(16, 19, 23)")])
def test_chromium_shows_it_at_both_widths_in_both_schemes_and_filters(tmp_path, page, width, scheme, paper):
    """A script that asks is added: once where the page's policy is taken out, once where it must not run.

    The first stands in a frame of the width: a browser's window may have a least width of its own.
    """
    asking = page.replace("</body>", f"<script>{PROBE}</script></body>")
    inside = html.escape(re.sub(r"<meta http-equiv[^>]*>", "", asking))
    frame = f'<title></title><iframe srcdoc="{inside}" width="{width}" height="900" frameborder="0"></iframe>'
    (tmp_path / "open.html").write_text(f"<!doctype html><meta charset=utf-8>{frame}", encoding="utf-8")
    (tmp_path / "closed.html").write_text(asking, encoding="utf-8")
    run = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
           f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={tmp_path}", "--dump-dom"]  # fmt: skip

    def shown(name):
        done = subprocess.run([*run, f"file://{tmp_path / name}"], capture_output=True, text=True, timeout=60)
        return done.stdout

    said = re.search(r"<title>(\{.*?\})</title>", shown("open.html"))
    assert said is not None
    found, rows = json.loads(said[1]), reported.run()["results"]
    bad = [row for row in rows if row["verdict"] == "fail"]
    half, of_softmax = [row for row in rows if row["dtype"] == "bf16"], [row for row in rows if row["op"] == "softmax"]
    wanted = [rows, bad, [row for row in bad if row in half], half, rows, of_softmax, []]
    assert found["counts"] == list(map(len, wanted))
    assert found["width"] <= width and found["paper"] == paper and found["formula"] > 20  # nothing sticks out
    closed = shown("closed.html")
    assert '<html lang="en" class="js">' in closed and "<title>{" not in closed  # its own script ran, the other did not


def test_what_a_file_from_elsewhere_says_has_no_power_either():
    first = reported.run()["results"][0]
    rows = [{**first, "device": "<u>cpu", "law": "<u>"}, {**first, "device": "<u>", "notes": ["<u>"], "message": "<u>"}]
    environment = {"<u>": "<u>", "cuda": "<u>"}
    assert "<u>" not in report.html({**reported.run(), "environment": environment, "results": rows}, "<u>")
