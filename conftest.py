"""Plain `pytest` in a checkout: the plugin that an installed lla-spec brings by itself."""

import importlib.metadata

_installed = any(e.value == "lla_spec.testing.plugin" for e in importlib.metadata.entry_points(group="pytest11"))
pytest_plugins = [] if _installed else ["lla_spec.testing.plugin"]
