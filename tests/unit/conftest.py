"""Settings for the unit tests, under `ansible-test units` and plain pytest alike."""

from __future__ import annotations

import hypothesis

# A busy machine is no failure: nothing here is a timed test.
hypothesis.settings.register_profile("gpuops", deadline=None)
hypothesis.settings.load_profile("gpuops")
