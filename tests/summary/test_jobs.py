"""The commands: their tables against their JSON and against worked-out figures; no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.plugins.summary.blocks import costs_of
from engine.plugins.summary.roofline import Ceilings

LENET = ("model=lenet", "inputs=[1,28,28]", "classes=10", "run.device=cpu", "flops=1e9", "bandwidth=1")


def test_summary_prints_every_layer_and_writes_the_same_figures(engine):
    code, out, err = engine("summary", *LENET, "batch=8", "json=figures.json")
    assert code == 0, err
    found = json.loads(Path("figures.json").read_text())
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["conv2"]["multiply_adds"] == 50 * 8 * 8 * 20 * 25
    assert layers["conv2"]["shape"] == [50, 8, 8]
    assert layers["conv2"]["field"] == {"size": [14, 14], "stride": [2, 2], "start": [0, 0]}
    assert layers["fc1"]["trainable"] == 800 * 500 + 500
    assert found["multiply_adds"] == sum(layer["multiply_adds"] for layer in layers.values()) == 2_293_000
    assert found["parameters"] == {"trainable": 431_080, "frozen": 0}
    assert found["memory"]["total"] == sum(n for kind, n in found["memory"].items() if kind != "total")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "50x8x8" in lines["conv2"]
    assert "25,050" in lines["conv2"]
    assert "431,080 train, 0 frozen" in lines["parameters"]


def test_the_roofline_divides_layers_by_their_intensity(engine):
    assert engine("summary", *LENET, "batch=64", "json=figures.json")[0] == 0
    found = json.loads(Path("figures.json").read_text())
    assert found["machine"] == {"flops": 1e9, "bandwidth": 1e9}
    for layer in found["layers"]:
        intensity = 2 * 64 * layer["multiply_adds"] / layer["moved"]
        assert layer["bound"] == ("compute" if intensity >= 1 else "memory")
    conv = next(layer for layer in found["layers"] if layer["name"] == "conv2")
    assert conv["moved"] == 4 * (64 * (20 * 12 * 12 + 50 * 8 * 8) + 25_050)
    assert Ceilings(8e9, 2e9).bound(2, 1) == "compute"
    assert Ceilings(8e9, 2e9).bound(1.9, 1) == "memory"


def test_summary_times_layers_by_every_kernel(engine):
    code, out, err = engine(
        "summary", *LENET, "batch=2", "time=true", "compare=[winograd]", "seconds=0.001", "json=figures.json"
    )
    assert code == 0, err
    layers = {layer["name"]: layer["milliseconds"] for layer in json.loads(Path("figures.json").read_text())["layers"]}
    assert layers["conv1"]["native"]["forward"] > 0
    assert layers["conv1"]["native"]["backward"] > 0
    assert set(layers["fc1"]) == {"native"}
    assert "native ms" in out
    assert "time, native" in out


def test_summary_of_the_composed_data_needs_no_inputs(engine):
    code, out, err = engine("summary", "model=mlp", "run.device=cpu", "flops=1e9", "bandwidth=1")
    assert code == 0, err
    assert "images 64 x 1 x 16 x 16, 10 outputs" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("summary", "inputs=[3,224]"), "give channels, height and width"),
        (("summary", *LENET, "compare=[nothing]"), "there is no kernel 'nothing'"),
        (("summary", *LENET, "json=no/where/f.json"), "cannot be written"),
        (("compare", "model=lenet,lenett"), "did you mean 'lenet'"),
        (("compare", "models=['lenet depth=3']"), "'depth=3' is no option of model=lenet"),
        (("compare", "blocks", "channels=7"), "must be even"),
    ],
)
def test_mistakes_are_answered_in_a_line(engine, words, said):
    code, _, err = engine(*words)
    assert code == 2
    assert said in err


def test_compare_takes_networks_as_a_sweep_would_and_as_a_list(engine):
    more = ("inputs=[3,32,32]", "classes=10", "run.device=cpu")
    code, out, err = engine("compare", "model=lenet,resnet20", *more)
    assert code == 0, err
    assert engine("compare", "models=[lenet,resnet20]", *more)[1] == out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["resnet20"][1:6] == ["20", "269,722", "0.041", "81", "4"]
    assert engine("compare", "models=[lenet,'resnet20 depth=32']", "json=f.json", *more)[0] == 0
    networks = json.loads(Path("f.json").read_text())["networks"]
    assert [each["name"] for each in networks] == ["lenet", "resnet20 depth=32"]
    assert networks[1]["parameters"] == 464_154  # He et al. 2015, table 6: 0.46 M


def test_compare_of_one_choice_is_of_the_composed_network(engine):
    code, out, _ = engine("compare", "model=lenet", "inputs=[1,28,28]", "classes=10", "run.device=cpu")
    assert code == 0
    assert "431,080" in out


@pytest.mark.parametrize("channels", [64, 256])
def test_blocks_cost_what_the_lecture_says(channels):
    costs = {cost.name: cost for cost in costs_of(channels, 14)}
    squares = {name: cost.weights / channels**2 for name, cost in costs.items()}
    assert squares["one 7x7"] == 49
    assert squares["three 3x3"] == 27
    assert squares["one 3x3"] == 9
    assert squares["1x3, 3x1"] == 6
    assert squares["1x1 to C/2, 3x3, 1x1 back"] == 3.25
    assert squares["1x1 to C/2, 1x3, 3x1, 1x1 back"] == 2.5
    assert costs["one 7x7"].sees == costs["three 3x3"].sees == (7, 7)
    assert costs["one 3x3"].sees == costs["1x1 to C/2, 1x3, 3x1, 1x1 back"].sees == (3, 3)
    assert all(cost.multiply_adds == cost.weights * 14 * 14 for cost in costs.values())


def test_compare_blocks_prints_the_argument(engine):
    code, out, err = engine("compare", "blocks", "channels=8", "size=4", "run.device=cpu")
    assert code == 0, err
    assert "one 7x7 against three 3x3: 49 C^2 against 27 C^2 weights" in out
    assert "9 C^2 against 3.25 C^2" in out
    assert "9 C^2 against 2.5 C^2" in out
