"""Rows on several processes. A worker loads the target itself, is handed the rows of one law, and sends each result.

The processes are forked from a clean server that has imported everything and computed nothing, so one of them starts in
milliseconds, inherits no thread, and a dead one is replaced: the row that it was at says how it died and in which case.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

from lla_spec.testing.verdicts import Result, Row

WORTH_IT = 24  # rows: fewer are done before a second process has imported torch


@cache
def server() -> Any:
    """The server, its imports begun beside our own.

    It must find the lla_spec that runs here: it starts as `python -c`, which would look in the working directory first,
    and Python 3.11 does not hand it our sys.path.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lla_spec.testing.runner"])
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
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
    """What a worker needs to make the session again: the target's spec and alias, and runner.Options."""

    spec: str
    alias: str | None
    options: Any


class Worker:
    """One process and the rows that it has not answered yet."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.pending: deque[Row] = deque()
        self.case: Any = None  # the one it is at
        self._start()

    def _start(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = server().Process(target=_serve, args=(self.job, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, rows: Sequence[Row]) -> None:
        self.pending.extend(rows)
        self.connection.send_bytes(pickle.dumps(list(rows)))

    def receive(self) -> Result | None:
        """The next message: a result, or None where it only said which case comes next."""
        try:
            kind, content = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            return self._died()
        if kind == "case":
            self.case = content
            return None
        if kind == "broken":
            raise RuntimeError(f"lla-spec itself failed on {self.pending[0].id}, case {self.case}:\n{content}")
        self.pending.popleft()
        return content

    def _died(self) -> Result:
        """The row that it was at, failed; the rest goes to a new process."""
        self.process.join()
        row, rest = self.pending.popleft(), list(self.pending)
        self.pending.clear()
        result = crashed(row, self.case, self.process.exitcode or 0)
        self.connection.close()
        self.case = None
        self._start()
        if rest:
            self.give(rest)
        return result

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def crashed(row: Row, case: Any, status: int) -> Result:
    """The result of a row whose process ended with `status` (negative: by that signal)."""
    from lla_spec.testing.judge import Judgement

    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    message = f"{row.op}: the process {how}"
    result = Result(row, "fail", kind="crashes", message=message, case=str(case or ""))
    if case is not None:
        result.failing = Judgement(case, kind="crashes", message=message)
    return result


def results_of(session: Any, job: Job, rows: Sequence[Row], jobs: int = 0) -> Iterator[Result]:
    """Every row's result: in this process with `jobs` = 1, or by itself (0) where there is little to do or a GPU."""
    if jobs == 0:
        implemented = [row for row in rows if session.target.implements(row.op)]
        alone = len(implemented) < WORTH_IT or any(row.device != "cpu" for row in rows)
        jobs = 1 if alone else min(os.cpu_count() or 1, 4)
    yield from (session.run(row) for row in rows) if jobs == 1 else run_on(job, rows, jobs)


def run_on(job: Job, rows: Sequence[Row], jobs: int) -> Iterator[Result]:
    """Every row's result, in the order in which they end; the workers are gone when the iterator is closed."""
    batches = deque(list(group) for _, group in itertools.groupby(rows, key=lambda row: (row.op, row.law)))
    workers = [Worker(job) for _ in range(min(jobs, len(batches)))]
    try:
        for worker in workers:
            worker.give(batches.popleft())
        while any(worker.pending for worker in workers):
            by_connection = {worker.connection: worker for worker in workers if worker.pending}
            for ready in wait(list(by_connection)):
                worker = by_connection[ready]  # pyright: ignore[reportArgumentType]
                result = worker.receive()
                if result is not None:
                    yield result
                if not worker.pending and batches:
                    worker.give(batches.popleft())
    finally:
        for worker in workers:
            worker.kill()


def _serve(job: Job, connection: Connection) -> None:
    """A worker's life: rows in, results out, until the other end closes."""
    from lla_spec.testing.runner import Session
    from lla_spec.testing.targets import load

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that prints the table
    session = Session(load(job.spec, job.alias), job.options)

    def send(kind: str, content: Any) -> None:
        connection.send_bytes(pickle.dumps((kind, content)))

    while True:
        try:
            rows = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        for row in rows:
            try:
                result = session.run(row, announce=lambda case: send("case", case))
            except Exception:  # the target's own exceptions are results; this one is a defect of ours
                send("broken", traceback.format_exc())
                return
            send("result", result)
