"""A small run that the tests of the reports share: a target of a hostile name, right in some rows, wrong in others."""

from functools import cache

import torch

from lla_spec.testing import report
from lla_spec.testing.diagnose import texts
from lla_spec.testing.runner import Options, Session
from lla_spec.testing.survey import survey
from lla_spec.testing.table import environment
from lla_spec.testing.targets import load

HOSTILE = "<script>alert(1)</script> & `rm` | **x**"
OPTIONS = Options(ops=("softmax", "log_softmax"), laws=("definition", "shift"), dtypes=("fp32", "bf16"), examples=2)


def softmax(x):
    return torch.softmax(x, -1)


def log_softmax(x):
    """Rounds the softmax before the logarithm."""
    return torch.log(torch.softmax(x, -1))


def results_of(kernels, options=OPTIONS):
    session = Session(load(kernels), options)
    return session, [session.run(row) for row in session.rows()]


@cache
def run():
    """The document of the run, its failures told and looked at."""
    session, results = results_of({"softmax": softmax, "log_softmax": log_softmax})
    texts(session, results, "my.py", seconds=1.0)
    for result in results:
        survey(session, result)
    return document(results)


def document(results, target=HOSTILE):
    about = {**environment(), "command": f"lla-spec verify '{HOSTILE}'", "spec": "my.py"}
    return report.document(target, results, about, {"ops": list(OPTIONS.ops), "examples": 2, "seed": 0})
