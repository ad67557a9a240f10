"""Frozen means frozen, in any network, with everything in the run that could move it."""

from __future__ import annotations

import pytest
import torch
from networks import KINDS, run_of, state_of, trained_names
from torch import nn

from engine.plugins.data import Digits
from engine.plugins.models import GoogLeNet, ResNet20, SmallCNN

MODELS = {
    "cnn": (SmallCNN(width=4, dropout=0.3), 8),
    "resnet": (ResNet20(depth=8, survival=0.5), 8),
    "googlenet": (GoogLeNet(auxiliary=False), 32),
}
LAST = {"cnn": "linear.weight", "resnet": "linear.weight", "googlenet": "loss3.classifier.weight"}


def leaves(output: torch.Tensor) -> set[int]:
    """Return which tensors a graph accumulates gradients in, by identity."""
    found, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [after for after, _ in node.next_functions]
    return found


class Graphs:
    """Looks, in each training step, at what the graph holds and at which layers' outputs need gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.outputs, self.problems = model, [], []
        for name, module in model.named_modules():
            if next(module.children(), None) is None:
                module.register_forward_hook(self.note(name))
        model.register_forward_hook(self.check)

    def note(self, name):
        def hook(module, inputs, output):
            self.outputs.append((name, output.requires_grad))

        return hook

    def check(self, model, inputs, output):
        outputs, self.outputs = self.outputs, []
        if not torch.is_grad_enabled():
            return
        training = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        held = leaves(output[0] if isinstance(output, list) else output)
        if held != set(training):
            self.problems.append(f"the graph holds {held ^ set(training)}")
        owners = {name.rpartition(".")[0] for name in training.values()}
        for name, needs in outputs:
            if name in owners:
                break
            if needs:
                self.problems.append(f"{name}, in the prefix, is in the graph")


# GoogLeNet's 6 million parameters take too long to train all; head and last_k tell of the branches.
CASES = [(k, n) for k in KINDS for n in MODELS if n != "googlenet" or k in ("head", "last_k")]


@pytest.mark.parametrize(("kind", "network"), CASES)
def test_the_frozen_part_is_bit_equal(kind, network, tmp_path):
    model, size = MODELS[network]
    settings = {"model": model, "data": Digits(size=size, threads=0)}
    if network == "googlenet":
        settings |= {"steps": 2, "batch": 4}
    seen = []

    def look(run):
        seen.append((run.position.stage, state_of(run), trained_names(run)))
        assert all(p.grad is None for p in run.model.parameters()), "gradients go with the step"

    stages = {"stages": ["head:0.3", "last_2:0.3", "all:0.4"]} if kind == "staged" else {}
    run = run_of(tmp_path, look, transfer=KINDS[kind](**stages), **settings)
    graphs = Graphs(run.model)
    before = state_of(run)
    assert run.fit() == "done"
    assert graphs.problems == []
    for stage, state, trains in seen:
        owners = {name.rpartition(".")[0] for name in trains}
        for name, value in state.items():
            if name not in trains and name.rpartition(".")[0] not in owners:
                assert torch.equal(value, before[name]), f"{name} moved in stage {stage}"
        if stage < len(run.stages) - 1 or kind != "full":
            assert LAST[network] in trains
        before = state
    moved = {name for name, value in seen[0][1].items() if not torch.equal(value, seen[-1][1][name])}
    assert moved >= {LAST[network]}
    for name, parameter in run.model.named_parameters():
        assert parameter.requires_grad == (name in trained_names(run))
