"""Which call of a model is numerically wrong: `watch` judges every call of a declared operation, forward and backward.

    with watch(model) as seen:
        model(ids, labels=ids).loss.backward()
    print(seen.table())
    seen.assert_correct()       # names the first call that is outside its bound

Calls are found through the torch functions that are called, not through module classes, and judged at their actual
inputs and cotangents; the model's results do not change by a bit. docs/watch.md says what cannot be seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from lla_spec.testing.inputs import DTYPE_NAMES
from lla_spec.testing.watch_calls import Call, NotJudged, Reader, read
from lla_spec.testing.watch_functions import Handed, replaced
from lla_spec.testing.watch_gradients import Edge, attach, borders, edges_of, sequence_number
from lla_spec.testing.watch_judging import Found, Site
from lla_spec.testing.watch_pieces import Cutter, Piece
from lla_spec.testing.watch_report import Seen
from lla_spec.testing.watch_torch import READERS

ENTRIES = 1 << 24
"""How many multiplications the oracle of one output may take; a larger output is judged on sampled entries."""

UNREADABLE = (NotJudged, ValueError, RuntimeError, TypeError, IndexError)
"""What reading a call may raise. Whatever it is, the model goes on, and the call is listed as not judged."""

EXACT_ENTRIES = 1 << 14
"""The same where float64 is judged: its oracle is interval arithmetic in Python, some 50 µs for each of them."""


@contextmanager
def watch(
    model: nn.Module | None,
    *,
    contract: str | Mapping[str, Any] | None = None,
    functions: Mapping[str, Handed] | None = None,
    entries: int = ENTRIES,
    seed: int = 0,
) -> Iterator[Seen]:
    """Judge every call of a declared operation while the block runs; the calls are torch's, impl's and `functions`.

    contract    what the kernels promise (strict, fused, whiteboard, or a mapping of overrides); fused unless given
    functions   name of an operation -> a function that computes it. It is found wherever a module, a class or the model
                holds it under a name. Where its arguments are not the operation's, give a pair (function, arguments):
                `arguments(*args, **kwargs)` returns the operation's as a dict,
                `{"rms_norm": (Norm.forward, lambda self, x: {"x": x, "weight": self.weight, "eps": self.eps})}`
    entries     multiplications that the float64 oracle of one output may take; larger outputs are sampled
    seed        of the sampled positions

    Leaving the block judges what was seen and restores everything, after an exception as well. Gradients are those of
    backward passes inside the block. Raises ValueError for a name that is no operation.

    >>> layer = nn.Linear(3, 2)
    >>> with watch(layer) as seen:
    ...     layer(torch.ones(4, 3)).sum().backward()
    >>> seen.first is None, seen.judged
    (True, 3)
    """
    seen = Seen(contract)
    watcher = _Watcher(seen, entries, seed)
    with ExitStack() as stack:
        stack.callback(watcher.close)
        handed = stack.enter_context(replaced(watcher, functions or {}))
        if model is not None:
            stack.enter_context(watcher.following(model))
        with watcher:
            yield seen
    for label in handed:
        if label not in seen.functions:
            seen.skip(Site(0, "", label), "", "handed, and never called through a name that holds it")
    seen.judge()


class _Watcher(TorchFunctionMode):
    """Sees calls, copies what is to be judged, and hands it to `seen`."""

    def __init__(self, seen: Seen, entries: int, seed: int) -> None:
        super().__init__()
        self.seen, self.entries = seen, entries
        self.generator = torch.Generator().manual_seed(seed)
        self.path: list[str] = []
        self.handles: list[Any] = []
        self.noted: list[_Noted] = []
        self.inside = 0  # within a watched call, or within this code
        self.open = True

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reader = None if self.inside else READERS.get(func)
        if reader is None:
            return func(*args, **kwargs)
        return self.through(func, resolve_name(func) or repr(func), reader, args, kwargs)

    def through(self, function: Any, label: str, reader: Reader, args: Any, kwargs: Any) -> Any:
        """Call the function, and note what it was called with before and what came out after."""
        if self.inside or not self.open or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        self.inside += 1
        try:
            noted = self._before(label, reader, args, kwargs)
            result = function(*args, **kwargs)
            if noted is not None:
                self._after(noted, result)
            return result
        finally:
            self.inside -= 1

    def _before(self, label: str, reader: Reader, args: Any, kwargs: Any) -> _Noted | None:
        site = self.seen.site(self.path[-1] if self.path else "", label)
        with self.quietly():
            try:
                return _Noted(site, read(reader, args, kwargs), self.entries, self.generator)
            except UNREADABLE as reason:
                self.seen.skip(site, "", str(reason))
                return None

    def _after(self, noted: _Noted, result: Any) -> None:
        with self.quietly():
            try:
                self.handles += noted.answered(result, self)
                self.noted.append(noted)
            except UNREADABLE as reason:
                self.seen.skip(noted.site, noted.call.operation, str(reason))

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """What this code itself calls is not the model's, and its time is ours."""
        began = time.perf_counter()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            self.seen.seconds_watching += time.perf_counter() - began

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Keep the path of the module whose forward is running."""
        hooks: list[Any] = []
        try:
            for name, module in model.named_modules():
                shown = name or type(module).__name__
                hooks.append(module.register_forward_pre_hook(lambda *_, shown=shown: self.path.append(shown)))
                hooks.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _leave(self) -> None:
        if self.path:
            self.path.pop()

    def close(self) -> None:
        self.open = False
        for handle in self.handles:
            handle.remove()
        for noted in self.noted:
            noted.close_pass(self.seen)
        self.handles.clear()
        self.noted.clear()


class _Noted:
    """One call between its beginning and its judgement: copies of the parts of its tensors that will be judged."""

    def __init__(self, site: Site, call: Call, entries: int, generator: torch.Generator) -> None:
        self.site, self.call = site, call
        _refuse(call)
        exact = any(given.tensor.dtype == torch.float64 for given in call.operands.values())
        self.cutter = Cutter(call, min(entries, EXACT_ENTRIES) if exact else entries)
        self.forward = self.cutter.piece("", generator)
        self.since = sequence_number()
        self.cast: set[str] = set()
        self.waiting: dict[Edge, list[Tensor]] = {}  # the cotangent for each gradient that has not arrived
        self.arrived: dict[Edge, Found] = {}
        wanted = {name: given.tensor for name, given in call.operands.items() if given.tensor.is_floating_point()}
        self.edges: dict[Edge, tuple[str, ...]] = edges_of(wanted) if torch.is_grad_enabled() else {}
        self.pieces: dict[Edge, list[Piece] | str] = {
            edge: self._gradient_pieces(names, generator) for edge, names in self.edges.items()
        }

    def _gradient_pieces(self, names: tuple[str, ...], generator: torch.Generator) -> list[Piece] | str:
        """What of a gradient is judged, or why nothing is. A tensor passed twice has one gradient, judged whole."""
        try:
            if self.cutter.has_empty_rows():
                return "a row that sees no key: no policy settles its gradient"
            if len(names) == 1:
                return [self.cutter.piece(names[0], generator)]
            if len({id(self.call.operands[name].view) for name in names}) > 1:
                return f"one tensor as {' and '.join(names)}, in different layouts"
            return [self.cutter.piece(name, generator, whole=True) for name in names]
        except NotJudged as reason:
            return str(reason)

    def answered(self, result: Any, watcher: _Watcher) -> list[Any]:
        """Queue the result for judgement and hook its backward; the hooks' handles."""
        if not isinstance(result, Tensor) or DTYPE_NAMES.get(result.dtype) is None:
            what = f"dtype {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
            raise NotJudged(f"the result is {what}, which has no contract")
        self.cast = self._autocast(result)
        watcher.seen.add(Found(self.site, self.call, [self.forward], self.forward.cut("", self._viewed(result)), None))
        if not self.edges:
            return []
        if not result.requires_grad:
            watcher.seen.skip(self.site, f"{self.call.operation}, gradient", "the result is not differentiable")
            return []
        found = borders(result, self.edges, self.since)
        cut_off = set(self.edges) - {edge for *_, edge in found}

        def on_cotangent(grad: Tensor) -> None:
            with watcher.quietly():
                self._begin_pass(watcher.seen, grad, cut_off)

        def on_gradient(edge: Edge, grad: Tensor) -> None:
            with watcher.quietly():
                self._gradient(watcher.seen, edge, grad)

        return attach(result, found, on_cotangent, on_gradient)

    def _viewed(self, result: Tensor) -> Tensor:
        return self.call.result(result.detach())

    # ---- a backward pass

    def _begin_pass(self, seen: Seen, grad: Tensor, cut_off: set[Edge]) -> None:
        """The cotangent has arrived. An argument that the result does not depend on gets a gradient of zeros."""
        self.close_pass(seen)
        given = self.call.cotangent(self._viewed(grad))
        for edge, names in self.edges.items():
            pieces = self.pieces[edge]
            if self.cast & set(names):
                pieces = f"autocast rounds {', '.join(names)} first"
            if isinstance(pieces, str):
                seen.skip(self.site, self._gradient_of(names), pieces)
            else:
                self.waiting[edge] = [piece.cut("", given) for piece in pieces]
        for edge in cut_off & set(self.waiting):
            argument = self.call.operands[self.edges[edge][0]].tensor
            self._gradient(seen, edge, argument.new_zeros(()).expand(argument.shape))

    def _gradient(self, seen: Seen, edge: Edge, grad: Tensor) -> None:
        """A contribution to the gradient of an argument has left the call."""
        name, pieces = self.edges[edge][0], self.pieces[edge]
        if isinstance(pieces, str) or edge not in self.waiting | self.arrived:
            return
        part = pieces[0].cut(name, self.call.operands[name].view(grad))
        if edge in self.arrived:  # autograd adds them in this order and dtype
            self.arrived[edge].computed = self.arrived[edge].computed + part
            return
        self.arrived[edge] = Found(self.site, self.call, pieces, part, self.waiting.pop(edge))
        seen.add(self.arrived[edge])

    def close_pass(self, seen: Seen) -> None:
        """List the gradients that did not leave the call, before another pass or at the end."""
        for edge in self.waiting:
            why = "none left the call: it was not asked for, or the function gave None"
            seen.skip(self.site, self._gradient_of(self.edges[edge]), why)
        self.waiting.clear()
        self.arrived.clear()

    def _gradient_of(self, names: tuple[str, ...]) -> str:
        return f"{self.call.operation}, gradient of {'+'.join(names)}"

    def _autocast(self, result: Tensor) -> set[str]:
        """Round the copies that autocast rounds before the call; the arguments' names."""
        if not torch.is_autocast_enabled(result.device.type) or result.dtype not in (torch.bfloat16, torch.float16):
            return set()
        floating = {n: g.tensor for n, g in self.call.operands.items() if g.tensor.is_floating_point()}
        cast = {name for name, tensor in floating.items() if tensor.dtype != result.dtype}
        pieces = [self.forward, *(p for found in self.pieces.values() if not isinstance(found, str) for p in found)]
        for piece in pieces:
            for name in cast:
                piece.arguments[name] = piece.arguments[name].to(result.dtype)
        return cast


def _refuse(call: Call) -> None:
    """Tensors whose numbers cannot be read here."""
    for name, given in call.operands.items():
        tensor = given.tensor
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # pyright: ignore[reportAttributeAccessIssue]
            raise NotJudged("inside vmap, grad or another transform of torch.func")
        dispatch = getattr(type(tensor), "__torch_dispatch__", None)
        if tensor.device.type == "meta" or dispatch is not getattr(Tensor, "__torch_dispatch__", None):
            raise NotJudged(f"{name} is a {type(tensor).__name__} on {tensor.device}")
