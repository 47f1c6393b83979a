"""Calling code under test: what it raises, returns, mutates or never finishes becomes a named failure of its row."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lla_spec.calculus import gradient_parameters
from lla_spec.interface import IGNORE_INDEX, keyword_names
from lla_spec.language import Formula
from lla_spec.testing.guarding import Interrupts, Meddled, one_process, quiet, settings_kept
from lla_spec.testing.inputs import Arguments

TIME_LIMIT_S = 20.0  # for one call


class Clock:
    """When the call that code under test is in must be over, by the monotonic clock; 0 outside of calls.

    Another process may share it, to end this one where the alarm cannot: in code that holds the interpreter.
    """

    def __init__(self) -> None:
        self.limit = TIME_LIMIT_S
        self._shared: Any = None

    def share(self, shared: Any) -> None:
        """Show it to the process that owns `shared`, a ctypes double in shared memory."""
        self._shared = shared

    @contextlib.contextmanager
    def running(self, seconds: float) -> Iterator[None]:
        """What happens inside must be over within `seconds`."""
        if self._shared is not None:
            self._shared.value = time.monotonic() + seconds
        try:
            yield
        finally:
            if self._shared is not None:
                self._shared.value = 0.0


CLOCK = Clock()  # one per process, as the alarm is


class Misbehaved(Exception):
    """The code under test did not answer as its signature says. `kind` names how, the message is for a person."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Unsupported(Exception):
    """A probe that raised: the target does not take this dtype or device."""


@dataclass(frozen=True)
class Expected:
    """Shape, dtype and device that a result must have."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Overtime(BaseException):
    """Raised inside the code under test by the alarm; a BaseException, so that its `except Exception` cannot eat it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt Python code after `seconds` (in the main thread, where signals are; elsewhere there is no limit)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise Overtime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with CLOCK.running(seconds):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def split_arguments(arguments: Arguments, by_keyword: Set[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional arguments, then those `by_keyword`; defaults left out."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in by_keyword:
            positional.append(value)
        elif not (value is None or value is False or (name == "ignore_index" and value == IGNORE_INDEX)):
            keywords[name] = value
    while positional and positional[-1] is None:
        positional.pop()
    return positional, keywords


def call(function: Callable[..., Any], arguments: Arguments, name: str, by_keyword: Set[str]) -> Any:
    """`function` of these, its inputs verified unchanged. Raises Misbehaved where it raises, hangs or writes."""
    positional, keywords = split_arguments(arguments, by_keyword)
    with _unchanged(arguments, name):
        return _answer(lambda: function(*positional, **keywords), name)


@contextlib.contextmanager
def _unchanged(arguments: Arguments, name: str) -> Iterator[None]:
    """Misbehaved where a call inside succeeds and writes into one of these."""
    before = {key: _snapshot(value) for key, value in arguments.items() if isinstance(value, Tensor)}
    yield
    for key, (storage, version_shape) in before.items():
        value = arguments[key]
        assert isinstance(value, Tensor)
        if tuple(value.shape) != version_shape or not _same_bytes(storage, _bytes(value)):
            raise Misbehaved("writes", f"{name}: changes its input {key} in place")


def _answer(run: Callable[[], Any], name: str) -> Any:
    """What code under test gives; Misbehaved where it raises, hangs, or changes what is not its own."""
    interrupts = Interrupts()
    try:
        with settings_kept(), interrupts.heard(), one_process(), quiet(), time_limit(CLOCK.limit):
            return run()
    except Overtime:
        raise Misbehaved("hangs", f"{name}: no answer within {CLOCK.limit:g} s") from None
    except Meddled as change:
        raise Misbehaved("meddles", f"{name}: {change}; set it back, or pass it along the call") from None
    except BaseException as error:
        if interrupts.pressed:
            raise KeyboardInterrupt from None
        first = str(error).splitlines()[0] if str(error) else ""
        raise Misbehaved("raises", f"{name}: raises {type(error).__name__}{': ' + first if first else ''}") from error


def _bytes(value: Tensor) -> Tensor:
    """What its storage holds, eight bytes at a time where it can be: these are compared."""
    storage = value.detach().untyped_storage()
    dtype = torch.uint8 if storage.nbytes() % 8 else torch.int64
    return torch.empty(0, dtype=dtype, device=value.device).set_(storage)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _snapshot(value: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The bytes of the whole storage: an input may be a view, and what lies between its entries counts as well."""
    return _bytes(value).clone(), tuple(value.shape)


def _same_bytes(before: Tensor, after: Tensor) -> bool:
    return before.nbytes == after.nbytes and torch.equal(before, after)


def checked(result: Any, expected: Expected, name: str) -> Tensor:
    """`result`, if it is a plain tensor of the shape, dtype and device that it must have; else Misbehaved."""
    if type(result) not in (Tensor, torch.nn.Parameter):
        kind = "None" if result is None else type(result).__name__
        way = "; return the tensor itself, or pick it in an adapter" if isinstance(result, tuple | list) else ""
        raise Misbehaved("returns", f"{name}: returns {kind}, it must return a torch.Tensor{way}")
    if tuple(result.shape) != expected.shape:
        raise Misbehaved("shape", f"{name}: returns shape {tuple(result.shape)}, it must be {expected.shape}")
    if result.dtype != expected.dtype:
        raise Misbehaved("dtype", f"{name}: returns {result.dtype}, it must be {expected.dtype}, the inputs' dtype")
    if result.device != expected.device:
        raise Misbehaved("device", f"{name}: returns a tensor on {result.device}, its inputs are on {expected.device}")
    return result.detach()


def checked_gradients(result: Any, expected: Mapping[str, Expected | None], name: str) -> dict[str, Tensor]:
    """The tuple that a `_vjp` must return, by argument name; None where the input was None, zeros for another None."""
    if not isinstance(result, tuple) or len(result) != len(expected):
        what = f"{type(result).__name__}" + (f" of {len(result)}" if isinstance(result, tuple | list) else "")
        raise Misbehaved(
            "returns", f"{name}: returns {what}, it must return a tuple of {len(expected)} ({', '.join(expected)})"
        )
    gradients = {}
    for (argument, wanted), value in zip(expected.items(), result, strict=True):
        if wanted is None:
            if value is not None:
                raise Misbehaved("returns", f"{name}: returns a gradient of {argument}, which was None")
        elif value is None:
            gradients[argument] = torch.zeros(wanted.shape, dtype=wanted.dtype, device=wanted.device)
        else:
            gradients[argument] = checked(value, wanted, f"{name}, gradient of {argument}")
    return gradients


def autograd_vjp(
    function: Callable[..., Any], name: str, arguments: Arguments, forward: Expected, formula: Formula
) -> tuple[Any, ...] | None:
    """The gradients of a target without `_vjp`, by differentiating its forward; None if its output has no grad_fn."""
    inputs = {key: value for key, value in arguments.items() if key != "grad_output"}
    floating = [key for key, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
    for key in floating:
        inputs[key] = inputs[key].detach().requires_grad_()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    output = call(function, inputs, name, keyword_names(formula))
    checked(output, forward, name)
    if output.grad_fn is None:
        return None
    seed: Any = arguments["grad_output"]
    leaves: list[Any] = [inputs[key] for key in floating]
    backward = f"{name}, backward"
    with _unchanged({**inputs, "grad_output": seed}, backward):
        found = _answer(lambda: torch.autograd.grad(output, leaves, seed, allow_unused=True), backward)
    by_name = dict(zip(floating, found, strict=True))
    wanted = [formula.parameters[name].role for name in gradient_parameters(formula)]
    return tuple(by_name.get(role.argument) for role in wanted if role is not None)
