"""Plain `pytest` in a checkout: the plugin that an installed lla-spec brings by itself (pytest loads it once)."""

import os
import tempfile

# Threads that spin while they wait take the cores from each other's process: five times the time on two cores. Torch
# reads this when it is imported; how it splits its sums among its threads stays what it was.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# glibc gives what is freed back to the system and asks for it again, page by page: half of all system time. It reads
# this when a process starts, so it is for xdist's workers.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 28))
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 25))

# Compiled kernels are not shared with another kind of CPU (docs/findings.md, 26).
_CAPABILITY = os.environ.get("ATEN_CPU_CAPABILITY", "native")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/lla-spec-inductor-{_CAPABILITY}")

# Where an image forbids bytecode (PYTHONDONTWRITEBYTECODE), each process that a test starts would compile everything
# anew, which is a third of its time: they keep it out of the tree, and share it.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", os.path.join(os.path.dirname(__file__), ".pytest_cache", "bytecode"))

pytest_plugins = ["lla_spec.testing.plugin"]

# Doctests are found by importing every module, and these refuse that where what they adapt is absent: a package, or
# torch_compile's C++ compiler.
_ADAPTERS = ("jax", "liger", "onnxruntime", "sklearn", "torch_compile", "transformers")
collect_ignore = [f"lla_spec/testing/bundled/{name}.py" for name in _ADAPTERS]
