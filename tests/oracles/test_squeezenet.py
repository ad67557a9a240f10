"""SqueezeNet v1.0 with its Caffe weights on photographs of ImageNet, against OpenCV's own reading and arithmetic."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe import read_weights
from photographs import Photograph, make_folder
from safetensors.torch import save_file
from squeezenet import state_of

MEANS = np.array([104.0, 117.0, 123.0])  # blue, green, red
PREPARED = [
    "augment=[resize,center_crop,normalize]", "augment.resize.size=256", "augment.resize.width=256",
    "augment.center_crop.size=227",
    f"augment.normalize.mean={[float(mean) / 255 for mean in MEANS[::-1]]}".replace(" ", ""),
    f"augment.normalize.std={[1 / 255] * 3}".replace(" ", ""),
]  # fmt: skip
"""256x256 whatever the proportions, the middle 227x227, less the means: how the weights' authors trained."""
WHOLE = ["augment=[resize,normalize]", *PREPARED[1:3], *PREPARED[4:]]
SPECIAL = 26  # gray or rotated photographs among the 1,000 whose accuracies are published with the weights
FEW = 4  # images of which ten crops are looked at


@pytest.fixture(scope="module")
def weights(real_data, tmp_path_factory) -> Path:
    """The Caffe weights as a file of a state dict."""
    (path,) = real_data("weights/squeezenet_v1.0").glob("*.caffemodel")
    save_file(state_of(read_weights(path)), tmp_path_factory.mktemp("weights") / "squeezenet.safetensors")
    return tmp_path_factory.getbasetemp() / "weights0" / "squeezenet.safetensors"


@pytest.fixture
def evaluate(engine, weights, tmp_path) -> Callable[..., dict[str, float]]:
    """Return a function that runs ``engine evaluate`` on the folder "data", and gives the numbers that it prints."""

    def run(*words: str) -> dict[str, float]:
        code, told, said = engine(
            "evaluate", f"checkpoint={weights}", "data=folder", f"data.root={tmp_path / 'data'}", "model=squeezenet",
            "loss.top5=true", "run.batch=16", "run.device=cpu", "run.channels_last=true", *words,
        )  # fmt: skip
        assert code == 0, said
        return {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+(?:e-?\d+)?)", told)}

    return run


def hits(scores: np.ndarray, labels: Sequence[int], most: int) -> float:
    """Return how often the label is among the ``most`` highest scores."""
    best = np.argsort(-scores, axis=1)[:, :most]
    return float(np.mean([label in row for label, row in zip(labels, best, strict=True)]))


def softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def as_caffe(images: torch.Tensor) -> np.ndarray:
    """Return what the network was given as Caffe takes it, having checked that it is whole grey levels less the means.

    Red comes first in images, blue in what is returned.
    """
    means = MEANS.astype(np.float32)[:, None, None]
    pixels = images.numpy()[:, ::-1] + means
    whole = pixels.round()
    assert np.abs(pixels - whole).max() < 1e-4
    assert 0 <= whole.min() <= whole.max() <= 255
    return whole - means


def test_the_sample_is_classified_as_by_opencv(evaluate, opencv_squeezenet, heard, sample, tmp_path):
    labels = make_folder(tmp_path / "data", sample)
    told = evaluate(*PREPARED)
    print(f"SqueezeNet v1.0 on {len(sample)} photographs: {told}")
    given, scores = heard.last(len(sample))
    expected = np.concatenate([opencv_squeezenet(as_caffe(images)) for images in given.split(16)])
    assert np.abs(scores.numpy() - expected).max() < 1e-4
    assert (scores.numpy().argmax(1) == expected.argmax(1)).all()
    loss = -np.log(softmax(expected)[np.arange(len(labels)), labels]).mean()
    assert told["loss"] == pytest.approx(loss, abs=1e-4)
    assert told["accuracy"] == pytest.approx(hits(expected, labels, 1), abs=1e-6)
    assert told["top5"] == pytest.approx(hits(expected, labels, 5), abs=1e-6)
    assert_plausible(expected[ordinary(sample)], [labels[row] for row in ordinary(sample)])


def ordinary(sample: Sequence[Photograph]) -> list[int]:
    """Return the rows, in the order read, of the photographs that nothing but chance chose from the 1,000."""
    in_order = sorted(sample, key=lambda photograph: photograph.target)
    return [row for row, photograph in enumerate(in_order) if photograph.ordinary]


def assert_plausible(scores: np.ndarray, labels: Sequence[int]) -> None:
    """Accuracies are as near to those of the 1,000 images as those of so many of them drawn at random.

    All gray and rotated ones of the 1,000 are in the sample, so they are left out here; of the others' accuracies
    bounds are known. Three standard deviations of a draw without replacement beyond these.
    """
    for most, right in ((1, 659), (5, 861)):
        others = 1000 - SPECIAL
        lowest, highest = (right - SPECIAL) / others, right / others
        left = (others - len(labels)) / (others - 1)
        low, high = (math.sqrt(p * (1 - p) / len(labels) * left) for p in (lowest, highest))
        assert lowest - 3 * low < hits(scores, labels, most) < highest + 3 * high


def ten_crops(image: np.ndarray, side: int) -> list[np.ndarray]:
    """Return the four corners and the middle of [c, h, w], each as it is and mirrored."""
    last_row, last_column = image.shape[1] - side, image.shape[2] - side
    places = [(0, 0), (0, last_column), (last_row, 0), (last_row, last_column)]
    places.append((round(last_row / 2), round(last_column / 2)))
    crops = [image[:, top : top + side, left : left + side] for top, left in places]
    return crops + [crop[:, :, ::-1] for crop in crops]


def test_ten_crop_is_the_plain_mean_over_ten_crops(evaluate, opencv_squeezenet, heard, sample, tmp_path):
    few = sample[:: len(sample) // FEW][:FEW]
    labels = make_folder(tmp_path / "data", few)
    single = evaluate(*WHOLE)
    whole = as_caffe(heard.last(FEW)[0])
    probabilities, logits = [], []
    for image in whole:
        scores = [opencv_squeezenet(crop[None])[0] for crop in ten_crops(image, 227)]
        probabilities.append(sum(softmax(score) for score in scores) / 10)
        logits.append(sum(scores) / 10)
    ten = ["marginalize=[ten_crop]", "marginalize.ten_crop.crop=227"]
    told = evaluate(*WHOLE, *ten)
    expected = -sum(math.log(p[label]) for p, label in zip(probabilities, labels, strict=True)) / FEW
    assert told["loss"] == pytest.approx(expected, abs=1e-4)
    assert told["accuracy"] == pytest.approx(hits(np.array(probabilities), labels, 1))
    assert told["top5"] == pytest.approx(hits(np.array(probabilities), labels, 5))
    assert evaluate(*WHOLE, "marginalize=[five_crop,flip]", "marginalize.five_crop.crop=227") == told
    by_logits = evaluate(*WHOLE, *ten, "evaluate.average=logits")
    expected = -sum(math.log(softmax(s)[label]) for s, label in zip(logits, labels, strict=True)) / FEW
    assert by_logits["loss"] == pytest.approx(expected, abs=1e-4)
    assert len({single["loss"], told["loss"], by_logits["loss"]}) == 3
