"""Threads while cases run: one for small cases, the user's own number for large ones.

A case of a few hundred numbers gains nothing from a second thread, and two thread pools (torch's and numpy's BLAS) that
spin while they wait cost five times the run on two shared cores [measured]. A large case keeps torch's threads, because
how a kernel splits its sums among them is part of what is tested.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

from lla_spec.testing.cases import Case

LARGE = 256  # the largest size, or number of rows, from which on a case keeps torch's threads


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """The oracle's own products on one thread."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@contextlib.contextmanager
def threads_for(case: Case) -> Iterator[None]:
    """torch on one thread for a small case."""
    if max([*(size for _, size in case.sizes), *case.batch], default=0) >= LARGE:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
