"""Two processes share the cores: what is no row of a topic runs on one thread, which small tensors are faster on."""

import gc
from pathlib import Path

import pytest
import torch

from lla_spec.testing.threads import one_blas_thread

TOPICS = Path(__file__).parent


def pytest_collection_finish():
    """torch, sympy and six thousand tests stay to the end: to look for garbage among them took a tenth of the time."""
    gc.set_threshold(100_000, 20, 100)
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
