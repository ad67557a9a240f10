"""check_marginalization names the promise that a broken one breaks."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from engine.interfaces import Marginalization
from engine.testing import BrokenPromise, check_marginalization


class Noisy(Marginalization):
    """A right one that draws."""

    def views(self, images):
        yield images
        yield images + torch.rand_like(images)


class Edits(Marginalization):
    def views(self, images):
        yield images.mul_(0.5)


class GivesNothing(Marginalization):
    def views(self, images):
        return []


class ChangesType(Marginalization):
    def views(self, images):
        yield images.half()


class StacksViews(Marginalization):
    def views(self, images):
        yield torch.cat([images, images.flip(3)])


class LooksAtPixels(Marginalization):
    def views(self, images):
        yield images
        if images[0].mean() > images[-1].mean():
            yield images.flip(3)


class Remembers(Marginalization):
    calls = 0

    def views(self, images):
        self.calls += 1
        yield images * self.calls


class MixesImages(Marginalization):
    def views(self, images):
        yield images - images.mean(0)


class LeavesItTraining(Marginalization):
    @contextmanager
    def sampling(self, model):
        model.train()
        yield


class LeavesOtherWeights(Marginalization):
    @contextmanager
    def sampling(self, model):
        model[0].weight.data.mul_(2)
        yield


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Edits, "never edits its images"),
        (GivesNothing, "yields at least one view.*there was none"),
        (ChangesType, r"of their type; .* became torch.float16"),
        (StacksViews, r"of as many images.*4 images .* became torch.float32 \[8, 1, 13, 9\]"),
        (LooksAtPixels, "depend on the images' shape alone"),
        (Remembers, "comes from torch's generator"),
        (MixesImages, "row i of a view is of image i alone"),
        (LeavesItTraining, "comes back from sampling.*another mode"),
        (LeavesOtherWeights, "comes back from sampling.*changed 0.weight"),
    ],
)
def test_the_broken_promise_is_named(broken, words):
    with pytest.raises(BrokenPromise, match=f"{broken.__name__} breaks a promise: .*{words}"):
        check_marginalization(broken())


class AsTheyAre(Marginalization):
    """Nothing but the defaults."""


@pytest.mark.parametrize("right", [Noisy, AsTheyAre])
def test_right_ones_pass(right):
    check_marginalization(right())
