"""Networks of one bit as a user trains, resumes, evaluates and exports them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine import manifest
from engine.binary import load
from engine.registry import Registry

WORDS = [
    "model=mlp", "model.hidden=[128,128]", "model.batch_norm=true", "loss=squared_hinge", "optim=adamw",
    "optim.lr=0.003", "data.size=8", "run.batch=64", "run.log_every=11",
]  # fmt: skip


def rows(name: str, out: str = "run") -> list[float]:
    """Return what metrics.csv has of a number, in order."""
    return [float(row[name]) for row in csv.DictReader(Path(out, "metrics.csv").open()) if row.get(name)]


def weights(out: str) -> dict[str, torch.Tensor]:
    return load_file(manifest.checkpoints(Path(out))[0] / "model.safetensors")


def straight(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def test_they_learn_the_digits_nearly_as_float32_does(engine):
    for policy in ("float32", "binary_connect", "binary_net", "xnor"):
        code, _, told = engine("train", *WORDS, "run.epochs=6", f"precision={policy}", f"out={policy}")
        assert code == 0, told
    real = rows("test/accuracy", "float32")[-1]
    assert real > 0.95
    for policy, points in (("binary_connect", 0.03), ("binary_net", 0.05), ("xnor", 0.05)):
        assert rows("test/accuracy", policy)[-1] > real - points, policy
        flips = rows("precision/weight_flips", policy)
        assert len(flips) == len(rows("train/loss", policy))
        assert all(0 <= share < 0.5 for share in flips)
        assert max(flips) > 0
        assert all(0 <= share <= 1 for share in rows("precision/clipped_weights", policy))
        assert (len(rows("precision/outside_window", policy)) > 0) == (policy != "binary_connect")


@pytest.mark.parametrize("policy", [["binary_connect", "precision.sign=stochastic"], ["binary_net"]])
def test_a_resumed_run_ends_with_the_same_bits(engine, policy):
    words = [*WORDS, f"precision={policy[0]}", *policy[1:], "run.epochs=2", "save.every=13 steps", "save.keep=9"]
    code, _, told = engine("train", *words, "out=run")
    assert code == 0, told
    begun = Path("run/checkpoints/step-00000013")
    code, _, told = engine("train", f"resume={begun}", "out=branch")
    assert code == 0, told
    whole, resumed = weights("run"), weights("branch")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    matrices = [value for name, value in whole.items() if name.startswith("fc")]
    assert any(bool((value.abs() < 1).any()) for value in matrices)  # real weights, not signs, are kept
    assert all(bool((value.abs() <= 1).all()) for value in matrices)


@pytest.mark.parametrize("sign", ["deterministic", "stochastic"])
def test_an_evaluation_takes_the_weights_that_the_paper_says(engine, sign):
    code, _, told = engine(
        "train", *WORDS, "precision=binary_connect", f"precision.sign={sign}", "run.epochs=3", "out=run"
    )
    assert code == 0, told
    code, out, told = engine("evaluate", "checkpoint=run")
    assert code == 0, told
    model = Registry.load().entry("model", "mlp").options(hidden=[128, 128], batch_norm=True).build((1, 8, 8), 10)
    state = weights("run")
    if sign == "deterministic":
        state = {name: straight(value) if name.startswith("fc") else value for name, value in state.items()}
    model.load_state_dict(state)
    source = Registry.load().entry("data", "digits").options(size=8)
    train, test = (source.build(split) for split in ("train", "test"))
    pixels = train.records(range(len(train))).images.double()
    records = test.records(range(len(test)))
    with torch.no_grad():
        scores = model.eval()(((records.images.double() - pixels.mean()) / pixels.std(correction=0)).float())
    accuracy = float((scores.argmax(1) == records.targets).double().mean())
    near = pytest.approx(accuracy, abs=1.5 / len(test))  # an image on the border may fall either way
    assert float(out.split("accuracy")[1]) == near
    assert rows("test/accuracy")[-1] == near


def test_a_trained_network_is_exported_with_the_bits_of_the_evaluated_one(engine):
    code, _, told = engine("train", *WORDS, "precision=binary_net", "run.steps=24", "out=run")
    assert code == 0, told
    code, out, told = engine("export", "checkpoint=run", "format=binary", "out=network.bits")
    assert code == 0, told
    assert "float32" not in told  # the first layer, of 8-bit inputs, is computed in integers too
    state = weights("run")
    pixels = Registry.load().entry("data", "digits").options(size=8).build("test").records(range(360)).images
    network = load("network.bits")
    prepared = network._pixels(pixels)
    x = ((prepared * 32).round().clamp(-128, 127) / 32).flatten(1)
    for number in (1, 2, 3):
        norm = nn.BatchNorm1d(len(state[f"fc{number}.weight"])).eval()
        norm.load_state_dict({k: state[f"bn{number}.{k}"] for k in norm.state_dict()})
        with torch.no_grad():
            x = norm(x @ straight(state[f"fc{number}.weight"]).T)
        if number < 3:
            x = straight(x)
    assert torch.equal(network(pixels), x)
    assert torch.equal(network(prepared), x)
    code, out, told = engine("evaluate", "checkpoint=run")
    assert code == 0, told
    targets = Registry.load().entry("data", "digits").options(size=8).build("test").records(range(360)).targets
    assert float(out.split("accuracy")[1]) == pytest.approx(float((x.argmax(1) == targets).double().mean()), abs=1e-6)


@pytest.mark.parametrize("precision", ["xnor", "binary_connect", "fixed", "float16"])
def test_networks_of_other_policies_are_exported_as_graphs_with_the_weights_they_are_evaluated_with(engine, precision):
    more = ["precision.round_state=false"] if precision == "fixed" else []  # Adam's squares would all be 0
    code, _, told = engine("train", *WORDS, f"precision={precision}", *more, "run.steps=40", "out=run")
    assert code == 0, told
    code, out, told = engine("export", "checkpoint=run", "out=network.pt2")
    assert code == 0, told
    assert "outputs of 64 test images" in out
    extra = {"engine.json": ""}
    program = torch.export.load("network.pt2", extra_files=extra).module()
    scale, shift = (json.loads(extra["engine.json"])["preprocessing"][name][0] for name in ("scale", "shift"))
    records = Registry.load().entry("data", "digits").options(size=8).build("test").records(range(360))
    with torch.no_grad():
        found = program(records.images.float() * scale + shift).argmax(1) == records.targets
    assert rows("test/accuracy")[-1] > 0.8
    near = 0.02 if precision == "fixed" else 2.5 / 360  # the graph does not round activations
    assert float(found.double().mean()) == pytest.approx(rows("test/accuracy")[-1], abs=near)


def test_a_convolutional_network_of_one_bit_is_packed(engine):
    words = ["model=cnn", "model.width=8", "data.size=8", "run.batch=128", "run.steps=4", "precision=binary_net"]
    code, _, told = engine("train", *words, "out=run")
    assert code == 0, told
    code, out, told = engine("export", "checkpoint=run", "format=binary", "out=network.bits")
    assert code == 0, told
    assert "have the same bits as the model's" in out


def test_a_network_without_a_form_in_one_bit_is_one_line(engine):
    code, _, told = engine("train", "model=cnn", "model.drop_connect=0.5", "precision=binary_net", "out=run")
    assert code == 2
    assert "precision=binary_net: layer 'linear' (DropConnectLinear) has weights of its own" in told.splitlines()[-1]
    code, _, told = engine("train", "precision=binary_connect", "precision.sign=random", "out=run")
    assert code == 2
    assert "precision.sign" in told.splitlines()[-1]
    assert not Path("run", "config.yaml").exists()
