"""Pictures in files, and tables that are wrong: read, checked, and refused before memory is touched."""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
from image_reference import plan_for, run, run_on

from engine import ops
from engine.pictures import (
    ADDRESS,
    BYTES,
    CHECKSUM,
    ENCODING,
    FILE,
    HEIGHT,
    INTERLEAVED,
    OFFSET,
    PLANAR,
    UNCHECKED,
    WIDTH,
    Pictures,
)
from engine.plan import FIRST, HIGH, LAST, LOW, ORIGIN, SCALE

SIZE = (3, 12, 14)


@pytest.fixture
def stored(tmp_path: Path):
    """Yield images, and Pictures of a file that has them one after the other behind a few other bytes."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, *SIZE), dtype=np.uint8))
    count = images[0].numel()
    path = tmp_path / "pixels"
    path.write_bytes(b"head" + images.numpy().tobytes())
    with path.open("rb") as file:
        rows = [
            [
                0,
                file.fileno(),
                4 + number * count,
                count,
                google_crc32c.value(image.numpy().tobytes()),
                PLANAR,
                *SIZE[1:],
            ]
            for number, image in enumerate(images)
        ]
        yield images, Pictures(torch.tensor(rows), 3, [file])


def refusal(pictures: Pictures, plan, dtype=torch.uint8) -> ops.PictureError:
    with pytest.raises(ops.PictureError) as caught:
        run_on(pictures, plan, dtype)
    return caught.value


def test_records_are_read_from_files_and_checked(stored):
    images, pictures = stored
    assert torch.equal(run_on(pictures, plan_for(images), torch.uint8), images)
    pictures.table[:, CHECKSUM] = UNCHECKED
    assert torch.equal(run_on(pictures, plan_for(images), torch.uint8), images)


@pytest.mark.parametrize("encoding", [INTERLEAVED, PLANAR])
@pytest.mark.parametrize("reflect", [False, True])
def test_windows_of_unchecked_records_are_read_from_files(tmp_path, encoding, reflect):
    images = torch.from_numpy(np.random.default_rng(11).integers(0, 256, (2, *SIZE), dtype=np.uint8))
    path = tmp_path / "pixels"
    ordered = images.permute(0, 2, 3, 1) if encoding == INTERLEAVED else images
    path.write_bytes(ordered.contiguous().numpy().tobytes())
    count = images[0].numel()
    windows = [([-2, -3, 15, 16], [15, 16])] if reflect else [([4, 3, 5, 6], [5, 6]), ([3.3, 2, 4, 9], [9, 9])]
    with path.open("rb") as file:
        rows = [[0, file.fileno(), n * count, count, UNCHECKED, encoding, *SIZE[1:]] for n in range(2)]
        pictures = Pictures(torch.tensor(rows), 3)
        for box, size in windows:
            plan = plan_for(images)
            assert plan.window(torch.tensor([box] * 2), torch.tensor([size] * 2), reflect=reflect)
            assert torch.equal(run_on(pictures, plan, torch.uint8), run(plan, images, torch.uint8))


def test_a_wrong_checksum_is_told(stored):
    images, pictures = stored
    pictures.table[2, CHECKSUM] ^= 1
    error = refusal(pictures, plan_for(images))
    assert (error.place, error.kind) == (2, "checksum")


def test_a_file_that_ends_is_told(stored):
    images, pictures = stored
    os.truncate(f"/proc/self/fd/{int(pictures.table[0, FILE])}", 4 + 3 * images[0].numel() + 5)
    error = refusal(pictures, plan_for(images))
    assert (error.place, error.kind, str(error)) == (3, "ended", "picture 3 of the batch: the file ends before it")


def test_a_descriptor_that_cannot_be_read_is_told(stored):
    images, pictures = stored
    pictures.table[1, FILE] = 1 << 20
    error = refusal(pictures, plan_for(images))
    assert (error.place, error.kind, error.reason) == (1, "unreadable", "Bad file descriptor")


@pytest.mark.parametrize(
    ("column", "value"),
    [(BYTES, 5), (BYTES, -1), (BYTES, 1 << 62), (OFFSET, -8), (ENCODING, 3), (ENCODING, -1), (HEIGHT, 0), (HEIGHT, 13),
     (HEIGHT, -12), (HEIGHT, 1 << 40), (WIDTH, 0), (WIDTH, 15), (WIDTH, 1 << 62)],
)  # fmt: skip
@pytest.mark.parametrize("in_memory", [False, True])
def test_rows_that_cannot_be_are_refused(stored, column, value, in_memory):
    images, pictures = stored
    if in_memory:
        pictures = Pictures.of_pixels(images)
        assert bool(pictures.table[:, ADDRESS].all())
    pictures.table[3, column] = value
    error = refusal(pictures, plan_for(images))
    assert (error.place, error.kind) == (3, "refused")
    assert error.reason


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "wrong",
    [{FIRST: -1}, {LAST: 99}, {FIRST: 9, LAST: 8}, {FIRST: 0.5}, {LOW: -1}, {HIGH: 99}, {LOW: 5, HIGH: 4}, {LOW: 0.5},
     {ORIGIN: 1}, {ORIGIN: -1}, {ORIGIN: 0.8}, {ORIGIN: float("nan")}, {ORIGIN: 1e300}, {SCALE: 0}, {SCALE: -1},
     {SCALE: 1.1}, {SCALE: float("inf")}, {SCALE: float("nan")}, {FIRST: 4, LAST: 4}, {FIRST: 4}, {LAST: 4}],
)  # fmt: skip
def test_axes_that_read_beyond_the_image_are_refused(stored, axis, wrong):
    images, pictures = stored
    plan = plan_for(images)
    for column, value in wrong.items():
        plan.axes[1, axis, column] = value
    error = refusal(pictures, plan)
    assert (error.place, error.kind) == (1, "refused")
    assert error.reason


def test_a_reflected_image_that_is_resized_is_refused(stored):
    images, pictures = stored
    plan = plan_for(images)
    plan.reflected = True
    plan.axes[0, 0, SCALE] = 0.5
    assert refusal(pictures, plan).kind == "refused"


def test_an_unknown_change_and_an_unknown_instruction_set_are_refused(stored):
    images, pictures = stored
    plan = plan_for(images)
    assert plan.change(17, torch.ones(len(images)))
    assert refusal(pictures, plan, torch.float32).kind == "refused"
    with pytest.raises(ops.PictureError, match="instruction set"):
        run(plan_for(images), images, isa="mmx")


def test_outputs_that_do_not_fit_are_refused(stored):
    images, pictures = stored
    plan = plan_for(images)
    for out, message in [
        (torch.empty(4, 3, 12, 15), "the plan makes"),
        (torch.empty(3, 3, 12, 14), "the plan makes"),
        (torch.empty(4, 3, 12, 14, dtype=torch.float64), "must be uint8"),
        (torch.empty(4, 3, 12, 28)[..., ::2], "dense"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.transform(pictures, plan, out)
    assert plan.change(2, torch.ones(4))
    with pytest.raises(ValueError, match="colours"):
        ops.transform(pictures, plan, torch.empty(images.shape, dtype=torch.uint8))
    uneven = plan_for(images)
    uneven.sizes = uneven.sizes + torch.tensor([[0, 0], [0, 1], [0, 0], [0, 0]])
    with pytest.raises(ValueError, match="different sizes"):
        ops.transform(pictures, uneven, torch.empty(images.shape))
    with pytest.raises(ValueError, match="4 images"):
        ops.transform(Pictures.of_pixels(images[:2]), plan_for(images), torch.empty(images.shape))


def test_times_are_of_what_was_done(stored):
    images, pictures = stored
    out = torch.empty(images.shape)
    times = ops.transform(pictures, plan_for(images), out)
    assert times.read > 0
    assert times.transform > 0
    assert times.decode == 0


def test_no_images_are_no_work():
    images = torch.empty(0, 3, 4, 5, dtype=torch.uint8)
    pictures = Pictures(torch.empty(0, 8, dtype=torch.int64), 3)
    assert ops.transform(pictures, plan_for(images), torch.empty(0, 3, 9, 9)) == (0, 0, 0)
