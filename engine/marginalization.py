"""What training varied at random, averaged over in an evaluation: several views of an image, one mean of their scores.

The members that a command lists (``marginalize=[multi_scale,flip]``) combine: each view that one makes is what the next
one makes its views of. Views are made and computed one after the other, so that memory holds one of them at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UsageError
from engine.interfaces import Batch, LossFunction, Marginalization
from engine.layers import modes_kept, torch_draws_kept
from engine.loader import TestLoader
from engine.options import Options
from engine.randomness import Key, seed_torch


def build_views(
    options: Options, model: nn.Module, test: TestLoader, loss: LossFunction, device: torch.device
) -> Views:
    """Return what an evaluation averages over, tried out on a test image with a model that is still on the CPU.

    Raises UsageError for views that cannot be made of the images, or that the model cannot take.
    """
    members = {name: choice.build() for name, choice in options.marginalize.items()}
    softmax = options.evaluate.average == "softmax" and loss.softmax
    views = Views(members, "softmax" if softmax else "outputs", Key.of(options.run.seed).at("marginalize"), device)
    if members:
        image = test.batch_at(0).images[:1].to("cpu", torch.float32)
        with modes_kept(model):
            views.try_out(model.eval(), image)
    return views


class Views:
    """Computes the outputs that an evaluation scores, averaged over all combinations of its members' views.

    average "softmax": the log of the mean of the views' softmax probabilities, whose cross-entropy is the negative log
    of the averaged probability; "outputs": the mean of the outputs themselves. Of a model with several heads each is
    averaged. With no members a batch has one view, itself, and the model's outputs are given as they are.
    """

    def __init__(self, members: Mapping[str, Marginalization], average: str, key: Key, device: torch.device) -> None:
        self.members = members
        self._average, self._key, self._device = average, key, device

    @contextmanager
    def sampling(self, model: nn.Module) -> Iterator[None]:
        """Within ``with``, ``outputs`` may be called, the model being in evaluation mode; draws outside do not change.

        Raises UsageError if a member has nothing to do with this model.
        """
        if not self.members:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(torch_draws_kept(self._device))
            for member in self.members.values():
                stack.enter_context(member.sampling(model))
            yield

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Return the model's outputs for a batch: a tensor, or a list of tensors with the main head first.

        What torch draws for a view depends on (the key, the number of the batch's first image, the view's place) and,
        as torch's generators fill whole tensors, on how many images the batch has.
        """
        if not self.members:
            return model(batch.images)
        views = combined(list(self.members.items()), batch.images)
        key = self._key.at(int(batch.samples[0]))
        totals: list[Tensor] = []
        count, single = 0, True
        while True:
            seed_torch(key.at(count), self._device)
            view = next(views, None)
            if view is None:
                break
            given = _computed(model, view[0], batch.images[0, 0].numel() * len(batch))
            del view
            single = isinstance(given, Tensor)
            totals = self._added(totals, [given] if single else given)
            count += 1
        means = [total - math.log(count) if self._average == "softmax" else total / count for total in totals]
        return means[0] if single else means

    def _added(self, totals: Sequence[Tensor], heads: Sequence[Tensor]) -> list[Tensor]:
        wide = [head.to(torch.promote_types(head.dtype, torch.float32)) for head in heads]
        if self._average == "softmax":
            wide = [head.log_softmax(1) for head in wide]
            return [torch.logaddexp(t, h) for t, h in zip(totals, wide, strict=True)] if totals else wide
        return [t + h for t, h in zip(totals, wide, strict=True)] if totals else wide

    @torch.no_grad()
    def try_out(self, model: nn.Module, images: Tensor) -> None:
        """Compute a view of each size of an image like ``images``, and leave the model as it is.

        Raises UsageError, naming the member that made it so, for a size that the model cannot take.
        """
        if not self.members:
            return
        image = images[:1]
        seen = {image.shape}
        expected = _shapes(model(image))
        with self.sampling(model):
            for view, member in combined(list(self.members.items()), image):
                if view.shape in seen:
                    continue
                seen.add(view.shape)
                size = f"{view.shape[2]}x{view.shape[3]}"
                remedy = "leave it out, or choose a model that pools over the whole image"
                try:
                    shapes = _shapes(model(view))
                except (RuntimeError, ValueError) as error:  # what torch raises for sizes that do not fit
                    reason = " ".join(str(error).split("\n")[0].split())
                    raise UsageError(
                        f"marginalize.{member}: the model cannot take its views of {size} pixels ({reason}): {remedy}"
                    ) from error
                if shapes != expected:
                    raise UsageError(
                        f"marginalize.{member}: for its views of {size} pixels the model gives outputs of shape "
                        f"{shapes} instead of {expected}: {remedy}"
                    )


def combined(
    members: Sequence[tuple[str, Marginalization]], images: Tensor, resized_by: str = ""
) -> Iterator[tuple[Tensor, str]]:
    """Yield each view of the members' product, the last member's varying fastest, and who gave it its size.

    At most one view of each member exists at a time. Raises UsageError for a member that gives no view.
    """
    if not members:
        yield images, resized_by
        return
    (name, member), *rest = members
    given = False
    for view in member.views(images):
        given = True
        yield from combined(rest, view, name if view.shape != images.shape else resized_by)
    if not given:
        raise UsageError(f"marginalize.{name}: it gives no view of an image; leave it out")


def _computed(model: nn.Module, images: Tensor, pixels: int) -> Any:
    """Return the model's outputs for images, of which it is given as many at a time as have ``pixels`` in all.

    So the activations of views that are larger than the images take no more memory than those of the images.
    """
    at_once = max(1, pixels // images[0, 0].numel())
    if at_once >= len(images):
        return model(images)
    parts = [model(part) for part in images.split(at_once)]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return [torch.cat(heads) for heads in zip(*parts, strict=True)]


def _shapes(outputs: Any) -> list[list[int]]:
    heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return [list(head.shape) for head in heads]
