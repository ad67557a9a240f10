"""Caffe's solvers: policies, options, experiments that train, and going on from a .solverstate."""

from __future__ import annotations

import re
import shlex
from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_files import write_caffemodel, write_mean, write_solverstate
from nets import LENET, deploy, one
from safetensors.torch import load_file

from engine import UsageError
from engine.freezing import freeze
from engine.groups import parameter_groups, scaled_by_factors
from engine.plugins.caffe import CaffeNetwork, CaffeSchedule
from engine.plugins.caffe.building import graph
from engine.plugins.caffe.composing import Composition
from engine.plugins.caffe.history import momentum
from engine.plugins.caffe.solver import read_solver
from engine.plugins.caffe.wire import read_solver_state
from engine.plugins.optim import SGD

SOLVER = """
net: "examples/mnist/lenet_train_test.prototxt"
test_iter: 100  test_interval: 20
base_lr: 0.01  momentum: 0.9  weight_decay: 0.0005
lr_policy: "inv"  gamma: 0.0001  power: 0.75
display: 10  max_iter: 60  snapshot: 30  snapshot_prefix: "lenet"  solver_mode: GPU
"""
SHAPE = (1, 16, 16)


@pytest.fixture
def lenet(tmp_path) -> Path:
    """A solver as Caffe's example has it, and the net that it names, relative to another folder."""
    folder = tmp_path / "examples" / "mnist"
    folder.mkdir(parents=True)
    (folder / "lenet_train_test.prototxt").write_text(LENET)
    (folder / "lenet_solver.prototxt").write_text(SOLVER)
    return folder / "lenet_solver.prototxt"


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({"policy": "fixed"}, lambda i: 1.0),
        ({"policy": "step", "gamma": 0.5, "stepsize": 7}, lambda i: 0.5 ** (i // 7)),
        ({"policy": "exp", "gamma": 0.9}, lambda i: 0.9**i),
        ({"policy": "inv", "gamma": 1e-2, "power": 0.75}, lambda i: (1 + 1e-2 * i) ** -0.75),
        ({"policy": "multistep", "gamma": 0.1, "stepvalues": [3, 20]}, lambda i: 0.1 ** ((i >= 3) + (i >= 20))),
        ({"policy": "poly", "power": 2.0, "max_iter": 80}, lambda i: (1 - i / 80) ** 2),
        ({"policy": "poly", "power": 0.5}, lambda i: (1 - i / 50) ** 0.5),
        ({"policy": "sigmoid", "gamma": -0.3, "stepsize": 20}, lambda i: 1 / (1 + exp(0.3 * (i - 20)))),
    ],
)
def test_policies_are_caffes_formulas(options, formula):
    factor = CaffeSchedule(**options).build(50)
    assert [factor(i) for i in range(50)] == pytest.approx([formula(i) for i in range(50)], rel=1e-12)


def test_a_policy_says_what_it_lacks():
    with pytest.raises(UsageError, match=r"schedule\.stepsize=0: policy=step needs"):
        CaffeSchedule(policy="step").build(5)
    with pytest.raises(UsageError, match="must ascend"):
        CaffeSchedule(policy="multistep", stepvalues=[3, 1]).build(5)


def test_a_solver_becomes_overrides(engine, lenet, tmp_path):
    code, told, said = engine("import", f"solver={lenet}", "inputs=[1,16,16]")
    assert code == 0, said
    assert "test_iter is left out" in said
    assert set(told.split()) == {
        "model=caffe", f"model.prototxt={lenet.parent / 'lenet_train_test.prototxt'}", "augment=[normalize]",
        "augment.normalize.mean=[0.0]", "augment.normalize.std=[1.003921568627451]", "run.steps=60", "run.batch=64",
        "run.evaluate_every=20", "save.every=30", "run.log_every=10", "optim=sgd", "optim.lr=0.01",
        "optim.momentum=0.9", "optim.weight_decay=0.0005", "optim.decay_all=true", "schedule=caffe",
        "schedule.policy=inv", "schedule.gamma=0.0001", "schedule.power=0.75",
    }  # fmt: skip
    assert not any(tmp_path.glob("experiment"))


def composed(path: Path, text: str) -> list[str]:
    """Return the overrides that a solver becomes."""
    path.write_text(f'net: "lenet_train_test.prototxt" base_lr: 0.1 max_iter: 60 {text}')
    into = Composition()
    read_solver(path, "", lambda text: None).compose(into, graph(LENET, "TRAIN"))
    return into.words()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('lr_policy: "step" gamma: 0.1 stepsize: 20', {"schedule.policy=step", "schedule.stepsize=20"}),
        (
            'lr_policy: "fixed" type: "Nesterov" momentum: 0.8',
            {"schedule=constant", "optim=sgd", "optim.nesterov=true"},
        ),
        ('lr_policy: "multistep" stepvalue: 5 stepvalue: 9', {"schedule.stepvalues=[5,9]"}),
        ('lr_policy: "poly" power: 2', {"schedule.policy=poly", "schedule.power=2.0", "schedule.max_iter=60"}),
        ('type: "Adam" momentum: 0.8 momentum2: 0.99', {"optim=adamw", "optim.beta1=0.8", "optim.beta2=0.99"}),
        ("solver_type: ADAGRAD delta: 1e-6", {"optim=adagrad", "optim.eps=1e-06"}),
        ("iter_size: 4 clip_gradients: 35 random_seed: 7", {"run.accumulate=4", "run.clip=35.0", "run.seed=7"}),
    ],
)
def test_other_solvers_do_too(lenet, text, expected):
    assert expected <= set(composed(lenet, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('lr_policy: "plateau"', "lr_policy 'plateau' is not supported"),
        (f"solver_type: {'9' * 5000}", "type 9999999999999999999999999999999999999999 is not supported"),
        ('type: "RMSProp"', "type RMSPROP is not supported: ADAGRAD, ADAM, NESTEROV, SGD are"),
        ('type: "Adam" weight_decay: 0.1', "Adam with weight_decay is not supported"),
        ('regularization_type: "L1" weight_decay: 0.1', "regularization_type L1 is not supported: L2 is"),
        ("base_lr: -1", "base_lr must be given, and above 0"),
        ("\nbase_rl: 1", "line 2: a solver has no field 'base_rl'; did you mean 'base_lr'?"),
        ('net: "elsewhere.prototxt"', "its net 'elsewhere.prototxt' is not there: give prototxt=FILE"),
    ],
)
def test_what_a_solver_asks_in_vain_is_told(lenet, text, message):
    with pytest.raises(UsageError) as caught:
        composed(lenet, text)
    assert str(caught.value).startswith(f"{lenet}: {message}")


def test_a_solvers_mean_image_is_scaled_as_pixels_are(engine, lenet, tmp_path):
    """Caffe computes (pixel - mean) scale; the experiment has the mean's file, and the network pixels by scale."""
    image = np.random.default_rng(0).uniform(0, 255, SHAPE)
    mean = write_mean(tmp_path / "mean.binaryproto", image)
    code, told, said = engine("import", f"solver={lenet}", "inputs=[1,16,16]", f"mean={mean}", "out=caffe")
    assert code == 0, said
    words = dict(word.split("=", 1) for word in shlex.split(told))
    network = CaffeNetwork(prototxt=LENET, mean=words["model.mean"], mean_scale=float(words["model.mean_scale"])).build(
        SHAPE, 10
    )
    pixels = np.random.default_rng(1).integers(0, 256, SHAPE)
    centre, spread = (float(words[f"augment.normalize.{name}"].strip("[]")) for name in ("mean", "std"))
    prepared = (pixels / 255 - centre) / spread
    given = torch.from_numpy(prepared) - network.mean_image
    assert np.allclose(given, (pixels - image) * 0.00390625, atol=1e-5)
    assert "mean_scale: 0.00390625" in (tmp_path / "caffe/experiment/lenet_solver.yaml").read_text()


def test_a_train_val_net_trains_by_its_solver(engine, lenet):
    code, _, said = engine("import", f"solver={lenet}", "inputs=[1,16,16]", "out=caffe")
    assert code == 0, said
    lenet.parent.joinpath("lenet_train_test.prototxt").unlink()  # the experiment has it
    code, _, said = engine(
        "train", "--config-dir", "caffe", "experiment=lenet_solver", "out=run", "observe=[csv]", "data=digits"
    )
    assert code == 0, said
    code, told, said = engine("evaluate", "--config-dir", "caffe", "checkpoint=run")
    assert code == 0, said
    assert float(re.search(r"accuracy ([\d.]+)", told)[1]) > 0.6, "60 steps of 64 digits teach something"


NET = one(
    "InnerProduct", "data", "fc",
    "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 } inner_product_param { num_output: 3 }", "fc",
)  # fmt: skip


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_goes_on_as_caffes_would(tmp_path, nesterov):
    """Caffe's own recursion in float64, V = m V + rate (gradient + decay w) and w -= V, against torch's from there."""
    rng = np.random.default_rng(0)
    text = deploy(NET, (4, 1, 1))
    network = CaffeNetwork(prototxt=text).build((4, 1, 1), 3)
    weights = {n: p.detach().double().numpy().copy() for n, p in network.named_parameters()}
    gradients = [{n: rng.normal(size=w.shape) for n, w in weights.items()} for _ in range(8)]
    rate, m, decay = 0.05, 0.9, 0.01
    history = {n: np.zeros_like(w) for n, w in weights.items()}

    def caffe(step: dict[str, np.ndarray]) -> None:
        for n, w in weights.items():
            lr, d = network.multipliers[n]
            before = history[n].copy()
            history[n] = m * history[n] + rate * lr * (step[n] + decay * d * w)
            weights[n] = w - ((1 + m) * history[n] - m * before if nesterov else history[n])

    for step in gradients[:4]:
        caffe(step)
    state = write_solverstate(tmp_path / "s.solverstate", 4, [history["fc.weight"], history["fc.bias"]])
    with torch.no_grad():
        for n, p in network.named_parameters():
            p.copy_(torch.from_numpy(weights[n]))
    factors = freeze(network, {})
    options = SGD(lr=rate, momentum=m, weight_decay=decay, decay_all=True, nesterov=nesterov)
    optimizer = scaled_by_factors(options.build(parameter_groups(network, factors)))
    momentum(optimizer, graph(text, "TRAIN"), network, read_solver_state(state), state)
    for step in gradients[4:]:
        caffe(step)
        for n, p in network.named_parameters():
            p.grad = torch.from_numpy(step[n]).float()
        optimizer.step()
    for n, p in network.named_parameters():
        assert np.allclose(p.detach().numpy(), weights[n], atol=1e-6), n


def test_a_solverstate_is_gone_on_with(engine, lenet, tmp_path):
    """The weights and momentum of a run of the engine's, written as Caffe writes them, end where that run ends."""
    lenet.write_text(SOLVER.replace('"inv"', '"fixed"'))
    code, told, said = engine("import", f"solver={lenet}", "inputs=[1,16,16]")
    assert code == 0, said
    code, _, said = engine("train", *shlex.split(told), "out=whole", "observe=[csv]", "save.keep=9")
    assert code == 0, said
    half = tmp_path / "whole/checkpoints/step-00000030"
    weights, buffers = load_file(half / "model.safetensors"), load_file(half / "optimizer.safetensors")
    kinds = {"conv1": "Convolution", "ip1": "InnerProduct", "ip2": "InnerProduct"}
    layers = {n: (kind, [weights[f"{n}.{p}"].numpy() for p in ("weight", "bias")]) for n, kind in kinds.items()}
    write_caffemodel(tmp_path / "half.caffemodel", layers)
    history = [
        buffers[f"{n}.{p}/momentum_buffer"].numpy() * 0.01 * mult
        for n in kinds
        for p, mult in (("weight", 1), ("bias", 2))
    ]
    write_solverstate(tmp_path / "half.solverstate", 30, history)
    given = ["caffe=half.caffemodel", "state=half.solverstate", f"solver={lenet}", "inputs=[1,16,16]"]
    code, told, said = engine("import", *given, "data=digits", "out=again")
    assert code == 0, said
    assert told.strip().endswith("step-00000030")
    code, _, said = engine("train", "resume=again", "observe=[csv]")
    assert code == 0, said
    end = "checkpoints/step-00000060/model.safetensors"
    expected, found = load_file(tmp_path / "whole" / end), load_file(tmp_path / "again" / end)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-5), name
    assert not torch.allclose(weights["ip2.weight"], expected["ip2.weight"], atol=1e-3)


def test_a_history_of_another_network_is_refused(engine, lenet, tmp_path):
    network = CaffeNetwork(prototxt=LENET).build(SHAPE, 10)
    kinds = {"conv1": "Convolution", "ip1": "InnerProduct", "ip2": "InnerProduct"}
    state = network.state_dict()
    write_caffemodel(
        tmp_path / "n.caffemodel",
        {n: (kind, [state[f"{n}.weight"].numpy(), state[f"{n}.bias"].numpy()]) for n, kind in kinds.items()},
    )
    write_solverstate(tmp_path / "n.solverstate", 30, [np.zeros(3, np.float32)])
    given = ["caffe=n.caffemodel", "state=n.solverstate", f"solver={lenet}", "inputs=[1,16,16]", "out=again"]
    code, _, said = engine("import", *given)
    assert code == 2
    assert "has a history of 1 parameters, and the network has 6" in said
    write_solverstate(tmp_path / "n.solverstate", 60, [np.zeros(3, np.float32)])
    code, _, said = engine("import", *given)
    assert code == 2
    assert "n.solverstate is after 60 steps" in said
