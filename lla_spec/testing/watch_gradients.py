"""The gradients of one call, taken where they leave it, without a change to autograd's graph.

The nodes that a call made lie between its output and its arguments' edges. A hook on each node that borders an
argument's edge sees what this call adds to the argument's gradient, before autograd adds the other users' share; a hook
on the output sees the cotangent. Hooks look and copy; nothing is inserted, so that not a bit of the model's own results
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

Edge = tuple[Any, int]


def sequence_number() -> int:
    """Nodes that are made from now on have this number or a higher one (in this thread)."""
    return torch.autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def edges_of(tensors: Mapping[str, Tensor]) -> dict[Edge, tuple[str, ...]]:
    """Where each argument's gradient goes; arguments that share an edge share a gradient."""
    found: dict[Edge, tuple[str, ...]] = {}
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            edge = get_gradient_edge(tensor)
            key = (edge.node, edge.output_nr)
            found[key] = (*found.get(key, ()), name)
    return found


def borders(output: Tensor, edges: Mapping[Edge, tuple[str, ...]], since: int) -> list[tuple[Node, int, Edge]]:
    """(node, which of its gradients, edge) wherever a node that was made since then sends to one of the edges."""
    found: list[tuple[Node, int, Edge]] = []
    start = output.grad_fn
    if start is None or (start, output.output_nr) in edges or not _made_since(start, since):
        return found
    waiting, seen = [start], {start}
    while waiting:
        node = waiting.pop()
        for position, (following, number) in enumerate(node.next_functions):
            if following is None:
                continue
            if (following, number) in edges:
                found.append((node, position, (following, number)))
            elif following not in seen and _made_since(following, since):
                seen.add(following)
                waiting.append(following)
    return found


def _made_since(node: Node, since: int) -> bool:
    """Whether a node belongs to the call. A leaf's accumulator has the highest number, whenever it was made."""
    return since <= node._sequence_nr() < 2**63  # pyright: ignore[reportAttributeAccessIssue]


def attach(
    output: Tensor,
    found: list[tuple[Node, int, Edge]],
    on_cotangent: Callable[[Tensor], None],
    on_gradient: Callable[[Edge, Tensor], None],
) -> list[Any]:
    """Hook the output and the bordering nodes; returns the handles. A node may border several edges."""
    handles = [output.register_hook(lambda grad: on_cotangent(grad.detach()))]
    by_node: dict[Node, list[tuple[int, Edge]]] = {}
    for node, position, edge in found:
        by_node.setdefault(node, []).append((position, edge))
    for node, sent in by_node.items():
        handles.append(node.register_hook(_sender(sent, on_gradient)))
    return handles


def _sender(sent: list[tuple[int, Edge]], on_gradient: Callable[[Edge, Tensor], None]) -> Any:
    def hook(grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]) -> None:
        for position, edge in sent:
            grad = grad_inputs[position]
            if grad is not None:
                on_gradient(edge, grad.detach())

    return hook
