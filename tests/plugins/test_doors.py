"""The doors between the rooms stay shut: who may import whom (DESIGN), and no file grows too long to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIGHT = {"__init__", "options", "fields", "checks", "hookspecs", "registry", "manifest", "errors", "session"}
HEAVY = {"torch", "numpy", "PIL", "sklearn", "safetensors", "tensorboard", "tqdm", "hydra", "omegaconf"}
# What a plugin has no business with: the loop and what puts it together, the command line, other plugins, the kit.
INSIDE = {f"engine.{name}" for name in ("run", "parts", "assembly", "cli", "plugins", "testing")}
LONGEST = 330  # "about 300 lines"; the loop has a limit of its own

ENGINE = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "engine").rglob("*.py"))}
PLUGINS = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "plugins").rglob("*.py"))}
FILES = ENGINE | PLUGINS
CLI = {name for name in ENGINE if name.startswith("engine/cli/")} | {"engine/__main__.py"}
ENTRIES = {name for name in PLUGINS if name.count("/") == 2 and name.endswith("/__init__.py")}


def imports(name: str, at_load: bool = False) -> Iterator[str]:
    """Yield the full name of all that a file imports; ``at_load``: only what importing the file imports."""
    waiting: list[ast.AST] = [ast.parse(FILES[name].read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            # ``from engine import run`` imports engine.run; a name that is no module does no harm in the list.
            dot = "." if node.module else ""
            yield from (package, *(f"{package}{dot}{alias.name}" for alias in node.names))
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (at_load and (for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))):
            waiting += ast.iter_child_nodes(node)


def within(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def offences(names: set[str], rooms: set[str], at_load: bool = False) -> list[str]:
    return [f"{name} imports {module}" for name in names for module in imports(name, at_load) if within(module, rooms)]


def test_the_files_are_found():
    assert {"engine/run.py", "engine/cli/__init__.py", "plugins/data/__init__.py", "plugins/data/idx.py"} <= set(FILES)
    assert "engine.interfaces" in set(imports("engine/run.py"))
    assert not set(imports("plugins/data/__init__.py", at_load=True)) & {".idx", "engine.interfaces"}


def test_what_help_and_completion_import_is_light():
    light = {f"engine/{name}.py" for name in LIGHT} | ENTRIES
    assert offences(light, HEAVY, at_load=True) == []
    engine = {f"engine.{Path(name).stem}" for name in ENGINE} - {f"engine.{name}" for name in LIGHT}
    assert offences(light, engine, at_load=True) == []


def test_only_the_command_line_imports_hydra():
    assert offences(set(FILES) - CLI, {"hydra", "omegaconf"}) == []


def test_the_core_imports_neither_command_line_nor_plugins_nor_the_kit():
    core = {name for name in ENGINE if name.count("/") == 1} - CLI
    assert offences(core, {"engine.cli", "engine.plugins", "plugins", "engine.testing"}) == []
    assert offences(set(ENGINE), {"engine.plugins", "plugins"}) == []


def test_only_ops_imports_the_extensions():
    assert offences(set(FILES) - {"engine/ops/extension.py"}, {"engine._cpu"}) == []
    assert offences(set(FILES) - {"engine/ops/cuda.py"}, {"engine._cuda"}) == []


def test_plugins_import_the_engines_interfaces_and_their_own_files():
    for name in PLUGINS:
        for module in imports(name, at_load=False):
            dots = len(module) - len(module.lstrip("."))
            assert dots <= name.count("/") - 1, f"{name} imports {module}, of another plugin"
    at_run_time = {name: set(imports(name)) for name in PLUGINS}
    assert [
        f"{n} imports {m}" for n, modules in at_run_time.items() for m in modules if within(m, INSIDE | {"plugins"})
    ] == []


def test_the_loop_is_short():
    assert len(FILES["engine/run.py"].read_text().splitlines()) < 150


@pytest.mark.parametrize("name", FILES)
def test_files_can_be_read_in_one_sitting(name):
    assert len(FILES[name].read_text().splitlines()) <= LONGEST
