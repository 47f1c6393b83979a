"""The linear algebra of language models: stated in sympy, proved, and checked against implementations.

    from lla_spec.formulas.attention import attention      # a formula: entry, matrix, latex(), at(n=2, …)
    from lla_spec import formula, identity, Eq, Sum        # to state new ones
    from lla_spec.testing import assert_correct            # to check tensors

Names resolve when they are used (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "tensors": ("DeclarationError",),
    "symbols": ("Max", "Sum", "concat", "define", "dims", "exp", "index", "log", "mask",
                "permutation", "scalar", "split", "sqrt", "tensor"),
    "language": ("Eq", "Formula", "Law", "Le", "assume", "formula", "identity", "registry", "theorem"),
    "calculus": ("vjp",),
    "printing": ("latex", "row_softmax"),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'lla_spec' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lla_spec.{_MODULE[name]}"), name)
