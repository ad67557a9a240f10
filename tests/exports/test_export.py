"""``engine export`` as a user gives it: the files it writes, run by other libraries, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine import UsageError, manifest
from engine.binary import load
from engine.interfaces import Source
from engine.registry import Registry
from engine.trained import pixel_values


def digits() -> Source:
    return Registry.load().entry("data", "digits").options(size=8).build("test")  # type: ignore[attr-defined]


def float_network(options: dict[str, bool], shape=(1, 8, 8)) -> nn.Module:
    from conftest import OneBit  # the plugin's own network, with the checkpoint's weights, without the engine

    model = OneBit(**options).build(shape, 10)
    model.load_state_dict(load_file(manifest.checkpoints(Path("run"))[0] / "model.safetensors"))
    return model.eval()


@pytest.fixture(autouse=True)
def _conftest_by_name(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.delitem(sys.modules, "conftest", raising=False)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels as augment=normalize prepares them, with the training images' own statistics."""
    training = Registry.load().entry("data", "digits").options(size=8).build("train")
    values = training.records(range(len(training))).images.double() / 255
    scale, shift = 1 / (255 * values.std(correction=0)), -values.mean() / values.std(correction=0)
    return pixels.float() * scale.float() + shift.float()


def test_a_packed_network_runs_from_its_file_with_the_bits_of_the_float_one(engine, trained):
    trained("model=onebit", "augment=[normalize]")
    code, out, told = engine("export", "checkpoint=run", "format=binary", "out=files/network.bits")
    assert code == 0, told
    assert "outputs of 64 test images have the same bits as the model's" in out
    path = Path("files/network.bits")
    assert f"{path.stat().st_size:,} bytes" in out
    assert [p.name for p in path.parent.iterdir()] == ["network.bits"]
    pixels = digits().records(range(360)).images
    network = load(path)
    prepared = network._pixels(pixels)
    assert torch.allclose(prepared, normalized(pixels), atol=1e-5)
    with torch.no_grad():
        expected = float_network({})(prepared)
    assert torch.equal(network(pixels), expected)
    assert torch.equal(network(prepared), expected)
    assert network.facts["classes"] == [str(digit) for digit in range(10)]


def test_raw_pixels_are_computed_in_integers(engine, trained):
    raw = ["augment=[normalize]", "augment.normalize.mean=[0]", "augment.normalize.std=[0.00392156862745098]"]
    trained("model=onebit", "model.fixed=false", *raw)
    code, _, told = engine("export", "checkpoint=run", "format=binary", "out=network.bits")
    assert code == 0, told
    assert "float32" not in told
    pixels = digits().records(range(360)).images
    with torch.no_grad():
        assert torch.equal(load("network.bits")(pixels), float_network({"fixed": False})(pixels.float()))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["format=binary", "out=x.bits"], "layer 7 (Softshrink) has no form in a packed network"),
        (["format=binary"], "out must be given: name the file to write, as out=network.bits"),
        (["format=torch_export", "out=run"], "out=run is a folder"),
        (["format=safetensors", "out=x"], "format"),
        (["out=x.pt2", "checkpoint=nowhere"], "nowhere does not exist"),
        (["format=onnx", "out=/dev/null/x.onnx"], "out=/dev/null/x.onnx cannot be written (/dev/null is no folder)"),
        (["format=binary", "out=/dev/null/a/x.bits"], "out=/dev/null/a/x.bits cannot be written (/dev/null is no"),
        (["format=binary", "out=/proc/x.bits"], "out=/proc/x.bits cannot be written ("),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(engine, trained, words, reason):
    trained("model=onebit", "model.odd=true", "augment=[normalize]")
    checkpoint = [] if any(word.startswith("checkpoint=") for word in words) else ["checkpoint=run"]
    code, out, told = engine("export", *checkpoint, *words)
    assert code == 2
    assert reason in told.splitlines()[-1]
    assert out == ""
    assert [path.name for path in Path().iterdir()] == ["run"]


@pytest.mark.parametrize(("form", "name"), [("binary", "x.bits"), ("torch_export", "x.pt2")])
@pytest.mark.parametrize("folder", ["/dev/null", "/proc"])
def test_a_folder_lost_during_the_export_is_one_line_too(engine, trained, monkeypatch, form, name, folder):
    trained("model=onebit", "augment=[normalize]")
    monkeypatch.setattr("engine.plugins.exports.export.require_writable", lambda path: None)
    code, out, told = engine("export", "checkpoint=run", f"format={form}", f"out={folder}/{name}")
    assert (code, out) == (2, "")
    assert f"out={folder}/{name} cannot be written (" in told.splitlines()[-1]


def test_an_instruction_set_that_is_none_is_named_when_a_file_is_loaded(engine, trained):
    trained("model=onebit", "augment=[normalize]")
    assert engine("export", "checkpoint=run", "format=binary", "out=network.bits")[0] == 0
    with pytest.raises(UsageError, match=r"^isa=foo: no such instruction set"):
        load("network.bits", isa="foo")


def test_an_ordinary_network_is_for_the_other_formats(engine, trained):
    trained("model=cnn", "model.width=8")
    code, _, told = engine("export", "checkpoint=run", "format=binary", "out=network.bits")
    assert code == 2
    evaluated, refused = (line for line in told.splitlines() if "memory:" not in line)  # and no line of a layer
    assert "evaluating run" in evaluated
    assert "no layer computes with one bit on both sides" in refused
    assert engine("export", "format=binary", "out=network.bits")[0] == 2


def test_torch_export_gives_a_program_for_any_batch(engine, trained):
    trained("model=cnn", "model.width=8", "model.dropout=0.5")
    code, out, told = engine("export", "checkpoint=run", "out=network.pt2")
    assert code == 0, told
    assert "outputs of 64 test images" in out
    extra = {"engine.json": ""}
    program = torch.export.load("network.pt2", extra_files=extra)
    facts = json.loads(extra["engine.json"])
    pixels = digits().records(range(101)).images
    scale, shift = (facts["preprocessing"][name][0] for name in ("scale", "shift"))
    images = pixels.float() * scale + shift
    assert torch.allclose(images, normalized(pixels), atol=1e-5)
    model = Registry.load().entry("model", "cnn").options(width=8).build((1, 8, 8), 10)
    model.load_state_dict(load_file(manifest.checkpoints(Path("run"))[0] / "model.safetensors"))
    with torch.no_grad():
        for count in (1, 7, 101):
            expected = model.eval()(images[:count])
            assert torch.allclose(program.module()(images[:count]), expected, atol=1e-5)
    assert len(facts["classes"]) == 10


def test_onnx_says_what_to_install_or_writes_a_file_that_its_own_library_runs(engine, trained, recwarn):
    trained("model=cnn", "model.width=8")
    code, out, told = engine("export", "checkpoint=run", "format=onnx", "out=network.onnx", "examples=6")
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        assert code == 2
        assert "pip install onnx onnxscript" in told.splitlines()[-1]
        assert not Path("network.onnx").exists()
        return
    import onnx
    from onnx.reference import ReferenceEvaluator

    assert code == 0, told
    assert "outputs of 6 test images" in out
    assert not [warning for warning in recwarn if warning.category is FutureWarning]
    facts = {entry.key: json.loads(entry.value) for entry in onnx.load("network.onnx").metadata_props}
    scale, shift = (facts["preprocessing"][name][0] for name in ("scale", "shift"))
    images = digits().records(range(5)).images.float() * scale + shift
    model = Registry.load().entry("model", "cnn").options(width=8).build((1, 8, 8), 10)
    model.load_state_dict(load_file(manifest.checkpoints(Path("run"))[0] / "model.safetensors"))
    found = ReferenceEvaluator("network.onnx").run(None, {"images": images.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), model.eval()(images), atol=1e-4)


def test_pixel_values_are_found_where_preparing_looks_them_up_and_nowhere_else():
    images = torch.randint(0, 256, (5, 2, 4, 4), dtype=torch.uint8)
    scale = torch.tensor([2.0, -3.0]).view(-1, 1, 1)
    values = pixel_values(lambda pixels: pixels.float() * scale, images)
    assert torch.equal(values, torch.arange(256.0) * torch.tensor([[2.0], [-3.0]]))
    assert pixel_values(lambda pixels: pixels.float().roll(1, -1), images) is None
    assert pixel_values(lambda pixels: pixels[..., :3].float(), images) is None
    assert pixel_values(lambda pixels: pixels, images.float()) is None
