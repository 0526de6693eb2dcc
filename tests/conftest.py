"""Settings that all suites share."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every run and machine; a slow machine fails no test.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
