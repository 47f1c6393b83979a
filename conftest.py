"""Plain `pytest` in a checkout: the plugin that an installed lla-spec brings by itself (pytest loads it once)."""

pytest_plugins = ["lla_spec.testing.plugin"]
