"""The command `lla-spec`: verify | prove | show | list | replay. Exit 0: all well, 1: something failed, 2: unusable."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
    from lla_spec.symbols import DeclarationError
    from lla_spec.testing.cases import CaseError
    from lla_spec.testing.targets import TargetError

    try:
        yield
    except (TargetError, CaseError, DeclarationError, OSError) as error:
        _stop(error)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
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
        str, typer.Argument(help="a module, module:attribute or file.py[:function]; torch_native is bundled")
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
    json_: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """Check a target against every law, in every dtype that it supports."""
    from lla_spec.testing.workers import Job, server

    if jobs != 1:
        server()
    from lla_spec.testing.runner import Options, Session
    from lla_spec.testing.targets import load

    with _one_line_errors():
        if contract is not None:
            _check_contract(contract)
        found = load(target, as_)
        options = Options(
            tuple(op or ()),
            tuple(law or ()),
            tuple(dtype or ()),
            tuple(device or ()),
            contract,
            examples,
            seed,
            _sizes(at),
        )
        shown = target if as_ is None else f"{target} --as {as_}"
        raise typer.Exit(_verify(Session(found, options), Job(target, as_, options), jobs, shown, json_))


def _check_contract(name: str) -> None:
    from lla_spec.evaluating.contracts import NAMED

    if name not in NAMED:
        _stop(f"--contract {name}: there are {', '.join(NAMED)}")


def _verify(session: Any, job: Any, jobs: int, target: str, json_: Path | None) -> int:
    from lla_spec.testing.diagnose import texts
    from lla_spec.testing.table import accuracy_table, counts, devices_line, write_json
    from lla_spec.testing.verdicts import Result, exit_status
    from lla_spec.testing.workers import results_of

    results: list[Result] = []
    title = f"{session.target.name} {session.target.version}".strip()
    interrupted = False
    rows: list[Any] = []

    def interrupt(*_: Any) -> None:
        session.interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        rows += session.rows()
        if not rows:
            _stop(f"target {session.target.name}: nothing to check with these options")
        with _progress() as bar:
            task = bar.add_task(title, total=len(rows))
            for result in results_of(session, job, rows, jobs):
                results.append(result)
                bar.update(task, advance=1, description=f"{result.row.op} {result.row.law} {result.row.dtype}")
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGINT, before)
    results.sort(key=lambda result: rows.index(result.row))
    out.print(accuracy_table(results, f"target {title}   {devices_line()}"))
    if json_ is not None:  # now, and again with the causes: finding these may be interrupted too
        write_json(json_, title, results)
    if not interrupted:
        for text in texts(session, results, target):
            out.print(f"\n{text}", markup=False, highlight=False)
    for line in _reported(results):
        out.print(line, markup=False, highlight=False)
    out.print(counts(results), highlight=False)
    if json_ is not None:
        write_json(json_, title, results)
    if interrupted:
        err.print(f"interrupted after {len(results)} of {len(rows)} rows")
        return 130
    status = exit_status(results)
    if status == 2:
        err.print(f"lla-spec: target {session.target.name}: implements none of the operations asked for")
    return status


def _reported(results: list[Any]) -> list[str]:
    seen: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            seen.setdefault(f"{result.row.op}: {note}", []).append(f"{result.row.law} {result.row.dtype}")
    return [f"reported, not judged: {note} ({', '.join(rows)})" for note, rows in seen.items()]


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
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
