"""Processes that run code under test. Each loads the target itself, is asked for something, and sends what it finds.

They are forked from a clean server that has imported everything and computed nothing, so one of them starts in
milliseconds and inherits no thread. One that dies, or is in a call for longer than it may be, is replaced: what it was
asked says how it ended, and in which case.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

from lla_spec.testing.targets import TargetError
from lla_spec.testing.verdicts import Result, Row

WORTH_IT = 60  # rows: fewer are done before a second process has imported torch
LOADING_S = 120.0  # for importing a target
GRACE_S = 5.0  # beyond a call's limit: the alarm inside the process comes first, where it can
TICK_S = 0.5
PARTING_S = 2.0  # for a worker that nothing more is asked of, to put away what the target has opened


@cache
def server() -> Any:
    """The server, its imports begun beside our own.

    It must find the lla_spec that runs here: it starts as `python -c`, which would look in the working directory first,
    and Python 3.11 does not hand it our sys.path.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lla_spec.testing.runner"])
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
    ours["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")  # threads of two workers share the cores
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


@dataclass(frozen=True)
class Job:
    """What a worker needs to make the session again: the target's spec and alias, and runner.Options.

    `memory`: bytes of data that it may hold (None: no limit). `untried`: probes (operation, dtype, device, law) that
    ended a process; they are taken for answered, so that the row itself shows what happens.
    """

    spec: str
    alias: str | None
    options: Any
    memory: int | None = None
    untried: tuple[tuple[str, str, str, str], ...] = ()


class Died(Exception):
    """A worker ended while it was asked for something: `case` is the one that it was at, the message says how."""

    def __init__(self, case: Any, how: str, kind: str) -> None:
        super().__init__(how)
        self.case, self.kind = case, kind


class Worker:
    """One process."""

    def __init__(self, job: Job) -> None:
        self.case: Any = None  # the one it is at
        self._deadline = server().RawValue("d", 0.0)
        self.connection, theirs = multiprocessing.Pipe()
        self.process = server().Process(target=_serve, args=(job, theirs, self._deadline), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, kind: str, content: Any) -> None:
        self.connection.send_bytes(pickle.dumps((kind, content)))

    def receive(self) -> Any:
        """The next answer; None where there is none yet. Raises Died, and TargetError for a target of no use."""
        try:
            if not self.connection.poll():
                self._end_overtime()
                return None
            kind, content = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join()
            status = self.process.exitcode or 0
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            raise Died(self.case, f"the process {how}", "crashes") from None
        if kind == "case":
            self.case = content
            return None
        if kind == "unusable":
            raise TargetError(content)
        if kind == "broken":
            raise RuntimeError(f"lla-spec itself failed, case {self.case}:\n{content}")
        return content

    def _end_overtime(self) -> None:
        """Kill it where a call takes longer than it may: it is in code that no alarm interrupts."""
        deadline = self._deadline.value
        if deadline and time.monotonic() > deadline + GRACE_S:
            self.kill()
            raise Died(self.case, "no answer within the time limit, in code that only ends with its process", "hangs")

    def ask(self, kind: str, content: Any = None) -> Any:
        """One answer, waited for."""
        self.give(kind, content)
        while (answer := self.receive()) is None:
            wait([self.connection], TICK_S)
        return answer

    def end(self) -> None:
        """Let it go by itself, so that semaphores and the like are given back; one that stays is killed."""
        self.connection.close()
        self.process.join(PARTING_S)
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def crashed(row: Row, case: Any, how: str, kind: str = "crashes") -> Result:
    """The result of a row whose process ended, `how` in words."""
    from lla_spec.testing.judge import Judgement

    message = f"{row.op}: {how}"
    result = Result(row, "fail", kind=kind, message=message, case=str(case or ""))
    if case is not None:
        result.failing = Judgement(case, kind=kind, message=message)
    return result


def run_on(job: Job, rows: Sequence[Row], jobs: int) -> Iterator[Result]:
    """Every row's result, in the order in which they end; the workers are gone when the iterator is closed."""
    batches = deque(list(group) for _, group in itertools.groupby(rows, key=lambda row: (row.op, row.law)))
    lanes = [_Lane(job, batches) for _ in range(min(jobs, len(batches)))]
    try:
        while any(lane.pending for lane in lanes):
            wait([lane.worker.connection for lane in lanes if lane.pending], TICK_S)
            for lane in lanes:
                if lane.pending and (result := lane.next_result()) is not None:
                    yield result
    finally:
        for lane in lanes:
            if lane.pending:
                lane.worker.kill()
            else:
                lane.worker.end()


class _Lane:
    """One worker after another, and the rows that the present one has not answered yet."""

    def __init__(self, job: Job, batches: deque[list[Row]]) -> None:
        self.job, self.batches = job, batches
        self.worker, self.pending = Worker(job), deque[Row]()
        self._refill()

    def _refill(self) -> None:
        if not self.pending and self.batches:
            self.pending.extend(self.batches.popleft())
            self.worker.give("rows", list(self.pending))

    def next_result(self) -> Result | None:
        try:
            result = self.worker.receive()
            if result is None:
                return None
            self.pending.popleft()
        except Died as end:
            result = crashed(self.pending.popleft(), end.case, str(end), end.kind)
            self.worker.kill()
            self.worker = Worker(self.job)
            if self.pending:
                self.worker.give("rows", list(self.pending))
        self._refill()
        return result


def _serve(job: Job, connection: Connection, deadline: Any) -> None:
    """A worker's life: requests in, answers out, until the other end closes."""

    def send(kind: str, content: Any) -> None:
        connection.send_bytes(pickle.dumps((kind, content)))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that prints the table
    try:
        session = _session(job, deadline)
        session.announce = lambda case: send("case", case)
        while True:
            kind, content = pickle.loads(connection.recv_bytes())
            for answer in _answers(session, kind, content):
                send("answer", answer)
    except EOFError:
        return
    except TargetError as error:
        send("unusable", str(error))
    except Exception:  # the target's own exceptions are results; this one is a defect of ours
        send("broken", traceback.format_exc())


def _session(job: Job, deadline: Any) -> Any:
    from lla_spec.testing.calling import CLOCK
    from lla_spec.testing.runner import Session
    from lla_spec.testing.targets import load

    CLOCK.share(deadline)
    if job.memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory, job.memory))
    with CLOCK.running(LOADING_S):
        target = load(job.spec, job.alias)
    session = Session(target, job.options)
    session.skip_probes(job.untried)
    return session


def _answers(session: Any, kind: str, content: Any) -> Iterator[Any]:
    """What is asked for: "about" the target, results of "rows" one by one, "texts" of what fails, known ones."""
    from lla_spec.testing import known

    if kind == "rows":
        yield from map(session.run, content)
    elif kind == "about":
        yield session.target.name, session.target.version, list(session.rows()), session.why()
    elif kind == "texts":
        results, shown, looked_over = content
        yield told(session, results, shown, looked_over), results
    elif kind == "pinned":
        yield content.replay(session), content.absent(session)
    elif kind == "settle":
        yield known.settle(session, *content), content[0]
    elif kind == "write_known":
        path, results = content
        yield known.write(path, session, results)
    else:
        raise ValueError(f"{kind} is nothing that a worker can be asked for")


def told(session: Any, results: Sequence[Result], shown: str, looked_over: bool) -> list[str]:
    """The texts of what fails; `looked_over`: every case of a row that has one is judged, for its picture."""
    from lla_spec.testing.diagnose import texts
    from lla_spec.testing.survey import survey

    found = texts(session, results, shown)
    for result in results if looked_over else ():
        if result.text:
            survey(session, result)
    return found
