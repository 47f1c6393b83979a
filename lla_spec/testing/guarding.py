"""What code under test does beside answering: torch's state that it changes is set back, and the change is named.

A kernel that sets the default dtype, the deterministic flag or the number of threads, or puts its own function into
torch, changes what every later answer is compared with, its own among them. Random numbers that it draws are no fault:
the generators are set back without a word. So are printed lines: they go to stderr, for stdout is the table's.
"""

from __future__ import annotations

import contextlib
import operator
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.modules import module


class Meddled(Exception):
    """Code under test changed what is not its own; the message says what, and from what to what."""


@dataclass(frozen=True)
class Setting:
    """One of torch's settings, and how it is read and written."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


SETTINGS = (
    Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting("whether gradients are recorded", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("the float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting("whether TF32 is allowed", lambda: torch.backends.cuda.matmul.allow_tf32,
            lambda value: setattr(torch.backends.cuda.matmul, "allow_tf32", value)),
    Setting(
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
)  # fmt: skip


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Set torch's settings back after one call; Meddled where the call succeeded and one was changed."""
    before = [setting.read() for setting in SETTINGS]
    changed = ""
    try:
        yield
    finally:
        for setting, value in zip(SETTINGS, before, strict=True):
            found = setting.read()
            if found != value:
                changed = changed or f"changes {setting.name} from {value} to {found}"
                setting.write(value)
    if changed:
        raise Meddled(changed)


OWNERS = {"torch": torch, "torch.nn.functional": F, "torch.Tensor": torch.Tensor}
HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")


class Surroundings:
    """What one row must leave as it was: torch's public functions, its global hooks, and the random generators."""

    def __init__(self) -> None:
        self.functions = {
            owner: {name: value for name, value in vars(found).items() if callable(value) and not name.startswith("_")}
            for owner, found in OWNERS.items()
        }
        self._read = {owner: operator.itemgetter(*functions) for owner, functions in self.functions.items()}
        self.hooks = {name: dict(getattr(module, name)) for name in HOOKS if hasattr(module, name)}
        self.generators = (random.getstate(), np.random.get_state(), torch.get_rng_state())

    def mend(self) -> str:
        """Set functions and hooks back; what had been changed in words, "" where nothing was."""
        told = [f"replaces {owner}.{name}" for owner, name in self._replaced()]
        for name, hooks in self.hooks.items():
            there = getattr(module, name)
            if dict(there) != hooks:
                told.append(f"leaves a hook in torch's {name}")
                there.clear()
                there.update(hooks)
        return ", ".join(told)

    def rewind(self) -> None:
        """Set the random generators back."""
        random.setstate(self.generators[0])
        np.random.set_state(self.generators[1])
        torch.set_rng_state(self.generators[2])

    def _replaced(self) -> Iterator[tuple[str, str]]:
        for owner, functions in self.functions.items():
            if self._intact(owner):
                continue
            now = vars(OWNERS[owner]).get
            for name, value in functions.items():
                if _is_torchs_own(now(name), name):
                    functions[name] = now(name)
                elif now(name) is not value:
                    setattr(OWNERS[owner], name, value)
                    yield owner, name

    def _intact(self, owner: str) -> bool:
        """Asked after every case, so it has to be quick."""
        try:
            return all(map(operator.is_, self._read[owner](vars(OWNERS[owner])), self.functions[owner].values()))
        except KeyError:  # one is gone
            return False


def _is_torchs_own(found: Any, name: str) -> bool:
    """torch wraps functions of its own (manual_seed, when its compiler is first imported)."""
    return getattr(found, "__name__", "") == name and str(getattr(found, "__module__", "")).startswith("torch")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is printed inside goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """A child that code under test forked, and that comes back from the call, ends here: it must not go on as us."""
    own = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != own:
            os._exit(0)


class Interrupts:
    """Whether Ctrl-C was pressed: a KeyboardInterrupt alone may be raised, or swallowed, by code under test."""

    def __init__(self) -> None:
        self.pressed = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, SIGINT is noted and then handled as before; where it is ignored (in a worker) it stays so."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return

        def handle(number: int, frame: Any) -> None:
            self.pressed = True
            before(number, frame)

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
