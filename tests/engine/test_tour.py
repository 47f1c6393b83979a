"""The tour says what is so, in both languages: its examples run, its quotations stand on the pages, its laws exist."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import lla_spec.formulas  # noqa: F401  (declares the laws)
from lla_spec.cli import app
from lla_spec.language import registry

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("tour.md", "tour.zh-TW.md")}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DISPLAYED = re.compile(r"^\$\$ .+ \$\$$", re.MULTILINE)
QUOTED = re.compile(r"# (lla_spec/formulas/(\w+)\.py)\n")
LAW = re.compile(r"^- `([\w.]+)`(.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
EVERY_STOP = (
    ("embedding", "mean_pool"),
    ("linear", "matmul"),
    ("weighted_average", "attention", "grouped_query_attention", "multi_head_attention"),
    ("layer_norm", "rms_norm", "residual_layer_norm"),
    ("output_softmax", "cross_entropy", "linear_cross_entropy"),
    ("linear_vjp", "cross_entropy_vjp", "attention_vjp"),
    ("truncated_svd", "low_rank"),
    ("pca", "pca_transform", "pca_inverse"),
)

each_language = pytest.mark.parametrize("name", LANGUAGES)


def blocks(text, language):
    return [code for tag, code in BLOCK.findall(text) if tag == language]


def stops(text):
    """The numbered sections, in their order."""
    return re.split(r"^## (?=\d)", text, flags=re.MULTILINE)[1:]


def anchors(text):
    """The headings as a reader's browser names them: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_language
def test_every_example_runs(name):
    """In one namespace, as a reader would type them; their asserts are the outputs that the text claims."""
    namespace = {}
    examples = [code for code in blocks(LANGUAGES[name], "python") if not QUOTED.match(code)]
    assert sum(code.count("assert") for code in examples) > 30
    with torch.random.fork_rng():
        for code in examples:
            exec(compile(code, name, "exec"), namespace)


@each_language
def test_every_declaration_stands_on_its_page(name):
    for stop in stops(LANGUAGES[name]):
        quotations = [code for code in blocks(stop, "python") if QUOTED.match(code)]
        assert quotations, f"no declaration is quoted in {stop.splitlines()[0]}"
        for code in quotations:
            named = QUOTED.match(code)
            assert named is not None
            page = (ROOT / named[1]).read_text(encoding="utf-8")
            for part in code[named.end() :].strip("\n").split("\n\n"):
                assert f"{part}\n" in page, f"{named[1]} does not say\n{part}"


@each_language
def test_every_law_exists_and_belongs_to_a_quoted_topic(name):
    for stop in stops(LANGUAGES[name]):
        laws = LAW.findall(stop)
        assert len(laws) >= 4, f"{stop.splitlines()[0]} names {len(laws)} laws"
        for law, told in laws:
            assert law in registry.laws, f"{law}: no law of that name"
            assert re.fullmatch(r"\W.+ → .+", told), f"{law}: what it states → what it is good for"


@each_language
def test_a_comment_names_a_law(name):
    """`# attainment`, `# spectral_attainment: …`: a word with an underscore at a comment's start is a law's name."""
    named = {law.partition(".")[2] for law in registry.laws}
    comments = [
        comment
        for code in blocks(LANGUAGES[name], "python")
        if not QUOTED.match(code)
        for comment in re.findall(r"  # ([a-z]+_\w+)", code)
    ]
    assert len(comments) > 15
    assert set(comments) <= named


@each_language
def test_every_stop_uses_its_operations(name):
    found = stops(LANGUAGES[name])
    assert len(found) == len(EVERY_STOP)
    for stop, operations in zip(found, EVERY_STOP, strict=True):
        code = "".join(blocks(stop, "python"))
        for operation in operations:
            assert f"impl.{operation}(" in code, f"{operation} is missing in {stop.splitlines()[0]}"
        assert DISPLAYED.search(stop), f"no formula in {stop.splitlines()[0]}"


@each_language
def test_every_command_prints_what_is_shown(name):
    for block in blocks(LANGUAGES[name], "console"):
        for typed in block.split("$ lla-spec ")[1:]:
            command, *shown = typed.strip("\n").splitlines()
            done = CliRunner().invoke(app, command.split())
            printed = done.output.splitlines()
            assert done.exit_code == 0 and shown, done.output
            places = [printed.index(line) for line in shown]
            assert places == sorted(places)


@each_language
def test_every_link_leads_somewhere(name):
    for file, anchor in LINK.findall(BLOCK.sub("", LANGUAGES[name])):
        target = ROOT / "docs" / (file or name)
        assert target.exists(), file
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), anchor


@each_language
def test_formulas_are_on_lines_that_markdown_leaves_alone(name):
    """A line of its own between blank lines; no backslash before a punctuation mark, which Markdown would swallow."""
    text = LANGUAGES[name]
    formulas = DISPLAYED.findall(text)
    assert text.count("$$") == 2 * len(formulas)
    for formula in formulas:
        assert f"\n\n{formula}\n\n" in text
        assert not re.search(r"\\(?![a-zA-Z])|\\operatorname", formula), formula
        assert formula.count("{") == formula.count("}")


def test_both_languages_show_the_same():
    """Code, formulas and laws are the same; only the words around them differ."""
    english, chinese = LANGUAGES.values()
    assert BLOCK.findall(english) == BLOCK.findall(chinese)
    assert DISPLAYED.findall(english) == DISPLAYED.findall(chinese)
    assert [law for law, _ in LAW.findall(english)] == [law for law, _ in LAW.findall(chinese)]


@each_language
def test_the_table_of_parameters_is_counted(name):
    """(m + n + 1) k, against mn, for 4096 × 4096."""
    rows = [line.split("|")[2:-1] for line in LANGUAGES[name].splitlines() if line.startswith("|")]
    ranks, _, counted, shares = ([cell.strip() for cell in row] for row in rows)
    m = n = 4096
    for k, count, share in zip(map(int, ranks), counted, shares, strict=True):
        assert count == f"{(m + n + 1) * k:,}" and share == f"{100 * (m + n + 1) * k / (m * n):.1f} %"
