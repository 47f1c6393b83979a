"""What code under test does beside answering: torch's state is set back, and the change is a named failure."""

import os
import random
import signal
import sys

import numpy as np
import pytest
import torch
from torch.nn.modules import module

from lla_spec.testing.runner import Options, Session
from lla_spec.testing.targets import load

LOGSUMEXP = torch.logsumexp


def sets_the_default_dtype(x):
    torch.set_default_dtype(torch.float64)
    return torch.softmax(x, -1)


def sets_the_threads(x):
    torch.set_num_threads(torch.get_num_threads() + 1)
    return torch.softmax(x, -1)


def asks_for_determinism(x):
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.softmax(x, -1)


def turns_gradients_off(x):
    torch.set_grad_enabled(False)
    return torch.softmax(x, -1)


def replaces_a_function_of_torch(x):
    torch.logsumexp = lambda *args, **kwargs: LOGSUMEXP(*args, **kwargs) * 2
    return torch.softmax(x, -1)


def leaves_a_hook(x):
    module.register_module_forward_hook(lambda *args: None)
    return torch.softmax(x, -1)


def raises_a_keyboard_interrupt(x):
    raise KeyboardInterrupt


def exits(x):
    sys.exit(4)


def draws_random_numbers(x):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    return torch.softmax(x, -1)


def prints(x):
    print("softmax was called")
    return torch.softmax(x, -1)


def forks(x):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return torch.softmax(x, -1)


def returns_a_view_of_its_input(x):
    return x[..., :]


MEDDLERS = {
    sets_the_default_dtype: "softmax: changes the default dtype from torch.float32 to torch.float64; set it back",
    sets_the_threads: "softmax: changes the number of threads from 1 to 2; set it back",
    asks_for_determinism: "softmax: changes deterministic algorithms from (False, False) to (True, True); set it back",
    turns_gradients_off: "softmax: changes whether gradients are recorded from True to False; set it back",
    replaces_a_function_of_torch: "softmax: replaces torch.logsumexp; call it, do not change it",
    leaves_a_hook: "softmax: leaves a hook in torch's _global_forward_hooks; call it, do not change it",
    raises_a_keyboard_interrupt: "softmax: raises KeyboardInterrupt",
    exits: "softmax: raises SystemExit: 4",
}


def state():
    generators = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    settings = (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    return generators, settings, torch.is_grad_enabled(), torch.logsumexp, dict(module._global_forward_hooks)


def result_of(function):
    session = Session(
        load({"softmax": function, "LLA_TARGET": {"dtypes": ["fp32"]}}),
        Options(("softmax",), ("definition",), ("fp32",), examples=0),
    )
    (row,) = session.rows()
    return session.run(row)


@pytest.mark.parametrize("function", MEDDLERS, ids=lambda f: f.__name__)
def test_what_is_changed_beside_the_answer_is_named_and_set_back(function):
    before = state()
    result = result_of(function)
    assert result.verdict == "fail" and result.message.startswith(MEDDLERS[function])
    assert state() == before


@pytest.mark.parametrize("function", [draws_random_numbers, prints, forks], ids=lambda f: f.__name__)
def test_what_disturbs_nobody_passes_and_is_set_back(function, capsys):
    before = state()
    assert result_of(function).verdict == "pass"
    assert state() == before
    assert "softmax" not in capsys.readouterr().out  # stdout is the table's


def test_a_view_of_the_input_is_judged_by_its_values():
    result = result_of(returns_a_view_of_its_input)
    assert (result.verdict, result.kind) == ("fail", "bound")


def test_ctrl_c_is_not_what_code_under_test_raises_and_cannot_be_swallowed_by_it(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def swallows(x):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        except KeyboardInterrupt:
            raise ValueError("some other error") from None

    with pytest.raises(KeyboardInterrupt):
        result_of(swallows)


class WritesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.mul_(2)


def test_a_backward_pass_that_writes_into_its_cotangent_is_named():
    target = {"softmax": lambda x: WritesBackward.apply(torch.softmax(x, -1)), "LLA_TARGET": {"dtypes": ["fp32"]}}
    session = Session(load(target), Options(("softmax",), ("vjp",), ("fp32",), examples=0))
    (result,) = map(session.run, session.rows())
    assert (result.kind, result.message) == ("writes", "softmax, backward: changes its input grad_output in place")
