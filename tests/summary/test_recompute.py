"""Segments and ReLUs in place: the same bits as without, and the statistics and names of the model untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine.budget.inplace import inplace_layers
from engine.budget.recompute import Segment
from engine.budget.segments import Stretches
from engine.budget.trace import trace
from engine.convolutions import survey

from .tasks import foresight


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3),
    )  # fmt: skip


def trained(model: nn.Module, steps: int = 3) -> dict[str, torch.Tensor]:
    """Return what training steps leave: gradients of the last one, and the state."""
    images = torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return gradients | {name: value.clone() for name, value in model.state_dict().items()}


def segments(model: nn.Sequential, *bounds: tuple[int, int]) -> list[Segment]:
    made = [Segment(list(model)[first:after]) for first, after in bounds]
    for segment in made:
        segment.install()
    return made


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("bounds", [[(0, 9)], [(0, 3), (3, 7)], [(1, 4), (4, 6)], [(2, 5)]], ids=str)
def test_training_with_segments_has_the_same_bits(bounds):
    plain, changed = network(), network()
    segments(changed, *bounds)
    assert_same(trained(plain), trained(changed))
    assert int(changed[1].num_batches_tracked) == 3


def test_a_segment_saves_what_it_is_given_and_nothing_inside():
    changed, images = network(), torch.rand(5, 2, 6, 6)
    segments(changed, (0, 7))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        changed(images)
    weight = changed[8].weight.numel()
    assert sorted(kept) == sorted([images.numel(), weight, 5 * 4 * 36])  # what it is given, and the linear layer's


def test_evaluation_and_watched_layers_compute_as_ever():
    plain, changed = network(), network()
    segments(changed, (0, 7))
    images = torch.rand(5, 2, 6, 6)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), changed.eval()(images))
    seen = []
    watch = changed[1].register_forward_hook(lambda module, given, made: seen.append(made.detach().clone()))
    changed.train()(images)
    watch.remove()
    assert torch.equal(seen[0], plain.train()[1](plain[0](images)))


def test_a_pass_that_begins_inside_a_segment_computes_as_ever():
    plain, changed = network().eval(), network().eval()
    segments(changed, (0, 3))
    maps = torch.rand(5, 4, 6, 6)
    assert torch.equal(plain[1:](maps), changed[1:](maps))


def test_removing_gives_everything_back():
    model = network()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    for segment in segments(model, (0, 3), (4, 6)):
        segment.remove()
    assert all(vars(module).keys() == before[name].keys() for name, module in model.named_modules())


def test_a_segments_convolutions_still_take_kernels():
    model = network()
    segments(model, (0, 7))
    assert [layer.foreign for layer in survey(model, (4, 2, 6, 6))] == [False, False]


class Shared(nn.Module):
    """What is used twice, and behind a sum, must not be put into one segment with what comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu, self.last = nn.ReLU(), nn.Linear(3, 10)

    def forward(self, x):
        y = self.b(self.a(x))
        z = self.c(y)
        return self.last(self.relu(self.relu(y) + z).mean((2, 3)))


def test_only_what_nobody_else_looks_at_may_be_left_out():
    seen = foresight(Shared, (3, 8, 8))
    with seen.imagined():
        found = Stretches(trace(seen.model, seen.images(2)))
    names = {tuple(call.name for call in s.calls) for level in found._levels.values() for s in level.values()}
    assert names == {("a", "b")}  # b's output is c's and the ReLU's, the ReLU works twice


@pytest.mark.parametrize("model", ["resnet20", "squeezenet", "cnn"])
def test_any_selection_of_a_real_network_trains_with_the_same_bits(model):
    side = 64
    seen = foresight(model, (3, side, side))
    with seen.imagined():
        selections = Stretches(trace(seen.model, seen.images(2))).selections()
    torch.manual_seed(0)
    plain = seen.task.options.model.build((3, side, side), 10)
    results = []
    for selection in (selections[0], selections[len(selections) // 2]):
        changed = copy.deepcopy(plain)
        for stretch in selection.stretches:
            Segment([changed.get_submodule(call.name) for call in stretch.calls]).install()
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(5)
        changed(images).square().sum().backward()
        results.append({name: p.grad for name, p in changed.named_parameters()} | dict(changed.named_buffers()))
    assert selections[len(selections) // 2].stretches
    assert_same(*results)


class Residual(nn.Module):
    """ReLUs in every situation: behind a convolution, behind what saves its output, before a sum, on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.on_image, self.free, self.after_sigmoid, self.beside = (nn.ReLU() for _ in range(4))
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.linear = nn.Linear(3, 10)

    def forward(self, x):
        x = self.free(self.conv(self.on_image(x)))
        y = self.after_sigmoid(torch.sigmoid(x))
        z = self.other(y)
        return self.linear((self.beside(z) + z).mean((2, 3)))


def test_a_relu_overwrites_what_nobody_looks_at_any_more():
    assert inplace_layers(foresight(Residual, (3, 8, 8)), 2) == ("free",)


def test_relus_of_a_residual_network_may_work_in_place_with_the_same_bits():
    names = inplace_layers(foresight("resnet20", (3, 16, 16)), 2)
    assert len(names) == 19
    torch.manual_seed(0)
    plain = foresight("resnet20", (3, 16, 16)).task.options.model.build((3, 16, 16), 10)
    changed = copy.deepcopy(plain)
    for name in names:
        changed.get_submodule(name).inplace = True
    images = torch.rand(2, 3, 16, 16)
    for model in (plain, changed):
        model(images).square().sum().backward()
    assert_same({n: p.grad for n, p in plain.named_parameters()}, {n: p.grad for n, p in changed.named_parameters()})
