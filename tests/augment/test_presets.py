"""Every preset of augmentations composes to what its paper says, and trains and evaluates on photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHAINS = {
    "alexnet": ["resize", "center_crop", "random_crop", "flip", "lighting", "normalize"],
    "vgg": ["random_shortest_size", "random_crop", "flip", "lighting", "normalize"],
    "resnet": ["random_shortest_size", "random_crop", "flip", "lighting", "normalize"],
    "inception": ["random_resized_crop", "flip", "color_jitter", "normalize"],
    "randaugment": ["random_resized_crop", "flip", "rand_augment", "normalize"],
    "cifar": ["pad_crop", "flip", "normalize"],
    "airbench": ["pad_crop", "alternating_flip", "normalize", "cutout"],
}
NUMBERS = {
    "alexnet": {"resize.size": "256", "center_crop.size": "256", "random_crop.size": "224", "lighting.std": "0.1"},
    "vgg": {"random_shortest_size.sizes": "[256,512]", "random_shortest_size.test_size": "384"},
    "resnet": {"random_shortest_size.sizes": "[256,480]", "random_shortest_size.test_size": "256"},
    "inception": {"random_resized_crop.scale": "[0.08,1.0]", "random_resized_crop.test_resize": "null"},
    "randaugment": {"rand_augment.num_ops": "2", "rand_augment.magnitude": "9"},
    "cifar": {"pad_crop.padding": "4", "flip.probability": "0.5"},
    "airbench": {"pad_crop.padding": "2", "pad_crop.fill": "reflect", "cutout.size": "12"},
}
SIDES = {"cifar": 32, "airbench": 32}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of JPEG files of different sizes, in two classes."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split in ("train", "test"):
        for number, size in enumerate([(60, 90), (110, 70), (100, 100), (64, 81)]):
            path = root / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def test_all_presets_are_tried():
    folder = Path(__file__).resolve().parents[2] / "conf" / "augment"
    assert {path.stem for path in folder.glob("*.yaml")} == set(CHAINS)


@pytest.mark.parametrize("name", CHAINS)
def test_it_trains_and_evaluates(engine, photographs, tmp_path, name):
    data = ("data=folder", f"data.root={photographs}", f"data.size={SIDES.get(name, 224)}", "data.threads=0")
    small = ("model=cnn", "model.width=2", "run.steps=2", "run.batch=2", "run.device=cpu", "observe=[csv]", "out=run")
    code, _, err = engine("train", f"augment={name}", *data, *small)
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["test/accuracy"]] == ["2"]
    assert all(float(row["train/loss"]) > 0 for row in rows if row["train/loss"])


@pytest.mark.parametrize("name", CHAINS)
def test_it_is_the_chain_that_it_says_with_the_papers_numbers(engine, name):
    code, out, err = engine("explain", f"augment={name}")
    assert code == 0, err
    shown = {line.split()[0]: line.split()[1] for line in out.splitlines() if line.startswith("augment.")}
    wanted = [member for member in CHAINS[name] if member != "alternating_flip"]  # which has no options to list
    assert list(dict.fromkeys(option.split(".")[1] for option in shown)) == wanted
    assert {option: shown[f"augment.{option}"] for option in NUMBERS.get(name, {})} == NUMBERS.get(name, {})
