"""How images are prepared for a Caffe network: what its files say, what the user adds, and what is assumed and told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import UsageError

from .composing import Composition
from .graph import Graph

if TYPE_CHECKING:
    from . import Import

PHOTOGRAPHS = 128  # pixels from which on a network is taken for one of photographs, as ImageNet's
SQUARE = 256  # to which Caffe's examples warp ImageNet's photographs


@dataclass(frozen=True)
class Card:
    """From an image of the data to what the network takes.

    resize: the shorter side, or height and width, or nothing. crop: the side of the middle that is cut out; 0: none.
    order: "bgr" or "rgb"; "" for gray. mean: of each channel, 0 to 255, in that order; of a mean image, which the
    network subtracts itself, zeros. Then pixels are multiplied by ``scale``. mirror: in training.
    """

    resize: list[int]
    crop: int
    order: str
    mean: list[float]
    mean_image: str
    scale: float
    mirror: bool
    classes: list[str]

    def facts(self) -> dict[str, Any]:
        """Return it for a checkpoint's manifest."""
        return {
            "order": self.order, "mean": self.mean, "mean_image": bool(self.mean_image), "scale": self.scale,
            "resize": self.resize, "crop": self.crop, "mirror": self.mirror, "classes": self.classes,
        }  # fmt: skip

    def augment(self, into: Composition, training: bool = False) -> None:
        """Add the augmentations that prepare images so; ``training``: with random crops and mirror images."""
        names: list[str] = []
        if self.resize:
            names.append("resize")
            into.values["augment.resize.size"] = self.resize[0]
            if len(self.resize) == 2:
                into.values["augment.resize.width"] = self.resize[1]
        if self.crop:
            name = "random_crop" if training else "center_crop"
            names.append(name)
            into.values[f"augment.{name}.size"] = self.crop
        names += ["flip"] if training and self.mirror else []
        names += ["channel_order"] if self.order == "bgr" else []
        names.append("normalize")
        into.values["augment.normalize.mean"] = [value / 255 for value in self.mean]
        into.values["augment.normalize.std"] = [1 / (255 * self.scale)] * len(self.mean)
        into.choices["augment"] = names


def card_of(job: Import, graph: Graph, channels: int, side: int, tell: Callable[[str], None]) -> Card:
    """Return how images of so many channels become what the network takes, squares of ``side`` pixels at most.

    ``tell`` hears what no file says and is assumed. Raises UsageError for options that do not fit the network.
    """
    transform, photographs = graph.transform, side >= PHOTOGRAPHS
    order = ""
    if channels == 3:
        order = job.channels or ("bgr" if photographs else "rgb")
        if not job.channels:
            kind = "Caffe's networks for photographs" if photographs else "Caffe's networks for CIFAR"
            tell(f"channels={order} is assumed, as of {kind}: no file says it")
    resize = list(job.resize)
    if not resize and photographs:
        resize = [max(SQUARE, side)] * 2
        tell(f"resize=[{resize[0]},{resize[1]}] is assumed, as in Caffe's examples: no file says it")
    if len(resize) > 2 or any(size < 1 for size in resize):
        raise UsageError(f"resize={resize}: give the shorter side as [256], or height and width as [256,256]")
    return Card(
        resize=resize,
        crop=job.crop
        if job.crop is not None
        else (side if photographs or (transform and transform.has("crop_size")) else 0),
        order=order,
        **_mean(job, graph, channels, tell),
        scale=_scale(job, graph),
        mirror=bool(transform and transform.get("mirror")),
        classes=_classes(job.classes),
    )


def _scale(job: Import, graph: Graph) -> float:
    scale = job.scale if job.scale is not None else graph.transform.get("scale") if graph.transform else 1.0
    if scale <= 0:
        raise UsageError(f"scale={scale}: must be above 0")
    return float(scale)


def _mean(job: Import, graph: Graph, channels: int, tell: Callable[[str], None]) -> dict[str, Any]:
    values = list(job.mean_values)
    if values and job.mean:
        raise UsageError("mean and mean_values exclude each other: give one of them")
    if job.mean:
        return {"mean": [0.0] * channels, "mean_image": str(Path(job.mean).expanduser().absolute())}
    if not values and graph.transform:
        values = list(graph.transform.all("mean_value"))
        if not values and graph.transform.has("mean_file"):
            name = graph.transform.get("mean_file")[:200]
            raise UsageError(
                f"the prototxt subtracts mean_file '{name}': give that file as mean=FILE, or its channels' means as "
                "mean_values"
            )
    if not values:
        tell("no mean is subtracted: no file says one; give mean=FILE or mean_values=[...] if there was one")
    values = values * channels if len(values) == 1 else values or [0.0] * channels
    if len(values) != channels:
        raise UsageError(f"mean_values={values}: give one for each of {channels} channels, or one for all")
    return {"mean": [float(value) for value in values], "mean_image": ""}


def _classes(file: str) -> list[str]:
    if not file:
        return []
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UsageError(
            f"classes={file} cannot be read ({error.strerror}): give a file with a name on each line"
        ) from error
    return [line.strip() for line in lines if line.strip()]
