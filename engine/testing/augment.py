"""Checks an augmentation: drawn from the key alone, applied without a trace, the same in any batch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.interfaces import Augmentation, Records, Source
from engine.options import Augment
from engine.plan import Plan
from engine.plan_on_tensors import carry_out
from engine.randomness import Key, uniform
from engine.resampling import Resampling
from engine.testing.promises import Promises

KEY = Key.of(7).at("augment", "checked")
SHAPES = ((1, 13, 9), (3, 8, 11))
FIRSTS = (3, 40, 2**33, 1_000_001, 77, 500)  # of the groups of samples that batches are made of
BANK = 32  # images to choose from
EPOCHS = (0, 3)  # tried where draws depend on the epoch

TAKES = "uint8 and float images of any shape can be augmented"
PURE = "draw() is a pure function of (key, sample), whatever the batch"
KEYED = "draws come from the key alone, not from a global random generator"
UNEDITED = "apply() never edits what it is given"
SHAPED = "apply() keeps the batch size and returns uint8 or float [n, c, h, w] with finite values"
TARGETED = "apply() returns class numbers as they are or as floats [n, classes], and floats as finite floats"
REPEATED = "apply() is a function of its arguments"
RECORDED = "draw_by_record() is a pure function of (key, record, epoch), whatever the batch"
WINDOWED = "draw_windows() is a pure function of (key, sample, size), whatever the batch"
FUSED = "where fuse() returns True, a pass does to uint8 images what apply() does, to a grey level, and targets stay"
FUSED_TEST = "where fuse_test() returns True, a pass does to uint8 images what test() does, to a grey level"
REFUSED = "where fuse() or fuse_test() returns False, the plan is as it was"
ON_GPU = "apply() does the same to images on a GPU, with the parameters drawn on the CPU"
TESTED = "test() is the same every time, for each image on its own, and never edits what it is given"


def check_augment(
    augmentation: Augment | Augmentation,
    *,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    classes: int = 5,
) -> None:
    """Check an augmentation with uint8 and float images of each shape, and with class numbers and soft labels.

    Promises: what ``draw`` and ``apply`` make of a sample depends on the key and the sample (for a mixing
    augmentation: its ``group``), not on the rest of the batch nor on a global generator, which stays untouched;
    ``apply`` edits nothing, keeps the batch size and returns finite values; ``test`` is deterministic; what is fused
    into a pass is the same. Where torch sees a GPU, images there are augmented alike.
    Options are built anew for each shape, a ready augmentation is prepared for each. Raises BrokenPromise.
    """
    promises = Promises(augmentation)
    for shape in shapes:
        built = augmentation.build() if isinstance(augmentation, Augment) else augmentation
        images = (uniform(KEY, torch.arange(BANK), shape[0] * shape[1] * shape[2]) * 256).to(torch.uint8)
        source = _Bank(images.view(BANK, *shape), classes)
        with promises.works("prepare() learns from any training source"):
            built.prepare(lambda source=source: source)  # type: ignore[misc]
        for dtype in (torch.uint8, torch.float32):
            for soft in (False, True):
                for epoch in EPOCHS if built.by_record else EPOCHS[:1]:
                    _Case(promises, built, source, dtype, soft, epoch).check()


class _Bank(Source):
    def __init__(self, images: Tensor, classes: int) -> None:
        self.images = images
        self.targets = torch.arange(len(images)) % classes
        self.classes = tuple(f"class {number}" for number in range(classes))
        self.shape = (images.shape[1], images.shape[2], images.shape[3])
        self.fingerprint = "bank"

    def __len__(self) -> int:
        return len(self.images)

    def records(self, indices: Sequence[int]) -> Records:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Records("raw", self.images[rows], self.targets[rows])


@dataclass
class _Case:
    promises: Promises
    augmentation: Augmentation
    source: _Bank
    dtype: torch.dtype
    soft: bool
    epoch: int

    def check(self) -> None:
        group = self.augmentation.group
        groups = [list(range(first, first + group)) for first in FIRSTS]
        self._check_apply(_flat(groups))
        self._check_purity(groups)
        self._check_test()
        if self.dtype == torch.uint8 and self.source.shape[0] in (1, 3):
            self._check_fused(_flat(groups))
        if isinstance(self.augmentation, Resampling):
            self._check_windows(_flat(groups))
        if torch.cuda.is_available():
            self._check_on_gpu(_flat(groups))

    def batch(self, samples: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the images, targets and numbers of samples; the same sample always has the same image."""
        numbers = torch.tensor(list(samples))
        rows = numbers % BANK
        images, targets = self.source.images[rows], self.source.targets[rows]
        if self.dtype != torch.uint8:
            images = images.to(self.dtype).div(255)
        if self.soft:
            noise = uniform(KEY.at("soft"), numbers, len(self.source.classes)) + 0.1
            targets = noise / noise.sum(1, keepdim=True)
        return images, targets, numbers

    def augmented(self, samples: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        """Return a batch drawn and applied, with the global generators at ``seed``, which must not matter."""
        images, targets, numbers = self.batch(samples)
        with self.promises.works(f"{TAKES} ({self._words()})"), _generators(self.promises, seed):
            return self.augmentation.apply(images, targets, self.drawn(numbers))

    def drawn(self, numbers: Tensor) -> Any:
        """Return what is drawn for samples; where it depends on the record, their numbers are taken for records."""
        if self.augmentation.by_record:
            return self.augmentation.draw_by_record(KEY, numbers, self.epoch, self.source.shape)
        return self.augmentation.draw(KEY, numbers, self.source.shape)

    def _check_apply(self, samples: list[int]) -> None:
        promises = self.promises
        images, targets, numbers = self.batch(samples)
        given = images.clone(), targets.clone(), numbers.clone()
        with promises.works(f"{TAKES} ({self._words()})"), _generators(promises, 0):
            parameters = self.drawn(numbers)
            kept = copy.deepcopy(parameters)
            results = self.augmentation.apply(images, targets, parameters)
        first = results[0].clone(), results[1].clone()
        for tensor, before, what in zip(
            (images, targets, numbers), given, ("images", "targets", "samples"), strict=True
        ):
            promises.expect(torch.equal(tensor, before), UNEDITED, f"it changed the {what} ({self._words()})")
        self._check_images(first[0], len(samples), SHAPED)
        self._check_targets(targets, first[1])
        for again in (parameters, kept):
            with promises.works(REPEATED), _generators(promises, 1):
                result = self.augmentation.apply(images, targets, again)
            same = torch.equal(result[0], first[0]) and torch.equal(result[1], first[1])
            promises.expect(same, REPEATED, f"a second call with equal parameters differs ({self._words()})")

    def _check_images(self, images: Tensor, count: int, promise: str) -> None:
        seen = f"{count} images of {self._words()} become {images.dtype} {list(images.shape)}"
        right = (
            images.ndim == 4 and len(images) == count and (images.dtype == torch.uint8 or images.is_floating_point())
        )
        self.promises.expect(right, promise, seen)
        self.promises.expect(bool(images.isfinite().all()), promise, f"values are not finite ({self._words()})")

    def _check_targets(self, before: Tensor, after: Tensor) -> None:
        seen = f"{before.dtype} {list(before.shape)} became {after.dtype} {list(after.shape)}"
        if after.is_floating_point():
            right = after.shape == (len(before), len(self.source.classes)) and bool(after.isfinite().all())
        else:
            right = not self.soft and after.dtype == torch.int64 and after.shape == before.shape
            right = right and bool(((after >= 0) & (after < len(self.source.classes))).all())
        self.promises.expect(right, TARGETED, seen)

    def _check_purity(self, groups: list[list[int]]) -> None:
        """Compare each sample's result in one big batch with its result in others."""
        everything = _flat(groups)
        expected = dict(zip(everything, zip(*self.augmented(everything, 2), strict=True), strict=True))
        others = [groups[::-1], [groups[2], groups[0], groups[2]], groups[1:4], *([group] for group in groups)]
        for number, chosen in enumerate(others):
            samples = _flat(chosen)
            images, targets = self.augmented(samples, 3 + number)
            for sample, image, target in zip(samples, images, targets, strict=True):
                same = _close(image, expected[sample][0]) and _close(target, expected[sample][1])
                how = f"sample {sample} differs between a batch of {samples} and one of {everything} ({self._words()})"
                self.promises.expect(same, RECORDED if self.augmentation.by_record else PURE, how)

    def _check_test(self) -> None:
        promises = self.promises
        images, _, _ = self.batch(range(5))
        given = images.clone()
        with promises.works(f"test() takes uint8 and float images of any shape ({self._words()})"):
            with _generators(promises, 20):
                first = self.augmentation.test(images).clone()
            promises.expect(torch.equal(images, given), TESTED, f"it changed the images ({self._words()})")
            with _generators(promises, 21):
                again = self.augmentation.test(images)
                alone = self.augmentation.test(images[2:3])
        promises.expect(torch.equal(first, again), TESTED, f"two calls differ ({self._words()})")
        self._check_images(first, len(images), "test() keeps the batch size and returns finite [n, c, h, w]")
        promises.expect(
            _close(alone[0], first[2]), TESTED, f"an image alone differs from it in a batch ({self._words()})"
        )

    def _check_fused(self, samples: list[int]) -> None:
        """Compare a pass with ``apply`` and ``test``."""
        images, targets, numbers = self.batch(samples)
        augmentation, parameters = self.augmentation, self.drawn(numbers)
        applied, kept = augmentation.apply(images, targets, parameters)
        fused = self._passed(images, lambda plan: augmentation.fuse(plan, parameters))
        if fused is not None:
            same = _a_level_apart(fused, applied) and torch.equal(kept, targets)
            self.promises.expect(same, FUSED, f"they differ ({self._words()})")
        fused = self._passed(images, augmentation.fuse_test)
        if fused is not None:
            same = _a_level_apart(fused, augmentation.test(images))
            self.promises.expect(same, FUSED_TEST, f"they differ ({self._words()})")

    def _passed(self, images: Tensor, fuse: Callable[[Plan], bool]) -> Tensor | None:
        """Return images after a pass, or None if ``fuse`` does not want one."""
        plan = Plan(images.shape[1], torch.tensor(images.shape[2:]).expand(len(images), 2).clone())
        with self.promises.works(f"fuse() and fuse_test() take a plan for images of any shape ({self._words()})"):
            fused = fuse(plan)
            if fused:
                return carry_out(plan, images)
        self.promises.expect(plan.empty, REFUSED, f"something was added ({self._words()})")
        return None

    def _check_windows(self, samples: list[int]) -> None:
        """Compare the windows of images of several sizes with each one's alone."""
        assert isinstance(self.augmentation, Resampling)
        numbers = torch.tensor(samples)
        sizes = torch.tensor(self.source.shape[1:]) + (uniform(KEY.at("sizes"), numbers, 2) * 6).long()
        draw = self.augmentation.draw_windows
        with self.promises.works("draw_windows() takes images of several sizes"):
            together = draw(KEY, numbers, sizes)
            for row in range(len(numbers)):
                alone = draw(KEY, numbers[row : row + 1], sizes[row : row + 1])
                same = torch.equal(alone.boxes[0], together.boxes[row])
                same = same and torch.equal(alone.sizes[0], together.sizes[row])
                self.promises.expect(same, WINDOWED, f"sample {samples[row]} differs between a batch and alone")

    def _check_on_gpu(self, samples: list[int]) -> None:
        images, targets, numbers = self.batch(samples)
        parameters = self.drawn(numbers)
        wanted = self.augmentation.apply(images, targets, parameters)
        with self.promises.works(ON_GPU):
            found = self.augmentation.apply(images.cuda(), targets.cuda(), parameters)
        same = all(_a_level_apart(one.cpu(), other) for one, other in zip(found, wanted, strict=True))
        self.promises.expect(same, ON_GPU, f"they differ ({self._words()})")

    def _words(self) -> str:
        kind = "soft labels" if self.soft else "class numbers"
        return f"{'x'.join(map(str, self.source.shape))} {str(self.dtype).removeprefix('torch.')}, {kind}"


@contextmanager
def _generators(promises: Promises, seed: int) -> Iterator[None]:
    """Within ``with``, the global generators start at ``seed`` and must not be used; then they are put back."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        state = _global_state()
        yield
        for name, value in _global_state().items():
            promises.expect(value == state[name], KEYED, f"{name}'s was used")
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


def _flat(groups: Sequence[Sequence[int]]) -> list[int]:
    return [sample for group in groups for sample in group]


def _global_state() -> dict[str, Any]:
    states: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch.get_rng_state().numpy().tobytes(),
        "Python": random.getstate,
        "NumPy": lambda: [np.asarray(part).tobytes() for part in np.random.get_state()],
    }
    return {name: state() for name, state in states.items()}


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether two results agree but for rounding, which may depend on how many images share a call."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype == torch.uint8:
        return int((one.int() - other.int()).abs().max()) <= 1
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def _a_level_apart(one: Tensor, other: Tensor) -> bool:
    """Return whether two results agree to a grey level, a 255th of what is 1 or of the largest number."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    level = 1 if one.dtype == torch.uint8 else max(1.0, float(other.abs().max())) / 255
    return float((one.double() - other.double()).abs().max()) <= 1.001 * level
