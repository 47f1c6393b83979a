"""Which formula stands in for which when numbers are computed: the laws marked `evaluate`, read as rewrites.

A law `safe_softmax(x, M) = softmax(x, M)` marked `evaluate="left"` is proved, so every call of softmax may be computed
as safe_softmax. A law that carries the mark without having that form is a mistake of its page and is refused loudly.
"""

from __future__ import annotations

from collections.abc import Mapping

from lla_spec import formulas  # noqa: F401  (declares every page)
from lla_spec.language import Formula, Law, registry
from lla_spec.tensors import DeclarationError, Tensor, inputs, is_input

_cache: tuple[int, dict[int, Formula]] = (-1, {})


def rewrite_of(formula: Formula) -> Formula | None:
    """The formula, over the same parameter names, by which calls of `formula` are computed; None: by its own body.

    >>> from lla_spec.language import registry
    >>> rewrite_of(registry.formulas["softmax"]).source == registry.laws["softmax.safe"].source
    True
    """
    return _rewrites().get(id(formula))


def rewrites(laws: Mapping[str, Law]) -> dict[int, Formula]:
    """Every rewrite that `laws` declare, by the identity of the formula that is replaced.

    Raises DeclarationError for a law that is marked but has not the form of a rewrite, and where two laws rewrite
    one formula.
    """
    found: dict[int, Formula] = {}
    for law in laws.values():
        if law.evaluate is not None:
            replaced, replacement = _read(law)
            if id(replaced) in found:
                raise DeclarationError(f"{law.id}: {replaced.name} is evaluated by {found[id(replaced)].source}")
            found[id(replaced)] = replacement
    return found


def _rewrites() -> dict[int, Formula]:
    global _cache
    if _cache[0] != len(registry.laws):
        _cache = len(registry.laws), rewrites(registry.laws)
    return _cache[1]


def _read(law: Law) -> tuple[Formula, Formula]:
    """The formula that a marked law replaces, and the formula that the other side is over the same parameters."""
    if law.evaluate not in ("left", "right"):
        raise DeclarationError(f"{law.id}: evaluate is {law.evaluate!r}; it is the side to compute: 'left' or 'right'")
    if law.relation != "=" or law.hypotheses:
        raise DeclarationError(f"{law.id}: evaluate needs an equation without hypotheses")
    computed, replaced = (law.left, law.right) if law.evaluate == "left" else (law.right, law.left)
    call = replaced.call
    if call is None:
        raise DeclarationError(f"{law.id}: evaluate={law.evaluate!r}, but the other side is no formula's call")
    parameters: dict[str, Tensor] = {}
    for name, argument in call.arguments.items():
        if not isinstance(argument, Tensor) or not is_input(argument) or argument in parameters.values():
            raise DeclarationError(
                f"{law.id}: evaluate needs {call.formula.name} called on its own inputs, but {name} is {argument!r}"
            )
        if len(argument.axes) != len(call.formula.parameters[name].axes):
            raise DeclarationError(f"{law.id}: evaluate needs {name} without further axes, got {argument!r}")
        parameters[name] = argument
    for tensor in inputs(computed):
        if tensor not in parameters.values():
            raise DeclarationError(f"{law.id}: the side to compute uses {tensor!r}, no argument of {call.formula.name}")
    if computed.axes != replaced.axes:
        raise DeclarationError(f"{law.id}: the sides are over {computed.axes} and {replaced.axes}, not the same")
    body = Tensor(computed.name, computed.axes, computed.entry)
    return call.formula, Formula(
        name=call.formula.name, topic=law.topic, parameters=parameters, result=body, operation=False, source=law.source
    )
