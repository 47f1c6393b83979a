"""Targets that come with lla-spec, by short name: other people's kernels, each in a few lines an operation.

Each file is an ordinary target, nothing but functions of the operations' names and an LLA_TARGET, and an example of
one. Its package is imported when the target is named, never before.
"""

from __future__ import annotations

from types import MappingProxyType

PACKAGES = MappingProxyType(
    {
        "torch_native": {},
        "torch_compile": {},
        "transformers": {"transformers": "transformers"},
        "jax": {"jax": "jax"},
        "sklearn": {"sklearn": "scikit-learn"},
        "onnxruntime": {"onnxruntime": "onnxruntime", "onnx": "onnx"},
        "liger": {"liger_kernel": "liger-kernel", "triton": "triton"},
    }
)
"""Short name -> the modules that it imports beyond torch, and the distribution of each; the name is an extra too."""


def module_of(name: str) -> str:
    """The module of a bundled target.

    >>> module_of("jax")
    'lla_spec.testing.bundled.jax'
    """
    return f"{__name__}.{name}"


def needs(name: str, missing: str) -> str:
    """What a person is told where the module `missing` cannot be found.

    >>> needs("sklearn", "sklearn.decomposition")
    'target sklearn: the package scikit-learn is not installed; pip install "lla-spec[sklearn]"'
    """
    top = missing.split(".")[0]
    return f'target {name}: the package {PACKAGES[name].get(top, top)} is not installed; pip install "lla-spec[{name}]"'
