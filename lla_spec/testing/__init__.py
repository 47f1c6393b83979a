"""Checking implementations against the specification. Names resolve lazily, so importing this costs no torch."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "assert_correct": "people",
    "bound": "people",
    "verify": "people",
    "TooLarge": "sampled",
    "parametrize_with_laws": "pytest_laws",
    "each_operation": "pytest_laws",
    "each_law": "pytest_laws",
    "cases": "strategies",
    "watch": "watching",
}
__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"lla_spec.testing has no {name}; it has {', '.join(_HOME)}")
    return getattr(importlib.import_module(f"lla_spec.testing.{_HOME[name]}"), name)
