"""The GPU's kernels compiled for the host, in two orders of threads: float64 arithmetic exactly, and the CPU's bits.

The tensor cores' instruction is the host's own there; tests/gpu/test_binary.py has the real one.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pybind11
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from engine.binary import container, load
from engine.binary.modules import BinaryConv2d, BinaryLinear, FixedPointInput, Sign
from engine.binary.network import BinaryNetwork
from engine.binary.packing import pack
from engine.binary.pixels import Pixels
from engine.errors import UsageError
from engine.ops import binary, cuda
from engine.ops.binary import BinaryConvolution, Thresholds, pack_signs, threshold, unpack_signs
from engine.ops.cuda_binary import unpack

sys.path.insert(0, str(Path(__file__).parents[1] / "csrc"))
pytestmark = pytest.mark.timeout(300)  # the first one compiles


@pytest.fixture(scope="module")
def host() -> ModuleType:
    """Return the module of the kernels compiled for the host; it takes every tile for few rows and filters."""
    from building import BUILD, ON_HOST, ROOT, Source, build

    python = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    folder = ROOT / "csrc/cuda/binary"
    kernels = Source(folder / "binary.cu", [*ON_HOST, "-DENGINE_SMALL_PORTIONS"])
    sources = [Source(folder / "binary_bindings.cpp", [*ON_HOST, *python]), kernels]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    name = f"binary-on-host-{sysconfig.get_config_var('SOABI')}"
    library = build(BUILD / name / "_binary_on_host.so", sources, flags)
    spec = importlib.util.spec_from_file_location("_binary_on_host", library)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _orders_are_by_index_and_memory_is_garbage(host: ModuleType) -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills new memory with the largest number
    assert int(torch.empty(1, dtype=torch.int32)) == binary.MOST
    yield
    torch.use_deterministic_algorithms(False)
    host.shuffle(0)


def signs(*shape: int) -> Tensor:
    return torch.where(torch.rand(*shape) < 0.5, -1.0, 1.0)


def pixels_of(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous()


def reference(images: Tensor, weight: Tensor, border: int, **geometry: tuple[int, int]) -> Tensor:
    """Return the convolution in float64 [n, h, w, f], as integers."""
    padding = geometry.get("padding", (0, 0))
    padded = functional.pad(images.double(), (padding[1], padding[1], padding[0], padding[0]), value=border)
    rest = {name: size for name, size in geometry.items() if name != "padding"}
    return functional.conv2d(padded, weight.double(), **rest).permute(0, 2, 3, 1).to(torch.int32)


def run(host: ModuleType, plus: np.ndarray, activations: Tensor, **given) -> Tensor:
    """Return what the kernels make of activations, the same in two orders of threads."""
    convolution = BinaryConvolution(plus, code=host, **given)
    found = []
    for seed in (0, 7):
        host.shuffle(seed)
        found.append(convolution(activations))
    assert torch.equal(*found)
    return found[0]


def plus_of(weight: Tensor) -> np.ndarray:
    return (weight > 0).permute(0, 2, 3, 1).numpy()


# Rows and filters: of the flat tile, the narrow one, the large one, and more than one of each.
TILES = [(1, 1), (7, 45), (33, 130), (130, 64), (131, 50), (128, 128), (150, 230)]


@pytest.mark.parametrize(("rows", "filters"), TILES)
@pytest.mark.parametrize("k", [1, 33, 512, 513, 1100])
def test_a_product_of_signs_is_exact(host: ModuleType, rows: int, filters: int, k: int) -> None:
    a, b = signs(rows, k), signs(filters, k)
    found = run(host, plus_of(b[:, :, None, None]), pack_signs(a)[:, None, None])
    assert torch.equal(found.view(rows, filters).double(), a.double() @ b.double().T)


@pytest.mark.parametrize(("rows", "filters"), TILES)
@pytest.mark.parametrize("k", [3, 64, 147])
def test_a_product_of_bytes_and_signs_is_exact(host: ModuleType, rows: int, filters: int, k: int) -> None:
    a, b = torch.randint(0, 256, (rows, k)), signs(filters, k)
    found = run(host, plus_of(b[:, :, None, None]), a.to(torch.uint8)[:, None, None], of_bytes=True, border=0)
    assert torch.equal(found.view(rows, filters).double(), a.double() @ b.double().T)


@pytest.mark.parametrize("shape", [(1, 28, 28), (5, 4, 3), (33, 3, 3), (64, 2, 1)])
def test_a_linear_layer_on_images_is_exact(host: ModuleType, shape: tuple[int, int, int]) -> None:
    """A kernel as large as the image, whose rows are read as one pixel."""
    images, weight = signs(9, *shape), signs(70, *shape)
    found = run(host, plus_of(weight), pack_signs(pixels_of(images)))
    assert torch.equal(found.view(9, 70).double(), images.flatten(1).double() @ weight.flatten(1).double().T)
    pixels = torch.randint(0, 256, (9, *shape))
    found = run(host, plus_of(weight), pixels_of(pixels.to(torch.uint8)), of_bytes=True, border=0)
    assert torch.equal(found.view(9, 70).double(), pixels.flatten(1).double() @ weight.flatten(1).double().T)


def test_the_largest_and_the_smallest_sums(host: ModuleType) -> None:
    for k in (1, 64, 8191):
        plus = np.stack([np.ones((1, 1, k), bool), np.zeros((1, 1, k), bool)])
        assert run(host, plus, pack_signs(torch.ones(1, k))[:, None, None]).flatten().tolist() == [k, -k]
        white = torch.full((1, 1, 1, k), 255, dtype=torch.uint8)
        assert run(host, plus, white, of_bytes=True, border=0).flatten().tolist() == [255 * k, -255 * k]


side, twice = st.integers(1, 8), st.tuples(st.integers(1, 3), st.integers(1, 3))
sizes = st.fixed_dictionaries({
    "batch": st.integers(1, 3), "channels": st.sampled_from([1, 2, 3, 5, 16, 31, 32, 40, 64, 128, 130]),
    "height": side, "width": side, "filters": st.integers(1, 70), "kernel": twice, "stride": twice,
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)), "seed": st.integers(0, 1000),
}).filter(lambda case: all(
    case[size] + 2 * p >= d * (k - 1) + 1
    for size, p, d, k in zip(("height", "width"), case["padding"], case["dilation"], case["kernel"], strict=True)
))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(case=sizes, border=st.integers(0, 255), moved=st.booleans())
def test_convolutions_are_exact(host: ModuleType, case, border: int, moved: bool) -> None:
    torch.manual_seed(case["seed"])
    shape = case["batch"], case["channels"], case["height"], case["width"]
    weight = signs(case["filters"], case["channels"], *case["kernel"])
    geometry = {name: case[name] for name in ("stride", "padding", "dilation")}
    of_bits, of_bytes = signs(*shape), torch.randint(0, 256, shape)
    for images, packed, around in (
        (of_bits, pack_signs(pixels_of(of_bits)), 1 if border % 2 else -1),
        (of_bytes, pixels_of(of_bytes.to(torch.uint8)), border),
    ):
        given = {"border": around, "of_bytes": images is of_bytes, **geometry}
        if moved:  # to an address that no vector load takes
            flat = torch.cat([packed.flatten()[:1], packed.flatten()])
            packed = flat[1:].view(packed.shape)
        found = run(host, plus_of(weight), packed, **given)
        assert torch.equal(found, reference(images, weight, around, **geometry))
        assert torch.equal(found, BinaryConvolution(plus_of(weight), **given)(packed))


@pytest.mark.parametrize("filters", [1, 32, 71, 200])
def test_thresholds_give_the_bits_of_the_sums(host: ModuleType, filters: int) -> None:
    images, weight = signs(3, 40, 9, 8), signs(filters, 40, 3, 3)
    sums = reference(images, weight, -1, padding=(1, 1))
    least = torch.randint(-30, 30, (filters,), dtype=torch.int32)
    extremes = torch.tensor([binary.LEAST, binary.MOST, 360, -360], dtype=torch.int32)[:filters]
    least[: len(extremes)] = extremes
    inverted = torch.rand(filters) < 0.5
    kept = Thresholds.of(least, inverted)
    bits = run(host, plus_of(weight), pack_signs(pixels_of(images)), padding=(1, 1), thresholds=kept)
    expected = torch.where((sums >= least) ^ inverted, 1.0, -1.0)
    assert torch.equal(unpack_signs(bits, filters), expected)
    assert torch.equal(bits, pack_signs(expected)), "bits behind the last filter are clear"
    for seed in (0, 3):
        host.shuffle(seed)
        assert torch.equal(threshold(sums, kept, code=host), bits)


@pytest.mark.parametrize("shape", [(8,), (5, 3, 1), (3, 31), (2, 32), (70, 33), (4, 4099), (300, 64)])
def test_packing_is_the_cpus(host: ModuleType, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, float("inf"), -float("inf"), float("nan"), -float("nan")])
    values.view(-1)[:8] = special[: values.numel()]
    expected = pack_signs(values)
    for seed in (0, 3):
        host.shuffle(seed)
        assert torch.equal(pack_signs(values, code=host), expected)
    assert torch.equal(unpack(expected, shape[-1]), torch.where(values >= 0, 1.0, -1.0))


def networks() -> dict[str, nn.Module]:
    return {
        "bits": nn.Sequential(
            FixedPointInput(5), BinaryConv2d(3, 33, 3, padding=1, padding_value=0), nn.MaxPool2d(2),
            nn.BatchNorm2d(33), Sign(), BinaryConv2d(33, 40, 3, stride=2, padding=1, padding_value=1, scaled=True),
            nn.BatchNorm2d(40), Sign(), nn.Flatten(), BinaryLinear(40 * 4, 45, bias=False), nn.BatchNorm1d(45),
            Sign(), BinaryLinear(45, 4),
        ),
        "floats between": nn.Sequential(
            nn.Conv2d(3, 35, 3), nn.BatchNorm2d(35), Sign(), nn.MaxPool2d(3, 2, 1),
            BinaryConv2d(35, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Sign(),
            BinaryConv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8, 4),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("prepared", [False, True], ids=["floats", "pixels"])
@pytest.mark.parametrize("name", networks())
def test_a_network_has_the_outputs_of_the_cpu(host: ModuleType, name: str, prepared: bool, calibrated) -> None:
    model = calibrated(networks()[name], torch.randn(40, 3, 8, 8))
    prepare = Pixels(torch.stack([(torch.arange(256.0) - 100) / scale for scale in (60, 80, 50)]))
    packed = pack(model, torch.randn(3, 3, 8, 8), prepare)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8) if prepared else torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = model(prepare(images) if prepared else images)
    network = BinaryNetwork(packed.header, packed.arrays, code=host)
    assert torch.equal(network(images), expected)
    assert torch.equal(network.to("cpu")(images), expected)
    assert np.array_equal(network(images.numpy()), expected.numpy())


def test_what_does_not_fit_is_told(host: ModuleType) -> None:
    convolution = BinaryConvolution(np.ones((4, 3, 3, 40), bool), code=host)
    with pytest.raises(ValueError, match="activations are on meta, not on cpu"):
        convolution(torch.zeros(1, 5, 5, 2, dtype=torch.int32, device="meta"))
    kept = Thresholds.of(torch.zeros(4).int(), torch.zeros(4).bool())
    with pytest.raises(ValueError, match="sums are on meta, the thresholds on cpu"):
        threshold(torch.zeros(1, 4, dtype=torch.int32, device="meta"), kept)
    assert convolution(torch.zeros(0, 5, 5, 2, dtype=torch.int32)).shape == (0, 3, 3, 4)
    far = BinaryConvolution(np.ones((1, 1, 1, 1), bool), padding=(1 << 29, 0), stride=(1 << 30, 1), code=host)
    with pytest.raises(ValueError, match="too large for a GPU"):
        far(torch.zeros(1, 1, 1, 1, dtype=torch.int32))


def test_where_there_is_no_gpu_one_line_says_so(calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrated(nn.Sequential(nn.Flatten(), nn.Linear(35, 8), Sign(), BinaryLinear(8, 4)), torch.randn(9, 5, 7))
    packed = pack(model, torch.randn(2, 5, 7))
    container.write(tmp_path / "network.bits", packed.header, packed.arrays)
    network = load(tmp_path / "network.bits")
    with pytest.raises(UsageError, match="packed networks run on cpu and cuda"):
        network.to("meta")
    with pytest.raises(UsageError, match="device=gpu is none"):
        network.to("gpu")
    with pytest.raises(ValueError, match="images are on meta, but this network is on cpu"):
        network(torch.zeros(1, 5, 7, device="meta"))
    monkeypatch.setattr(cuda, "_extension", lambda: "engine._cuda is not built (HOW)")
    monkeypatch.setattr("engine.ops.cuda_binary._extension", lambda: "engine._cuda is not built (HOW)")
    for call in (
        lambda: load(tmp_path / "network.bits", device="cuda"),
        lambda: network.to("cuda:0"),
        lambda: BinaryConvolution(np.ones((1, 1, 1, 1), bool), device="cuda"),
    ):
        with pytest.raises(UsageError, match=r"^networks of one bit on cuda\S*: engine\._cuda is not built \(HOW\)$"):
            call()
    monkeypatch.setattr("engine.ops.cuda_binary._extension", lambda: ModuleType("built"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"^networks of one bit on cuda: torch \S+ sees no GPU; choose device=cpu$"):
        network.to("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="on cuda:2: torch sees 2 GPUs"):
        network.to("cuda:2")
