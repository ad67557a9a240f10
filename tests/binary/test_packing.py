"""Packed networks against the float networks they are from: the same bits, on every instruction set."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from engine import UsageError
from engine.binary import container, load
from engine.binary.modules import BinaryConv2d, BinaryLinear, FixedPointInput, Sign
from engine.binary.network import BinaryNetwork
from engine.binary.packing import pack
from engine.binary.pixels import Pixels

RAW = Pixels(torch.arange(256.0)[None])


class SignConv2d(nn.Conv2d):
    """A third party's layer that keeps the protocol: signs of weights, padding with +1."""

    binary_weight, padding_value = True, 1

    def forward(self, x):
        padded = functional.pad(x, (1, 1, 1, 1), value=1.0)
        return functional.conv2d(padded, torch.where(self.weight >= 0, 1.0, -1.0))


class Signum(nn.Module):
    sign_activation = True

    def forward(self, x):
        return torch.where(x >= 0, 1.0, -1.0)


class Written(nn.Module):
    """Not a sequence: its forward calls functions and methods."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = BinaryConv2d(12, 20, 3, padding=1, scaled=True), nn.BatchNorm2d(20)
        self.fc1, self.bn3, self.fc2 = BinaryLinear(20 * 7 * 7, 30), nn.BatchNorm1d(30), nn.Linear(30, 4)
        self.sign, self.dropout = Sign(), nn.Dropout()

    def forward(self, x):
        x = self.sign(self.bn1(self.conv1(x)))
        x = self.sign(self.bn2(functional.max_pool2d(self.conv2(x), 2)))
        x = self.dropout(self.bn3(self.fc1(torch.flatten(x, 1))))
        return self.fc2(torch.relu(x))


def sequences() -> dict[str, nn.Module]:
    return {
        "pooling before BatchNorm": nn.Sequential(
            FixedPointInput(5), BinaryConv2d(3, 33, 3, padding=1, padding_value=0), nn.MaxPool2d(2),
            nn.BatchNorm2d(33), Sign(), BinaryConv2d(33, 40, 3, stride=2, padding=1, padding_value=1, scaled=True),
            nn.BatchNorm2d(40), Sign(), nn.Flatten(), BinaryLinear(40 * 16, 45, bias=False), nn.BatchNorm1d(45),
            Sign(), BinaryLinear(45, 4),
        ),
        "pooling after sign and before it": nn.Sequential(
            nn.Conv2d(3, 35, 3), nn.BatchNorm2d(35), Sign(), nn.MaxPool2d(3, 2, 1),
            BinaryConv2d(35, 20, 3, padding=2, dilation=2), nn.BatchNorm2d(20), nn.MaxPool2d(2), nn.Hardtanh(), Sign(),
            BinaryConv2d(20, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ),
        "real inputs to a layer in the middle": nn.Sequential(
            BinaryConv2d(3, 20, 3, padding=1, padding_value=0), nn.BatchNorm2d(20), nn.ReLU(),
            BinaryConv2d(20, 9, 3, groups=1), nn.BatchNorm2d(9), Signum(), SignConv2d(9, 11, 3, padding=1, bias=False),
            nn.BatchNorm2d(11), nn.BatchNorm2d(11), Sign(), nn.Flatten(), BinaryLinear(11 * 14 * 14, 4, scaled=True),
        ),
        "groups, which stay float": nn.Sequential(
            nn.Conv2d(3, 8, 3), Sign(), BinaryConv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8), Sign(),
            BinaryConv2d(8, 6, 3, stride=3), nn.BatchNorm2d(6), Sign(), nn.Flatten(), BinaryLinear(6 * 16, 4),
        ),
        "written as a forward": Written(),
    }  # fmt: skip


@pytest.mark.parametrize("name", sequences())
def test_outputs_have_the_bits_of_the_float_network(name, isa, calibrated):
    model = sequences()[name]
    model = calibrated(model, torch.randn(40, 3, 16, 16))
    packed = pack(model, torch.randn(3, 3, 16, 16))
    network = BinaryNetwork(packed.header, packed.arrays, isa)
    for batch in (1, 2, 17):
        images = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            assert torch.equal(network(images), model(images))


def perceptron(calibrated, bias: bool = False, width: int = 100) -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(), BinaryLinear(35, width, bias=bias), nn.BatchNorm1d(width), Sign(),
        BinaryLinear(width, width + 1, bias=bias, scaled=True), nn.BatchNorm1d(width + 1), Sign(),
        BinaryLinear(width + 1, 10, bias=bias), nn.BatchNorm1d(10),
    )  # fmt: skip
    return calibrated(model, pixels(300).float())


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 7, 5), dtype=torch.uint8)


@pytest.mark.parametrize("bias", [False, True])
def test_pixels_stay_integers_from_the_first_layer_on(bias, isa, calibrated):
    model = perceptron(calibrated, bias)
    packed = pack(model, pixels(9).float(), RAW)
    assert [step["kind"] for step in packed.header["steps"]][:4] == ["encode", "convolve", "convolve", "convolve"]
    network = BinaryNetwork(packed.header, packed.arrays, isa)
    images = pixels(500)
    with torch.no_grad():
        expected = model(images.float())
    assert torch.equal(network(images), expected)
    assert torch.equal(network(images.float()), expected)
    assert (network(images.numpy()) == expected.numpy()).all()
    assert isinstance(network(images.numpy()), np.ndarray)


@pytest.mark.parametrize(("step", "zero"), [(1.0, 0), (0.25, 128), (2.0, 255), (1.0, 256), (1 / 255, 0), (1.0, 0.5)])
def test_prepared_pixels_are_exact_too(step, zero, calibrated):
    prepare = Pixels(((torch.arange(256.0) - zero) * step)[None])
    model = perceptron(calibrated)
    images = pixels(200)
    calibrated(model, prepare(images))
    packed = pack(model, prepare(images[:20]), prepare)
    in_integers = packed.header["steps"][0]["kind"] == "encode"
    assert in_integers == ((step, zero) in [(1.0, 0), (0.25, 128), (2.0, 255)])
    with torch.no_grad():
        assert torch.equal(BinaryNetwork(packed.header, packed.arrays)(images), model(prepare(images)))


def test_each_channel_has_values_of_its_own(calibrated):
    prepare = Pixels(torch.stack([(torch.arange(256.0) - 100) / 60, torch.arange(256.0).sqrt() - 7]))
    model = nn.Sequential(
        FixedPointInput(4), BinaryConv2d(2, 20, 3, padding=1, padding_value=0), nn.BatchNorm2d(20), Sign(),
        BinaryConv2d(20, 3, 4), nn.Flatten(),
    )  # fmt: skip
    images = torch.randint(0, 256, (50, 2, 4, 4), dtype=torch.uint8)
    calibrated(model, prepare(images))
    packed = pack(model, prepare(images[:5]), prepare)
    with torch.no_grad():
        assert torch.equal(BinaryNetwork(packed.header, packed.arrays)(images), model(prepare(images)))


def test_inputs_that_are_no_pixels_are_refused(calibrated):
    packed = pack(perceptron(calibrated), pixels(9).float(), RAW)
    network = BinaryNetwork(packed.header, packed.arrays)
    with pytest.raises(ValueError, match="must be multiples of"):
        network(pixels(2).float() + 0.5)
    with pytest.raises(ValueError, match=r"\[n, 1, 7, 5\]"):
        network(torch.zeros(2, 1, 5, 7))
    with pytest.raises(ValueError, match="uint8 or float32"):
        network(pixels(2).double())
    floats = pack(perceptron(calibrated), torch.randn(5, 1, 7, 5))
    with pytest.raises(ValueError, match="does not say how pixels are prepared"):
        BinaryNetwork(floats.header, floats.arrays)(pixels(2))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = BinaryLinear(5, 5)

    def forward(self, x):
        return x + self.fc(x)


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(35, 8), nn.GELU(), BinaryLinear(8, 4)), r"layer 2 \(GELU\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(35, 5), Sign(), Residual()), "no chain"),
        (nn.Sequential(Deciding(), nn.Flatten(), BinaryLinear(35, 4)), "cannot be followed"),
        (nn.Sequential(nn.Flatten(), nn.Linear(35, 4)), "no layer computes with one bit"),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()), "layer 0: BatchNorm without"),
    ],
)
def test_what_cannot_be_packed_is_named(model, reason):
    with pytest.raises(UsageError, match=reason):
        pack(model, torch.randn(2, 1, 7, 5))


def test_a_network_that_sums_otherwise_than_it_says_is_refused(calibrated):
    class Wrong(BinaryLinear):
        def forward(self, x):
            return super().forward(x) + 1e-3

    model = nn.Sequential(nn.Flatten(), nn.Linear(35, 64), Sign(), Wrong(64, 4))
    with pytest.raises(UsageError, match="differ from the model's for 5 of 5 images"):
        pack(model, torch.randn(5, 1, 7, 5))


def test_weights_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(35, 64), Sign(), BinaryLinear(64, 4))
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match="layer 3: a weight is not finite"):
        pack(model, torch.randn(5, 1, 7, 5))


@pytest.fixture
def written(calibrated, tmp_path):
    model = perceptron(calibrated)
    packed = pack(model, pixels(9).float(), RAW)
    path = tmp_path / "network.bits"
    size = container.write(path, packed.header, packed.arrays)
    assert path.stat().st_size == size
    return path, model


def test_a_file_gives_the_network_back(written, isa):
    path, model = written
    images = pixels(20)
    with torch.no_grad():
        assert torch.equal(load(path, isa)(images), model(images.float()))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_that_was_changed_anywhere_is_refused(written):
    path, _ = written
    content = path.read_bytes()
    for place in [*range(0, 60, 7), *range(60, len(content), len(content) // 40), len(content) - 1]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UsageError, match=r"network\.bits"):
            load(path)
    for length in (0, 5, 19, 20, 51, 52, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UsageError, match=r"network\.bits"):
            load(path)
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        load(path)


def test_a_file_that_contradicts_itself_is_refused(calibrated, tmp_path):
    packed = pack(perceptron(calibrated), pixels(9).float(), RAW)
    path = tmp_path / "network.bits"
    for change in ({"weight": "nowhere"}, {"shape": [3, 1, 1, 5]}, {"stride": [0, 0]}, {"kind": "surprise"}):
        steps = [dict(step) for step in packed.header["steps"]]
        steps[1] |= change
        container.write(path, {**packed.header, "steps": steps}, packed.arrays)
        with pytest.raises(UsageError, match="not consistent"):
            load(path)


def test_running_a_file_imports_nothing_of_the_training(written):
    path, _ = written
    code = (
        "import sys; from engine.binary import load; import torch; "
        f"load({str(path)!r})(torch.zeros(2, 1, 7, 5, dtype=torch.uint8)); "
        "print([name for name in sys.modules if name.startswith('engine.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("run", "assembly", "plugins", "loader", "checkpoint", "cli", "binary.modules", "binary.packing"):
        assert f"'engine.{name}" not in done.stdout
