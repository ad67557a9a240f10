"""A thousand images: somebody's weights, tuned in stages, beside networks that start from random numbers."""

from __future__ import annotations

import csv

import numpy as np
import pytest

IMAGES, RECORD = 1000, 3073
# What SqueezeNet saw in Caffe: blue, green, red, each 0 to 255 less its mean on ImageNet.
SEEN = (
    "augment.normalize.mean=[0.407843,0.458824,0.482353]", "augment.normalize.std=[0.00392157,0.00392157,0.00392157]",
)  # fmt: skip


def write_subset(source, folder, bgr):
    """Write the first thousand training and test images, their channels the other way round if asked for."""
    folder.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        records = np.frombuffer((source / name).read_bytes()[: IMAGES * RECORD], np.uint8).reshape(IMAGES, RECORD)
        pixels = records[:, 1:].reshape(IMAGES, 3, -1)
        pixels = pixels[:, ::-1] if bgr else pixels
        (folder / name).write_bytes(np.concatenate([records[:, :1], pixels.reshape(IMAGES, -1)], 1).tobytes())
    return folder


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_tuning_in_stages_beats_training_from_scratch_by_ten_points(engine, real_data, tmp_path):
    weights = real_data("weights/squeezenet_v1.0/decoded_squeezenet_v1.0.caffemodel")
    rgb = write_subset(real_data("cifar10"), tmp_path / "rgb", bgr=False)
    bgr = write_subset(real_data("cifar10"), tmp_path / "bgr", bgr=True)
    common = ("data=cifar10", "run.batch=50", "run.evaluate_every=10 epochs", "save.every=never", "observe=[csv]")
    large = (
        f"data.root={bgr}", "model=squeezenet", "augment=[resize,flip,normalize]", "augment.resize.size=96", *SEEN,
        "run.epochs=10",
    )  # fmt: skip
    runs = {
        # Its features are large, 300,000 squared and summed, so what trains on them has to be slow.
        "staged": (*large, "optim.lr=0.002", "transfer=staged", f"transfer.weights={weights}"),
        "squeezenet": (*large, "optim.lr=0.001"),
        "cnn": (f"data.root={rgb}", "model=cnn", "augment=cifar", "run.epochs=60"),
    }
    accuracy = {}
    for name, words in runs.items():
        code, _, err = engine("train", *common, *words, f"out={tmp_path / name}")
        assert code == 0, err
        with (tmp_path / name / "metrics.csv").open() as file:
            accuracy[name] = float(list(csv.DictReader(file))[-1]["test/accuracy"])
    staged = accuracy.pop("staged")
    assert staged >= max(accuracy.values()) + 0.1, f"staged {staged}, from scratch {accuracy}"
