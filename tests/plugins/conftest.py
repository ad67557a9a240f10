"""Distributions that exist only for a test, found as installed ones are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that installs a distribution of one plugin module, version 1.2."""

    def install(name: str, code: str = "", target: str | None = None, distribution: str | None = None) -> None:
        folder = tmp_path / f"site-{name}"  # one folder each, since a scanned folder's listing may be cached
        metadata = folder / f"{distribution or name}-1.2.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{name}.py").write_text(dedent(code))
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or name}\nVersion: 1.2\n")
        (metadata / "entry_points.txt").write_text(f"[engine]\n{name} = {target or name}\n")
        monkeypatch.syspath_prepend(folder)
        installed.append(name)

    installed: list[str] = []
    yield install
    for name in installed:
        sys.modules.pop(name, None)
