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
PROPERTY = "lla_row"
ROWS = pytest.StashKey["RowTests"]()
COLLECTED = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lla-spec", "the linear algebra of language models")
    group.addoption("--lla-target", default="impl", help="module, module:attribute or file.py under test (impl)")
    group.addoption("--lla-device", action="append", default=[], help="cpu or cuda; all that are present unless given")
    group.addoption("--lla-dtype", action="append", default=[], help="fp64, fp32, bf16 or fp16")
    group.addoption("--lla-op", action="append", default=[], help="only this operation")
    group.addoption("--lla-examples", type=int, default=None, help="random cases per row, after its covering list")
    group.addoption("--lla-profile", choices=list(PROFILES), default="dev", help="dev 20, ci 100, nightly 2000 cases")
    group.addoption("--lla-case", default=None, help="replay this one case on --lla-target, then stop")
    group.addoption("--lla-report", default=None, help="write the rows as JSON here")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COLLECTED] = []


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """`--lla-case CASE` replays instead of collecting."""
    case = config.getoption("--lla-case")
    if case is None:
        return None
    from lla_spec.testing.cases import CaseError, parse
    from lla_spec.testing.replaying import replay_case
    from lla_spec.testing.targets import TargetError, load

    target = config.getoption("--lla-target")
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

        profile = config.getoption("--lla-profile")
        examples = config.getoption("--lla-examples")
        options = Options(
            ops=tuple(config.getoption("--lla-op")),
            dtypes=tuple(config.getoption("--lla-dtype")),
            devices=tuple(config.getoption("--lla-device")),
            examples=PROFILES[profile] if examples is None else examples,
        )
        try:
            session = Session(load(config.getoption("--lla-target")), options)
            config.stash[ROWS] = RowTests(session, profile, config.getoption("--lla-target"))
        except TargetError as error:
            pytest.exit(f"lla-spec: {error}", returncode=int(pytest.ExitCode.USAGE_ERROR))
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
    row = getattr(pyfuncitem, "callspec", None) and pyfuncitem.callspec.params.get("row")
    if row is None or not hasattr(row, "finish"):
        return
    result, complaint = row.finish()
    pyfuncitem.user_properties.append((PROPERTY, result))
    if complaint and outcome.excinfo is None:
        outcome.force_exception(AssertionError(complaint))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, dict):
                _collected.append(value)


_collected: list[dict[str, Any]] = []  # logreport has no config; one pytest run is one process


def pytest_report_header(config: pytest.Config) -> list[str]:
    if ROWS not in config.stash and not os.environ.get("LLA_HEADER") and not _is_ours(config):
        return []
    from lla_spec.testing.table import devices_line, environment

    env = environment()
    told = f"torch {env['torch']}, tf32 {env['tf32']}, float32 matmul precision {env['matmul_precision']}"
    return [
        f"lla-spec: target {config.getoption('--lla-target')}, profile {config.getoption('--lla-profile')}, {told}",
        devices_line(),
    ]


def _is_ours(config: pytest.Config) -> bool:
    return (config.rootpath / "lla_spec" / "formulas").is_dir()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _collected:
        return
    from lla_spec.testing.summary import print_summary, write_step_summary

    print_summary(terminalreporter, _collected)
    write_step_summary(_collected)
    report = config.getoption("--lla-report")
    if report:
        from lla_spec.testing.table import write_json
        from lla_spec.testing.verdicts import result_of

        write_json(report, config.getoption("--lla-target"), [result_of(row) for row in _collected])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Asked for a GPU and nothing ran on one: that is a failure, not a pass."""
    config = session.config
    asked = [d for d in config.getoption("--lla-device") if d.startswith("cuda")]
    worker = hasattr(config, "workerinput")
    if asked and not worker and exitstatus == 0 and not any(row["device"].startswith("cuda") for row in _collected):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
