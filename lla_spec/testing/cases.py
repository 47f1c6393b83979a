"""A case: everything that determines one check, small, frozen, and written as one line of text.

    attention:definition:bf16:cpu:n=3,m=5,d=4,e=2,batch=2x1,family=normal,…,seed=17

The tensors are built from it (inputs.py) by counter-based random bits, so the line reproduces them on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lla_spec.testing.errors import CaseError

DTYPES = ("fp64", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Case:
    """`sizes` are the declared dimensions by name; `batch` the leading axes (all rows, where the formula has rows).

    `family` is one name, or one for each argument joined by +; values are multiplied by 2**`exponent`. `layout` is that
    of the inputs (joined by + likewise), `grad` that of the cotangent. `mask` and `index` say what a mask shows and
    which classes are chosen. `without` names optional arguments left out, joined by +. `each`: what all rows can share
    (the mean of PCA) is given for each matrix of them, those along the last of the leading axes.
    """

    op: str
    law: str
    dtype: str
    device: str = "cpu"
    sizes: tuple[tuple[str, int], ...] = ()
    batch: tuple[int, ...] = ()
    family: str = "normal"
    exponent: int = 0
    layout: str = "dense"
    grad: str = "dense"
    mask: str = "none"
    index: str = "random"
    causal: bool = False
    scale: float | None = None
    special: str = "none"
    without: str = ""
    seed: int = 0
    each: bool = False

    def __str__(self) -> str:
        options = {**dict(self.sizes), "batch": "x".join(map(str, self.batch)) or "1d"}
        options |= {field.name: getattr(self, field.name) for field in fields(self)[6:]}
        if not self.each:  # most operations have nothing of the kind
            del options["each"]
        rest = ",".join(f"{key}={_write(value)}" for key, value in options.items())
        return f"{self.op}:{self.law}:{self.dtype}:{self.device}:{rest}"

    def size(self, name: str) -> int:
        return dict(self.sizes)[name]

    def short(self) -> str:
        """For a person: the operation, its sizes, and what is not the default."""
        plain = Case(self.op, self.law, self.dtype)
        parts = [f"{key}={value}" for key, value in self.sizes]
        parts += [f"batch={'x'.join(map(str, self.batch))}"] if self.batch else []
        for field in fields(self)[6:]:
            value = getattr(self, field.name)
            if value != getattr(plain, field.name) or field.name in ("family", "seed"):
                parts.append(f"{field.name}={_write(value)}")
        return f"{self.op}({', '.join(parts)})"

    def with_sizes(self, sizes: Mapping[str, int]) -> Case:
        return replace(self, sizes=tuple({**dict(self.sizes), **sizes}.items()))


def _write(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if value is None:
        return "default"
    return repr(value) if isinstance(value, float) else str(value)


def parse(text: str) -> Case:
    """The case that a line of text names.

    >>> line = str(Case("softmax", "definition", "bf16", sizes=(("m", 3),), batch=(2,), seed=7))
    >>> parse(line) == Case("softmax", "definition", "bf16", sizes=(("m", 3),), batch=(2,), seed=7)
    True
    """
    head = text.strip().split(":", 4)
    if len(head) < 5:
        raise CaseError(f"case {text!r}: needs op:law:dtype:device:key=value,…; it has {len(head)} of the 5 parts")
    op, law, dtype, device, rest = head
    if rest[:1].isdigit() and ":" in rest:  # a device such as cuda:0
        number, rest = rest.split(":", 1)
        device = f"{device}:{number}"
    known: dict[str, Any] = {}
    sizes: list[tuple[str, int]] = []
    for item in rest.split(","):
        key, separator, value = item.partition("=")
        if not separator:
            raise CaseError(f"case {text!r}: {item!r} is not key=value")
        if key in _READ:
            known[key] = _read(text, key, value)
        else:
            sizes.append((key, int(_read(text, key, value, int))))
    return Case(op, law, dtype, device, tuple(sizes), **known)


def _read(text: str, key: str, value: str, read: Any = None) -> Any:
    reader = read or _READ[key]
    try:
        return reader(value)
    except ValueError:
        raise CaseError(
            f"case {text!r}: {key}={value} does not read as {getattr(reader, '__name__', 'a value')}"
        ) from None


def _batch(value: str) -> tuple[int, ...]:
    return () if value == "1d" else tuple(int(part) for part in value.split("x"))


def _scale(value: str) -> float | None:
    return None if value == "default" else float(value)


_READ = {
    "batch": _batch, "family": str, "exponent": int, "layout": str, "grad": str, "mask": str, "index": str,
    "causal": lambda value: bool(int(value)), "scale": _scale, "special": str, "without": str, "seed": int,
    "each": lambda value: bool(int(value)),
}  # fmt: skip


def sizes_of(names: tuple[str, ...], *values: int) -> tuple[tuple[str, int], ...]:
    """The dimensions, pairwise distinct: `values` in turn, then onward from the last."""
    given = list(values) + [values[-1] + 2 * (step + 1) for step in range(len(names))]
    return tuple(zip(names, given, strict=False))
