"""Two processes share the cores: what is no row of a topic runs on one thread, which small tensors are faster on."""

import atexit
import gc
import os
from pathlib import Path

import pytest
import torch

from lla_spec.testing.threads import one_blas_thread

TOPICS = Path(__file__).parent

gc.set_threshold(100_000, 20, 100)  # torch, sympy and six thousand tests stay to the end: collecting took a tenth

if "PYTEST_XDIST_WORKER" in os.environ:
    # What was opened since is closed before this; to take a gigabyte of objects apart, one by one, takes six seconds.
    atexit.register(os._exit, 0)


def pytest_collection_finish():
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread(request):
    """A topic's rows settle their threads case by case: how torch splits a large sum among its threads is tested."""
    if request.path.parent == TOPICS:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with one_blas_thread():
        yield
    torch.set_num_threads(before)
