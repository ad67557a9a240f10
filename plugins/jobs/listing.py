"""``engine plugins``: who is installed, what each supplies, and what is broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.registry import Plugin
    from engine.session import Session


def plugins(session: Session) -> None:
    """Print a table of plugins, then one line for each that could not be loaded."""
    working = [plugin for plugin in session.registry.plugins if not plugin.error]
    for line in table(working):
        print(line)
    for plugin in session.registry.plugins:
        if plugin.error:
            print(f"not loaded: {plugin.name} ({plugin.distribution} {plugin.version}): {plugin.error}")


def table(working: list[Plugin]) -> Iterator[str]:
    """Yield the table's aligned lines; a plugin that supplies several groups takes a line for each."""
    rows = [("plugin", "distribution", "version", "supplies")]
    for plugin in working:
        named = (plugin.name, plugin.distribution, plugin.version)
        groups: dict[str, list[str]] = {}
        for group, name in plugin.supplies:
            groups.setdefault(group, []).append(name)
        supplied = [f"{group}={','.join(names)}" for group, names in groups.items()] or ["nothing"]
        rows.append((*named, supplied[0]))
        rows += [("", "", "", more) for more in supplied[1:]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, last in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last])
