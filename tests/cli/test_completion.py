"""Tab completion, in one process and through the installed script in bash with a third-party plugin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli.completion import candidates
from engine.cli.presets import Presets


@pytest.fixture
def complete(registry):
    return lambda line: candidates(line, registry, Presets(registry))


def test_jobs_come_first(complete):
    assert complete("engine tr") == ["train", "transfer="]
    assert complete("engine ev") == ["evaluate", "evaluate."]
    assert {"train", "gauge", "augment=", "augment.", "run.", "out=", "experiment="} <= set(complete("engine "))
    assert "train" not in complete("engine gauge ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("engine train marginalize=", ["five_crop", "flip", "mc", "multi_scale", "ten_crop"]),
        ("engine train augment=b", ["blend"]),
        ("engine train augment=ci", ["cifar"]),
        ("engine train marginalize=[", ["[five_crop", "[flip", "[mc", "[multi_scale", "[ten_crop"]),
        ("engine train marginalize=[mc,", ["[mc,five_crop", "[mc,flip", "[mc,multi_scale", "[mc,ten_crop"]),
        ("engine train augment=[flip,b", ["[flip,blend"]),
        ("engine train -m augment=[flip],[f", ["[flip],[flip"]),
        ("engine train augment=[flip]", []),
        (
            "engine train experiment=",
            ["cifar_resnet20", "imagenet_alexnet", "imagenet_resnet50", "low_precision", "mnist"],
        ),
        ("engine train run.compile=", ["false", "true"]),
        ("engine train run.nonfinite=s", ["stop", "skip"]),
        ("engine gauge mode=mi", ["mistake"]),
        ("engine train run.epochs=", ["20"]),
        ("engine train run.evaluate_every=", []),
        ("engine train nothing=", []),
    ],
)
def test_values(complete, line, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = line.split()[-1].partition("=")[0]
    assert complete(line) == [f"{key}={value}" for value in expected]


def test_models_swept(complete, registry):
    assert complete("engine train -m model=cnn,le") == ["model=cnn,lenet"]


def test_keys_grow_level_by_level(complete):
    assert complete("engine train optim") == ["optim.", "optim="]
    assert complete("engine train optim.l") == ["optim.lr="]
    assert complete("engine train optim=adamw optim.b") == ["optim.beta1=", "optim.beta2="]
    assert complete("engine train augment=[blend,flip] augment.") == ["augment.blend.", "augment.flip."]
    assert complete("engine train augment=cifar augment.pad_crop.p") == ["augment.pad_crop.padding="]
    assert "model.depth=" not in complete("engine train model.")


def test_an_experiments_choices_count(complete):
    assert complete("engine train data.r") == []
    assert complete("engine train experiment=mnist data.r") == ["data.root="]


def test_fields_of_the_job(complete):
    assert complete("engine evaluate check") == ["checkpoint="]
    assert complete("engine train check") == []
    assert complete("engine gauge lev") == ["level="]


def test_files(complete, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "net.pt").touch()
    assert complete("engine evaluate checkpoint=") == ["checkpoint=net.pt", "checkpoint=runs/"]
    assert complete("engine evaluate checkpoint=ru") == ["checkpoint=runs/"]


def test_flags(complete):
    assert complete("engine train --c") == ["--cfg", "--config-dir"]


def test_query(engine, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "engine evaluate --multirun check")
    assert engine("-sc", "query=bash").out == "checkpoint=\n"
    monkeypatch.setenv("COMP_LINE", "engine train model=le")
    assert engine("-sc", "query=fish").out == "model=lenet\n"


@pytest.mark.parametrize(
    ("shell", "expected"), [("bash", "hydra_bash_completion engine"), ("fish", "complete -c engine")]
)
def test_install(engine, shell, expected):
    done = engine("-sc", f"install={shell}")
    assert done.code == 0
    assert expected in done.out
    assert engine("-sc", f"uninstall={shell}").code == 0


SCRIPT = """
eval "$(engine -sc install=bash)"
ask() { COMP_LINE="$1"; local parts=($1); COMP_CWORD=$2; COMP_POINT=${#1}; COMPREPLY=(); hydra_bash_completion
        printf '%s ' "${COMPREPLY[@]}"; printf '\\n'; }
ask "engine trai" 1
ask "engine train augment=sta" 2
ask "engine train augment=[stamps,fl" 2
ask "engine evaluate check" 2
"""


def test_bash_through_the_console_script(tmp_path):
    bash, script = shutil.which("bash"), Path(sys.executable).with_name("engine")
    if bash is None or not script.exists():
        pytest.skip("needs bash and the installed console script")
    (tmp_path / "stamplib.py").write_text(
        "import sys\nfrom dataclasses import dataclass\nfrom engine import Augment, hookimpl\n"
        "@dataclass\nclass Stamps(Augment):\n    '''Stamp a mark.'''\n"
        "@hookimpl\ndef engine_options(store):\n    assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
        "    store.add('augment', 'stamps', Stamps)\n"
    )
    facts = tmp_path / "stamplib-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: stamplib\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[engine]\nstamplib = stamplib\n")
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "--norc", "-c", SCRIPT],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[:4] == [
        "train ", "augment=stamps ", "augment=[stamps,flip ", "checkpoint= ",
    ]  # fmt: skip


def test_a_query_imports_neither_hydra_nor_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['engine', '-sc', 'query=bash']; from engine.cli import main; main(); "
        "print([m for m in ('torch', 'hydra', 'omegaconf') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COMP_LINE": "engine train model=le"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "model=lenet\n[]\n"
