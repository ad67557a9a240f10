"""A wheel built under pip's isolation and installed in a clean environment, used from a folder full of decoys."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py"))

pytestmark = pytest.mark.timeout(300)  # pip fetches the build requirements, from wherever it is told to


@dataclass
class Installation:
    wheel: Path
    folder: Path  # of the virtual environment
    site: Path
    added: set[str]  # what installing put into site-packages

    def run(self, decoys: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a folder of decoys."""
        environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
        program = [self.folder / "bin" / command[0], *command[1:]]
        return subprocess.run(program, cwd=decoys, env=environment, capture_output=True, text=True)


def pip(*arguments: str | Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], env=env, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("pip reaches no package index, so it cannot fetch the build requirements")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(
    tmp_path_factory: pytest.TempPathFactory, copy_sources: Callable[[Path], Path], quickly: dict[str, str]
) -> Installation:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_sources(tmp_path_factory.mktemp("source"))
    pip("wheel", "--no-deps", "--wheel-dir", folder / "dist", source, env=quickly)
    (wheel,) = (folder / "dist").iterdir()
    venv.create(folder / "venv")
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    before = set(os.listdir(site))
    pip("--python", folder / "venv/bin/python", "install", "--no-deps", "--no-compile", wheel)
    added = set(os.listdir(site)) - before
    # torch and the rest come from the environment of the tests. A plain line in a .pth file adds a folder without
    # reading the .pth files in it, so the editable installation there stays out of sight.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(wheel, folder / "venv", site, added)


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """Return a folder that holds packages named as our own folders, which must never be imported."""
    for name in ("conf", "plugins"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the decoy {name} was imported')\n")
        (tmp_path / name / "train.yaml").write_text("decoy: true\n")
    return tmp_path


@pytest.fixture(scope="module")
def metadata(installed: Installation) -> Message:
    (path,) = installed.site.glob("conv_engine-*.dist-info/METADATA")
    return Parser().parsestr(path.read_text())


def test_engine_is_the_only_import_name_added(installed: Installation) -> None:
    assert {name for name in installed.added if not name.endswith(".dist-info")} == {"engine"}
    assert len(installed.added) == 2


def test_the_wheel_holds_code_presets_and_types_but_no_sources_of_the_extension(installed: Installation) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    presets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"engine/{name}" for name in presets} <= set(names)
    assert {"engine/py.typed", "engine/_cpu.pyi", "engine/_cuda.pyi"} <= set(names)
    assert {f"engine/plugins/{name}/__init__.py" for name in PLUGINS} <= set(names)
    assert [name for name in names if name.startswith("engine/_cpu.") and name.endswith(".so")]
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".h", ".yml", ".o"))]


def test_the_metadata(metadata: Message) -> None:
    assert (metadata["Name"], metadata["License-Expression"]) == ("conv-engine", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    required = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert "torch>=2.11" in required
    assert {re.split("[<>=!]", line)[0] for line in required} == {
        "torch", "hydra-core", "pluggy", "tensorboard", "safetensors", "numpy", "pillow", "scikit-learn", "pyyaml",
        "tqdm", "google-crc32c", "simplejpeg",
    }  # fmt: skip


def test_every_folder_of_plugins_is_an_entry_point(installed: Installation, decoys: Path) -> None:
    code = "from importlib.metadata import entry_points; print(*entry_points(group='engine').names)"
    done = installed.run(decoys, "python", "-c", code)
    assert sorted(done.stdout.split()) == PLUGINS, done.stderr


def test_imports_ignore_the_decoys(installed: Installation, decoys: Path) -> None:
    code = "import engine, engine.conf, engine.ops, engine.plugins.data as d; print(engine.__file__, d.__file__)"
    done = installed.run(decoys, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(Path(name).is_relative_to(installed.site) for name in done.stdout.split())


def test_the_command_line_works_among_decoys(installed: Installation, decoys: Path) -> None:
    for command in (["engine", "--help"], ["engine", "plugins"], ["python", "-m", "engine", "train", "--cfg", "job"]):
        done = installed.run(decoys, *command)
        assert done.returncode == 0, done.stderr
        assert "decoy" not in done.stdout + done.stderr
        assert done.stdout.strip()
