"""``engine plan``: its figures against worked-out ones, and one clear line for what cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

PAPER = ["flops=1e12", "bandwidth=100"]
LENET = ["model=lenet", "inputs=[1,28,28]", *PAPER]
PARAMETERS = 20 * 25 + 20 + 50 * 20 * 25 + 50 + 800 * 500 + 500 + 500 * 10 + 10


@pytest.fixture
def engine(engine):
    """Return a function that runs ``engine plan`` in this process, in tmp_path: exit code, stdout, stderr."""
    return lambda *words: engine("plan", *words)


def test_a_plan_as_table_and_as_json(engine):
    code, out, err = engine(*LENET, "world=8", "link=1Gbit", "run.batch=256", "json=plan.json")
    assert code == 0, err
    told = json.loads(Path("plan.json").read_text())
    assert (told["world"], told["samples_per_process"], told["batch"]) == (8, 32, 256)
    made = {each["name"]: each for each in told["strategies"]}
    assert {"single", "data", "hybrid a", "hybrid d", "layer by layer", "local_sgd", "async"} <= set(made)
    assert made["data"]["bytes"] == pytest.approx(2 * 7 / 8 * (4 * PARAMETERS + 8))
    assert made["single"]["bytes"] == 0
    for each in made.values():
        assert each["lower_s"] == max(each["compute_s"], each["communication_s"])
        assert each["upper_s"] == pytest.approx(each["compute_s"] + each["communication_s"])
        assert each["speedup"] == pytest.approx(made["single"]["upper_s"] / each["upper_s"])
        assert each["name"] in out
    exact = [each for each in made.values() if each["same_gradient"] and each["name"] != "layer by layer"]
    assert told["chosen"] == min(exact, key=lambda each: each["upper_s"])["name"]
    assert f"* {told['chosen']}" in " ".join(out.split())
    # A batch of 256 is below the hidden layer's 500 outputs and its 800 inputs.
    assert "below a batch of 500 (its outputs), by rows below 800 (its inputs)" in out


def test_a_process_on_paper_computes_as_its_roofline_says(engine):
    engine(*LENET, "world=1", "run.batch=64", "json=plan.json")
    told = json.loads(Path("plan.json").read_text())
    (single,) = told["strategies"]
    multiply_adds = {"conv1": 20 * 24 * 24 * 25, "conv2": 50 * 8 * 8 * 20 * 25}
    layers = {layer["name"]: layer for layer in told["layers"]}
    assert {name: layers[name]["multiply_adds"] for name in multiply_adds} == multiply_adds
    # Forward and weight's gradient for the first convolution, the images' gradient too for all others: 2 flop each.
    arithmetic = 64 * 2 * (2 * multiply_adds["conv1"] + 3 * (multiply_adds["conv2"] + 800 * 500 + 500 * 10)) / 1e12
    assert arithmetic < single["compute_s"] < 100 * arithmetic
    assert told["chosen"] == "single"


@pytest.mark.parametrize("world", [1024, 1_000_003])
def test_it_answers_for_more_machines_than_anybody_has(engine, world):
    code, out, err = engine(*LENET, f"world={world}", "link=25Gbit")
    assert code == 0, err
    assert f"{world} processes, 1 samples each: a batch of {world}" in out


def test_this_machine_is_measured_unless_another_is_given(engine):
    code, out, err = engine("model=lenet", "inputs=[1,28,28]", "run.batch=8", "world=2")
    assert code == 0, err
    assert "measured here" in out


def test_the_composed_data_gives_the_shape(engine):
    code, out, err = engine(*PAPER, "world=2")
    assert code == 0, err
    assert "128 x 10" in out
    assert "no linear layer sends fewer bytes split" in out


def test_it_says_what_a_plan_leaves_out(engine):
    for world, missing in ((2, False), (64, True)):
        _, out, _ = engine(*LENET, f"world={world}", "parallel=hybrid", "parallel.scheme=a")
        assert "parallel= is not looked at" in out
        assert ("pipeline: the model has fewer layers than there are processes" in out) == missing
        assert (f"{4 * world} micro-batches" in out) != missing


@pytest.mark.parametrize(("load", "busy"), [(0.5, False), (0.7, True), (31.0, True)])
def test_a_busy_machine_is_told_of_where_it_is_measured(engine, monkeypatch, load, busy):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    _, measured, _ = engine("model=lenet", "inputs=[1,28,28]", "run.batch=8", "world=2")
    assert (f"this machine is busy (load average {load}, 2 cores)" in measured) == busy
    _, paper, _ = engine(*LENET, "world=2")
    assert "busy" not in paper


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["world=0"], "world"),
        (["link=fast"], "link=fast: write a number and its unit, as in link=25Gbit"),
        (["latency=soon"], "latency=soon"),
        (["inputs=[3,224]"], "inputs=[3,224]: give channels, height and width"),
        (["flops=0", "bandwidth=100"], "give its flops= too"),
        (["json=nowhere/plan.json"], "json=nowhere/plan.json"),
        (["share=-1"], "share"),
    ],
)
def test_bad_input_gets_one_clear_line(engine, words, expected):
    code, out, err = engine(*LENET, *words)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_images_that_the_model_cannot_take(engine):
    code, _, err = engine("model=lenet", "inputs=[1,4,4]", *PAPER)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
