"""format=onnx and format=torch_export: a network in evaluation mode as a graph, for any number of images."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import UsageError, __version__
from engine.trained import Trained

from .place import beside, naming

CLOSE = 1e-4  # of the largest output: what other orders of summation may make of float32


def write_torch_export(network: Trained, path: Path) -> str:
    """Write what torch.export.load reads, and return what to print."""
    program = _exported(network)

    def write(file: Path) -> None:
        with file.open("wb") as opened:  # which fails with OSError
            torch.export.save(program, opened, extra_files={"engine.json": json.dumps(_facts(network))})

    def run(file: Path) -> Callable[[Tensor], Tensor]:
        return torch.export.load(file).module()

    return _written(network, path, ".pt2", write, run)


def write_onnx(network: Trained, path: Path) -> str:
    """Write an ONNX file, and return what to print. Raises UsageError saying what to install where it is missing."""
    try:
        onnx, _ = (import_module(name) for name in ("onnx", "onnxscript"))  # torch.onnx writes with the second
    except ImportError as error:
        raise UsageError(f"format=onnx needs {error.name}: pip install onnx onnxscript") from error

    def write(file: Path) -> None:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else it tells that torchvision is not there
        program = _exported(network)
        with warnings.catch_warnings():  # torch 2.13 copies its own trees in a way that it warns of
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            made = torch.onnx.export(
                program, (), input_names=["images"], output_names=["outputs"], dynamo=True, verbose=False
            )
        assert made is not None
        model = made.model_proto
        onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in _facts(network).items()})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, file)

    return _written(network, path, ".onnx", write, _onnx_runner)


def _onnx_runner(file: Path) -> Callable[[Tensor], Tensor]:
    """Return what computes an ONNX file: onnxruntime where it is installed, else the reference of onnx itself."""
    try:
        session_of = import_module("onnxruntime").InferenceSession
    except ImportError:
        session_of = import_module("onnx.reference").ReferenceEvaluator
    session = session_of(str(file))
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _exported(network: Trained) -> torch.export.ExportedProgram:
    """Return the model as torch.export has it, the number of images left open."""
    images = network.images[:2] if len(network.images) > 1 else network.images.repeat(2, 1, 1, 1)
    try:
        return torch.export.export(
            network.model, (images.contiguous(),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    except Exception as error:  # whatever the model's own code raises when it meets a stand-in for a tensor
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"model: torch.export cannot follow its forward ({reason})") from error


def _facts(network: Trained) -> dict[str, Any]:
    """Return what a user of the file must know: what images are, and what outputs mean."""
    shape, kind = list(network.images.shape[1:]), str(network.images.dtype).removeprefix("torch.")
    facts: dict[str, Any] = {
        "engine": __version__,
        "input": f"{kind} [batch, {', '.join(map(str, shape))}], prepared as preprocessing says",
        "classes": list(network.classes),
    }
    return facts | {"preprocessing": _preprocessing(network.pixels)}


def _preprocessing(values: Tensor | None) -> dict[str, Any]:
    """Return how pixels become inputs: value = pixel * scale + shift for each channel, where that is what happens."""
    if values is None:
        return {
            "text": "images are prepared by the augmentations of the run; they are more than a value for each pixel"
        }
    table = values.double()
    scale, shift = (table[:, 255] - table[:, 0]) / 255, table[:, 0]
    line = torch.arange(256, dtype=torch.float64) * scale[:, None] + shift[:, None]
    if bool(((line - table).abs() <= 1e-5 * table.abs().max()).all()):
        text = "pixels 0 to 255 of each channel become pixel * scale + shift"
        return {"text": text, "scale": scale.tolist(), "shift": shift.tolist()}
    return {"text": "a pixel p of channel c becomes values[c][p]", "values": values.tolist()}


def _written(
    network: Trained, path: Path, suffix: str, write: Callable[[Path], None],
    run: Callable[[Path], Callable[[Tensor], Tensor]],
) -> str:  # fmt: skip
    """Write the file beside its place, compare it with the model on one image and on all, and put it there."""
    with beside(path, suffix) as before:
        with naming(path):
            write(before)
        computed, farthest = run(before), 0.0
        for images in (network.images[:1], network.images):
            with torch.no_grad():
                expected, found = network.model(images), computed(images.contiguous())
            farthest = max(farthest, float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-30)))
        if not farthest <= CLOSE:
            raise UsageError(
                f"model: the exported graph's outputs differ by {farthest:.2g} of the largest; no file kept"
            )
        size = before.stat().st_size
    same = "have the same bits as" if farthest == 0 else f"differ by at most {farthest:.1g} of the largest from"
    return f"{path}: {size:,} bytes; outputs of {len(network.images)} test images {same} the exported model's in torch"
