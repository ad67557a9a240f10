"""Checks a way to marginalise: views of each image on its own, and a model that comes back as it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.interfaces import Marginalization
from engine.options import Marginalize
from engine.testing.promises import Promises

SHAPES = ((1, 13, 9), (3, 8, 11))  # (channels, height, width)
IMAGES = 4

UNEDITED = "views() never edits its images"
SHAPED = "views() yields at least one view, each [n, c, h, w] of as many images and of their type"
ALIKE = "how many views there are, and their sizes, depend on the images' shape alone"
SEEDED = "what is drawn comes from torch's generator"
APART = "row i of a view is of image i alone, unless it draws"
LEFT = "the model comes back from sampling() as it was"


def check_marginalization(
    marginalization: Marginalize | Marginalization, *, shapes: Sequence[tuple[int, int, int]] = SHAPES
) -> None:
    """Check what gives views with float images of each shape, and its context with a small model that has dropout.

    Promises: ``views`` edits nothing and yields float [n, c, h, w] views, as many and of the same sizes for any
    images of a shape, the same ones if torch's generator starts alike; an image's views do not depend on the others'
    in the batch unless they are drawn; ``sampling`` leaves weights, statistics and every layer's mode as they were.
    Options are built anew for each shape. Raises BrokenPromise.
    """
    promises = Promises(marginalization)
    for number, shape in enumerate(shapes):
        built = marginalization.build() if isinstance(marginalization, Marginalize) else marginalization
        generator = torch.Generator().manual_seed(number)
        images = torch.rand(IMAGES, *shape, generator=generator)
        for dtype in (torch.float32, torch.float64):
            _check_views(promises, built, images.to(dtype))
        _check_sampling(promises, built, shape)


def _check_views(promises: Promises, built: Marginalization, images: Tensor) -> None:
    words = f"{'x'.join(map(str, images.shape[1:]))} {str(images.dtype).removeprefix('torch.')}"
    before = images.clone()
    first = _views(promises, built, images, 0)
    promises.expect(torch.equal(images, before), UNEDITED, f"it changed images of {words}")
    promises.expect(len(first) > 0, SHAPED, f"there was none of images of {words}")
    for view in first:
        right = view.ndim == 4 and len(view) == len(images) and view.dtype == images.dtype
        seen = f"{len(images)} images of {words} became {view.dtype} {list(view.shape)}"
        promises.expect(right and view.shape[1] == images.shape[1], SHAPED, seen)
    again = _views(promises, built, images, 0)
    same = len(again) == len(first) and all(map(torch.equal, first, again))
    promises.expect(same, SEEDED, f"a second call differs though torch's generator started alike ({words})")
    other = _views(promises, built, 1 - images, 0)
    sizes = [view.shape for view in first]
    promises.expect([view.shape for view in other] == sizes, ALIKE, f"other images of {words} have other views")
    reseeded = _views(promises, built, images, 1)
    if len(reseeded) == len(first) and all(map(torch.equal, first, reseeded)):  # nothing is drawn
        single = _views(promises, built, images[2:3], 0)
        close = len(single) == len(first) and all(
            torch.allclose(view[2:3], alone, rtol=1e-5, atol=1e-5) for view, alone in zip(first, single, strict=True)
        )
        promises.expect(close, APART, f"an image alone differs from it in a batch ({words})")


def _views(promises: Promises, built: Marginalization, images: Tensor, seed: int) -> list[Tensor]:
    with promises.works("views() takes float images of any shape"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [view.clone() for view in built.views(images)]


def _check_sampling(promises: Promises, built: Marginalization, shape: tuple[int, int, int]) -> None:
    layers = [nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers).eval()
    layers[1].train()  # whatever mode a layer is in, it is to be in it afterwards
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with promises.works("sampling() takes a model with dropout"), built.sampling(model):
        pass
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    promises.expect(not changed, LEFT, f"it changed {', '.join(changed)}")
    promises.expect([m.training for m in model.modules()] == modes, LEFT, "layers are in another mode than before")
