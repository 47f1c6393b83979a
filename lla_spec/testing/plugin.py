"""The pytest plugin: rows as test items, the header, the accuracy table at the end. It imports no torch by itself.

`@each_operation(page)` and `@each_law(page)` mark a test; here it is parametrised over the page's rows, so that a new
operation or law is collected with no edit. Rows travel in `report.user_properties`, so xdist's workers report as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lla_spec.testing.pytest_laws import RowTests

PROFILES = {"dev": 20, "ci": 100, "nightly": 2000}
PROPERTY, TARGET = "lla_row", "lla_target"
ROWS = pytest.StashKey["RowTests"]()
SEEN = pytest.StashKey["SeenRows"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lla-spec", "the linear algebra of language models")
    group.addoption("--lla-target", default="impl", help="module, module:attribute or file.py under test (impl)")
    group.addoption("--lla-device", action="append", default=[], help="cpu or cuda; all that are present unless given")
    group.addoption("--lla-dtype", action="append", default=[], help="fp64, fp32, bf16 or fp16")
    group.addoption("--lla-op", action="append", default=[], help="only this operation")
    group.addoption("--lla-examples", type=int, default=None, help="random cases per row, after its covering list")
    group.addoption("--lla-profile", choices=list(PROFILES), default="dev", help="dev 20, ci 100, nightly 2000 cases")
    group.addoption("--lla-known", default=None, help="a TOML file of failures that are known: docs/known_failures.md")
    group.addoption("--lla-case", default=None, help="replay this one case on --lla-target, then stop")
    group.addoption("--lla-report", default=None, help="write the rows as JSON here")


def _option(config: pytest.Config, name: str) -> Any:
    return config.getoption(name)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SEEN] = SeenRows()
    config.pluginmanager.register(config.stash[SEEN], "lla_spec rows")
    asked = ("--lla-target", "--lla-device", "--lla-dtype", "--lla-op")
    if any(_option(config, name) not in ("impl", []) for name in asked):
        rows_of(config)  # what cannot be used is a usage error now, not an error of some test's collection


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """`--lla-case CASE` replays instead of collecting."""
    case = _option(config, "--lla-case")
    if case is None:
        return None
    from lla_spec.testing.cases import CaseError, parse
    from lla_spec.testing.replaying import replay_case
    from lla_spec.testing.targets import TargetError, load

    target = _option(config, "--lla-target")
    try:
        failed, text = replay_case(load(target), parse(case), None, target)
    except (CaseError, TargetError) as error:
        raise pytest.UsageError(str(error)) from None
    print(text)
    return int(failed)


def rows_of(config: pytest.Config) -> RowTests:
    """The session's rows; made when the first law is collected, so that other people's tests cost no import."""
    if ROWS not in config.stash:
        from lla_spec.testing.pytest_laws import RowTests
        from lla_spec.testing.runner import Options, Session
        from lla_spec.testing.targets import TargetError, load

        profile = _option(config, "--lla-profile")
        examples = _option(config, "--lla-examples")
        options = Options(
            ops=tuple(_option(config, "--lla-op")),
            dtypes=tuple(_option(config, "--lla-dtype")),
            devices=tuple(_option(config, "--lla-device")),
            examples=PROFILES[profile] if examples is None else examples,
        )
        try:
            session = Session(load(_option(config, "--lla-target")), options)
            named = (_option(config, name) for name in ("--lla-target", "--lla-known"))
            config.stash[ROWS] = RowTests(session, profile, *named)
        except TargetError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[ROWS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = getattr(metafunc.function, "lla_rows", None)
    if wanted is not None:
        tests = rows_of(metafunc.config)
        tests.settle(metafunc.function)
        chosen = tests.of_page(*wanted)
        metafunc.parametrize("row", chosen, ids=[row.id for row in chosen])


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    outcome: Any = yield
    given: dict[str, Any] = pyfuncitem.callspec.params if hasattr(pyfuncitem, "callspec") else {}
    mine = (given.get(name) for name in ("row", "law_check"))  # names that somebody else's parameters may have as well
    row: Any = next((value for value in mine if isinstance(getattr(value, "target_name", None), str)), None)
    if row is None:
        return
    result, complaint = row.finish()
    if result is not None:
        pyfuncitem.user_properties += [(PROPERTY, result), (TARGET, row.target_name)]
    if complaint and outcome.excinfo is None:
        outcome.force_exception(pytest.fail.Exception(complaint, pytrace=False))


class SeenRows:
    """Hears every report of this run, those of xdist's workers too, and keeps the rows that travel in them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.targets: dict[str, None] = {}  # in their order

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            told = report.user_properties
            self.rows += [value for name, value in told if name == PROPERTY and isinstance(value, dict)]
            self.targets |= {str(value): None for name, value in told if name == TARGET}


def pytest_report_header(config: pytest.Config) -> list[str]:
    if ROWS not in config.stash and not os.environ.get("LLA_HEADER") and not _is_ours(config):
        return []
    from lla_spec.testing.table import devices_line, environment

    env = environment()
    told = f"torch {env['torch']}, tf32 {env['tf32']}, float32 matmul precision {env['matmul_precision']}"
    return [
        f"lla-spec: target {_option(config, '--lla-target')}, profile {_option(config, '--lla-profile')}, {told}",
        devices_line(),
    ]


def _is_ours(config: pytest.Config) -> bool:
    return (config.rootpath / "lla_spec" / "formulas").is_dir()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[SEEN].rows
    if not rows or hasattr(config, "workerinput"):  # xdist's workers report to the process that prints
        return
    from lla_spec.testing.summary import print_summary, results_of, write_step_summary

    target = ", ".join(config.stash[SEEN].targets)
    print_summary(terminalreporter, rows)
    write_step_summary(rows, target)
    file = _option(config, "--lla-report")
    if file:
        from lla_spec.testing import report
        from lla_spec.testing.table import environment

        report.write(file, report.document(target, results_of(rows), environment()))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Asked for a GPU and nothing ran on one: that is a failure, not a pass."""
    config = session.config
    asked = [d for d in _option(config, "--lla-device") if d.startswith("cuda")]
    worker = hasattr(config, "workerinput")
    if (
        asked
        and not worker
        and exitstatus == 0
        and not any(row["device"].startswith("cuda") for row in config.stash[SEEN].rows)
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
