"""The command `lla-spec`: verify, compare, prove, show, list, replay. Exit 0: all well, 1: a failure, 2: unusable."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

app = typer.Typer(
    name="lla-spec",
    help="The linear algebra of language models: stated in sympy, proved, and checked against any implementation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
WIDTH = 120  # of tables that go into a file or a pipe
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
err = Console(stderr=True, soft_wrap=True)

Names = Annotated[list[str] | None, typer.Option()]
Pages = Annotated[list[Path] | None, typer.Option("--page", help="a page of your own, a .py file (may be repeated)")]


def _stop(message: object, status: int = 2) -> NoReturn:
    err.print(f"lla-spec: {message}", markup=False, highlight=False)
    raise typer.Exit(status)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a person got wrong is one line and exit 2; anything else is a defect of ours and keeps its traceback."""
    from lla_spec.tensors import DeclarationError
    from lla_spec.testing.errors import CaseError, ReportError, TargetError

    try:
        yield
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror.lower()}" if error.filename and error.strerror else error)
    except (TargetError, CaseError, ReportError, DeclarationError) as error:
        _stop(error)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _sizes(at: str) -> dict[str, int]:
    sizes = {}
    for item in filter(None, at.split(",")):
        name, _, value = item.partition("=")
        if not value.isdigit():
            _stop(f"--at {at}: {item!r} is not name=size; write --at n=8192,d=128")
        sizes[name.strip()] = int(value)
    return sizes


@app.command()
def verify(
    target: Annotated[
        str,
        typer.Argument(help="module, module:attribute, file.py[:function], or a bundled one: torch_native, jax, …"),
    ] = "impl",
    op: Annotated[list[str] | None, typer.Option(help="only this operation (may be repeated)")] = None,
    law: Annotated[
        list[str] | None, typer.Option(help="only this law: definition, vjp, or a name of `lla-spec list`")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp64, fp32, bf16 or fp16")] = None,
    device: Annotated[list[str] | None, typer.Option(help="cpu or cuda")] = None,
    contract: Annotated[
        str | None, typer.Option(help="strict, fused or whiteboard, instead of the declared one")
    ] = None,
    at: Annotated[str, typer.Option(help="sizes of the random cases, n=8192,d=128")] = "",
    examples: Annotated[int, typer.Option(min=0, help="random cases per row, after its covering list")] = 20,
    seed: Annotated[int, typer.Option(help="seed of the random cases")] = 0,
    as_: Annotated[str | None, typer.Option("--as", help="the operation that file.py:function stands for")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="processes; 0: one per core, up to 4")] = 0,
    limit: Annotated[float, typer.Option(min=0.1, help="seconds that one call of the target may take")] = 20.0,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="only workers load the target: it may crash, hang in C or eat memory")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="write the rows here, while they come")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="go on with the run that wrote this JSON; what failed is run again")
    ] = None,
    known: Annotated[Path | None, typer.Option(help="a TOML file of failures that are known: replayed first")] = None,
    write_known: Annotated[Path | None, typer.Option(help="write a first such file from what fails")] = None,
    html: Annotated[Path | None, typer.Option(help="write one page here that explains every row, offline")] = None,
    markdown: Annotated[Path | None, typer.Option(help="add a summary to this file ($GITHUB_STEP_SUMMARY)")] = None,
) -> None:
    """Check a target against every law, in every dtype that it supports."""
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "lla-spec-hypothesis"))
    from lla_spec.testing.workers import Job, server

    if isolate or jobs > 1 or (jobs == 0 and not (op or law or as_)):  # few rows are worth no second process
        server()
    from lla_spec.testing.runner import Options
    from lla_spec.testing.running import Here, Isolated
    from lla_spec.testing.verifying import Reports, Verification

    with _one_line_errors():
        if contract is not None:
            _check_contract(contract)
        options = Options(
            tuple(op or ()),
            tuple(law or ()),
            tuple(dtype or ()),
            tuple(device or ()),
            contract,
            examples,
            seed,
            _sizes(at),
            limit,
        )
        shown = shlex.quote(target) + (f" --as {as_}" if as_ else "")
        job = Job(target, as_, options)
        run = Isolated(job, jobs) if isolate else Here(job, jobs)
        reports = Reports(json_, resume, html, markdown, known, write_known)
        raise typer.Exit(Verification(run, options, shown, reports, out, err, _progress()).run())


def _check_contract(name: str) -> None:
    from lla_spec.evaluating.contracts import NAMED

    if name not in NAMED:
        _stop(f"--contract {name}: there are {', '.join(NAMED)}")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="the JSON of a run")],
    after: Annotated[Path, typer.Argument(help="the JSON of a later one")],
) -> None:
    """Say what broke, what was mended and whose accuracy fell between two runs. Exit 1 where something broke."""
    from lla_spec.testing import report

    with _one_line_errors():
        found = report.compare(report.read(before), report.read(after))
        out.print("\n".join(found.lines()), markup=False, highlight=False)
        raise typer.Exit(int(found.failed))


@app.command()
def prove(
    law: Annotated[list[str] | None, typer.Argument(help="names of laws; all of them unless given")] = None,
    page: Pages = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the ledger here")] = None,
) -> None:
    """Prove every law: for all dimensions, at listed shapes by an independent engine, with teeth."""
    from lla_spec.proving import ledger

    with _one_line_errors():
        _declare(page)
        laws = _laws(law or [])
        entries = []
        with _progress() as bar:
            task = bar.add_task("proving", total=len(laws))
            for entry in ledger.prove_each(laws):
                bar.update(task, description=entry.id, advance=1)
                entries.append(entry)
        lines, content = ledger.render(entries, detailed=bool(law))
        out.print("\n".join([*lines, "TRUST.md says what this rests on."]), markup=False, highlight=False)
        if json_ is not None:
            json_.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        worse = ledger.fallen(entries)
        for line in worse:
            err.print(line, markup=False, highlight=False)
        raise typer.Exit(1 if worse else 0)


def _declare(pages: list[Path] | None) -> None:
    """Declare every law: those of lla_spec.formulas, then those of the user's own pages."""
    import lla_spec.formulas  # noqa: F401  (declares them)

    for page in pages or ():
        from lla_spec.testing.targets import declare  # with torch, which proofs do without

        declare(page)


def _laws(names: list[str]) -> list[Any]:
    import lla_spec.formulas  # noqa: F401  (declares them)
    from lla_spec.language import registry

    if not names:
        return list(registry.laws.values())
    found = []
    for name in names:
        matching = [law for law in registry.laws.values() if name in (law.id, law.name)]
        if not matching:
            _stop(f"{name}: no law of that name; `lla-spec list` shows them")
        found += matching
    return found


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a formula or a law")],
    latex: Annotated[bool, typer.Option("--latex", help="as LaTeX")] = False,
    page: Pages = None,
) -> None:
    """Show a formula or a law, as text or as LaTeX."""
    from lla_spec.language import registry
    from lla_spec.showing import show_formula, show_law

    with _one_line_errors():
        _declare(page)
        formula = registry.formulas.get(name) or next((f for f in registry.formulas.values() if f.id == name), None)
        if formula is not None:
            out.print(show_formula(formula, latex=latex), markup=False, highlight=False)
            return
        for law in _laws([name]):
            out.print(show_law(law, latex=latex), markup=False, highlight=False)


@app.command("list")
def list_(page: Pages = None) -> None:
    """List every operation and law, page by page."""
    from lla_spec.showing import listing

    with _one_line_errors():
        _declare(page)
    out.print(listing(), markup=False, highlight=False)


@app.command()
def replay(
    case: Annotated[str, typer.Argument(help="the line that a failure prints")],
    target: Annotated[str, typer.Option(help="the target that it is about")] = "impl",
    as_: Annotated[str | None, typer.Option("--as", help="the operation that file.py:function stands for")] = None,
    contract: Annotated[
        str | None, typer.Option(help="strict, fused or whiteboard, instead of the declared one")
    ] = None,
) -> None:
    """Run one case again, from its line of text."""
    from lla_spec.testing.cases import parse
    from lla_spec.testing.replaying import replay_case
    from lla_spec.testing.targets import load

    with _one_line_errors():
        failed, text = replay_case(load(target, as_), parse(case), contract, target)
        out.print(text, markup=False, highlight=False)
        raise typer.Exit(1 if failed else 0)


def main(run: Callable[[], Any] = app) -> None:
    """The entry point; Ctrl-C outside of `verify` exits with 130 as shells expect."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # formulas are in Unicode, and not every terminal is
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
