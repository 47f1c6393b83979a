"""Laws for one test only: declared as a page would, and gone from the registry afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lla_spec.language import Law, Relation, registry, sides_of
from lla_spec.tensors import Tensor


@contextmanager
def undeclared_afterwards() -> Iterator[None]:
    """What is declared inside is taken out of the registry at the end."""
    before = dict(registry.laws)
    try:
        yield
    finally:
        registry.laws.clear()
        registry.laws.update(before)


def law_of(relation: Relation, name: str = "statement") -> Law:
    """A relation as a law without hypotheses; it need not call an operation."""
    left, right = sides_of(relation)
    because = None if relation.because is None else Tensor("because", left.axes, relation.because)
    kind = "identity" if because is None else "theorem"
    return Law(name, "test", kind, left, right, relation.kind, (), because, None, None, None, "", "")
