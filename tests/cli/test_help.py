"""Help is complete, and made without importing Hydra, OmegaConf or torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from engine import __version__
from engine.errors import EXIT_USAGE
from engine.options import RunOptions, SaveOptions
from engine.registry import Plugin

PROBE = """
import resource, sys
sys.argv = ["engine", *sys.argv[1:]]
from engine.cli import main
main()
usage = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in ("torch", "hydra", "omegaconf", "numpy") if name in sys.modules]
print(f"{heavy} {usage.ru_utime + usage.ru_stime:.2f} s of CPU", file=sys.stderr)
"""


@pytest.mark.parametrize("argv", [["--help"], ["train", "experiment=mnist", "--help"]])
def test_help_imports_nothing_heavy(argv, record_property):
    done = subprocess.run([sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, check=True)
    heavy, cpu = done.stderr.rsplit("] ", 1)
    record_property("cpu", cpu.strip())
    assert heavy == "["
    assert "Train ConvNets" in done.stdout


def test_a_reader_who_leaves_ends_the_command_quietly():
    command = [sys.executable, "-m", "engine", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 128 + 13  # what a shell reports of a command that SIGPIPE ended


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_component_and_option(engine, registry, argv):
    done = engine(*argv)
    assert done.code == 0
    lines = [line.split("  ")[-1].strip() for line in done.out.splitlines()]
    for (group, name), entry in registry.components.items():
        assert entry.summary in lines, f"{group}={name}"
    for prefix, options in (("run", RunOptions), ("save", SaveOptions)):
        for field in dataclasses.fields(options):
            line = next(line for line in done.out.splitlines() if line.strip().startswith(f"{prefix}.{field.name}="))
            assert field.metadata["help"] in line
    for word in ("out=", "resume=", "--multirun", "--cfg", 'eval "$(engine -sc install=bash)"', "docs/", "mnist"):
        assert word in done.out


def test_help_marks_the_defaults(engine):
    lines = engine("--help").out.splitlines()
    marked = {line.split()[1] for line in lines if line.strip().startswith("* ")}
    assert {"train", "digits", "normalize", "cnn", "cross_entropy", "sgd", "onecycle", "native"} <= marked
    assert {"progress", "tensorboard", "csv", "none", "single", "float32"} <= marked
    assert not marked & {"lenet", "adamw", "flip", "blend", "cifar10"}


def test_help_shows_the_fields_of_what_is_chosen(engine):
    done = engine("gauge", "data=needy", "augment=[flip,blend]", "--help")
    assert "level=1" in done.out
    assert "how it ends [fine, mistake," in done.out
    assert "data.root=(required)" in done.out
    assert "augment.blend.alpha=0.2" in done.out
    assert "augment.flip." in done.out
    assert "optim.lr" not in done.out


def test_help_resolves_presets(engine):
    assert "augment.pad_crop.padding=4" in engine("train", "augment=cifar", "--help").out
    fields = engine("train", "experiment=cifar_resnet20", "--help").out
    assert "model=resnet20\n" in fields
    assert "data.root=(required)" in fields


def test_help_names_broken_plugins(engine, registry, monkeypatch):
    broken = Plugin("sorry", "sorry-dist", "0.1", error="ModuleNotFoundError: No module named 'nowhere'")
    monkeypatch.setattr(registry, "plugins", [*registry.plugins, broken])
    done = engine("--help")
    assert done.code == 0
    assert "sorry  ModuleNotFoundError: No module named 'nowhere'" in done.out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["trian", "--help"], "did you mean 'train'?"), (["train", "model=lenett", "--help"], "did you mean 'lenet'?")],
)
def test_help_about_nothing(engine, argv, expected):
    done = engine(*argv)
    assert (done.code, done.out) == (EXIT_USAGE, "")
    assert expected in done.err


def test_version(engine):
    assert engine("--version").out == f"engine {__version__}\n"
