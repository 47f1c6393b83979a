"""The tables that are made and never written: the README's operations, docs/laws.md, both from the registry.

    lla-spec verify --json run.json && python -m lla_spec.catalogue --run run.json

The worst ratios are those of a real run, dated; without `--run` they stay what they are.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lla_spec.language import Law, registry

README, LAWS = Path("README.md"), Path("docs/laws.md")
OPERATIONS = ("<!-- operations -->", "<!-- /operations -->")
ALL_LAWS = ("<!-- laws -->", "<!-- /laws -->")
DTYPES = ("fp64", "fp32", "bf16", "fp16")
HEAD = f"| operation | page | laws | of which proved for all dimensions | VJP | {' | '.join(DTYPES)} |"
Ratios = Mapping[str, Mapping[str, str]]  # operation, dtype: worst error / bound


def operations_table(ratios: Ratios) -> str:
    """Each operation: where it is stated, how many laws it has and how they are proved, its VJP, its worst ratios."""
    from lla_spec.proving.ledger import read

    recorded = read()
    lines = [HEAD, "|---|---|---:|---:|---|" + "---:|" * len(DTYPES)]
    for formula in registry.operations():
        statuses = [recorded.get(law.id, "new") for law in registry.laws_of(formula.name)]
        proved = sum(status == "proved (all dimensions)" for status in statuses)
        page = f"[{formula.topic}](lla_spec/formulas/{formula.topic}.py)"
        vjp = "derived" if formula.differentiable else "certificate instead"
        worst = [ratios.get(formula.name, {}).get(dtype, "") for dtype in DTYPES]
        lines.append(f"| {formula.name} | {page} | {len(statuses)} | {proved} | {vjp} | {' | '.join(worst)} |")
    return "\n".join(lines)


def ratios_of(run: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The worst ratio per operation and dtype over all rows of a run's JSON."""
    found: dict[str, dict[str, float]] = {}
    for row in run["results"]:
        if row["verdict"] == "pass":
            own = found.setdefault(row["op"], {})
            own[row["dtype"]] = max(own.get(row["dtype"], 0.0), float(row["worst_ratio"]))
    return {op: {dtype: f"{ratio:.2f}" for dtype, ratio in own.items()} for op, own in found.items()}


def ratios_in(text: str) -> dict[str, dict[str, str]]:
    """The ratios that a table states."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 + len(DTYPES) and cells[0] in registry.formulas:
            found[cells[0]] = dict(zip(DTYPES, cells[5:], strict=True))
    return found


def laws_table() -> str:
    """Every law: its operation, what it states, and what the committed ledger says of it."""
    from lla_spec.proving.ledger import read

    recorded = read()
    lines = ["| operation | law | states | status |", "|---|---|---|---|"]
    for formula in registry.operations():
        for law in registry.laws_of(formula.name):
            states = first_sentence(law).replace("|", r"\|")
            lines.append(f"| {formula.name} | {law.id} | {states} | {recorded.get(law.id, 'new')} |")
    return "\n".join(lines)


def first_sentence(law: Law) -> str:
    """What the law states: its docstring up to the first full stop that ends a sentence."""
    text = " ".join(law.doc.split())
    return re.split(r"(?<!al)(?<!eq)\. ", text)[0].rstrip(".") + "."


def between(text: str, marks: tuple[str, str], made: str) -> str:
    """`text` with what stands between the marks replaced."""
    before, rest = text.split(marks[0])
    return f"{before}{marks[0]}\n{made}\n{marks[1]}{rest.split(marks[1])[1]}"


def main() -> None:
    """`python -m lla_spec.catalogue` writes both tables."""
    import lla_spec.formulas  # noqa: F401  (declares the laws)

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="the JSON of a whole `lla-spec verify`")
    run = parser.parse_args().run
    readme = README.read_text(encoding="utf-8")
    ratios = ratios_in(readme)
    if run is not None:
        ratios = ratios_of(json.loads(run.read_text(encoding="utf-8")))
        dated = f"Worst error / bound over all rows, impl, CPU, {datetime.date.today()}"
        readme = re.sub(r"Worst error / bound over all rows, impl, CPU, [\d-]+", dated, readme)
    README.write_text(between(readme, OPERATIONS, operations_table(ratios)), encoding="utf-8")
    LAWS.write_text(between(LAWS.read_text(encoding="utf-8"), ALL_LAWS, laws_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
