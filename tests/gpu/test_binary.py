"""Networks of one bit on a GPU: every sum against float64 arithmetic on the CPU, and every bit against the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.binary.modules import BinaryConv2d, BinaryLinear, FixedPointInput, Sign
from engine.binary.network import BinaryNetwork
from engine.binary.packing import pack
from engine.binary.pixels import Pixels
from engine.ops.binary import LEAST, MOST, BinaryConvolution, Thresholds, pack_signs, threshold, unpack_signs

pytestmark = pytest.mark.gpu

# channels, height and width, filters, kernel, stride, padding, dilation, batch
CONVOLUTIONS = {
    "point": (40, 9, 33, 1, 1, 0, 1, 3),
    "words": (70, 8, 70, 3, 1, 1, 1, 2),
    "strided": (128, 13, 64, 3, 2, 1, 1, 5),
    "dilated": (3, 12, 45, 3, 1, 3, 2, 2),
    "deep": (512, 7, 130, 3, 1, 1, 1, 4),
    "wide": (64, 56, 256, 3, 1, 1, 1, 8),
    "many rows": (256, 28, 512, 1, 1, 0, 1, 32),
    "product": (4096, 1, 4096, 1, 1, 0, 1, 300),
    "of one image": (4096, 1, 1000, 1, 1, 0, 1, 1),
}
SMALL = ("point", "words", "strided", "dilated")


@pytest.fixture(autouse=True)
def _fresh_memory_is_garbage(device: torch.device) -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert int(torch.empty(1, dtype=torch.int32, device=device)) == MOST
    yield
    torch.use_deterministic_algorithms(False)


def signs(*shape: int) -> Tensor:
    return torch.where(torch.rand(*shape) < 0.5, -1.0, 1.0)


def check(device: torch.device, name: str, of_bytes: bool) -> None:
    """Compare sums and bits of a convolution."""
    channels, side, filters, kernel, stride, padding, dilation, batch = CONVOLUTIONS[name]
    shape = batch, channels, side, side
    images = torch.randint(0, 256, shape).float() if of_bytes else signs(*shape)
    weight, border = signs(filters, channels, kernel, kernel), 77 if of_bytes else 1
    padded = functional.pad(images.double(), (padding,) * 4, value=border)
    expected = functional.conv2d(padded, weight.double(), None, stride, 0, dilation)
    sums = expected.permute(0, 2, 3, 1).to(torch.int32).contiguous()
    pixels = images.permute(0, 2, 3, 1).contiguous()
    packed = (pixels.to(torch.uint8) if of_bytes else pack_signs(pixels)).to(device)
    plus = (weight > 0).permute(0, 2, 3, 1).numpy()
    given = {"of_bytes": of_bytes, "border": border, "stride": (stride,) * 2, "padding": (padding,) * 2}
    given |= {"dilation": (dilation,) * 2, "device": device}
    found = BinaryConvolution(plus, **given)(packed)
    assert found.device == packed.device
    assert torch.equal(found.cpu(), sums)
    least = torch.randint(-60, 60, (filters,), dtype=torch.int32)
    least[:2] = torch.tensor([LEAST, MOST])
    kept = Thresholds.of(least, torch.rand(filters) < 0.5)
    bits = threshold(sums, kept)
    assert torch.equal(BinaryConvolution(plus, thresholds=kept, **given)(packed).cpu(), bits)
    assert torch.equal(threshold(found, kept.to(found.device)).cpu(), bits)


@pytest.mark.parametrize("of_bytes", [False, True], ids=["bits", "bytes"])
@pytest.mark.parametrize("name", SMALL)
def test_small_shapes(device: torch.device, name: str, of_bytes: bool) -> None:
    """Few and small, as `make gpu-test` runs these under compute-sanitizer."""
    check(device, name, of_bytes)
    values = torch.randn(70, 37)
    values.view(-1)[:6] = torch.tensor([0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf")])
    bits = pack_signs(values.to(device))
    assert torch.equal(bits.cpu(), pack_signs(values))
    assert torch.equal(unpack_signs(bits, 37).cpu(), torch.where(values >= 0, 1.0, -1.0))


@pytest.mark.parametrize("of_bytes", [False, True], ids=["bits", "bytes"])
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name not in SMALL])
def test_layers_of_networks(device: torch.device, name: str, of_bytes: bool) -> None:
    check(device, name, of_bytes)


def test_activations_may_begin_anywhere(device: torch.device) -> None:
    weight, images = signs(64, 128, 3, 3), signs(2, 9, 9, 128)
    convolution = BinaryConvolution((weight > 0).permute(0, 2, 3, 1).numpy(), device=device)
    bits = pack_signs(images.to(device))
    moved = torch.cat([bits.flatten()[:1], bits.flatten()])[1:].view(bits.shape)
    assert moved.data_ptr() % 16
    assert torch.equal(convolution(moved), convolution(bits))


def packed_network() -> tuple[BinaryNetwork, Tensor]:
    """Return a network of which all but the last layer's factor is computed in integers, and pixels."""
    prepare = Pixels((torch.arange(256.0) / 128 - 1).repeat(3, 1))
    model = nn.Sequential(
        FixedPointInput(5), BinaryConv2d(3, 64, 3, padding=1, padding_value=0), nn.BatchNorm2d(64), Sign(),
        BinaryConv2d(64, 100, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(100), Sign(), nn.Flatten(),
        BinaryLinear(100 * 64, 300, bias=False), nn.BatchNorm1d(300), Sign(), BinaryLinear(300, 10, bias=False),
    )  # fmt: skip
    pixels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    for module in model:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            module.momentum = None
    with torch.no_grad():
        model.train()(prepare(pixels))
    packed = pack(model.eval(), prepare(pixels), prepare)
    return BinaryNetwork(packed.header, packed.arrays), pixels


def test_a_packed_network_gives_the_cpus_bits(device: torch.device) -> None:
    network, pixels = packed_network()
    there = network.to(device)
    expected = network(pixels)
    assert torch.equal(there(pixels.to(there.device)).cpu(), expected)
    assert (there(pixels.numpy()) == expected.numpy()).all()
    assert torch.equal(there.to("cpu")(pixels), expected)


def test_a_packed_network_is_captured_in_a_graph(
    device: torch.device, captured: Callable[[Callable[[], tuple[Tensor]]], Callable[[], tuple[Tensor]]]
) -> None:
    network, pixels = packed_network()
    there, given = network.to(device), pixels.to(device, copy=True)
    replay = captured(lambda: (there(given).clone(),))
    given.copy_(pixels.flip(0))
    assert torch.equal(replay()[0].cpu(), network(pixels.flip(0)))


def test_a_call_belongs_to_the_stream_it_is_made_on(gpu: torch.device) -> None:
    network, pixels = packed_network()
    there, given = network.to(gpu), pixels.to(gpu)
    late, work = torch.zeros_like(given), torch.ones(4096, 4096, device=gpu)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(20):
            work = work @ work / len(work)
        late.copy_(given)
        found = there(late)
    side.synchronize()
    assert torch.equal(found.cpu(), network(pixels))
