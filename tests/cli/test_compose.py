"""What a command composes: the plugins' own dataclasses, from defaults, presets, experiments and overrides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from engine.errors import EXIT_CRASHED, EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE
from engine.options import GROUPS

DEFAULTS = {
    "job": "gauge", "data": "digits", "augment": ["normalize"], "model": "cnn", "loss": "cross_entropy",
    "optim": "sgd", "schedule": "onecycle", "kernels": "native", "parallel": "single", "precision": "float32",
    "transfer": "none", "marginalize": [], "observe": ["progress", "tensorboard", "csv"],
}  # fmt: skip


def test_the_defaults(engine, registry):
    session = engine("gauge").session
    assert session.choices == DEFAULTS
    for group, names in session.choices.items():
        value = getattr(session.options, group)
        for name in names if isinstance(names, list) else [names]:
            composed = value[name] if isinstance(names, list) else value
            assert type(composed) is registry.entry(group, name).options
            assert composed == registry.entry(group, name).options()
    assert set(session.choices) == set(GROUPS)
    assert (session.overrides, session.sweep) == ([], False)


@pytest.mark.parametrize("argv", [["gauge", "level=7"], ["job=gauge", "level=7"], ["level=7", "job=gauge"]])
def test_fields_of_a_job_need_no_prefix(engine, argv):
    assert engine(*argv).session.options.job.level == 7


def test_lists_keep_their_order_and_may_be_empty(engine):
    session = engine("gauge", "augment=[normalize,blend,flip]", "augment.blend.alpha=0.4", "observe=[]").session
    assert list(session.options.augment) == ["normalize", "blend", "flip"]
    assert session.options.augment["blend"].alpha == 0.4
    assert session.options.observe == {}
    assert session.choices["observe"] == []
    assert session.overrides == ["augment=[normalize,blend,flip]", "augment.blend.alpha=0.4", "observe=[]"]


def test_one_name_may_stand_for_a_list(engine):
    assert engine("gauge", "augment=blend").session.choices["augment"] == ["blend"]


def test_a_preset_of_a_group(engine):
    session = engine("gauge", "augment=cifar", "augment.pad_crop.padding=2").session
    assert session.choices["augment"] == ["pad_crop", "flip", "normalize"]
    assert session.options.augment["pad_crop"].padding == 2


def test_the_cifar_experiment_is_the_papers(engine):
    # He et al. 2015, section 4.2: 0.1, divided by 10 at 32k and 48k of 64k iterations, batch 128, decay 1e-4.
    options = engine("gauge", "experiment=cifar_resnet20", "data.root=/x").session.options
    assert (options.optim.lr, options.optim.momentum, options.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (options.run.steps, options.run.batch) == (64_000, 128)
    assert [m * options.run.steps for m in options.schedule.milestones] == [32_000, 48_000]
    assert options.schedule.gamma == 0.1
    assert list(options.augment) == ["pad_crop", "flip", "normalize"]


def test_typed_epochs_win_over_the_steps_of_an_experiment(engine):
    experiment = ["experiment=cifar_resnet20", "data.root=/x"]
    session = engine("gauge", *experiment, "run.epochs=1").session
    assert (session.options.run.epochs, session.options.run.steps) == (1, None)
    assert session.overrides == [*experiment, "run.epochs=1"]
    assert engine("gauge", *experiment, "run.epochs=1", "run.steps=5").session.options.run.steps == 5
    assert engine("gauge", *experiment, "run.batch=7").session.options.run.steps == 64000


def test_patience_without_evaluations_is_refused(engine):
    done = engine("train", "run.patience=3", "run.evaluate_every=never", "out=a")
    assert done.code == EXIT_USAGE
    assert done.err.startswith("engine: run.patience=3 needs evaluations, run.evaluate_every=never has none")
    assert done.err.count("\n") == 1


def test_overrides_win_over_an_experiment(engine):
    session = engine("gauge", "experiment=mnist", "data.root=/x", "model=cnn", "run.epochs=2").session
    assert (session.choices["data"], session.choices["model"], session.options.run.epochs) == ("idx", "cnn", 2)


PRESETS = {
    "good": "run: {epochs: 4}\ndefaults: [{override /model: lenet}, _self_]",
    "wrong_key": "run: {epoch: 4}",
    "wrong_root": "rum: {epochs: 4}",
    "wrong_type": "run: {epochs: many}",
    "wrong_choice": "defaults: [{override /model: lenett}, _self_]",
    "wrong_group": "defaults: [{override /modl: lenet}, _self_]",
    "target": "model: {_target_: os.system}",
}


@pytest.fixture
def own(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "experiment").mkdir()
    for name, text in PRESETS.items():
        (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n# Mine\n{text}\n")
    (folder / "model").mkdir()
    (folder / "model" / "narrow.yaml").write_text("defaults: [cnn, _self_]\nwidth: 4\n")
    (folder / "model" / "untyped.yaml").write_text("width: 4\n")
    return folder


def test_presets_of_the_users_own(engine, own):
    session = engine("gauge", "--config-dir", str(own), "experiment=good").session
    assert (session.choices["model"], session.options.run.epochs) == ("lenet", 4)
    session = engine("gauge", "--config-dir", str(own), "model=narrow").session
    assert (session.choices["model"], session.options.model.width) == ("cnn", 4)
    help = engine("--config-dir", str(own), "--help").out
    assert re.search(r"^ +good +Mine$", help, re.MULTILINE)
    assert re.search(r"^ +narrow +preset:", help, re.MULTILINE)


def test_a_preset_that_is_no_yaml(engine, own):
    (own / "experiment" / "wrong_yaml.yaml").write_text("run: {epochs: 4")
    done = engine("gauge", "--config-dir", str(own), "experiment=wrong_yaml")
    assert (done.code, done.err.count("\n")) == (EXIT_USAGE, 1)
    assert "experiment/wrong_yaml.yaml cannot be read: " in done.err


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("experiment=wrong_key", "experiment/wrong_key.yaml: run.epoch: RunOptions has no option 'epoch'"),
        ("experiment=wrong_root", "experiment/wrong_root.yaml: rum: Options has no option 'rum'"),
        ("experiment=wrong_type", "experiment/wrong_type.yaml: run.epochs: 'many' is not a whole number"),
        ("experiment=wrong_choice", "lenett"),
        ("experiment=wrong_group", "experiment/wrong_group.yaml"),
        ("experiment=target", "experiment/target.yaml: model._target_"),
        ("model=untyped", "model/untyped.yaml: model.width"),
    ],
)
def test_a_wrong_preset_is_named(engine, own, choice, expected):
    done = engine("gauge", "--config-dir", str(own), choice)
    assert done.code == EXIT_USAGE
    assert expected in done.err
    assert done.err.count("\n") == 1


def test_the_working_directory_does_not_matter(engine, tmp_path):
    for name in ("conf", "plugins", "engine/conf"):
        decoy = tmp_path / name
        decoy.mkdir(parents=True)
        (decoy / "__init__.py").write_text("raise RuntimeError('a decoy was imported')\n")
        (decoy / "train.yaml").write_text("run: {epochs: 99}\n")
    (tmp_path / "train.yaml").write_text("run: {epochs: 99}\n")
    assert engine("gauge").session.options.run.epochs == 20


def test_the_record_composes_the_same(engine):
    session = engine("gauge", "run.epochs=3", "out=here").session
    record = yaml.safe_load(session.config)
    assert record["run"]["epochs"] == 3
    assert record["out"] == session.options.out == str(session.out)
    assert "hydra" not in record


def test_interpolations_are_kept_in_the_overrides(engine):
    session = engine("gauge", "run.epochs=3", "run.steps=${run.epochs}").session
    assert session.options.run.steps == 3
    assert session.overrides == ["run.epochs=3", "run.steps=${run.epochs}"]


def test_cfg_prints_the_configuration(engine, sessions):
    done = engine("gauge", "--cfg", "job", "run.epochs=3")
    assert (done.code, sessions) == (0, [])
    assert yaml.safe_load(done.out)["run"]["epochs"] == 3
    part = engine("--cfg", "job", "-p", "run", "gauge", "run.batch=5", "--resolve")
    assert yaml.safe_load(part.out)["batch"] == 5
    assert "hydra" in yaml.safe_load(engine("gauge", "-c", "hydra").out)


@pytest.mark.parametrize(
    ("mode", "code", "line"),
    [
        ("fine", 0, ""),
        ("mistake", EXIT_USAGE, "engine: data.root=/x: no such folder\n"),
        ("failure", EXIT_FAILED, "engine: the loss is not finite\n"),
        ("stop", EXIT_STOPPED, "engine: stopped by SIGTERM\n"),
        ("interrupt", 130, ""),
    ],
)
def test_exit_codes(engine, mode, code, line):
    done = engine("gauge", f"mode={mode}")
    assert (done.code, done.err) == (code, line)


def test_a_defect_keeps_its_traceback(engine):
    with pytest.raises(ZeroDivisionError, match="a defect") as raised:
        engine("gauge", "mode=defect")
    assert raised.traceback[-1].name == "gauge"
    assert EXIT_CRASHED == 1  # which is how Python ends after an uncaught exception
