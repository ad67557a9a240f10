"""``engine explain`` and ``engine plugins``: who set each value, who supplies each component."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.registry import Plugin


@pytest.fixture
def origins(engine):
    """Return a function from overrides to {key: (value, source)}, as the session tells it."""

    def explain(*overrides):
        session = engine("glance", *overrides).session
        return {origin.key: (origin.value, origin.source) for origin in session.origins()}

    return explain


def test_origins(origins, tmp_path):
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /optim: adamw}, _self_]\noptim: {lr: 0.5, beta1: 0.8}\n"
    )
    found = origins("experiment=mine", "--config-dir", str(own), "optim.beta1=0.7", "augment=[blend]", "run={batch: 9}")
    mine = f"preset {own}/experiment/mine.yaml"
    assert found["optim"] == ("adamw", mine)
    assert found["optim.lr"] == ("0.5", mine)
    assert found["optim.beta1"] == ("0.7", "override")
    assert found["optim.beta2"] == ("0.999", "default (plugin optim)")
    assert found["augment"] == ("[blend]", "override")
    assert found["augment.blend.alpha"] == ("0.2", "default (plugin mixlib)")
    assert found["run.batch"] == ("9", "override")
    assert found["run.epochs"] == ("20", "default (engine)")
    assert found["model"] == ("cnn", "default (conf/train.yaml)")
    assert found["observe"] == ("[progress,tensorboard,csv]", "default (conf/train.yaml)")
    assert found["experiment"] == ("mine", "override")
    assert found["out"] == ("''", "default (engine)")
    assert not any(key.startswith("hydra") for key in found)


def test_origins_of_presets(origins):
    found = origins("experiment=mnist", "data.root=/x", "augment=cifar")
    assert found["data"] == ("idx", "preset conf/experiment/mnist.yaml")
    assert found["run.epochs"][1] == "preset conf/experiment/mnist.yaml"
    assert found["data.root"] == ("/x", "override")
    assert found["augment"] == ("cifar", "override")
    assert found["augment.flip.probability"] == ("0.5", "default (plugin augment)")


def test_every_value_has_an_origin(engine, origins):
    import yaml

    def leaves(node, prefix=""):
        if not isinstance(node, dict):
            return {prefix[:-1]}
        return {leaf for key, value in node.items() for leaf in leaves(value, f"{prefix}{key}.")}

    composed = leaves(yaml.safe_load(engine("glance", "--cfg", "job").out))
    assert composed <= set(origins())


def test_explain_prints_aligned_columns(engine):
    done = engine("explain", "run.epochs=2")
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if line.startswith("run.epochs"))
    assert line.split() == ["run.epochs", "2", "override"]
    column = line.index("override")
    assert all(line[column - 1] == " " and line[column] != " " for line in done.out.splitlines() if line)


def test_plugins(engine, registry, monkeypatch):
    broken = Plugin("sorry", "sorry-dist", "0.1", error="ImportError: no")
    monkeypatch.setattr(registry, "plugins", [broken, *registry.plugins])
    done = engine("plugins")
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[0].split() == ["plugin", "distribution", "version", "supplies"]
    row = next(n for n, line in enumerate(lines) if line.startswith("mixlib "))
    assert lines[row].split() == ["mixlib", "mixlib-dist", "3.1", "job=gauge,glance"]
    assert [line.strip() for line in lines[row + 1 : row + 4]] == ["augment=blend", "data=needy", "optim=by_layer"]
    assert lines[-1] == "not loaded: sorry (sorry-dist 0.1): ImportError: no"
    supplied = done.out.replace(",", " ").replace("=", " ").split()
    assert all(name in supplied for _, name in registry.components)


@pytest.mark.parametrize(("kind", "expected"), [("defaults", "model/lenet"), ("searchpath", "pkg://engine.conf")])
def test_info(kind, expected, tmp_path):
    # A process of its own: Hydra sets up logging for it.
    done = subprocess.run(
        [sys.executable, "-m", "engine", "train", "model=lenet", "--info", kind],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert expected in done.stdout
    assert list(tmp_path.iterdir()) == []
