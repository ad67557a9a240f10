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
    ("gauge foo", "'foo' is not an override; write key=value"),
    ("data=digits gauge", "a job comes first: engine gauge"),
    ("gauge --epochs 3", "run.epochs=..."),
    ("gauge --lr 0.1", "without dashes: optim.lr=..."),
    ("gauge --optim.beta1=0.8", "without dashes: optim.beta1=..."),
    ("gauge --level 2", "without dashes: level=..."),
    ("gauge --model lenet", "without dashes: model=..."),
    ("gauge --multrun", "did you mean '--multirun'?"),
    ("gauge --cfg jb", "invalid choice: 'jb'"),
    ("gauge --resolve", "--cfg job"),
    ("gauge -m --cfg job", "exclude each other"),
    ("gauge --config-dir nowhere", "no such folder"),
    ("gauge --cfg job -p modl", "no such part"),
    # keys
    ("gauge agument=[flip]", "agument: no such option; did you mean 'augment'?"),
    ("gauge optim.lrr=1", "did you mean 'optim.lr'?"),
    ("gauge run.epoch=1", "did you mean 'run.epochs'?"),
    ("gauge epochs=1", "did you mean 'run.epochs'?"),
    ("gauge levle=1", "did you mean 'level'?"),
    ("gauge augment=[blend] augment.blend.alhpa=1", "did you mean 'augment.blend.alpha'?"),
    ("gauge -m optim.lrr=1,2", "did you mean 'optim.lr'?"),
    ("gauge optim.lr.x=1", "no such option"),
    ("gauge qqq.www=1", "no such option; see engine --help"),
    ("gauge run.zzzzzz=1", "known: run.epochs, run.steps"),
    ("gauge experimnt=mnist", "did you mean 'experiment'?"),
    ("gauge optim.beta1=0.8", "an option of optim=adamw, but this command has optim=sgd"),
    ("gauge augment.blend.alpha=1", "blend is not in augment=[normalize]; add it"),
    ("gauge checkpoint=x", "not of 'gauge'"),
    ("gauge run=3", "run has no value of its own"),
    # choices
    ("gauge model=lenett", "model=lenett: no such model; did you mean 'lenet'?"),
    ("gauge augment=[flip,blendp]", "augment=blendp: no such augment; did you mean 'blend'?"),
    ("gauge experiment=minst", "did you mean 'mnist'?"),
    ("gauge model=", "known: alexnet"),
    ("gauge augment=[flip,flip]", "flip is named twice"),
    ("gauge augment=[cifar,flip]", "flip is named twice"),
    ("gauge model=cnn model=lenet", "model is given twice"),
    ("gauge model=[cnn,lenet]", "takes one choice"),
    ("gauge model=null", "expected model=name"),
    ("gauge experiment=null", "expected experiment=name"),
    ("gauge augment={flip:{p:1}}", "augment.NAME.OPTION=value"),
    ("gauge mode=fin", "did you mean 'fine'?"),
    ("gauge run.nonfinite=skp", "did you mean 'skip'?"),
    # sweeps
    ("gauge model=cnn,lenet", "add -m"),
    ("gauge -m model=cnn,lenett", "did you mean 'lenet'?"),
    ("gauge -m augment=[flip],[flip,blendp]", "did you mean 'blend'?"),
    ("gauge -m augment=[flip],[blend,blend]", "blend is named twice"),
    ("gauge -m model=choice(cnn,lenett)", "did you mean 'lenet'?"),
    ("gauge -m run.nonfinite=skip,stp", "did you mean 'stop'?"),
    ("gauge -m run.epochs=1,0", "run.epochs=0: must be at least 1"),
    ("gauge -m run.epochs=1,x", "run.epochs: 'x' is not a whole number"),
    ("gauge -m out=a,b", "cannot be swept"),
    ("gauge -m run.epochs=interval(1,3)", "does not support sweep type"),
    # resuming
    ("gauge resume=", "resume= is empty: give auto"),
    ("glance resume=", "resume= is empty: give auto"),
    ("glance resume=auto", "the job 'glance' goes on with no run; name what it reads with checkpoint="),
    ("plugins resume=runs/a", "the job 'plugins' goes on with no run; leave it out"),
    # forms
    ("gauge +model._target_=os.system", "nothing can be added"),
    ("gauge ++run.epochs=3", "write run.epochs=3"),
    ("gauge model._target_=os.system", "no such option"),
    ("gauge ~augment", "augment=[] chooses none"),
    ("gauge ~run.epochs", "nothing can be removed"),
    ("gauge model@other=cnn", "a component's place is fixed"),
    ("gauge run.epochs=[1", "cannot be read"),
    ("gauge out=a=b:", "cannot be read"),
    ("gauge hydra.run.dir=x", "out=FOLDER"),
    ("gauge hydra.mode=MULTIRUN", "-m"),
    ("gauge hydra.searchpath=[x]", "--config-dir"),
    # values
    ("gauge run.epochs=x", "run.epochs: 'x' is not a whole number"),
    ("gauge run.epochs=0", "run.epochs=0: must be at least 1"),
    ("gauge run.epochs=null", "null is not allowed"),
    ("gauge run.compile=maybe", "is not true or false"),
    ("gauge augment=[blend] augment.blend.alpha=0", "must be above 0"),
    ("gauge data=needy", "data.root must be given (folder of the records): add data.root=..."),
    ("gauge out=${nothing}", "out: Interpolation key 'nothing' not found"),
    ("gauge run={epochs:x}", "run.epochs"),
    ("gauge optim=by_layer optim.rates.conv=0.1", "optim.rates.conv"),
    ("gauge hydra.nothing=1", "nothing"),
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
    assert "[not loaded: sorry (ImportError: no)]" in engine("gauge", "augment=[stamp]").err


def test_a_default_whose_plugin_is_broken(engine, registry, monkeypatch):
    left = {key: entry for key, entry in registry.components.items() if key != ("model", "cnn")}
    monkeypatch.setattr(registry, "components", left)
    broken = Plugin("models", "conv-engine", "0.1", error="ImportError: no")
    monkeypatch.setattr(registry, "plugins", [*registry.plugins, broken])
    assert "model=cnn: no such model" in engine("gauge").err
    assert "[not loaded: models (ImportError: no)]" in engine("gauge").err
    assert engine("gauge", "model=lenet").code == 0
    assert engine("--help").code == 0


def test_a_dict_option_takes_new_keys(engine):
    done = engine("gauge", "optim=by_layer", "+optim.rates.conv=0.3", "optim.steps=[7]")
    assert done.code == 0, done.err
    assert done.session.options.optim.rates == {"conv": 0.3}
    assert done.session.options.optim.steps == [7]


def test_a_field_of_any_swept_choice_is_accepted(engine, sessions):
    done = engine("gauge", "-m", "optim=adamw", "optim.beta1=0.8,0.7")
    assert done.code == 0, done.err
    assert [session.options.optim.beta1 for session in sessions] == [0.8, 0.7]
