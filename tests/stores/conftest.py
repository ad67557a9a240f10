"""Lets the tests of this folder share files, and count what they find."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def counts(request: pytest.FixtureRequest) -> Iterator[Counter[tuple[str, str]]]:
    """Count (what was done, what became of it); a long test's counts are printed at its end."""
    counted: Counter[tuple[str, str]] = Counter()
    yield counted
    if request.node.get_closest_marker("soak"):
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{request.node.name}: {sum(counted.values())}")
            for (done, became), count in sorted(counted.items()):
                print(f"  {count:4} {done}: {became}")
