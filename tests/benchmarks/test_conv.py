"""The convolution benchmark: its layers against the networks they are from, its arithmetic, and small runs of it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import conv
from convolutions import host, kernels, loops, whole
from convolutions.layers import ASSIGNMENT, MIXED, VGG, Conv, depthwise, some
from convolutions.measuring import (
    LAYOUTS,
    NCHW,
    NHWC,
    Bench,
    Contest,
    Operands,
    Pace,
    contest,
    geometric_mean,
    torch_call,
)
from convolutions.networks import vgg16
from harness import Report, Times

from engine.interfaces import DIRECTIONS
from engine.measuring import call
from engine.registry import Registry

TINY = Conv("tiny", 4, 6, 9, 3)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def bench(registry: Registry) -> Bench:
    return Bench(Report(), Pace(0.0, 2, 2), False, registry)


def test_vgg16_is_the_published_network_and_the_list_holds_its_layers() -> None:
    network = vgg16(32)
    published = {"convolutions": 14_714_688, "fc6": 7 * 7 * 512 * 4096, "all": 138_357_544}
    linear = [module for module in network if isinstance(module, nn.Linear)]
    assert [layer.in_features for layer in linear] == [512, 4096, 4096]  # 512 x 7 x 7 for images of 224 x 224
    everything = sum(p.numel() for p in network.parameters())
    assert everything - sum(p.numel() for layer in linear for p in layer.parameters()) == published["convolutions"]
    assert everything - linear[0].weight.numel() + published["fc6"] == published["all"]
    seen: Counter[tuple[int, int, int]] = Counter()
    size = 224
    for module in network:
        if isinstance(module, nn.Conv2d):
            seen[module.in_channels, module.out_channels, size] += 1
        size //= 2 if isinstance(module, nn.MaxPool2d) else 1
    assert seen.pop((3, 64, 224)) == 1
    assert seen == {(layer.channels, layer.filters, layer.size): layer.times for layer in VGG}


def test_forty_layers_of_five_networks_have_the_sizes_of_their_papers() -> None:
    assert len(MIXED) == 40
    assert len({layer.spec(1) for layer in MIXED}) == 40
    assert {layer.name.split()[0] for layer in MIXED} == {"AlexNet", "VGG", "GoogLeNet", "ResNet", "MobileNet"}
    sizes = {layer.text(): layer.spec(1).output_shape[2] for layer in MIXED if layer.stride > 1}
    assert sizes == {
        "AlexNet 1: 3->64 11x11 /4 @224": 55,
        "ResNet 1: 3->64 7x7 /2 @224": 112,
        "ResNet 3a 3x3: 128->128 3x3 /2 @56": 28,
        "ResNet 3a shortcut: 256->512 1x1 /2 @56": 28,
        "MobileNet 0: 3->32 3x3 /2 @224": 112,
        "MobileNet 2: depthwise 3x3 /2 @112": 56,
    }
    assert all(layer.directions == (DIRECTIONS if layer.channels > 3 else DIRECTIONS[::2]) for layer in MIXED)
    assert ASSIGNMENT.spec(100).output_shape == (100, 25, 16, 16)


def test_a_quick_run_takes_some_layers_evenly() -> None:
    assert [layer.name for layer in some(MIXED, 4)] == [MIXED[place].name for place in (9, 19, 29, 39)]
    assert some(VGG, len(VGG)) == list(VGG)


def test_geometric_means_count_equal_layers_as_often_as_they_occur() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([8.0, 1.0], [1, 2]) == pytest.approx(2.0)
    layers = [Conv("a", 1, 1, 1, times=1), Conv("b", 1, 1, 1, times=2)]
    a = Contest(Times({"winograd6": [1.0], "winograd4": [2.0], NHWC: [8.0], NCHW: [16.0]}), "winograd6")
    b = Contest(Times({"winograd2": [1.0], NHWC: [8.0], NCHW: [1.0]}), "winograd2")
    assert kernels.mean(layers, [a, b], NHWC) == pytest.approx(8.0)
    assert kernels.mean(layers, [a, b]) == pytest.approx(2.0)  # over the faster layouts: 8, 1, 1
    assert kernels.mean(layers, [a, b], NCHW, "winograd4") == pytest.approx(2.0)  # 8, and the best where it is refused


def test_a_layer_is_judged_by_all_of_its_directions_within_each_round() -> None:
    seconds = {f"forward {NHWC}": [1.0, 2.0], f"forward {NCHW}": [5.0, 6.0], f"backward_weight {NHWC}": [3.0, 40.0]}
    assert whole.sums(Times(seconds), NHWC) == [4.0, 42.0]


def test_rounds_follow_from_what_one_takes() -> None:
    pace = Pace(3.0, 5, 40)
    assert [pace.rounds(seconds) for seconds in (0.001, 0.1, 10.0)] == [40, 30, 5]


@pytest.mark.parametrize("layer", [TINY, Conv("strided", 4, 6, 9, 3, 2), depthwise("channels", 5, 8, 3)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_both_sides_compute_what_float64_does(bench: Bench, layer: Conv, direction: str) -> None:
    spec = layer.spec(2)
    images, weight, gradient = (t.double() for t in Operands.of(spec, NCHW))
    out = conv2d(images.requires_grad_(), weight.requires_grad_(), None, spec.stride, spec.padding, groups=spec.groups)
    of_images, of_weight = torch.autograd.grad(out, (images, weight), gradient)
    expected = {"forward": out, "backward_input": of_images, "backward_weight": of_weight}[direction].detach()
    [naive] = bench.kernels(["naive"])
    calls = [torch_call(spec, direction, Operands.of(spec, layout)) for layout in LAYOUTS]
    for function in (*calls, call(spec, direction, naive, arrays=Operands.of(spec, NHWC))):
        torch.testing.assert_close(function().double(), expected, rtol=1e-4, atol=1e-4)


def test_python_loops_convolve() -> None:
    images, weight = torch.randn(2, 3, 7, 9).double(), torch.randn(4, 3, 3, 3).double()
    out = loops.convolve(images.numpy(), weight.numpy(), 2, 1)
    torch.testing.assert_close(torch.from_numpy(out), conv2d(images, weight, stride=2, padding=1))


def test_a_contest_times_the_best_kernel_another_and_both_layouts(bench: Bench) -> None:
    found = contest(bench, TINY.spec(1), "forward", ["naive", "depthwise"], also="depthwise")
    assert found.best == "naive"  # the other refuses the layer
    assert list(found.times) == ["naive", *LAYOUTS]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.times.values())
    with pytest.raises(SystemExit, match=r"nothing to measure.*more than one channel"):
        contest(bench, TINY.spec(1), "forward", ["depthwise"])


def test_claims_are_those_of_the_issue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel twice as fast as channels_last, and that three times as fast as NCHW."""

    def twice(bench: Bench, spec: Any, direction: str, names: Any, prepared: bool = False, also: str = "") -> Contest:
        return Contest(Times({names[0]: [1.0], also or names[0]: [1.0], NHWC: [2.0], NCHW: [6.0]}), names[0])

    monkeypatch.setattr(kernels, "contest", twice)
    for section in (kernels.winograd, kernels.backward, kernels.fft, kernels.implicit, kernels.depthwise):
        section(bench)
    assert all(claim.value == pytest.approx(2.0) for claim in bench.report.claims)
    assert all(claim.met == (claim.target <= 2.0) for claim in bench.report.claims)
    targets = {claim.name: claim.target for claim in bench.report.claims if "alone" not in claim.name}
    assert targets == {
        f"Winograd forward, VGG-16, N=8, weights transformed inside, over {NHWC}": 2.5,
        f"Winograd forward, VGG-16, N=8, prepared weights, over {NHWC}": 3.0,
        f"Winograd forward, VGG-16, N=1, weights transformed inside, over {NHWC}": 1.7,
        f"Winograd forward, VGG-16, N=1, prepared weights, over {NHWC}": 2.0,
        "Winograd backward_weight, VGG-16, N=8, over torch's faster layout": 3.0,
        "Winograd backward_input, VGG-16, N=8, over torch's faster layout": 2.0,
        **{f"FFT forward, K={k}, N=8": t for k, t in {5: 2.0, 7: 3.0, 11: 5.0, 15: 7.0, 31: 12.0}.items()},
        "implicit matrix product, forward, 3x3 layers, N=8, over torch's faster layout": 0.9,
        "implicit matrix product, forward, 1x1 layers, N=8, over torch's faster layout": 1.5,
        **{f"depthwise forward, K={k}, N=8, over torch's faster layout": t for k, t in {5: 2, 7: 1.5, 31: 1.5}.items()},
    }


def test_quick_and_json_go_all_the_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = (nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))
    monkeypatch.setattr(whole, "vgg16", lambda size: nn.Sequential(*small))
    monkeypatch.setattr(whole, "MIXED", (Conv("first", 3, 4, 8, first=True), TINY, TINY, TINY, depthwise("d", 4, 8, 5)))
    monkeypatch.setattr(kernels, "LARGE", (Conv("large", 4, 4, 12, 5), Conv("large", 4, 4, 12, 11)))
    monkeypatch.setattr(loops, "COMMON", TINY)
    monkeypatch.setattr(host, "CALLS", 5)
    only = "network,fft,im2col,auto,overhead"
    conv.main(["--quick", "--json", "--markdown", "--rounds", "1", "--threads", "1", "--only", only])
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert [claim["target"] for claim in last["claims"]] == [1.8, 1.8, 2.0, 5.0, 1000, 30, 30, 1.5, 0.97]
    assert all(claim["value"] > 0 and "quick" in claim["name"] for claim in last["claims"])
    assert last["machine"]["allocator"].endswith("for both sides")
    assert any(line.startswith("| first: 3->4 3x3 @8 |") and "| not needed |" in line for line in lines)


def test_a_section_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        conv.main(["--only", "fft,wavelets"])
    assert "no such section: wavelets; there are winograd, backward" in capsys.readouterr().err
