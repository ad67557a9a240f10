"""The data benchmark's peers and measuring: each computes what its page says; figures mean nothing here."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import data
from harness import Report
from inputs import Bench, Turn, batched, classical, cold, crops, enlarging, memory, ours, photographs, pillow, reading
from inputs.resnet50 import ResNet50

from engine import kept_memory
from engine.folder import flush
from engine.loader import Position


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few_drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No real data, and few drawn images instead of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_TEST_DATA", str(tmp_path_factory.mktemp("nowhere")))
        patch.setattr(photographs, "DRAWN", 10)
        patch.setattr(photographs, "DRAWN_CLASSES", 5)
        yield


@pytest.fixture(scope="module")
def bench(few_drawn: None, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A benchmark whose folder of images and store, two copies of ten images, are made once for all tests."""
    return Bench(Report(), tmp_path_factory.mktemp("data"), quick=True, rounds=1)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def test_a_turn_times_a_steady_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, stream = iter([5.0, 29.0]), iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert Turn(batch=4, skipped=2, counted=3).per_image(stream) == 2.0  # 24 seconds for 12 images
    assert next(stream) == 5


def test_random_resized_crop_draws_the_areas_and_ratios_of_its_definition() -> None:
    width, height = 600, 500
    areas, ratios = [], []
    for _ in range(2000):
        left, top, right, bottom = pillow.crop_box(width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        areas.append((right - left) * (bottom - top) / (width * height))
        ratios.append((right - left) / (bottom - top))
    assert 0.078 < min(areas) < 0.1
    assert max(areas) > 0.9
    assert 0.745 < min(ratios) < 0.76
    assert 1.31 < max(ratios) < 1.34
    # Windows that do not fit are drawn again, which takes from the large ones; small ones are as uniform as drawn.
    small = [area for area in areas if area < 0.48]
    assert abs(np.mean(small) - 0.28) < 4 * 0.4 / math.sqrt(12 * len(small))


def test_an_image_that_no_window_fits_is_cropped_in_the_middle() -> None:
    assert pillow.crop_box(1000, 12) == (492, 0, 508, 12)
    assert pillow.crop_box(12, 1000) == (0, 492, 12, 508)


def test_colour_jitter_is_brightness_contrast_and_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(20, 30, 3) // 2 + 40
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + 3 * high) / 4)  # 1.2
    orders = []
    monkeypatch.setattr(random, "sample", lambda all_, count: orders.append(all_) or list(all_))
    given = np.asarray(pillow.color_jitter(Image.fromarray(pixels))).astype(float)
    assert orders == [(ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)]
    grey = np.array([0.299, 0.587, 0.114])
    image = np.clip(pixels * 1.2, 0, 255)
    image = np.clip(1.2 * image - 0.2 * round((image @ grey).mean()), 0, 255)
    image = np.clip(1.2 * image - 0.2 * (image @ grey)[..., None], 0, 255)
    assert np.abs(given - image).max() < 4  # Pillow keeps whole grey levels in between


def test_lighting_and_normalisation_are_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    image, draws = torch.rand(3, 4, 5), torch.tensor([0.2, -0.1, 0.3])
    monkeypatch.setattr(torch, "normal", lambda mean, std, size: draws)
    values, vectors = (0.2, 0.05, 0.01), ((0.5, 0.1, -0.3), (0.2, 0.7, 0.4), (-0.6, 0.3, 0.1))
    lit = pillow.lighting(values, vectors)(image)
    for channel in range(3):
        shift = sum(vectors[channel][k] * values[k] * draws[k].item() for k in range(3))
        torch.testing.assert_close(lit[channel], image[channel] + shift)
    given = pillow.normalize((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(image)
    torch.testing.assert_close(given[2], (image[2] - 0.3) / 4)


def test_an_image_becomes_numbers_from_0_to_1() -> None:
    pixels = noise(6, 7, 3)
    assert np.allclose(pillow.to_tensor(Image.fromarray(pixels)).numpy(), pixels.transpose(2, 0, 1) / 255)


def test_padded_crops_and_cutout_of_one_image() -> None:
    pixels = np.maximum(noise(32, 32, 3), 1)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
    windows = {padded[i : i + 32, j : j + 32].tobytes() for i in range(9) for j in range(9)}
    seen = {np.asarray(pillow.pad_crop(Image.fromarray(pixels))).tobytes() for _ in range(300)}
    assert seen <= windows
    assert len(seen) > 60  # of 81
    areas = {int((pillow.cutout(torch.ones(3, 32, 32))[0] == 0).sum()) for _ in range(500)}
    assert max(areas) == 64
    assert min(areas) < 40  # a square is cut by the edge where its middle is near it


def test_windows_of_many_images_are_those_of_each_alone() -> None:
    pixels, shifts = noise(90, 3, 32, 32), torch.tensor(list(itertools.product(range(9), range(9))) + [[8, 0]] * 9)
    padded = torch.nn.functional.pad(torch.from_numpy(pixels), (4,) * 4)
    chosen = torch.randperm(90)
    alone = np.pad(pixels, ((0, 0), (0, 0), (4, 4), (4, 4)))
    expected = np.stack(
        [image[:, i : i + 32, j : j + 32] for image, (i, j) in zip(alone, shifts.tolist(), strict=True)]
    )
    assert np.array_equal(batched.crop_all(padded, shifts).numpy(), expected)
    given = batched.crop_some(padded, chosen, shifts[chosen])
    assert np.array_equal(given.numpy(), expected[chosen.numpy()])


def test_squares_of_many_images_are_cut_around_their_centres() -> None:
    centres = torch.tensor([[16, 16], [0, 31], [2, 5]])
    cut = batched.cut_out(torch.ones(3, 3, 32, 32), centres)
    for image, (down, right) in zip(cut, centres.tolist(), strict=True):
        expected = torch.ones(32, 32)
        expected[max(0, down - 4) : down + 4, max(0, right - 4) : right + 4] = 0
        assert all(torch.equal(channel, expected) for channel in image)


@pytest.mark.parametrize("kind", [batched.Gathered, batched.WholeEpoch, batched.WholeEpochOfBytes])
def test_batched_peers_give_each_image_once_cropped_mirrored_and_cut(kind: Any) -> None:
    pixels = np.maximum(noise(12, 3, 32, 32), 1)
    scale, shift = batched.constants()
    batches = list(kind(pixels, 4).epoch())
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 32, 32)] * 3
    assert all(batch.dtype == torch.float32 for batch in batches)
    alone = torch.from_numpy(np.pad(pixels, ((0, 0), (0, 0), (4, 4), (4, 4)))) * scale + shift
    windows = alone.unfold(2, 32, 1).unfold(3, 32, 1).permute(0, 2, 3, 1, 4, 5)  # [12, 9, 9, 3, 32, 32]
    found = []
    for image in torch.cat(batches):
        seen = image != 0  # what is cut away is 0, and hardly anything else
        assert seen.float().mean() > 0.9
        for mirrored in (image, image.flip(2)):
            same = (windows - mirrored).abs().mul(mirrored != 0).amax((3, 4, 5)) < 1e-5
            found += same.nonzero()[:, 0].tolist()
    assert sorted(found) == list(range(12))


def test_resnet50_has_the_published_number_of_parameters() -> None:
    network = ResNet50(1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032  # torchvision's page
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_the_usual_loader_gives_whole_batches_and_rests_between_turns() -> None:
    dataset = classical.Arrays(noise(20, 3, 32, 32), np.arange(20) % 10, classical.cifar_recipe())
    ready = classical.loader(dataset, batch=4, batches=7)
    for _ in range(2):
        shapes = [tuple(images.shape) for images, _ in ready]
        assert shapes == [(4, 3, 32, 32)] * 7
    assert classical.side(dataset, Turn(4, 1, 2))() > 0


def test_without_real_data_images_are_drawn_and_said_to_be(bench: Bench) -> None:
    images, _ = crops.prepared(bench)
    assert "drawn" in images.what
    dataset = classical.Files(images.root / "train", classical.recipe(True))
    assert len(dataset) == 20  # two copies of ten
    image, label = dataset[7]
    assert image.shape == (3, 224, 224)
    assert label in range(5)
    sizes = sorted(max(Image.open(path).size) for path in images.root.glob("train/*/*.jpg"))
    assert sizes[10] == 500
    drawn = photographs.cifar(bench.folder / "cifar")
    pixels, labels = photographs.cifar_training(drawn)
    assert pixels.shape == (20_000, 3, 32, 32)
    assert set(labels) == set(range(10))


def test_an_enlarged_store_holds_the_records_again_and_again(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    _, small = crops.prepared(bench)
    large, each = bench.folder / "large", sum(path.stat().st_size for path in (small / "train").glob("data-*.bin"))
    assert enlarging.enlarged(small / "train", large / "train", 3 * each + 1) == 3 * each
    (large / "test").symlink_to("train")
    assert sum(path.stat().st_size for path in (large / "train").glob("data-*.bin")) == 3 * each
    ours.command("verify", f"data.root={large}")  # raises if a record is not as its checksum says
    of = [list(ours.test_loader([*ours.store_words(root), *ours.recipe()], 20)) for root in (small, large)]
    ((first,), again) = of
    assert len(again) == 3
    assert all(torch.equal(batch.images, first.images) for batch in again)
    assert all(torch.equal(batch.targets, first.targets) for batch in again)


def test_dropped_pages_are_not_in_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(bytes(1 << 20))
    assert cold.cached(path) == 1.0
    flush(path)
    cold.drop(path)
    if cold.cached(path) == 1.0:
        pytest.skip("the folder for temporary files lives in memory")
    assert cold.cached(path) == 0.0
    cold.plain([path])
    assert cold.cached(path) == 1.0


def test_private_memory_is_what_this_process_alone_has(tmp_path: Path) -> None:
    kept_memory.give_back()  # the benchmarks keep what is freed
    size = 64 << 20
    before = reading.private()
    held = bytearray(b"x" * size)
    assert 0.9 * size < reading.private() - before < 1.3 * size
    del held
    with mmap.mmap(-1, size) as shared:  # shared with nobody as yet, so it is private until a child has it too
        shared.write(b"x" * size)
        assert reading.private() - before > 0.9 * size


def test_readers_report_their_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESSES", 1)
    _, small = crops.prepared(bench)
    ((torch_alone, opened, most, images),) = memory.read_together(small, batch=4, seconds=0.2)
    assert 10e6 < torch_alone < opened <= most
    assert images > 0
    assert images % 4 == 0


def test_a_stopwatch_leaves_the_first_steps_out() -> None:
    watch = ours.Stopwatch()
    watch.steps = [(0.0, 9.0), (10.0, 9.5), (12.0, 9.6), (14.0, 9.9)]
    share, seconds = watch.share(2)
    assert share == pytest.approx(0.1)
    assert seconds == 2.0


def test_the_engine_waits_as_its_loader_says(bench: Bench) -> None:
    _, small = crops.prepared(bench)
    words = [*ours.store_words(small), *ours.recipe(), "data.size=32", "run.batch=4"]
    words.remove("data.size=224")
    share, seconds = ours.share_waiting(words, bench.folder / "run", steps=3, skipped=2)
    assert 0 <= share < 1
    assert seconds > 0


def test_the_engine_and_the_peer_prepare_images_alike(bench: Bench) -> None:
    """Of both, means and deviations over an epoch agree: nobody does less."""
    images, store = crops.prepared(bench)
    for colours in ("", "folded", "clipped"):
        ready = ours.loader([*ours.store_words(store), *ours.recipe(colours)], 20)
        steps = ready.steps(Position())
        engine = torch.cat([next(steps).batches[0].images for _ in range(4)])
        steps.close()
        dataset = classical.Files(images.root / "train", classical.recipe(bool(colours)))
        peer = torch.stack([dataset[number % 20][0] for number in range(80)])
        assert engine.shape == peer.shape
        assert engine.dtype == peer.dtype == torch.float32
        assert_alike(engine, peer)


def assert_alike(ones: Tensor, others: Tensor) -> None:
    for of in (lambda x: x.mean((0, 2, 3)), lambda x: x.std((2, 3)).mean(0)):
        assert (of(ones) - of(others)).abs().max() < 0.35  # in standard deviations of photographs' colours


def test_quick_and_json_go_all_the_way(
    few_drawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(crops, "BATCH", 4)
    monkeypatch.setattr(crops, "turns", lambda bench: (Turn(4, 1, 2), Turn(4, 1, 2)))
    written = tmp_path / "tables.md"
    chosen = ["--quick", "--json", "--rounds", "1", "--only", "crops,colours,ffcv", "--folder", str(tmp_path)]
    data.main([*chosen, "--write", str(written)])
    told = capsys.readouterr().out
    claims = json.loads(told.splitlines()[-1])["claims"]
    assert {"crops from the store over DataLoader", "crops with jitter and lighting over DataLoader"} <= {
        claim["name"] for claim in claims
    }
    assert "drawn" in told
    assert "| engine, JPEG folder |" in written.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["tables.md"]  # stores are gone


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--only", "crop"], "no such section: crop; there are crops"),
        (["--folder", "nowhere"], "--folder nowhere: there is no such folder"),
        (["--write", "nowhere/tables.md"], "--write nowhere/tables.md: there is no such folder"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        data.main(words)
    assert ended.value.code == 2
    assert line in capsys.readouterr().err
