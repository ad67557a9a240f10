"""Each mistake on the command line is one line that names it, exit code 2, and nothing is left behind."""

from __future__ import annotations

import pytest

from engine.errors import EXIT_USAGE
from engine.registry import Plugin

MISTAKES = [
    # jobs and words
    ("trian", "did you mean 'train'?"),
    ("job=trian", "did you mean 'train'?"),
    ("train job=evaluate", "given twice: train and evaluate"),
    ("probe foo", "'foo' is not an override; write key=value"),
    ("data=digits probe", "a job comes first: engine probe"),
    ("probe --epochs 3", "run.epochs=..."),
    ("probe --lr 0.1", "without dashes: optim.lr=..."),
    ("probe --optim.beta1=0.8", "without dashes: optim.beta1=..."),
    ("probe --level 2", "without dashes: level=..."),
    ("probe --model lenet", "without dashes: model=..."),
    ("probe --multrun", "did you mean '--multirun'?"),
    ("probe --cfg jb", "invalid choice: 'jb'"),
    ("probe --resolve", "--cfg job"),
    ("probe -m --cfg job", "exclude each other"),
    ("probe --config-dir nowhere", "no such folder"),
    ("probe --cfg job -p modl", "no such part"),
    # keys
    ("probe agument=[flip]", "agument: no such option; did you mean 'augment'?"),
    ("probe optim.lrr=1", "did you mean 'optim.lr'?"),
    ("probe run.epoch=1", "did you mean 'run.epochs'?"),
    ("probe epochs=1", "did you mean 'run.epochs'?"),
    ("probe levle=1", "did you mean 'level'?"),
    ("probe augment=[blend] augment.blend.alhpa=1", "did you mean 'augment.blend.alpha'?"),
    ("probe -m optim.lrr=1,2", "did you mean 'optim.lr'?"),
    ("probe optim.lr.x=1", "no such option"),
    ("probe qqq.www=1", "no such option; see engine --help"),
    ("probe run.zzzzzz=1", "known: run.epochs, run.steps"),
    ("probe experimnt=mnist", "did you mean 'experiment'?"),
    ("probe optim.beta1=0.8", "an option of optim=adamw, but this command has optim=sgd"),
    ("probe augment.blend.alpha=1", "blend is not in augment=[normalize]; add it"),
    ("probe checkpoint=x", "not of 'probe'"),
    ("probe run=3", "run has no value of its own"),
    # choices
    ("probe model=lenett", "model=lenett: no such model; did you mean 'lenet'?"),
    ("probe augment=[flip,blendp]", "augment=blendp: no such augment; did you mean 'blend'?"),
    ("probe experiment=minst", "did you mean 'mnist'?"),
    ("probe model=", "known: cnn"),
    ("probe augment=[flip,flip]", "flip is named twice"),
    ("probe augment=[cifar,flip]", "flip is named twice"),
    ("probe model=cnn model=lenet", "model is given twice"),
    ("probe model=[cnn,lenet]", "takes one choice"),
    ("probe model=null", "expected model=name"),
    ("probe experiment=null", "expected experiment=name"),
    ("probe augment={flip:{p:1}}", "augment.NAME.OPTION=value"),
    ("probe mode=fin", "did you mean 'fine'?"),
    ("probe run.nonfinite=skp", "did you mean 'skip'?"),
    # sweeps
    ("probe model=cnn,lenet", "add -m"),
    ("probe -m model=cnn,lenett", "did you mean 'lenet'?"),
    ("probe -m augment=[flip],[flip,blendp]", "did you mean 'blend'?"),
    ("probe -m augment=[flip],[blend,blend]", "blend is named twice"),
    ("probe -m model=choice(cnn,lenett)", "did you mean 'lenet'?"),
    ("probe -m run.nonfinite=skip,stp", "did you mean 'stop'?"),
    ("probe -m run.epochs=1,0", "run.epochs=0: must be at least 1"),
    ("probe -m run.epochs=1,x", "run.epochs: 'x' is not a whole number"),
    ("probe -m out=a,b", "cannot be swept"),
    ("probe -m run.epochs=interval(1,3)", "does not support sweep type"),
    # resuming
    ("probe resume=", "resume= is empty: give auto"),
    ("glance resume=", "resume= is empty: give auto"),
    ("glance resume=auto", "the job 'glance' goes on with no run; name what it reads with checkpoint="),
    ("plugins resume=runs/a", "the job 'plugins' goes on with no run; leave it out"),
    # forms
    ("probe +model._target_=os.system", "nothing can be added"),
    ("probe ++run.epochs=3", "write run.epochs=3"),
    ("probe model._target_=os.system", "no such option"),
    ("probe ~augment", "augment=[] chooses none"),
    ("probe ~run.epochs", "nothing can be removed"),
    ("probe model@other=cnn", "a component's place is fixed"),
    ("probe run.epochs=[1", "cannot be read"),
    ("probe out=a=b:", "cannot be read"),
    ("probe hydra.run.dir=x", "out=FOLDER"),
    ("probe hydra.mode=MULTIRUN", "-m"),
    ("probe hydra.searchpath=[x]", "--config-dir"),
    # values
    ("probe run.epochs=x", "run.epochs: 'x' is not a whole number"),
    ("probe run.epochs=0", "run.epochs=0: must be at least 1"),
    ("probe run.epochs=null", "null is not allowed"),
    ("probe run.compile=maybe", "is not true or false"),
    ("probe augment=[blend] augment.blend.alpha=0", "must be above 0"),
    ("probe data=needy", "data.root must be given (folder of the records): add data.root=..."),
    ("probe out=${nothing}", "out: Interpolation key 'nothing' not found"),
    ("probe run={epochs:x}", "run.epochs"),
    ("probe optim=by_layer optim.rates.conv=0.1", "optim.rates.conv"),
    ("probe hydra.nothing=1", "nothing"),
    ("-sc install=bsh", "SHELL is bash, zsh or fish"),
]


@pytest.mark.parametrize(("line", "expected"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line(engine, sessions, tmp_path, line, expected):
    done = engine(*line.split())
    assert done.code == EXIT_USAGE, done.err
    assert done.err.startswith("engine: ")
    assert expected in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert sessions == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_choice_names_the_plugin_that_could_not_be_loaded(engine, registry, monkeypatch):
    broken = Plugin("sorry", "sorry-dist", "0.1", error="ImportError: no")
    monkeypatch.setattr(registry, "plugins", [*registry.plugins, broken])
    assert "[not loaded: sorry (ImportError: no)]" in engine("probe", "augment=[stamp]").err


def test_a_default_whose_plugin_is_broken(engine, registry, monkeypatch):
    left = {key: entry for key, entry in registry.components.items() if key != ("model", "cnn")}
    monkeypatch.setattr(registry, "components", left)
    broken = Plugin("models", "conv-engine", "0.1", error="ImportError: no")
    monkeypatch.setattr(registry, "plugins", [*registry.plugins, broken])
    assert "model=cnn: no such model" in engine("probe").err
    assert "[not loaded: models (ImportError: no)]" in engine("probe").err
    assert engine("probe", "model=lenet").code == 0
    assert engine("--help").code == 0


def test_a_dict_option_takes_new_keys(engine):
    done = engine("probe", "optim=by_layer", "+optim.rates.conv=0.3", "optim.steps=[7]")
    assert done.code == 0, done.err
    assert done.session.options.optim.rates == {"conv": 0.3}
    assert done.session.options.optim.steps == [7]


def test_a_field_of_any_swept_choice_is_accepted(engine, sessions):
    done = engine("probe", "-m", "optim=adamw", "optim.beta1=0.8,0.7")
    assert done.code == 0, done.err
    assert [session.options.optim.beta1 for session in sessions] == [0.8, 0.7]
