"""Makes the fixtures known to all tests, and leaves out what only the nightly run wants."""

import os

from fixtures.paths import output_root

pytest_plugins = ("fixtures.neon_env", "fixtures.small_disk")


def pytest_configure(config):
    """Chooses the directory for files before workers are started, so that all of them share it, and its ports."""
    output_root()


def pytest_collection_modifyitems(config, items):
    """Deselects tests marked slow unless NEON_NIGHTLY is set."""
    if os.environ.get("NEON_NIGHTLY"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
