"""The convolution benchmark's way on a GPU that is not there: its clock, its checks, its claims, what it refuses."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import conv
from convolutions import host, whole
from convolutions.gpu import contest as contests
from convolutions.gpu import device, kernels, replay
from convolutions.gpu import whole as gpu_whole
from convolutions.layers import Conv, depthwise
from convolutions.measuring import LAYOUTS, NCHW, NHWC, Bench, Clock, Operands, Pace
from harness import Report, Times
from no_gpu import Gpu

from engine.ops import cuda
from engine.registry import Registry

TINY = Conv("tiny", 4, 6, 9, 3)
TF32 = list(contests.TF32.values())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    replay.capturing_stream.cache_clear()
    yield Gpu(monkeypatch)
    replay.capturing_stream.cache_clear()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def bench(registry: Registry) -> Bench:
    """The GPU's clock, and in place of the GPU the CPU, whose kernels have the same names."""
    return Bench(Report(), Pace(0.0, 2, 2), False, registry, Clock("cpu", replay.Replay, replay.queueing))


@pytest.mark.parametrize(("seconds", "calls"), [(0.5, 1), (0.5e-3, 4), (0.3e-3, 7), (1e-6, 100)])
def test_a_side_is_a_graph_of_calls_and_its_time_is_that_of_one(gpu: Gpu, seconds: float, calls: int) -> None:
    side = replay.Replay(gpu.work("ours", seconds))
    assert side.calls == calls, "a replay takes 2 ms or more, unless that would be more than 100 calls"
    assert gpu.done == [
        "side waits for default",
        *["ours on side"] * 4,  # warmed up and timed where it is captured
        "waited",
        *["ours on side, captured"] * calls,
    ]
    gpu.done.clear()
    assert side() == pytest.approx(seconds)
    assert gpu.done == ["replayed", "replayed", "waited"], "one goes ahead, so that the host is not timed"


def test_the_host_is_timed_for_itself(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([100.0, 130.0])
    monkeypatch.setattr(replay.time, "perf_counter", lambda: next(ticks))
    assert replay.queueing(gpu.work("ours", 1.0), calls=6)() == 5.0
    assert gpu.done == ["synchronised", *["ours on default"] * 6], "nobody waits for the GPU within"


def settings() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision, cudnn.benchmark, cudnn.benchmark_limit


def test_precision_is_equal_except_where_a_call_says_tf32() -> None:
    before = settings()
    with device.equal_precision():
        assert settings() == ("ieee", "ieee", True, 0)
        assert device.in_tf32(settings)() == ("tf32", "ieee", True, 0)
        assert settings() == ("ieee", "ieee", True, 0)
    assert settings() == before
    assert torch.backends.cudnn.allow_tf32 is True, "torch's older name can be read as before"


def test_every_kernel_is_checked_and_timed_beside_torch_with_and_without_tf32(gpu: Gpu, bench: Bench) -> None:
    gpu.clock = time.perf_counter
    with device.equal_precision(), torch.no_grad():
        found = contests.contest(bench, TINY.spec(2), "backward_weight", ["winograd2", "depthwise", "implicit"])
    assert set(found.times) == {"winograd2", "implicit", *LAYOUTS, *TF32}, "the other refuses the layer"
    assert set(found.host) == {"winograd2", "implicit", *LAYOUTS}
    assert set(found.errors) == set(found.times)
    assert all(0 < error < 1e-6 for error in found.errors.values())
    assert found.best in ("winograd2", "implicit")
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.times.values())


def test_a_kernel_that_computes_something_else_is_not_timed(gpu: Gpu, bench: Bench, monkeypatch) -> None:
    wrong = bench.kernels(["naive"])[0]
    monkeypatch.setattr(bench, "kernels", lambda names: [wrong])
    monkeypatch.setattr(contests, "call", lambda *_, arrays: lambda: 1.001 * contests.torch_call(*_[:2], arrays)())
    with pytest.raises(
        SystemExit, match=r"naive does not compute the forward of .* float64 is 0\.001, and its bound is"
    ):
        contests.contest(bench, TINY.spec(2), "forward", ["naive"])
    assert gpu.done == []


def test_errors_are_relative_and_no_number_is_one() -> None:
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64)
    calls = {"off": lambda: torch.tensor([3.0, 4.5]), "none": lambda: torch.tensor([3.0, torch.nan])}
    errors = contests.relative_errors(calls, expected)
    assert errors["off"] == pytest.approx(0.1)
    with pytest.raises(SystemExit, match="none does not compute"):
        contests.require_exact(TINY.spec(1), "forward", {"none": SimpleNamespace(error=1.0)}, errors)
    contests.require_exact(TINY.spec(1), "forward", {"off": SimpleNamespace(error=0.11)}, errors)


@pytest.mark.parametrize("layer", [TINY, depthwise("channels", 5, 8, 3)])
@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
def test_the_reference_is_the_definition_in_float64(layer: Conv, direction: str) -> None:
    spec = replace(layer.spec(2), channels_last=False)
    operands = Operands.of(spec, NCHW)
    images, weight, gradient = (array.double() for array in operands)
    out = torch.nn.functional.conv2d(
        images.requires_grad_(), weight.requires_grad_(), None, spec.stride, spec.padding, groups=spec.groups
    )
    to_images, to_weight = torch.autograd.grad(out, (images, weight), gradient)
    expected = {"forward": out, "backward_input": to_images, "backward_weight": to_weight}[direction]
    found = contests.in_float64(spec, direction, operands)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)


def test_claims_are_those_of_the_issue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every first kernel is twice as fast as NCHW, the others as fast as that; channels_last is slower, TF32 faster."""

    def twice(bench: Bench, spec: Any, direction: str, names: Any) -> contests.Checked:
        times = Times({name: [2.0] for name in names} | {name: [0.25] for name in TF32})
        times.update({names[0]: [1.0], NHWC: [6.0], NCHW: [2.0]})
        return contests.Checked(times, names[0], dict.fromkeys(times, 1e-7), times)

    monkeypatch.setattr(kernels, "contest", twice)
    for section in (kernels.winograd, kernels.backward, kernels.fft, kernels.implicit, kernels.depthwise):
        section(bench)
    claims = bench.report.claims
    assert all(claim.value == pytest.approx(2.0) and claim.met == (claim.target <= 2.0) for claim in claims)
    best = "over cuDNN's best"
    assert {claim.name: claim.target for claim in claims} == {
        **{f"Winograd forward, VGG-16, N={n}, {best}": t for n, t in {1: 1.5, 4: 1.5, 8: 1.3, 32: 1.3}.items()},
        **{
            f"implicit matrix product, forward, {k} layers, N={n}, {best}": 0.8 for k in ("3x3", "1x1") for n in (8, 32)
        },
        **{f"FFT forward, N=8, K={k}, {best}": t for k, t in {11: 3.0, 31: 8.0}.items()},
        **{f"depthwise forward, N=8, K={k}, {best}": t for k, t in {7: 1.5, 31: 8.0}.items()},
    }


def test_tf32_stands_beside_and_is_no_target(bench: Bench, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = Times({"fft": [1.0], NHWC: [6.0], NCHW: [2.0], TF32[0]: [0.5], TF32[1]: [0.25]})
    found = contests.Checked(times, "fft", dict.fromkeys(times, 2.5e-7), Times({"fft": [5e-6], NCHW: [3e-6]}))
    assert (found.gain().median, found.in_tf32) == (2.0, TF32[1])
    bench.report = Report(as_markdown=True)
    kernels.table(bench, "large", [TINY], [found], ("fft", "im2col"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    row = dict(zip(lines[0].split(" | "), lines[2].split(" | "), strict=True))
    assert row["im2col, ms"] == "refused"
    assert row["times cuDNN's best"].startswith("2.00 ")
    assert row["TF32, ms"].startswith("250.0000 ")
    assert row["TF32, times cuDNN's best"].startswith("8.00 ")
    assert [row[name].split()[0] for name in row if name.startswith("host")] == ["5.0", "3.0"]
    assert lines[5].startswith("| tiny: 4->6 3x3 @9 | 2.5e-07 | refused | 2.5e-07")


def asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """Return the line with which the benchmark refuses."""
    with pytest.raises(SystemExit) as ended:
        conv.main(["--device", "cuda", *given])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    return line


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "--device cuda: torch 2." in asked(monkeypatch, capsys)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "(CUDA 13.0) finds no GPU" in asked(monkeypatch, capsys)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "_extension", lambda: f"engine._cuda is not built ({cuda.BUILD})")
    assert asked(monkeypatch, capsys).endswith("engine._cuda is not built (ENGINE_CUDA=1 pip install -e .)")
    assert "no such section: im2col; there are winograd" in asked(monkeypatch, capsys, "--only", "im2col")
    assert "there is no such folder" in asked(monkeypatch, capsys, "--write", "nowhere/tables.md")


FACTS = {"gpu": "NVIDIA H200", "driver": "580.65.06", "cuda": "13.0", "cudnn": 91300}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("echo '1980 MHz, 1980 MHz, 700.00 W, Enabled'",
         "SM clock now 1980 MHz; at most 1980 MHz; power limit 700.00 W; persistence mode Enabled"),
        ("echo 'Field is not a valid field'; exit 2", "not readable (nvidia-smi does not tell)"),
    ],
)  # fmt: skip
def test_the_first_line_names_gpu_driver_versions_and_clocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, told: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/asked\n{answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: FACTS["gpu"])
    monkeypatch.setattr(device, "driver", lambda: FACTS["driver"])
    monkeypatch.setattr(torch.version, "cuda", FACTS["cuda"])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: FACTS["cudnn"])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"abc{index}"))
    line = device.line(device.facts())
    versions = f"torch {torch.__version__}, Python 3."
    assert line.startswith(f"NVIDIA H200, driver 580.65.06, CUDA 13.0, cuDNN 91300, {versions}")
    assert line.endswith(f"; clocks: {told}")
    assert (tmp_path / "asked").read_text().startswith("--id=GPU-abc1 --query-gpu=clocks.sm,")


def test_quick_goes_all_the_way_and_writes_a_page(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.clock = time.perf_counter
    small = (nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))
    monkeypatch.setattr(whole, "vgg16", lambda size: nn.Sequential(*small))
    monkeypatch.setattr(gpu_whole, "MIXED", (Conv("first", 3, 4, 8, first=True), *[TINY] * 4))
    monkeypatch.setattr(kernels, "VGG", (TINY, TINY, TINY))
    monkeypatch.setattr(kernels, "POINTWISE", [Conv("point", 4, 4, 6, 1)] * 3)
    monkeypatch.setattr(kernels, "LARGE", (Conv("large", 4, 4, 12, 5), Conv("large", 4, 4, 12, 11)))
    monkeypatch.setattr(kernels, "DEPTHWISE", (depthwise("d", 4, 8, 5), depthwise("d", 4, 8, 7)))
    monkeypatch.setattr(host, "CALLS", 5)
    monkeypatch.setattr(conv, "GRAPHS", Clock("cpu", replay.Replay, replay.queueing))
    monkeypatch.setattr(device, "missing", lambda: "")
    told = {name: str(value) for name, value in FACTS.items()}
    monkeypatch.setattr(device, "facts", lambda: told | {"torch": "2.13.0", "python": "3.12", "clocks": "as they are"})
    page = tmp_path / "tables.md"
    conv.main(["--device", "cuda", "--quick", "--json", "--rounds", "1", "--threads", "1", "--write", str(page)])
    lines = capsys.readouterr().out.splitlines()
    first = "NVIDIA H200, driver 580.65.06, CUDA 13.0, cuDNN 91300, torch 2.13.0, Python 3.12; clocks: as they are"
    assert lines[0] == first
    last = json.loads(lines[-1])
    assert [claim["target"] for claim in last["claims"]] == [1.5, 1.3, 3.0, 0.8, 0.8, 1.5]
    assert all(claim["value"] > 0 and "quick" in claim["name"] for claim in last["claims"])
    assert last["machine"]["driver"] == "580.65.06"
    text = page.read_text()
    assert text.startswith(
        "# Convolution kernels on a GPU: tables\n\nWritten by `python benchmarks/conv.py --device cuda"
    )
    assert f"\n\n{first}\n\n## Claims\n\n| claim |" in text
    for title in (
        "Winograd forward, VGG-16, N=8",
        "backward_weight, VGG-16, N=2",
        "kernels=auto, N=2",
        "time of one call",
    ):
        assert f"\n## {title}" in text
    assert text.count("| torch channels_last, TF32 |") >= 3  # the whole networks


def test_a_page_is_not_touched_by_a_measurement_that_fails(gpu: Gpu, monkeypatch, tmp_path: Path) -> None:
    page = tmp_path / "tables.md"
    page.write_text("of before\n")
    monkeypatch.setattr(device, "missing", lambda: "")
    monkeypatch.setattr(device, "facts", lambda: dict.fromkeys((*FACTS, "torch", "python", "clocks"), "?"))

    def fails(bench: Bench) -> None:
        bench.report.table("half", ["a"], [["b"]])
        raise SystemExit("fft does not compute")

    monkeypatch.setitem(conv.GPU_SECTIONS, "fft", fails)
    with pytest.raises(SystemExit, match="fft does not compute"):
        conv.main(["--device", "cuda", "--only", "fft", "--write", str(page)])
    assert page.read_text() == "of before\n"
